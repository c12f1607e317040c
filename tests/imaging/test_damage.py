"""Images that are damaged or not complete are refused, and those that are only unusual are read."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from hematokit.errors import ImageError
from hematokit.evaluation.sources import ImageCells
from hematokit.imaging.fieldfiles import open_field
from hematokit.imaging.geometry import Box
from hematokit.imaging.reading import read_rgb
from hematokit.store import import_crops, open_store

Damage = Callable[[bytes, int, int, np.random.Generator], bytes]


def hole(data: bytes, start: int, stop: int, rng: np.random.Generator) -> bytes:
    at = int(rng.integers(start, stop - 512))
    return data[:at] + bytes(512) + data[at + 512 :]


def block(data: bytes, start: int, stop: int, rng: np.random.Generator) -> bytes:
    """A block of a disk, 4096 bytes, as zeros."""
    first = max(start, int(rng.integers(start, stop)) // 4096 * 4096)
    last = min(first // 4096 * 4096 + 4096, stop)
    return data[:first] + bytes(last - first) + data[last:]


def half(data: bytes, start: int, stop: int, rng: np.random.Generator) -> bytes:
    middle = (start + stop) // 2
    return data[:middle] + bytes(stop - middle) + data[stop:]


def cut(data: bytes, start: int, stop: int, rng: np.random.Generator) -> bytes:
    return data[: int(rng.integers(start, stop))]


DAMAGES: list[Damage] = [hole, block, half, cut]


def scan_of(jpeg: bytes) -> int:
    """Where a JPEG's entropy-coded data begin."""
    at = 2
    while jpeg[at + 1] != 0xDA:
        at += 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
    return at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")


def reason(data: bytes) -> str:
    """Why an image is refused; empty if it is read."""
    try:
        read_rgb(data, name="crop")
    except ImageError as error:
        return error.reason
    return ""


def assert_refused(data: bytes) -> None:
    with pytest.raises(ImageError) as caught:
        read_rgb(data, name="crop")
    assert caught.value.reason == "unreadable"
    assert "\n" not in str(caught.value)
    assert "copy or export the file again" in str(caught.value)


def smooth(height: int = 250, width: int = 250) -> np.ndarray:
    """What compresses as a photograph does."""
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(y / 9) + np.cos(x / 7), np.sin((x + y) / 5), np.cos(x / 13)], axis=-1)
    grain = np.random.default_rng(3).normal(0, 3, (height, width, 3))
    return np.clip(128 + 50 * waves + grain, 0, 255).astype(np.uint8)


def encode(kind: str, pixels: np.ndarray | None = None, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(smooth() if pixels is None else pixels).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_real_crops_are_refused(damage: Damage, real_data: Path) -> None:
    files = sorted((real_data / "matek_bm8").rglob("*.jpg"))
    rng = np.random.default_rng(0)
    chosen = [files[index].read_bytes() for index in rng.choice(len(files), 200, replace=False)]
    assert [reason(data) for data in chosen] == [""] * 200
    assert [reason(damage(data, scan_of(data), len(data) - 2, rng)) for data in chosen] == ["unreadable"] * 200


def test_every_real_image_is_still_read(real_data: Path) -> None:
    folders = ("matek_rare", "other_labs", "chula_rbc_1280x960", "txl_pbc360", "bccd")
    files = [
        file for folder in folders for file in sorted((real_data / folder).rglob("*")) if file.suffix.lower() == ".jpg"
    ]
    files += sorted((real_data / "matek_bm8").rglob("*.jpg"))[::8]
    assert len(files) > 500
    for file in files:
        assert np.array_equal(read_rgb(file), np.asarray(Image.open(file))), file


JPEGS: dict[str, dict[str, object]] = {
    "baseline": {},
    "progressive": {"progressive": True},
    "optimised tables": {"optimize": True},
    "no subsampling": {"subsampling": 0},
    "restart markers": {"restart_marker_blocks": 3},
    "progressive, restart markers": {"restart_marker_rows": 1, "progressive": True},
    "quality 5": {"quality": 5},
    "quality 100": {"quality": 100},
    "RGB": {"keep_rgb": True},
    "profile and comment": {"icc_profile": bytes(70_000), "comment": b"\xff\xd9\xff\xda" * 9},
}


@pytest.mark.parametrize("kind", JPEGS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_jpegs_of_every_coding_are_read_whole_and_refused_damaged(kind: str, damage: Damage) -> None:
    data = encode("JPEG", **JPEGS[kind])
    assert np.array_equal(read_rgb(data), np.asarray(Image.open(io.BytesIO(data))))
    assert_refused(damage(data, scan_of(data), len(data) - 2, np.random.default_rng(1)))


def test_jpegs_that_are_only_unusual_are_read() -> None:
    data = encode("JPEG", progressive=True)
    body, end = data[:-2], data[-2:]
    scan = scan_of(data) - 14  # before the first scan's header
    assert data[scan : scan + 2] == b"\xff\xda"
    unusual = {
        "behind the end: zeros": data + bytes(5000),
        "behind the end: another JPEG": data + data[: len(data) // 2],
        "padding before the end": body + bytes(600) + end,
        "fill bytes before the end": body + b"\xff" * 9 + end,
        "two stray bytes before the end": body + b"\x5a\x3c" + end,
        "stray bytes between segments": data[:scan] + b"\x00\x12\x34" + data[scan:],
        "unknown JFIF version": data.replace(b"JFIF\0\x01", b"JFIF\0\x09"),
        "damaged profile": data[:2] + b"\xff\xe2\0\x14ICC_PROFILE\0\x05\x02abcd" + data[2:],
        "unknown Adobe transform": data[:2] + b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\x07" + data[2:],
        "all of it": data[:2] + b"\xff\xe2\0\x14ICC_PROFILE\0\x05\x02abcd" + body[2:] + bytes(9) + end + b"x",
    }
    for name, variant in unusual.items():
        assert np.array_equal(read_rgb(variant), np.asarray(Image.open(io.BytesIO(variant)))), name


def test_a_jpeg_without_its_end_or_with_a_thousand_scans_is_refused() -> None:
    data = encode("JPEG")
    assert_refused(data[:-2])
    assert_refused(data[: len(data) // 2] + b"\xff\xd9")  # as some programs repair a file
    progressive = encode("JPEG", smooth(32, 32), progressive=True)
    last = progressive.rfind(b"\xff\xda")
    assert_refused(progressive[:last] + progressive[last:-2] * 1000 + b"\xff\xd9")


def test_the_checksums_of_a_png_are_compared() -> None:
    data = encode("PNG")
    assert np.array_equal(read_rgb(data), smooth())
    rng = np.random.default_rng(2)
    for damage in DAMAGES:
        assert_refused(damage(data, 41, len(data) - 16, rng))
    assert_refused(data[:-12])  # no IEND
    # One row, altered so that the stream still unpacks: only the checksum of the chunk tells.
    row = b"\0" + bytes(range(30))

    def chunk(kind: bytes, body: bytes, checked: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + checked))

    header = struct.pack(">IIBBBBB", 10, 1, 8, 2, 0, 0, 0)
    start, rest = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header, header), chunk(b"IEND", b"", b"")
    good, other = zlib.compress(row), zlib.compress(row[:5] + b"\0" + row[6:])
    assert read_rgb(start + chunk(b"IDAT", good, good) + rest)[0, 1, 1] == 4
    assert_refused(start + chunk(b"IDAT", other, good) + rest)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_deflate", "packbits", "jpeg"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_tiffs_are_refused(compression: str, damage: Damage, tmp_path: Path) -> None:
    data = encode("TIFF", compression=compression)
    assert np.array_equal(read_rgb(data), np.asarray(Image.open(io.BytesIO(data))))
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        start = file.pages[0].dataoffsets[0]
        stop = start + file.pages[0].databytecounts[0]
    damaged = damage(data, start, stop, np.random.default_rng(3))
    assert_refused(damaged)
    (tmp_path / "field.tif").write_bytes(damaged)
    with pytest.raises(ImageError, match="copy or export"), open_field(tmp_path / "field.tif") as field:
        field.read(Box(0, 0, 250, 250))


@pytest.mark.parametrize("damage", [hole, block, half])
def test_damaged_jpeg_tiles_of_a_slide_are_refused(damage: Damage, real_data: Path, tmp_path: Path) -> None:
    slide = real_data / "formats" / "CMU-1-Small-Region.svs"
    with open_field(slide) as field:
        field.read(Box(0, 0, field.height, field.width))
    with tifffile.TiffFile(slide) as file:
        page = file.pages[0]
        pieces = list(zip(page.dataoffsets, page.databytecounts, strict=True))
        across, tall, wide = -(-page.imagewidth // page.tilewidth), page.tilelength, page.tilewidth
    data, rng = slide.read_bytes(), np.random.default_rng(4)
    # Tiles with tissue: an empty one has few bytes, and most of them alike.
    full = [index for index, (_, count) in enumerate(pieces) if count > 8000][::6]
    assert len(full) >= 5
    for index in full:
        start, count = pieces[index]
        piece = damage(data[start : start + count], 20, count - 2, rng)
        (tmp_path / "a.svs").write_bytes(data[:start] + piece + data[start + count :])
        with open_field(tmp_path / "a.svs") as field:
            box = Box(index // across * tall, index % across * wide, tall, wide).clipped(field.height, field.width)
            with pytest.raises(ImageError, match="copy or export"):
                field.read(box)


def test_import_and_evaluation_refuse_damaged_crops(tmp_path: Path) -> None:
    folder = tmp_path / "crops" / "BLA"
    folder.mkdir(parents=True)
    data = encode("JPEG", quality=95)
    (folder / "whole.jpg").write_bytes(data)
    rng = np.random.default_rng(5)
    for damage in DAMAGES:
        (folder / f"{damage.__name__}.jpg").write_bytes(damage(data, scan_of(data), len(data) - 2, rng))
    summary = import_crops(folder.parent, tmp_path / "store.zarr")
    assert (summary.added, summary.rejected) == (1, {"unreadable": 4})
    rejects = open_store(tmp_path / "store.zarr").rejects
    assert rejects["message"].str.contains("is damaged or not complete").all()
    images = ImageCells(folder.parent, {"BLA"}, 250)
    assert sum(len(found) for found, _ in images.batches(np.arange(5), 5)) == 1
    assert sorted(images.rejects["reason"]) == ["unreadable"] * 4
