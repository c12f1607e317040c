"""Fields of every format come back pixel by pixel, with the pixel size that their metadata state."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from hematokit.errors import ImageError
from hematokit.imaging.fieldfiles import Field, open_field
from hematokit.imaging.geometry import Box

HEIGHT, WIDTH = 150, 203
WHOLE = Box(0, 0, HEIGHT, WIDTH)


def noise(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (height, width, 3), np.uint8)


def smooth(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([40 + y % 100, 60 + x % 120, 90 + (x + y) % 60], axis=-1).astype(np.uint8)


def assert_reads(field: Field, expected: np.ndarray) -> None:
    """The whole field and windows at its corners, in its middle and of one pixel."""
    height, width = expected.shape[:2]
    assert (field.height, field.width) == (height, width)
    boxes = [Box(0, 0, height, width), Box(height - 1, width - 1, 1, 1), Box(0, width - 9, 7, 9), Box(31, 20, 80, 99)]
    for box in boxes:
        pixels = field.read(box)
        assert pixels.dtype == np.uint8
        assert pixels.flags.c_contiguous
        np.testing.assert_array_equal(pixels, expected[box.slices])
        pixels[...] = 0  # the caller's own: the next reading does not see it


TIFFS: dict[str, dict[str, object]] = {
    "one strip": {},
    "strips": {"rowsperstrip": 7},
    "strips, LZW": {"rowsperstrip": 16, "compression": "lzw"},
    "strips, PackBits": {"rowsperstrip": 16, "compression": "packbits"},
    "one strip, Deflate": {"compression": "zlib", "rowsperstrip": HEIGHT},
    "tiles": {"tile": (64, 48)},
    "tiles, Deflate with predictor": {"tile": (64, 64), "compression": "zlib", "predictor": True},
    "tiles, Zstandard, BigTIFF": {"tile": (32, 32), "compression": "zstd", "bigtiff": True},
    "tiles, LZMA": {"tile": (64, 64), "compression": "lzma"},
    "tiles, JPEG 2000": {"tile": (64, 64), "compression": "jpeg2000"},
    "tiles, WebP lossless": {"tile": (64, 64), "compression": "webp", "compressionargs": {"lossless": True}},
    "big-endian": {"byteorder": ">", "rowsperstrip": 11},
    "tile larger than the image": {"tile": (256, 256), "compression": "zlib"},
}


@pytest.mark.parametrize("kind", TIFFS)
def test_tiffs_come_back_bit_exact(kind: str, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", noise(), photometric="rgb", **TIFFS[kind])
    with open_field(tmp_path / "a.tif") as field:
        assert_reads(field, noise())
        assert field.name == "a"
        assert (field.pixel_size_um, field.pixel_size_source, field.notes) == (None, "", ())


@pytest.mark.parametrize("options", [{"tile": (64, 64)}, {"tile": (64, 64), "compression": "deflate"}, {}])
def test_planes_of_colours_are_put_together(options: dict[str, object], tmp_path: Path) -> None:
    planes = noise().transpose(2, 0, 1)
    tifffile.imwrite(tmp_path / "a.tif", planes, photometric="rgb", planarconfig="separate", **options)
    with open_field(tmp_path / "a.tif") as field:
        assert_reads(field, noise())


@pytest.mark.parametrize("subsampling", [(1, 1), (2, 2)])
def test_tiffs_with_jpeg_tiles_are_what_tifffile_decodes(subsampling: tuple[int, int], tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, smooth(), photometric="rgb", tile=(64, 64), compression="jpeg", subsampling=subsampling)
    with open_field(path) as field:
        assert_reads(field, tifffile.imread(path))
        assert np.abs(field.read(WHOLE).astype(int) - smooth()).mean() < 8


@pytest.mark.parametrize("ending", ["png", "bmp", "PNG"])
def test_lossless_images_come_back_bit_exact(ending: str, tmp_path: Path) -> None:
    Image.fromarray(noise()).save(tmp_path / f"a.b.{ending}")
    with open_field(tmp_path / f"a.b.{ending}") as field:
        assert_reads(field, noise())
        assert field.name == "a.b"


def test_real_fields_are_what_pillow_decodes(real_data: Path) -> None:
    paths = sorted((real_data / "bccd" / "JPEGImages").glob("*.jpg"))[:3]
    paths += sorted((real_data / "chula_rbc_1280x960").rglob("*.JPG"))[:2]
    assert len(paths) == 5
    for path in paths:
        with open_field(path) as field:
            assert_reads(field, np.asarray(Image.open(path).convert("RGB")))
            assert field.pixel_size_um is None, "72 or 96 dots per inch are no pixel size"


def test_content_decides_what_a_file_is(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "really-a-tiff.jpg", noise(), tile=(64, 64))
    with open_field(str(tmp_path / "really-a-tiff.jpg")) as field:
        assert_reads(field, noise())


def test_opaque_alpha_is_dropped(tmp_path: Path) -> None:
    pixels = np.dstack([noise(), np.full((HEIGHT, WIDTH), 255, np.uint8)])
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", extrasamples=["unassalpha"], tile=(64, 64))
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for name in ("a.tif", "a.png"):
        with open_field(tmp_path / name) as field:
            assert_reads(field, noise())


# --- OME-TIFF, ImageJ, pyramids ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "unit", "expected"),
    [(0.087, "µm", 0.087), (87, "nm", 0.087), (8.7e-5, "mm", 0.087), (8.7e-8, "m", 0.087), (870, "Å", 0.087)],
)
def test_the_physical_size_of_ome_tiff_is_read_in_its_unit(
    x: float, unit: str, expected: float, tmp_path: Path
) -> None:
    about = {
        "axes": "YXS",
        "PhysicalSizeX": x,
        "PhysicalSizeXUnit": unit,
        "PhysicalSizeY": x,
        "PhysicalSizeYUnit": unit,
    }
    tifffile.imwrite(tmp_path / "slide1.ome.tif", noise(), tile=(64, 64), metadata=about)
    with open_field(tmp_path / "slide1.ome.tif") as field:
        assert_reads(field, noise())
        assert (field.pixel_size_um, field.pixel_size_source) == (expected, "metadata")
        assert field.name == "slide1"


def test_ome_tiff_without_a_unit_is_in_micrometres(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "a.ome.tif", noise(), metadata={"axes": "YXS", "PhysicalSizeX": 0.2, "PhysicalSizeY": 0.2}
    )
    with open_field(tmp_path / "a.ome.tif") as field:
        assert field.pixel_size_um == 0.2


@pytest.mark.parametrize("axes", ["CYX", "TCZYX"])
def test_channels_first_in_ome_tiff(axes: str, tmp_path: Path) -> None:
    planes = noise().transpose(2, 0, 1).reshape((3, HEIGHT, WIDTH) if axes == "CYX" else (1, 3, 1, HEIGHT, WIDTH))
    tifffile.imwrite(tmp_path / "a.ome.tif", planes, photometric="minisblack", metadata={"axes": axes})
    with open_field(tmp_path / "a.ome.tif") as field:
        assert_reads(field, noise())


def test_channels_first_in_imagej(tmp_path: Path) -> None:
    planes = noise().transpose(2, 0, 1)
    about = {"axes": "CYX", "unit": "micron"}
    tifffile.imwrite(tmp_path / "a.tif", planes, imagej=True, resolution=(10, 10), metadata=about)
    with open_field(tmp_path / "a.tif") as field:
        assert_reads(field, noise())
        assert field.pixel_size_um == 0.1


def test_channels_first_as_tifffile_writes_them(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", noise().transpose(2, 0, 1), photometric="minisblack")
    with open_field(tmp_path / "a.tif") as field:
        assert_reads(field, noise())


def write_pyramid(path: Path, *, sub: bool, channels_first: bool = False, flag: int = 1) -> np.ndarray:
    base = smooth(640, 800)
    levels = [base[::2, ::2], base[::4, ::4]]
    arrange = (lambda image: image.transpose(2, 0, 1)) if channels_first else (lambda image: image)
    axes = "CYX" if channels_first else "YXS"
    options = {"tile": (64, 64), "photometric": "minisblack" if channels_first else "rgb"}
    with tifffile.TiffWriter(path) as writer:
        if sub:
            writer.write(arrange(base), subifds=2, metadata={"axes": axes}, **options)
        else:
            writer.write(arrange(base), metadata=None, **options)
        for level in levels:
            writer.write(arrange(level), subfiletype=flag, metadata=None, **options)
    return base


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.ome.tif", {"sub": True}),
        ("a.ome.tif", {"sub": True, "channels_first": True}),
        ("a.tif", {"sub": False}),
        ("a.tif", {"sub": False, "flag": 0}),
    ],
)
def test_pyramids_are_read_at_full_resolution_and_serve_thumbnails(
    name: str, options: dict[str, object], tmp_path: Path
) -> None:
    base = write_pyramid(tmp_path / name, **options)
    with open_field(tmp_path / name) as field:
        assert_reads(field, base)
        small, scale = field.thumbnail(200)
        assert scale == 4
        np.testing.assert_array_equal(small, base[::4, ::4])  # the file's own level, not a mean of the field
        middle, scale = field.thumbnail(300)
        assert middle.shape == (240, 300, 3)
        assert scale == pytest.approx(800 / 300)


def test_pages_of_other_proportions_are_no_levels(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(noise(), metadata=None)
        writer.write(noise(40, 40), subfiletype=1, metadata=None)  # a label
    with open_field(tmp_path / "a.tif") as field:
        assert_reads(field, noise())
        assert field.thumbnail(100)[0].shape == (74, 100, 3)


# --- pixel size ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("resolution", "unit", "expected"),
    [
        ((100_000, 100_000), "CENTIMETER", 0.1),
        ((254_000, 254_000), "INCH", 0.1),
        ((72, 72), "INCH", None),
        ((96, 96), "INCH", None),
        ((300, 300), "INCH", None),
        ((1200, 1200), "INCH", None),
        ((118.11, 118.11), "CENTIMETER", None),
        ((100_000, 50_000), "CENTIMETER", None),
        ((100_000, 100_000), "NONE", None),
        ((1e9, 1e9), "CENTIMETER", None),
    ],
)
def test_the_resolution_of_a_tiff(
    resolution: tuple[float, float], unit: str, expected: float | None, tmp_path: Path
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", noise(), resolution=resolution, resolutionunit=unit, metadata=None)
    with open_field(tmp_path / "a.tif") as field:
        assert field.pixel_size_um == expected
        assert field.pixel_size_source == ("metadata" if expected else "")


@pytest.mark.parametrize(("dpi", "expected"), [(72, None), (300, None), (254_000, 0.1)])
def test_the_resolution_of_a_png(dpi: int, expected: float | None, tmp_path: Path) -> None:
    Image.fromarray(noise()).save(tmp_path / "a.png", dpi=(dpi, dpi))
    with open_field(tmp_path / "a.png") as field:
        assert field.pixel_size_um == expected


@pytest.mark.parametrize(
    ("x", "y", "word"),
    [
        ("NaN", "0.1", "nan"),
        ("0", "0", "0 x 0"),
        ("-0.1", "-0.1", "-0.1"),
        ("inf", "inf", "inf"),
        ("1000", "1000", "outside"),
        ("0.1", "0.2", "not square"),
        ("wide", "0.1", "not a number"),
    ],
)
def test_impossible_sizes_in_metadata_are_passed_over_with_a_note(x: str, y: str, word: str, tmp_path: Path) -> None:
    text = (
        '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image '
        f'ID="Image:0"><Pixels SizeX="{WIDTH}" SizeY="{HEIGHT}" SizeC="3" SizeZ="1" SizeT="1" Type="uint8" '
        f'PhysicalSizeX="{x}" PhysicalSizeY="{y}"><TiffData/></Pixels></Image></OME>'
    )
    tifffile.imwrite(tmp_path / "a.ome.tif", noise(), description=text, metadata=None)
    with open_field(tmp_path / "a.ome.tif", pixel_size_um=0.3) as field:
        assert field.pixel_size_um == 0.3, "what the user says fills in"
        assert field.pixel_size_source == "given"
        (note,) = field.notes
        assert "pixel size ignored" in note
        assert word in note


def test_metadata_lead_unless_the_user_insists(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", noise(), resolution=(100_000, 100_000), resolutionunit="CENTIMETER")
    with open_field(tmp_path / "a.tif", pixel_size_um=0.2) as field:
        assert (field.pixel_size_um, field.pixel_size_source) == (0.1, "metadata")
        assert any("0.2" in note for note in field.notes)
    with open_field(tmp_path / "a.tif", pixel_size_um=0.2, force_pixel_size=True) as field:
        assert (field.pixel_size_um, field.pixel_size_source) == (0.2, "given")
        assert any("0.1" in note for note in field.notes)
    with open_field(tmp_path / "a.tif", pixel_size_um=0.1) as field:
        assert field.notes == ()


@pytest.mark.parametrize("size", [float("nan"), 0.0, -0.1, float("inf")])
def test_an_impossible_size_from_the_user_is_refused(size: float, tmp_path: Path) -> None:
    Image.fromarray(noise()).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match="give micrometres") as caught:
        open_field(tmp_path / "a.png", pixel_size_um=size)
    assert caught.value.reason == "pixel-size"


# --- 16 bits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("maximum", "white"), [(255, 255), (256, 1023), (4095, 4095), (4096, 16383), (65535, 65535)])
def test_16_bits_are_shown_by_the_depth_that_holds_them(maximum: int, white: int, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, maximum + 1, (HEIGHT, WIDTH, 3)).astype(np.uint16)
    pixels[77, 88, 1] = maximum
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", tile=(64, 64), byteorder=">")
    with open_field(tmp_path / "a.tif") as field:
        assert field.notes == (f"16 bits per channel, shown as 8: white at {white}",)
        expected = np.floor(np.minimum(pixels, white) * (255 / white) + 0.5).astype(np.uint8)
        assert_reads(field, expected)


def test_stated_significant_bits_lead(tmp_path: Path) -> None:
    pixels = np.full((HEIGHT, WIDTH, 3), 700, np.uint16)
    for bits, white in ((12, 4095), (16, 1023), (8, 1023)):
        path = tmp_path / f"{bits}.ome.tif"
        tifffile.imwrite(path, pixels, photometric="rgb", metadata={"axes": "YXS", "SignificantBits": bits})
        with open_field(path) as field:
            assert field.notes == (f"16 bits per channel, shown as 8: white at {white}",), bits
            assert (field.read(WHOLE) == round(700 * 255 / white)).all()


def test_one_rule_for_all_windows_of_a_large_field(tmp_path: Path) -> None:
    pixels = np.full((2100, 2200, 3), 900, np.uint16)
    pixels[:300, :300] = 9  # a dark corner, which by itself would be stretched
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", tile=(256, 256), compression="zlib")
    with open_field(tmp_path / "a.tif") as field:
        assert field.notes == ("16 bits per channel, shown as 8: white at 1023",)
        assert field.read(Box(0, 0, 100, 100)).max() == round(9 * 255 / 1023)
        assert field.read(Box(2000, 2000, 100, 100)).max() == round(900 * 255 / 1023)


def test_an_all_black_field_of_16_bits_is_black(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((20, 30, 3), np.uint16), photometric="rgb")
    with open_field(tmp_path / "a.tif") as field:
        assert not field.read(Box(0, 0, 20, 30)).any()


# --- Field ---------------------------------------------------------------------------------------------------------


def test_thumbnails_are_means_over_areas(tmp_path: Path) -> None:
    image = noise(600, 900)
    tifffile.imwrite(tmp_path / "a.tif", image, tile=(64, 64))
    with open_field(tmp_path / "a.tif") as field:
        small, scale = field.thumbnail(300)
        assert scale == 3
        means = image.reshape(200, 3, 300, 3, 3).mean(axis=(1, 3))
        assert np.abs(small - means).max() <= 1
        whole, scale = field.thumbnail(900)
        assert scale == 1
        np.testing.assert_array_equal(whole, image)


@pytest.mark.parametrize("longest", [1, 7, 100, 202])
def test_a_thumbnail_shows_all_of_the_field(longest: int, tmp_path: Path) -> None:
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[:, WIDTH // 2 :] = 255  # the right half is white, whatever the size
    Image.fromarray(image).save(tmp_path / "a.png")
    with open_field(tmp_path / "a.png") as field:
        small, scale = field.thumbnail(longest)
    assert max(small.shape[:2]) == longest
    assert scale == WIDTH / longest
    assert small.mean() / 255 == pytest.approx(0.5, abs=0.05)


def test_boxes_must_lie_inside_and_the_field_must_be_open(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", noise())
    field = open_field(tmp_path / "a.tif")
    for box in (Box(-1, 0, 5, 5), Box(0, WIDTH - 4, 5, 5), Box(HEIGHT, 0, 1, 1)):
        with pytest.raises(ValueError, match="not inside"):
            field.read(box)
    field.close()
    field.close()
    with pytest.raises(ValueError, match="closed"):
        field.read(WHOLE)


def test_many_threads_read_one_field(tmp_path: Path) -> None:
    image = noise(500, 700)
    tifffile.imwrite(tmp_path / "a.tif", image, tile=(64, 64), compression="zlib")
    wrong: list[Box] = []

    def work(seed: int) -> None:
        draw = np.random.default_rng(seed)
        for _ in range(40):
            box = Box(int(draw.integers(0, 400)), int(draw.integers(0, 600)), 100, 100)
            if not np.array_equal(field.read(box), image[box.slices]):
                wrong.append(box)

    with open_field(tmp_path / "a.tif") as field:
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_the_smallest_field(tmp_path: Path) -> None:
    for name in ("a.tif", "a.png"):
        pixel = np.array([[[1, 2, 3]]], np.uint8)
        if name.endswith("tif"):
            tifffile.imwrite(tmp_path / name, pixel, photometric="rgb")
        else:
            Image.fromarray(pixel).save(tmp_path / name)
        with open_field(tmp_path / name) as field:
            assert field.read(Box(0, 0, 1, 1)).tolist() == [[[1, 2, 3]]]
            assert field.thumbnail(10)[1] == 1


def test_importing_the_package_loads_no_library_of_a_format() -> None:
    code = (
        "import sys, json, hematokit.imaging.fieldfiles; "
        "print(json.dumps([m for m in ('tifffile', 'imagecodecs', 'zarr', 'tensorstore', 'dask', 'bioio', 'ome_zarr', "
        "'torch', 'pandas') if m in sys.modules]))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(result.stdout) == []
