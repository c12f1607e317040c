"""Damaged real crops: how many are refused, in which coding, and what looking for damage adds to an import.

A crop counts as refused if `hematokit.imaging.reading.read_rgb` raises. Damage is done to the coded pixels, at random
places: bytes as zeros, a block of 4,096 bytes as zeros, the second half as zeros, cut off; and, which leaves fewer
traces, bytes removed, overwritten by text, and one byte changed. For the cost, all crops are imported with and without
the check, in turns.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import tifffile
from PIL import Image

from common import base_parser, crop_folder, finish, interleave, machine, spread, table, versions
from hematokit.errors import ImageError
from hematokit.imaging.reading import read_rgb
from hematokit.store import import_crops

Damage = Callable[[bytes, int, int, np.random.Generator], bytes]


def _over(data: bytes, start: int, stop: int, rng: np.random.Generator, new: bytes, old: int) -> bytes:
    at = int(rng.integers(start, max(start + 1, stop - old)))
    return data[:at] + new + data[min(at + old, stop) :]


def _block(data: bytes, start: int, stop: int, rng: np.random.Generator) -> bytes:
    at = int(rng.integers(start, stop)) // 4096 * 4096
    first, last = max(at, start), min(at + 4096, stop)
    return data[:first] + bytes(last - first) + data[last:]


DAMAGES: dict[str, Damage] = {
    "512 zeros": lambda data, a, b, rng: _over(data, a, b, rng, bytes(min(512, b - a)), 512),
    "a block of zeros": _block,
    "second half zeros": lambda data, a, b, rng: data[: (a + b) // 2] + bytes(b - (a + b) // 2) + data[b:],
    "cut": lambda data, a, b, rng: data[: int(rng.integers(a, b))],
    "512 removed": lambda data, a, b, rng: _over(data, a, b, rng, b"", 512),
    "512 of text": lambda data, a, b, rng: _over(data, a, b, rng, b"\r\n" * 256, 512),
    "1 byte": lambda data, a, b, rng: _over(data, a, b, rng, rng.bytes(1), 1),
}


def _jpeg_scan(data: bytes) -> int:
    at = 2
    while data[at + 1] != 0xDA:
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")


def coded(original: bytes, kind: str) -> tuple[bytes, int, int]:
    """Code a crop; return its bytes and where its coded pixels are."""
    if kind == "JPEG as published":
        return original, _jpeg_scan(original), len(original) - 2
    buffer, pixels = io.BytesIO(), Image.open(io.BytesIO(original))
    name, _, options = kind.partition(", ")
    if name == "TIFF":
        tifffile.imwrite(buffer, np.asarray(pixels), photometric="rgb", compression=options, rowsperstrip=64)
        with tifffile.TiffFile(io.BytesIO(buffer.getvalue())) as file:
            page = file.pages[0]
            start, count = page.dataoffsets[1], page.databytecounts[1]
        return buffer.getvalue(), start, start + count
    pixels.save(buffer, name, **({"quality": 85, "progressive": True} if options else {}))
    data = buffer.getvalue()
    if name == "JPEG":
        return data, _jpeg_scan(data), len(data) - 2
    return (data, 41, len(data) - 16) if name == "PNG" else (data, 54, len(data))


KINDS = ["JPEG as published", "JPEG, progressive", "PNG", "BMP"]
KINDS += [f"TIFF, {name}" for name in ("jpeg", "zlib", "lzw", "packbits", "lzma", "zstd", "none")]


def is_read(data: bytes) -> bool:
    try:
        read_rgb(data)
    except ImageError:
        return False
    return True


def import_all(crops: Path, *, check: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = mock.patch("hematokit.imaging.reading.find_damage", return_value=None)
        if check:
            import_crops(crops, Path(folder) / "store.zarr", near_duplicates=False)
        else:
            with found:
                import_crops(crops, Path(folder) / "store.zarr", near_duplicates=False)


def main() -> None:
    parser = base_parser(__doc__.partition("\n")[0])
    parser.add_argument("--crops", type=int, default=200, help="crops damaged in each way")
    parser.add_argument("--rounds", type=int, default=7, help="imports with and without the check; 0 leaves them out")
    arguments = parser.parse_args()
    files = sorted(crop_folder().rglob("*.jpg"))
    chosen = np.random.default_rng(arguments.seed).choice(len(files), arguments.crops, replace=False)
    originals = [files[index].read_bytes() for index in chosen]
    refused: dict[str, dict[str, int]] = {}
    for kind in KINDS:
        crops = [coded(data, kind) for data in originals]
        assert all(is_read(data) for data, _, _ in crops), f"an undamaged {kind} is refused"
        rng = np.random.default_rng(arguments.seed)
        refused[kind] = {
            name: sum(not is_read(damage(*crop, rng)) for crop in crops) for name, damage in DAMAGES.items()
        }
    lines = [table([["", *DAMAGES], *([kind, *map(str, row.values())] for kind, row in refused.items())])]
    result: dict[str, object] = {"refused": refused}
    if arguments.rounds:
        crops_of = crop_folder()
        times = interleave(
            arguments.rounds,
            {"with": lambda: import_all(crops_of, check=True), "without": lambda: import_all(crops_of, check=False)},
        )
        for clock in ("wall", "cpu"):
            ratios = [
                getattr(a, clock) / getattr(b, clock) for a, b in zip(times["with"], times["without"], strict=True)
            ]
            result[clock] = spread(ratios)
            lines.append(
                f"import of {len(files):,} crops, with the check relative to without, {clock}: "
                f"{spread(ratios)['median']:.3f} ({spread(ratios)['low']:.3f}-{spread(ratios)['high']:.3f})"
            )
    settings = {"crops": arguments.crops, "rounds": arguments.rounds, "seed": arguments.seed}
    finish(
        arguments,
        {"machine": machine(), "versions": versions("simplejpeg", "pillow", "imagecodecs"), "settings": settings}
        | result,
        lines,
    )


if __name__ == "__main__":
    main()
