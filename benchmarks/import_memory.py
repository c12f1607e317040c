"""Peak memory and time of importing generated crops, for several numbers of crops.

The crops are cheap drawings, no two alike, written as JPEGs into class folders of a temporary folder; each import runs
in a process of its own, whose peak of resident memory (VmHWM) the kernel keeps. Pages of files that were read or
written are the kernel's cache and do not count.

The last line draws a straight line through the smallest and the largest import to the 171,374 crops of the published
data set. That is an extrapolation, not a measurement: what grows faster than linearly does not show in it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from common import base_parser, finish, machine, say, table, versions

FULL_SET = 171_374
GOAL_MB = 1000
CODES = ("BLA", "EOS", "LYT", "MON", "NGS", "PMO")


def generate(folder: Path, count: int, seed: int) -> None:
    """Write drawings: an uneven background, grain, a few blurred discs for cells."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFilter

    random = np.random.default_rng(seed)
    side = 250
    for code in CODES:
        (folder / code).mkdir(parents=True)
    for index in range(count):
        coarse = random.integers(170, 230, (6, 6, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
        draw = ImageDraw.Draw(image)
        for _ in range(int(random.integers(4, 9))):
            y, x, radius = random.integers(0, side), random.integers(0, side), random.integers(15, 60)
            colour = tuple(int(value) for value in random.integers(60, 220, 3))
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
        image = image.filter(ImageFilter.BoxBlur(2))
        grain = random.integers(-6, 7, (side, side, 1), dtype=np.int16)
        pixels = np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / CODES[index % len(CODES)] / f"crop_{index:06d}.jpg", quality=95)


def peak_mb() -> float:
    """Highest resident memory of this process so far, in MB (10^6 bytes)."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    import resource

    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 1e6


def inside(arguments: argparse.Namespace) -> None:
    """Import, and print what it took; runs in a process of its own."""
    from hematokit import import_crops

    idle = peak_mb()
    along: dict[str, dict[str, float]] = {}
    curve: list[tuple[int, float]] = []
    me = psutil.Process()
    last = time.perf_counter()

    def progress(done: int, total: int, message: str) -> None:
        # Time and peak by what the import says that it is doing; while it reads, it counts rejects or says nothing.
        nonlocal last
        now = time.perf_counter()
        name = message if message and not message[0].isdigit() else "reading and writing"
        stage = along.setdefault(name, {"seconds": 0.0, "peak_mb": 0.0})
        stage["seconds"] += now - last
        if done == total or done % 250 == 0:
            stage["peak_mb"] = peak_mb()
        if name == "reading and writing" and done % 1000 == 0 and done:
            curve.append((done, me.memory_info().rss / 1e6))
        last = now

    cpu = time.process_time()
    summary = import_crops(
        arguments.inside,
        arguments.store,
        codec=arguments.codec,
        near_duplicates=not arguments.no_near,
        progress=progress,
    )
    result = {
        "crops": summary.files,
        "added": summary.added,
        "near_duplicates": summary.near_duplicates,
        "idle_mb": idle,
        "peak_mb": peak_mb(),
        "seconds": summary.seconds,
        "cpu_seconds": time.process_time() - cpu,
        "stages": along,
        "resident_mb_while_reading": curve,
    }
    print(json.dumps(result))


def main() -> None:
    parser = base_parser(__doc__.splitlines()[0])
    parser.add_argument("--crops", type=int, nargs="+", default=[2000, 8000], help="numbers of crops to import")
    parser.add_argument("--codec", choices=["raw", "zstd"], default="raw")
    parser.add_argument("--no-near", action="store_true", help="do not search for near duplicates")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--store", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside is not None:
        inside(arguments)
        return
    numbers = sorted(arguments.crops)
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="hematokit-bench-") as temporary:
        for number in numbers:
            folder = Path(temporary) / str(number)
            say(f"drawing {number} crops")
            generate(folder / "crops", number, arguments.seed)
            say(f"importing {number} crops")
            command = [sys.executable, __file__, "--inside", str(folder / "crops"), "--store", str(folder / "s.zarr")]
            command += ["--codec", arguments.codec, *(["--no-near"] if arguments.no_near else [])]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found.append(json.loads(done.stdout))
    least, most = found[0], found[-1]
    growth = (most["peak_mb"] - least["peak_mb"]) / max(1, most["crops"] - least["crops"]) * 1000
    estimate = most["peak_mb"] + max(0.0, growth) * (FULL_SET - most["crops"]) / 1000
    seconds = most["seconds"] / most["crops"] * FULL_SET
    result = {
        "machine": machine(),
        "versions": versions("tensorstore", "zarr", "pillow", "pyarrow", "pandas"),
        "settings": {
            "seed": arguments.seed,
            "crops": numbers,
            "codec": arguments.codec,
            "near_duplicates": not arguments.no_near,
        },
        "imports": found,
        "growth_mb_per_1000_crops": growth,
        "extrapolated": {"crops": FULL_SET, "peak_mb": estimate, "hours": seconds / 3600},
        "goal": {
            "wanted_mb": GOAL_MB,
            "largest_measured_met": most["peak_mb"] <= GOAL_MB,
            "extrapolated_met": estimate <= GOAL_MB,
        },
    }
    rows = [["crops", "added", "idle MB", "peak MB", "s per 1,000", "CPU s per 1,000", "near duplicates"]]
    for entry in found:
        thousands = entry["crops"] / 1000
        rows.append(
            [
                f"{entry['crops']}",
                f"{entry['added']}",
                f"{entry['idle_mb']:.0f}",
                f"{entry['peak_mb']:.0f}",
                f"{entry['seconds'] / thousands:.2f}",
                f"{entry['cpu_seconds'] / thousands:.2f}",
                f"{entry['near_duplicates']}",
            ]
        )
    lines = [table(rows), ""]
    for entry in found:
        stages = ", ".join(
            f"{name} {stage['seconds']:.1f} s (peak so far {stage['peak_mb']:.0f} MB)"
            for name, stage in entry["stages"].items()
        )
        lines.append(f"{entry['crops']} crops by stage: {stages}")
    curve = ", ".join(f"{done}: {size:.0f}" for done, size in most["resident_mb_while_reading"])
    lines += [
        f"Resident MB while reading the largest, by crops done: {curve}",
        f"Growth: {growth:.1f} MB per 1,000 crops",
        f"Extrapolated, not measured: {FULL_SET} crops would peak at {estimate:.0f} MB and take "
        f"{seconds / 60:.0f} minutes here; wanted: {GOAL_MB} MB at most "
        f"({'met' if estimate <= GOAL_MB else 'MISSED'} by extrapolation)",
    ]
    finish(arguments, result, lines)


if __name__ == "__main__":
    main()
