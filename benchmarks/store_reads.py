"""Random batches of real patches: the store beside a folder of JPEGs, WebDataset, LMDB and a memory map.

Everything is built in a temporary folder from the same crops, and read in turns. The reading is done twice, each in a
process of its own: pinned to one core (images/s per core), and with all cores.

What is fair about it, and what is not:

- The page cache is hot: files were written a moment ago and fit into memory. That is the second epoch and all later
  ones of a training whose set fits into memory. ``--cold`` drops the pages before each turn instead.
- The store, the memory map and "LMDB raw" hold pixels, five times the bytes of the JPEGs: they trade disk for
  processor time. The JPEG contestants decode at every read, as trainings on folders do. "LMDB jpeg" and "WebDataset
  jpeg" show how much of it is the container, "LMDB raw" and "memmap" how much is the store's own cost.
- WebDataset has no random access; it reads shards from front to end through a shuffle buffer, its usual use. That is
  sequential reading where the others jump.
- torchvision yields tensors (3, H, W), and is not charged for turning them into (H, W, 3).
- LMDB, memmap and the JPEG folders check nothing when they read; the store checks a CRC-32C per patch.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from common import Clock, base_parser, crop_folder, finish, machine, say, spread, table, verdict, versions

SIDE = 250
Reader = Callable[[Any], Any]
REFERENCE = "folder, PIL"
GOAL = 3.0


def build(folder: Path, crops: Path) -> None:
    """Write every contestant's files from the same crops, in the same order."""
    import lmdb
    import numpy as np
    from PIL import Image

    from hematokit import import_crops, open_store

    for codec in ("raw", "zstd"):
        import_crops(crops, folder / f"{codec}.zarr", codec=codec, near_duplicates=False)
    store = open_store(folder / "raw.zarr")
    cells = store.cells.sort_values("row")
    # Copied, so that every contestant reads the same disk. The table's sources are absolute paths: joined to a folder
    # as they are, they would name the originals, so the copy's name is made here and must not exist yet.
    paths = []
    originals = [(crops / source).resolve() for source in cells["source"]]
    for original in originals:
        target = folder / "jpeg" / original.relative_to(crops.resolve())
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as copy:
            copy.write(original.read_bytes())
        paths.append(str(target))
    with (folder / "rows.json").open("w", encoding="utf-8") as stream:
        json.dump({"paths": paths, "rows": cells["row"].tolist()}, stream)
    pixels = np.lib.format.open_memmap(
        folder / "patches.npy", mode="w+", dtype=np.uint8, shape=(len(paths), SIDE, SIDE, 3)
    )
    encoded = [Path(path).read_bytes() for path in paths]
    for index, data in enumerate(encoded):
        pixels[index] = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    pixels.flush()
    for kind in ("raw", "jpeg"):
        with lmdb.open(str(folder / f"{kind}.lmdb"), map_size=2**36) as database, database.begin(write=True) as edit:
            for index, data in enumerate(encoded):
                edit.put(b"%08d" % index, pixels[index].tobytes() if kind == "raw" else data)
    order = np.random.default_rng(0).permutation(len(paths))
    for shard, members in enumerate(np.array_split(order, max(1, len(order) // 160))):
        with tarfile.open(folder / f"shard-{shard:04d}.tar", "w") as archive:
            for index in members:
                entry = tarfile.TarInfo(f"{index:08d}.jpg")
                entry.size = len(encoded[index])
                archive.addfile(entry, io.BytesIO(encoded[index]))


def open_contestants(folder: Path, batch: int, threads: int, seed: int) -> dict[str, Reader]:
    """Return readers: positions (n,) -> array or tensor of n images."""
    import lmdb
    import numpy as np
    import torch
    import webdataset
    from PIL import Image
    from torchvision.io import decode_jpeg, read_file

    from hematokit import open_store

    index = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
    paths, rows = index["paths"], np.asarray(index["rows"], np.int64)

    def decode(source: str | io.BytesIO) -> np.ndarray:
        with Image.open(source) as image:
            return np.asarray(image.convert("RGB"))

    def decode_torch(path: str) -> torch.Tensor:
        return decode_jpeg(read_file(path))

    # A pool of one would only add overhead; a reader on several cores uses several threads, as the store does inside.
    pool = ThreadPoolExecutor(threads) if threads > 1 else None
    each: Callable[..., Iterator[Any]] = map if pool is None else pool.map

    raw, zstd = open_store(folder / "raw.zarr"), open_store(folder / "zstd.zarr")
    pixels = np.load(folder / "patches.npy", mmap_mode="r")
    values = lmdb.open(str(folder / "raw.lmdb"), readonly=True, lock=False, readahead=False)
    files = lmdb.open(str(folder / "jpeg.lmdb"), readonly=True, lock=False, readahead=False)

    def lmdb_raw(chosen: Any) -> np.ndarray:
        # Buffers point into the map: each image is copied once, into its place.
        out = np.empty((len(chosen), SIDE, SIDE, 3), np.uint8)
        with values.begin(buffers=True) as view:
            for place, position in enumerate(chosen):
                out[place] = np.frombuffer(view.get(b"%08d" % position), np.uint8).reshape(SIDE, SIDE, 3)
        return out

    def lmdb_jpeg(chosen: Any) -> np.ndarray:
        with files.begin() as view:
            found = [view.get(b"%08d" % position) for position in chosen]
        return np.stack(list(each(lambda data: decode(io.BytesIO(data)), found)))

    shards = [str(path) for path in sorted(folder.glob("shard-*.tar"))]
    stream = iter(
        webdataset.WebDataset(shards, resampled=True, shardshuffle=False, seed=seed)
        .shuffle(500)
        .decode("rgb8")
        .to_tuple("jpg")
        .batched(batch)
    )
    return {
        REFERENCE: lambda chosen: np.stack(list(each(decode, [paths[i] for i in chosen]))),
        "folder, torchvision": lambda chosen: torch.stack(list(each(decode_torch, [paths[i] for i in chosen]))),
        "WebDataset jpeg": lambda chosen: next(stream)[0],
        "LMDB jpeg": lmdb_jpeg,
        "store zstd": lambda chosen: zstd.read_rows(rows[chosen]),
        "store raw": lambda chosen: raw.read_rows(rows[chosen]),
        "LMDB raw": lmdb_raw,
        "memmap (limit)": lambda chosen: pixels[chosen],
    }


def check(contestants: dict[str, Reader], chosen: Any) -> dict[str, int]:
    """Largest difference of a pixel from PIL's, so that nobody is fast by reading something else."""
    import numpy as np

    expected = contestants[REFERENCE](chosen).astype(int)
    found = {}
    for name, read in contestants.items():
        if name == "WebDataset jpeg":  # chooses itself what it reads
            continue
        images = np.asarray(read(chosen))
        if images.shape[1] == 3:
            images = images.transpose(0, 2, 3, 1)
        found[name] = int(np.abs(images.astype(int) - expected).max())
        if "torchvision" not in name and found[name]:
            sys.exit(f"{name} reads other pixels than PIL")
    return found


def drop_pages(folder: Path) -> None:
    """Ask the kernel to forget the files' pages."""
    for path in folder.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(handle)


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Time all contestants in turns; runs in a process of its own."""
    import numpy as np
    import torch

    # The pool below is the parallelism; threads inside of stacking 64 small images would only wait for each other.
    torch.set_num_threads(1)
    contestants = open_contestants(folder, arguments.batch, arguments.threads, arguments.seed)
    total = len(json.loads((folder / "rows.json").read_text(encoding="utf-8"))["paths"])
    random = np.random.default_rng(arguments.seed)
    differences = check(contestants, random.choice(total, arguments.batch, replace=False))
    for read in contestants.values():
        read(np.arange(arguments.batch))
    times: dict[str, list[Clock]] = {name: [] for name in contestants}
    names = list(contestants)
    for number in range(arguments.rounds):
        # All contestants read the same cells in a round.
        plan = [random.choice(total, arguments.batch, replace=False) for _ in range(arguments.batches)]
        start = number % len(names)
        for name in names[start:] + names[:start]:
            read = contestants[name]
            if arguments.cold:
                drop_pages(folder)
            times[name].append(Clock.of(lambda read=read, plan=plan: [read(chosen) for chosen in plan]))
    images = arguments.batch * arguments.batches
    result: dict[str, Any] = {"largest_difference_from_PIL": differences, "contestants": {}}
    for name, turns in times.items():
        base = times[REFERENCE]
        result["contestants"][name] = {
            "images_per_second": spread([images / turn.wall for turn in turns]),
            "images_per_cpu_second": spread([images / max(turn.cpu, 1e-9) for turn in turns]),
            "ratio_to_PIL": spread([other.wall / turn.wall for turn, other in zip(turns, base, strict=True)]),
            "cpu_ratio_to_PIL": spread([other.cpu / turn.cpu for turn, other in zip(turns, base, strict=True)]),
        }
    return result


def in_new_process(folder: Path, arguments: argparse.Namespace, cores: list[int]) -> dict[str, Any]:
    """Measure on these cores only: threads that libraries start inherit the restriction."""
    command = [sys.executable, __file__, "--inside", str(folder), "--cores", *map(str, cores)]
    command += ["--threads", str(len(cores)), "--seed", str(arguments.seed), "--rounds", str(arguments.rounds)]
    command += ["--batch", str(arguments.batch), "--batches", str(arguments.batches)]
    if arguments.cold:
        command.append("--cold")
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout))


def report(title: str, found: dict[str, Any]) -> list[str]:
    rows = [["contestant", "images/s", "quartiles", "x PIL", "quartiles", "images/CPU s", "x PIL (CPU)"]]
    for name, entry in found["contestants"].items():
        speed, ratio = entry["images_per_second"], entry["ratio_to_PIL"]
        rows.append(
            [
                name,
                f"{speed['median']:.0f}",
                f"{speed['low']:.0f}-{speed['high']:.0f}",
                f"{ratio['median']:.2f}",
                f"{ratio['low']:.2f}-{ratio['high']:.2f}",
                f"{entry['images_per_cpu_second']['median']:.0f}",
                f"{entry['cpu_ratio_to_PIL']['median']:.2f}",
            ]
        )
    return [title, table(rows), ""]


def main() -> None:
    parser = base_parser(__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=12, help="turns of each contestant")
    parser.add_argument("--batch", type=int, default=64, help="patches in a batch")
    parser.add_argument("--batches", type=int, default=4, help="batches in a turn")
    parser.add_argument("--cold", action="store_true", help="drop the page cache before each turn (maps keep theirs)")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--cores", type=int, nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside is not None:
        # Before any library starts threads: they inherit it.
        os.sched_setaffinity(0, arguments.cores)
        print(json.dumps(measure(arguments.inside, arguments)))
        return
    crops = crop_folder()
    with tempfile.TemporaryDirectory(prefix="hematokit-bench-") as temporary:
        folder = Path(temporary)
        say(f"building the contestants' files from {crops.name}")
        build(folder, crops)
        sizes = {
            "jpeg folder": _size(folder / "jpeg"),
            "store raw": _size(folder / "raw.zarr"),
            "store zstd": _size(folder / "zstd.zarr"),
            "memmap": _size(folder / "patches.npy"),
            "LMDB raw": _size(folder / "raw.lmdb"),
        }
        cells = sum(1 for _ in (folder / "jpeg").rglob("*.jpg"))
        cores = sorted(os.sched_getaffinity(0))
        result: dict[str, Any] = {
            "machine": machine(),
            "versions": versions("tensorstore", "zarr", "pillow", "torchvision", "webdataset", "lmdb", "numpy"),
            "settings": {
                "seed": arguments.seed,
                "patches": cells,
                "batch": arguments.batch,
                "batches_per_turn": arguments.batches,
                "rounds": arguments.rounds,
                "page_cache": "cold" if arguments.cold else "hot",
            },
            "megabytes": sizes,
        }
        say("reading, pinned to one core")
        result["one_core"] = in_new_process(folder, arguments, cores[-1:])
        if len(cores) > 1:
            say(f"reading, on all {len(cores)} cores")
            result["all_cores"] = in_new_process(folder, arguments, cores)
    ratio = result["one_core"]["contestants"]["store raw"]["ratio_to_PIL"]["median"]
    result["goal"] = {"store raw / PIL, one core": ratio, "wanted": GOAL, "met": ratio >= GOAL}
    lines = ["megabytes: " + ", ".join(f"{name} {size:.0f}" for name, size in sizes.items())]
    differences = result["one_core"]["largest_difference_from_PIL"]
    lines += ["largest difference from PIL's pixels: " + ", ".join(f"{k} {v}" for k, v in differences.items()), ""]
    lines += report("Pinned to one core:", result["one_core"])
    if "all_cores" in result:
        lines += report(
            f"All {len(cores)} cores (folders and LMDB jpeg with a pool of {len(cores)} threads):", result["all_cores"]
        )
    for codec in ("raw", "zstd"):
        found = result["one_core"]["contestants"][f"store {codec}"]["ratio_to_PIL"]
        lines.append(f"Goal, store {codec} at least {GOAL:g} times PIL on one core: {verdict(found, GOAL)}")
    finish(arguments, result, lines)


def _size(path: Path) -> float:
    files = [path] if path.is_file() else [item for item in path.rglob("*") if item.is_file()]
    # What is on the disk: LMDB's file is as long as its map.
    return sum(file.stat().st_blocks * 512 for file in files) / 1e6


if __name__ == "__main__":
    main()
