"""What the benchmarks share: the machine, interleaving, tables, JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

__all__ = [
    "Clock",
    "base_parser",
    "crop_folder",
    "finish",
    "interleave",
    "machine",
    "say",
    "spread",
    "table",
    "verdict",
    "versions",
]

REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Clock:
    """Wall and processor seconds of one turn; processor time counts all threads of this process.

    On a machine that others use, too, the processor time is the steadier of the two.
    """

    wall: float
    cpu: float

    @classmethod
    def of(cls, work: Callable[[], object]) -> Clock:
        """Time `work`."""
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        return cls(time.perf_counter() - wall, time.process_time() - cpu)


def interleave(rounds: int, contestants: Mapping[str, Callable[[], object]]) -> dict[str, list[Clock]]:
    """Time each contestant once per round, one after another, each round starting one further on.

    Whatever slows the machine down for a while meets all of them; ratios are taken within a round.
    """
    names = list(contestants)
    times: dict[str, list[Clock]] = {name: [] for name in names}
    for number in range(rounds):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            times[name].append(Clock.of(contestants[name]))
    return times


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median with the lower and upper quartile."""
    ordered = sorted(values)
    low, high = (
        statistics.quantiles(ordered, n=4, method="inclusive")[::2] if len(ordered) > 1 else (ordered[0], ordered[0])
    )
    return {"median": statistics.median(ordered), "low": low, "high": high}


def verdict(found: Mapping[str, float], goal: float) -> str:
    """Say whether a goal is met by the median, and whether the spread leaves doubt about it."""
    word = "met" if found["median"] >= goal else "MISSED"
    doubt = ", but the quartiles lie on both sides of the goal" if found["low"] < goal <= found["high"] else ""
    return f"{found['median']:.3f} ({found['low']:.3f}-{found['high']:.3f}), {word}{doubt}"


def machine() -> dict[str, Any]:
    """Name the processor, cores, memory, load and, if torch was imported, the GPU."""
    facts: dict[str, Any] = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "load_at_start": round(os.getloadavg()[0], 1),
        "system": platform.platform(),
        "python": platform.python_version(),
    }
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def versions(*packages: str) -> dict[str, str]:
    """Versions of distributions, "absent" where one is not installed."""
    found = {}
    for name in ("hematokit", *packages):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def base_parser(description: str) -> argparse.ArgumentParser:
    """A parser with ``--json`` and ``--seed``."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON document on standard output")
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    return parser


def crop_folder() -> Path:
    """Folder of real crops; ends the program with one line where it is absent."""
    folder = Path(os.environ.get("HEMATOKIT_TEST_DATA") or REPOSITORY.parent / "shared" / "data") / "matek_bm8"
    if not folder.is_dir():
        sys.exit(f"no real crops at {folder}; set HEMATOKIT_TEST_DATA to a folder that has matek_bm8/")
    return folder


def say(line: str = "") -> None:
    """Tell a person something, beside the results."""
    print(line, file=sys.stderr, flush=True)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Align columns; the first row is the head, the first column text."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def finish(arguments: argparse.Namespace, result: dict[str, Any], lines: Sequence[str]) -> None:
    """Print the result: JSON on standard output if asked for, else lines for a person."""
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    host = result["machine"]
    print(", ".join(f"{key} {value}" for key, value in host.items()))
    print(", ".join(f"{key} {value}" for key, value in result["versions"].items()))
    print(", ".join(f"{key} {value}" for key, value in result["settings"].items()))
    print()
    for line in lines:
        print(line)
