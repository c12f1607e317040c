"""Reading image files: bit-exact where it reads, one clear reason where it does not."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from hematokit.errors import ImageError, printable
from hematokit.imaging.reading import decode_rgb, read_rgb


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(height: int = 20, width: int = 30, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (height, width, channels), dtype=np.uint8)


def reason_of(data: bytes | Path, **options: object) -> str:
    with pytest.raises(ImageError) as caught:
        read_rgb(data, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert ";" in message, "a message says what to do"
    return caught.value.reason


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_lossless_formats_come_back_bit_exact(kind: str) -> None:
    pixels = noise()
    read = read_rgb(encode(Image.fromarray(pixels), kind))
    assert read.dtype == np.uint8
    assert np.array_equal(read, pixels)


@pytest.mark.parametrize("options", [{"quality": 100}, {"quality": 60, "progressive": True}, {"subsampling": 0}])
def test_jpeg_equals_pillow(options: dict[str, object]) -> None:
    data = encode(Image.fromarray(noise()), "JPEG", **options)
    assert np.array_equal(read_rgb(data), np.asarray(Image.open(io.BytesIO(data))))


def test_real_crops_equal_pillow(real_data: Path) -> None:
    for path in sorted((real_data / "matek_rare").rglob("*.jpg")):
        assert np.array_equal(read_rgb(path), np.asarray(Image.open(path).convert("RGB")))


def test_opaque_alpha_is_dropped_and_transparency_refused() -> None:
    pixels = noise(channels=4)
    pixels[..., 3] = 255
    assert np.array_equal(read_rgb(encode(Image.fromarray(pixels), "PNG")), pixels[..., :3])
    pixels[3, 4, 3] = 254
    assert reason_of(encode(Image.fromarray(pixels), "PNG")) == "not-rgb"


def test_a_transparent_colour_is_refused_where_a_pixel_has_it() -> None:
    image = Image.fromarray(noise())
    assert reason_of(encode(image, "PNG", transparency=image.getpixel((3, 4)))) == "not-rgb"
    assert not (noise() == 0).all(axis=2).any()
    assert np.array_equal(read_rgb(encode(image, "PNG", transparency=(0, 0, 0))), noise())


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("L", "PNG"), ("L", "JPEG"), ("CMYK", "JPEG"), ("P", "PNG"), ("I;16", "PNG"), ("1", "TIFF"), ("LAB", "TIFF")],
)
def test_other_colour_modes_are_refused(mode: str, kind: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.zeros((4, 4), np.uint16))
    elif mode == "LAB":
        image = Image.new("LAB", (4, 4))
    else:
        image = Image.fromarray(noise()).convert(mode)
    assert reason_of(encode(image, kind)) == "not-rgb"


def png_of_16_bits() -> bytes:
    """A PNG with 16 bits per channel of RGB, which Pillow can read (and would cut to 8) but not write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + bytes(range(12)) for _ in range(2))
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_16_bit_rgb_is_not_cut_to_8_bits(tmp_path: Path) -> None:
    assert Image.open(io.BytesIO(png_of_16_bits())).mode == "RGB"  # nothing but the bit depth tells
    assert reason_of(png_of_16_bits()) == "not-rgb"
    tifffile = pytest.importorskip("tifffile")
    path = tmp_path / "deep.tif"
    tifffile.imwrite(path, np.zeros((4, 4, 3), np.uint16), photometric="rgb")
    assert reason_of(path) in {"not-rgb", "unreadable"}


def test_files_of_several_images_are_refused() -> None:
    pages = [Image.fromarray(noise()) for _ in range(2)]
    assert reason_of(encode(pages[0], "TIFF", save_all=True, append_images=pages[1:])) == "several-images"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP"])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.9])
def test_truncated_files_are_refused(kind: str, kept: float) -> None:
    data = encode(Image.fromarray(noise(60, 60)), kind)
    assert reason_of(data[: int(len(data) * kept)]) in {"unreadable", "not-rgb"}


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    assert reason_of(b"hello, I am a text") == "unreadable"
    assert reason_of(encode(Image.fromarray(noise()), "GIF")) == "unreadable"
    assert reason_of(tmp_path / "missing.png") == "unreadable"
    assert reason_of(tmp_path) == "unreadable"
    (tmp_path / "empty.png").touch()
    assert reason_of(tmp_path / "empty.png") == "empty"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_named_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    assert reason_of(tmp_path / "pipe.png") == "unreadable"


def bomb(side: int = 40_000) -> bytes:
    """A PNG of a few bytes whose header declares `side` x `side` pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("side", [9_000, 12_000, 40_000])  # Pillow: no word, a warning, an error
def test_decompression_bombs_are_refused_before_decoding_and_without_a_warning(side: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert reason_of(bomb(side)) == "too-large"


def test_size_limits(tmp_path: Path) -> None:
    path = tmp_path / "crop.png"
    path.write_bytes(encode(Image.fromarray(noise(20, 30)), "PNG"))
    assert read_rgb(path, max_pixels=600).shape == (20, 30, 3)
    assert reason_of(path, max_pixels=599) == "too-large"
    size = path.stat().st_size
    assert read_rgb(path, max_bytes=size).shape == (20, 30, 3)
    assert reason_of(path, max_bytes=size - 1) == "too-large"


def test_an_unexpected_size_is_refused_from_the_header_alone() -> None:
    data = encode(Image.fromarray(noise(20, 30)), "PNG")[:60]  # the pixels are missing
    with pytest.raises(ImageError) as caught:
        decode_rgb(data, name="x.png", expect=(30, 20))
    assert caught.value.reason == "wrong-size"


def test_names_with_control_characters_stay_on_one_line() -> None:
    assert printable("a\nb\x1b[31m") == "a\\nb\\x1b[31m"
    assert printable("Ünïcode 细胞.png") == "Ünïcode 细胞.png"
    assert printable(os.fsdecode(b"bad\xff.png")) == "bad\\xff.png"
    with pytest.raises(ImageError, match=r"evil\\nname"):
        read_rgb(b"x", name="evil\nname")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    kind=st.sampled_from(["JPEG", "PNG", "TIFF", "BMP"]),
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=12),
)
def test_damaged_bytes_never_raise_anything_but_an_image_error(kind: str, changes: list[tuple[int, int]]) -> None:
    data = bytearray(encode(Image.fromarray(noise(16, 16)), kind))
    for position, value in changes:
        data[position % len(data)] = value
    try:
        outcome = str(read_rgb(bytes(data), max_pixels=10**6).dtype)
    except ImageError as error:
        outcome = str(error)
    assert outcome == "uint8" or ("\n" not in outcome and ";" in outcome)
