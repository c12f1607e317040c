"""Files that are no field, or are damaged: one line that says why, and never pixels that are not there."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from hematokit.errors import ImageError
from hematokit.imaging.fieldfiles import open_field
from hematokit.imaging.geometry import Box


def rgb_image(height: int = 90, width: int = 130) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([50 + y, x, 200 - (x + y) // 2], axis=-1).astype(np.uint8)


def read_all(path: Path) -> np.ndarray:
    with open_field(path) as field:
        return field.read(Box(0, 0, field.height, field.width))


def attempt(path: Path) -> np.ndarray | ImageError:
    """Pixels, at most 500 x 500 of them, after a thumbnail was made; or the error. Any other one fails the test."""
    try:
        with open_field(path) as field:
            field.thumbnail(40)
            return field.read(Box(0, 0, min(field.height, 500), min(field.width, 500)))
    except ImageError as error:
        return error


def refused(path: Path) -> ImageError:
    with pytest.raises(ImageError) as caught:
        read_all(path)
    message = str(caught.value)
    assert "\n" not in message
    assert ";" in message, "a message says what to do"
    assert path.name.split("\n")[0] in message, "a message names the file"
    return caught.value


# --- TIFFs that are not one image in red, green and blue -----------------------------------------------------------

grey = np.full((40, 50), 7, np.uint8)


def samples_of(count: int, value: int = 0) -> np.ndarray:
    return np.full((40, 50, count), value, np.uint8)


RGB = {"photometric": "rgb"}
OTHERS: dict[str, tuple[np.ndarray, dict[str, object], str]] = {
    "greyscale": (grey, {}, "not-rgb"),
    "greyscale, 16 bits": (grey.astype(np.uint16), {}, "not-rgb"),
    "white is zero": (grey, {"photometric": "miniswhite"}, "not-rgb"),
    "palette": (grey, {"photometric": "palette", "colormap": np.zeros((3, 256), np.uint16)}, "not-rgb"),
    "bilevel": (grey > 3, {}, "not-rgb"),
    "CMYK": (samples_of(4), {"photometric": "separated"}, "not-rgb"),
    "CIELab": (rgb_image(), {"photometric": "cielab"}, "not-rgb"),
    "floating point": (rgb_image().astype(np.float32), RGB, "not-rgb"),
    "32 bits": (rgb_image().astype(np.uint32), RGB, "not-rgb"),
    "signed": (rgb_image().astype(np.int16), RGB, "not-rgb"),
    "two channels": (samples_of(2), {"photometric": "minisblack", "planarconfig": "contig"}, "not-rgb"),
    "five samples": (samples_of(5), RGB, "not-rgb"),
    "a fourth channel": (samples_of(4, 255), RGB | {"extrasamples": ["unspecified"]}, "not-rgb"),
    "transparent": (samples_of(4, 254), RGB | {"extrasamples": ["unassalpha"]}, "not-rgb"),
    "two pages": (np.stack([rgb_image()] * 2), RGB, "several-images"),
    "a stack": (np.stack([grey] * 5), {"photometric": "minisblack"}, "several-images"),
    "three planes": (
        np.stack([grey] * 3),
        {"photometric": "minisblack", "metadata": {"axes": "ZYX"}},
        "several-images",
    ),
    "a volume": (np.stack([rgb_image()] * 16), RGB | {"volumetric": True, "tile": (16, 16, 16)}, "several-images"),
    "raw luma and chroma": (rgb_image(), {"photometric": "ycbcr", "compression": "zlib"}, "not-rgb"),
    "an unusual compression": (rgb_image(), RGB | {"compression": "jpegxl"}, "unreadable"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_tiffs_are_refused(kind: str, tmp_path: Path) -> None:
    pixels, options, reason = OTHERS[kind]
    if kind == "raw luma and chroma":
        options = options | {"subsampling": (1, 1)}
    tifffile.imwrite(tmp_path / "a.tif", pixels, **options)
    assert refused(tmp_path / "a.tif").reason == reason


OMES: dict[str, tuple[np.ndarray, dict[str, object], str]] = {
    "four channels": (np.zeros((4, 40, 50), np.uint8), {"axes": "CYX"}, "not-rgb"),
    "time": (np.zeros((3, 40, 50), np.uint8), {"axes": "TYX"}, "several-images"),
    "planes": (np.zeros((2, 3, 40, 50), np.uint8), {"axes": "ZCYX"}, "several-images"),
    "fluorescence": (
        np.zeros((3, 40, 50), np.uint8),
        {"axes": "CYX", "Channel": {"EmissionWavelength": [461, 509, 600]}},
        "not-rgb",
    ),
}


@pytest.mark.parametrize("kind", OMES)
def test_other_ome_tiffs_are_refused(kind: str, tmp_path: Path) -> None:
    pixels, metadata, reason = OMES[kind]
    tifffile.imwrite(tmp_path / "a.ome.tif", pixels, photometric="minisblack", metadata=metadata)
    assert refused(tmp_path / "a.ome.tif").reason == reason


def test_two_images_in_one_ome_tiff_are_refused(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.ome.tif") as writer:
        writer.write(rgb_image(), metadata={"axes": "YXS"})
        writer.write(rgb_image(40, 40), metadata={"axes": "YXS"})
    assert refused(tmp_path / "a.ome.tif").reason == "several-images"


def test_channels_in_other_files_are_missing_not_black(tmp_path: Path) -> None:
    text = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">'
        '<Pixels SizeX="50" SizeY="40" SizeC="3" SizeZ="1" SizeT="1" Type="uint8"><Channel/><Channel/><Channel/>'
        '<TiffData FirstC="0"><UUID FileName="a.ome.tif">urn:uuid:1</UUID></TiffData>'
        '<TiffData FirstC="1"><UUID FileName="../b.ome.tif">urn:uuid:2</UUID></TiffData></Pixels></Image></OME>'
    )
    tifffile.imwrite(tmp_path / "a.ome.tif", grey, description=text, metadata=None)
    assert "several files" in str(refused(tmp_path / "a.ome.tif"))


def test_entities_in_ome_xml_are_not_expanded(tmp_path: Path) -> None:
    lol = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 10))
    text = (
        f'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY l0 "lol">{lol}]><OME><Image><Pixels SizeC="&l9;"/></Image></OME>'
    )
    tifffile.imwrite(tmp_path / "a.ome.tif", rgb_image(), description=text, metadata=None)
    np.testing.assert_array_equal(read_all(tmp_path / "a.ome.tif"), rgb_image())


def test_transparency_is_found_where_it_is_read(tmp_path: Path) -> None:
    pixels = np.dstack([rgb_image(), np.full((90, 130), 255, np.uint8)])
    pixels[80, 120, 3] = 254
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", extrasamples=["unassalpha"], tile=(16, 16))
    with open_field(tmp_path / "a.tif") as field:
        np.testing.assert_array_equal(field.read(Box(0, 0, 80, 120)), rgb_image()[:80, :120])
        with pytest.raises(ImageError, match="transparent"):
            field.read(Box(70, 110, 20, 20))


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA", "I;16", "1", "LA"])
def test_other_images_are_refused(mode: str, tmp_path: Path) -> None:
    ending = "jpg" if mode == "CMYK" else "png"
    Image.new(mode, (30, 20)).save(tmp_path / f"a.{ending}")
    assert refused(tmp_path / f"a.{ending}").reason == "not-rgb"


# --- sizes ---------------------------------------------------------------------------------------------------------


def test_a_png_that_claims_too_many_pixels_is_refused_before_decoding(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(rgb_image()).save(buffer, "PNG")
    data = buffer.getvalue()
    header = b"IHDR" + struct.pack(">II", 30_000, 30_000) + data[24:29]
    (tmp_path / "a.png").write_bytes(data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:])
    error = refused(tmp_path / "a.png")
    assert error.reason == "too-large"
    assert "tiled TIFF" in str(error)


def tiff_of_one_piece(path: Path, height: int, width: int, **options: object) -> None:
    """A TIFF that claims a size, around one piece of few bytes."""
    tifffile.imwrite(
        path, iter([zlib.compress(b"\0" * 1000)]), shape=(height, width, 3), dtype="uint8", photometric="rgb",
        compression="zlib", **options,
    )  # fmt: skip


def test_a_compressed_tiff_of_one_huge_strip_says_to_convert_it(tmp_path: Path) -> None:
    tiff_of_one_piece(tmp_path / "a.tif", 30_000, 30_000, rowsperstrip=30_000)
    error = refused(tmp_path / "a.tif")
    assert error.reason == "too-large"
    assert "convert it to a tiled TIFF" in str(error)


def test_a_strip_that_unpacks_to_less_than_it_should_is_an_error(tmp_path: Path) -> None:
    tiff_of_one_piece(tmp_path / "a.tif", 100, 100, rowsperstrip=100)
    assert refused(tmp_path / "a.tif").reason == "unreadable"


def encoded(image: np.ndarray) -> Iterator[bytes]:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG")
    yield buffer.getvalue()


@pytest.mark.parametrize("size", [32, 5000])
def test_a_jpeg_tile_of_another_size_than_stated_is_refused(size: int, tmp_path: Path) -> None:
    options = {"shape": (64, 64, 3), "dtype": "uint8", "tile": (64, 64), "photometric": "ycbcr", "compression": "jpeg"}
    tifffile.imwrite(tmp_path / "a.tif", encoded(np.zeros((size, size, 3), np.uint8)), **options)
    assert refused(tmp_path / "a.tif").reason == "unreadable"


def test_an_uncompressed_tiff_of_one_strip_is_read_by_windows(tmp_path: Path) -> None:
    # 1.2 GB that take no room on the disk: more than is ever decoded in one piece.
    path = tmp_path / "a.tif"
    tifffile.memmap(path, shape=(20_000, 20_000, 3), dtype="uint8", photometric="rgb").flush()
    with open_field(path) as field:
        assert not field.read(Box(19_000, 19_000, 1000, 1000)).any()


# --- truncated and damaged files -----------------------------------------------------------------------------------


def samples(folder: Path) -> list[Path]:
    image = rgb_image()
    tifffile.imwrite(folder / "strips.tif", image, metadata=None, rowsperstrip=16)
    tifffile.imwrite(folder / "strip.tif", image, metadata=None)
    tifffile.imwrite(folder / "tiles.tif", image, tile=(32, 32), compression="zlib", predictor=True)
    tifffile.imwrite(folder / "jpeg.tif", image, tile=(32, 32), compression="jpeg", photometric="ycbcr")
    tifffile.imwrite(folder / "lzw.tif", image, compression="lzw", rowsperstrip=8)
    tifffile.imwrite(folder / "jp2.tif", image, tile=(64, 64), compression="jpeg2000")
    tifffile.imwrite(folder / "webp.tif", image, tile=(64, 64), compression="webp")
    deep = image.astype(np.uint16) * 20
    tifffile.imwrite(folder / "16.tif", deep, photometric="rgb", byteorder=">", bigtiff=True, compression="packbits")
    planes = image.transpose(2, 0, 1)
    about = {"axes": "SYX", "PhysicalSizeX": 0.1, "PhysicalSizeY": 0.1}
    options = {"photometric": "rgb", "planarconfig": "separate", "tile": (32, 32), "compression": "zstd"}
    tifffile.imwrite(folder / "planes.ome.tif", planes, metadata=about, **options)
    with tifffile.TiffWriter(folder / "pyramid.ome.tif") as writer:
        writer.write(image, subifds=1, tile=(32, 32), metadata={"axes": "YXS"})
        writer.write(image[::2, ::2], subfiletype=1, tile=(32, 32))
    for name in ("a.png", "a.jpg", "a.bmp"):
        Image.fromarray(image).save(folder / name)
    return sorted(folder.iterdir())


def test_a_file_cut_short_is_an_error_or_whole(tmp_path: Path) -> None:
    """What is cut may be a name or a smaller level; the pixels are the same ones, or there are none."""
    (tmp_path / "whole").mkdir()
    draw = np.random.default_rng(3)
    whole_despite_cut = 0
    for path in samples(tmp_path / "whole"):
        data, expected = path.read_bytes(), read_all(path)
        cut = tmp_path / path.name
        places = {0, 1, 7, 8, 9, 100, len(data) // 2, len(data) - 1, *draw.integers(0, len(data), 40).tolist()}
        for place in sorted(places):
            cut.write_bytes(data[:place])
            found = attempt(cut)
            if isinstance(found, ImageError):
                assert "\n" not in str(found)
            else:
                whole_despite_cut += 1
                np.testing.assert_array_equal(found, expected, err_msg=f"{path.name} cut at {place} of {len(data)}")
        # Half a file never has all of its pixels.
        cut.write_bytes(data[: len(data) // 2])
        refused(cut)
    assert whole_despite_cut < 100


@pytest.mark.parametrize("seed", range(4))
def test_flipped_bytes_end_in_pixels_or_in_an_error_of_one_line(seed: int, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    draw = np.random.default_rng(seed)
    for path in samples(tmp_path / "whole"):
        original = path.read_bytes()
        for _ in range(40):
            data = bytearray(original)
            start = int(draw.integers(len(data))) if draw.random() < 0.5 else 0  # headers stand at the beginning
            for _ in range(int(draw.integers(1, 5))):
                place = min(len(data) - 1, start + int(draw.integers(0, 300)))
                data[place] = int(draw.choice([0, 1, 127, 128, 255, draw.integers(256)]))
            damaged = tmp_path / path.name
            damaged.write_bytes(data)
            found = attempt(damaged)
            if isinstance(found, ImageError):
                assert "\n" not in str(found)
            else:
                assert found.ndim == 3


def test_a_jpeg_tile_filled_up_with_zeros_is_an_error(tmp_path: Path) -> None:
    # As a copy that broke off on a file system which reserves the space first.
    path = tmp_path / "a.tif"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    tifffile.imwrite(path, noise, tile=(64, 64), compression="jpeg", photometric="ycbcr")
    with tifffile.TiffFile(path) as file:
        offset, count = file.pages[0].dataoffsets[0], file.pages[0].databytecounts[0]
    data = bytearray(path.read_bytes())
    data[offset + count // 2 : offset + count] = bytes(count - count // 2)
    path.write_bytes(data)
    assert refused(path).reason == "unreadable"


def test_a_sparse_tiff_is_not_read_as_black(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, rgb_image(), tile=(32, 32), compression="zlib")
    with tifffile.TiffFile(path, mode="r+") as file:
        offsets, counts = (list(file.pages[0].tags[name].value) for name in ("TileOffsets", "TileByteCounts"))
        offsets[3] = counts[3] = 0
        file.pages[0].tags["TileOffsets"].overwrite(offsets)
        file.pages[0].tags["TileByteCounts"].overwrite(counts)
    assert "missing" in str(refused(path))


def test_tifffile_says_nothing_on_the_screen(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for path in samples(tmp_path):
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
        refused(path)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tif", b""),
        ("a.png", b""),
        ("a.tif", b"II*\0"),
        ("a.tif", b"II*\0\0\0\0\0"),
        ("a.tif", b"II*\0\x08\0\0\0"),
        ("a.tif", b"MM\0+\0\x08\0\0" + b"\xff" * 40),
        ("a.jpg", b"GIF89a" + b"\0" * 100),
        ("a.png", json.dumps({"no": "image"}).encode()),
        ("a\nb.png", b"text"),
    ],
)
def test_files_that_are_no_images(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name)
