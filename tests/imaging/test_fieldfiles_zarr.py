"""OME-Zarr 0.4 and 0.5 as ome-zarr and zarr write them, and folders that are something else."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from ome_zarr.format import FormatV04, FormatV05
from ome_zarr.writer import write_image

from hematokit.errors import ImageError
from hematokit.imaging.fieldfiles import open_field
from hematokit.imaging.geometry import Box

HEIGHT, WIDTH = 150, 203
FORMATS = {2: FormatV04(), 3: FormatV05()}


def noise(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    return np.random.default_rng(5).integers(1, 256, (height, width, 3), np.uint8)


def write(path: Path, image: np.ndarray, version: int, axes: str = "cyx", **options: Any) -> None:
    options = {"scale_factors": [2, 4], "storage_options": {"chunks": (*(1,) * (len(axes) - 3), 3, 64, 64)}} | options
    write_image(image, str(path), fmt=FORMATS[version], axes=axes, **options)


def refused(path: Path) -> ImageError:
    with pytest.raises(ImageError) as caught:
        open_field(path)
    assert "\n" not in str(caught.value)
    assert ";" in str(caught.value), "a message says what to do"
    return caught.value


@pytest.mark.parametrize("version", [2, 3])
def test_images_come_back_bit_exact_with_their_scale(version: int, tmp_path: Path) -> None:
    path = tmp_path / "slide1.ome.zarr"
    units = {"y": "micrometer", "x": "micrometer"}
    write(path, noise().transpose(2, 0, 1), version, scale={"c": 1, "y": 0.1, "x": 0.1}, axes_units=units)
    with open_field(path) as field:
        assert field.name == "slide1"
        assert (field.height, field.width) == (HEIGHT, WIDTH)
        assert (field.pixel_size_um, field.pixel_size_source, field.notes) == (0.1, "metadata", ())
        for box in (Box(0, 0, HEIGHT, WIDTH), Box(HEIGHT - 1, WIDTH - 1, 1, 1), Box(30, 50, 99, 77)):
            pixels = field.read(box)
            assert pixels.flags.c_contiguous
            np.testing.assert_array_equal(pixels, noise()[box.slices])
            pixels[...] = 0  # the caller's own: the next reading does not see it
        small, scale = field.thumbnail(101)
        assert small.shape == (75, 101, 3)
        assert scale == WIDTH / 101


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("axes", ["tczyx", "yxc", "tcyx", "czyx"])
def test_axes_of_size_one_and_any_place_of_the_channels(version: int, axes: str, tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    sizes = {"c": 3, "y": HEIGHT, "x": WIDTH}
    order = sorted("yxc", key=axes.index)
    image = noise().transpose(["yxc".index(axis) for axis in order]).reshape([sizes.get(axis, 1) for axis in axes])
    root = zarr.open_group(str(path), mode="w", zarr_format=version)
    root.create_array("0", data=image, chunks=[min(size, 50) for size in image.shape])
    about = [{"axes": [{"name": axis} for axis in axes], "datasets": [{"path": "0"}]}]
    root.attrs.update({"ome": {"version": "0.5", "multiscales": about}} if version == 3 else {"multiscales": about})
    with open_field(path) as field:
        np.testing.assert_array_equal(field.read(Box(0, 0, HEIGHT, WIDTH)), noise())
        assert field.pixel_size_um is None


def test_sharded_arrays_of_16_bits(tmp_path: Path) -> None:
    image = noise().transpose(2, 0, 1).astype(np.uint16) * 16
    root = zarr.open_group(str(tmp_path / "a.zarr"), mode="w", zarr_format=3)
    root.create_array("0", data=image, chunks=(3, 32, 32), shards=(3, 128, 128))
    root.attrs["ome"] = {"multiscales": [{"axes": [{"name": axis} for axis in "cyx"], "datasets": [{"path": "0"}]}]}
    with open_field(tmp_path / "a.zarr") as field:
        assert field.notes == ("16 bits per channel, shown as 8: white at 4095",)
        expected = np.floor(noise().astype(int) * 16 * (255 / 4095) + 0.5)
        np.testing.assert_array_equal(field.read(Box(0, 0, HEIGHT, WIDTH)), expected)


@pytest.mark.parametrize(
    ("units", "scale", "expected", "noted"),
    [
        ({"y": "nanometer", "x": "nanometer"}, 87.0, 0.087, False),
        ({"y": "millimeter", "x": "micrometer"}, 0.1, None, True),  # 100 um and 0.1 um
        (None, 0.1, None, True),  # no unit: 0.1 of what?
        (None, 1.0, None, False),  # what is written where nothing is known
        ({"y": "micrometer", "x": "micrometer"}, -0.1, None, True),
        ({"y": "second", "x": "second"}, 0.1, None, True),
    ],
)
def test_scale_and_unit(
    units: dict[str, str] | None, scale: float, expected: float | None, noted: bool, tmp_path: Path
) -> None:
    root = zarr.open_group(str(tmp_path / "a.zarr"), mode="w", zarr_format=3)
    root.create_array("0", data=noise().transpose(2, 0, 1))
    axes = [{"name": axis} | ({"unit": units[axis]} if units and axis in units else {}) for axis in "cyx"]
    steps = [{"type": "scale", "scale": [1.0, scale, scale]}, {"type": "translation", "translation": [0, 5, 5]}]
    datasets = [{"path": "0", "coordinateTransformations": steps}]
    root.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}
    with open_field(tmp_path / "a.zarr") as field:
        assert field.pixel_size_um == expected
        assert any("pixel size ignored" in note for note in field.notes) == noted


def test_both_scales_multiply(tmp_path: Path) -> None:
    root = zarr.open_group(str(tmp_path / "a.zarr"), mode="w", zarr_format=3)
    root.create_array("0", data=noise().transpose(2, 0, 1))
    axes = [{"name": axis, "unit": "micrometer"} if axis != "c" else {"name": axis} for axis in "cyx"]
    half, fifth = ([{"type": "scale", "scale": [1.0, factor, factor]}] for factor in (0.5, 0.2))
    datasets = [{"path": "0", "coordinateTransformations": half}]
    root.attrs["ome"] = {"multiscales": [{"axes": axes, "datasets": datasets, "coordinateTransformations": fifth}]}
    with open_field(tmp_path / "a.zarr") as field:
        assert field.pixel_size_um == 0.1


def test_the_one_image_of_a_bioformats2raw_folder(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    zarr.open_group(str(path), mode="w", zarr_format=2).attrs["bioformats2raw.layout"] = 3
    write(path / "0", noise().transpose(2, 0, 1), 2)
    with open_field(path) as field:
        assert field.name == "a"
        np.testing.assert_array_equal(field.read(Box(5, 6, 70, 80)), noise()[5:75, 6:86])
    write(path / "1", noise().transpose(2, 0, 1), 2)
    assert refused(path).reason == "several-images"


def test_missing_chunks_are_black_but_told(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    write(path, noise().transpose(2, 0, 1), 3)
    chunks = sorted(file for file in (path / "s0").rglob("*") if file.is_file() and file.name != "zarr.json")
    assert len(chunks) == 3 * 4
    chunks[0].unlink()
    with open_field(path) as field:
        assert "1 of 12 chunks" in field.notes[0]
        assert not field.read(Box(0, 0, 64, 64)).any()
        assert field.read(Box(0, 64, 64, 64)).all()


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("size", [0, 100])
def test_chunks_cut_short_are_an_error(version: int, size: int, tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    write(path, noise().transpose(2, 0, 1), version, scale_factors=[2])
    chunks = [file for file in (path / "s0").rglob("*") if file.is_file() and file.name not in ("zarr.json", ".zarray")]
    for chunk in chunks:
        chunk.write_bytes(chunk.read_bytes()[:size])
    with open_field(path) as field:
        with pytest.raises(ImageError) as caught:
            field.read(Box(0, 0, 20, 20))
        assert caught.value.reason == "unreadable"
        assert "\n" not in str(caught.value)


def test_a_damaged_level_of_the_pyramid_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    write(path, noise().transpose(2, 0, 1), 3)
    for name in ("s1", "s2"):
        for chunk in (path / name).rglob("*"):
            if chunk.is_file() and chunk.name != "zarr.json":
                chunk.write_bytes(b"damaged")
    with open_field(path) as field:
        assert field.thumbnail(50)[0].shape == (37, 50, 3)
    (path / "s1" / "zarr.json").write_text("{}")
    with open_field(path) as field:
        np.testing.assert_array_equal(field.read(Box(0, 0, 9, 9)), noise()[:9, :9])


# --- refused -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("axes", "shape", "reason"),
    [
        ("yx", (50, 60), "not-rgb"),
        ("cyx", (1, 50, 60), "not-rgb"),
        ("cyx", (4, 50, 60), "not-rgb"),
        ("tcyx", (2, 3, 50, 60), "several-images"),
        ("czyx", (3, 5, 50, 60), "several-images"),
    ],
)
def test_other_images_are_refused(axes: str, shape: tuple[int, ...], reason: str, tmp_path: Path) -> None:
    root = zarr.open_group(str(tmp_path / "a.zarr"), mode="w", zarr_format=3)
    root.create_array("0", data=np.ones(shape, np.uint8))
    about = [{"axes": [{"name": axis} for axis in axes], "datasets": [{"path": "0"}]}]
    root.attrs["ome"] = {"version": "0.5", "multiscales": about}
    assert refused(tmp_path / "a.zarr").reason == reason


def test_other_types_of_pixels_are_refused(tmp_path: Path) -> None:
    for dtype in ("float32", "int16", "uint32"):
        root = zarr.open_group(str(tmp_path / f"{dtype}.zarr"), mode="w", zarr_format=3)
        root.create_array("0", data=np.ones((3, 50, 60), dtype))
        root.attrs["ome"] = {"multiscales": [{"axes": ["c", "y", "x"], "datasets": [{"path": "0"}]}]}
        error = refused(tmp_path / f"{dtype}.zarr")
        assert error.reason == "not-rgb"
        assert dtype in str(error)


def test_chunks_too_large_to_decode_are_refused_before_it(tmp_path: Path) -> None:
    root = zarr.open_group(str(tmp_path / "a.zarr"), mode="w", zarr_format=3)
    root.create_array("0", shape=(3, 40_000, 40_000), chunks=(3, 40_000, 40_000), dtype="uint8")
    root.attrs["ome"] = {"multiscales": [{"axes": ["c", "y", "x"], "datasets": [{"path": "0"}]}]}
    assert refused(tmp_path / "a.zarr").reason == "too-large"


class Payload:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize(
    "codecs",
    [
        {"dtype": "|O", "filters": [{"id": "pickle", "protocol": 5}], "compressor": None},
        {"dtype": "|u1", "filters": [{"id": "pickle", "protocol": 5}], "compressor": None},
        {"dtype": "|u1", "filters": None, "compressor": {"id": "pickle", "protocol": 5}},
    ],
)
def test_nothing_is_unpickled(codecs: dict[str, Any], tmp_path: Path) -> None:
    path, mark = tmp_path / "a.zarr", tmp_path / "mark"
    (path / "0" / "0" / "0").mkdir(parents=True)
    (path / ".zgroup").write_text('{"zarr_format": 2}')
    axes = [{"name": "c", "type": "channel"}, {"name": "y", "type": "space"}, {"name": "x", "type": "space"}]
    (path / ".zattrs").write_text(json.dumps({"multiscales": [{"axes": axes, "datasets": [{"path": "0"}]}]}))
    array = {"zarr_format": 2, "shape": [3, 8, 8], "chunks": [3, 8, 8], "order": "C", "fill_value": 0, **codecs}
    (path / "0" / ".zarray").write_text(json.dumps(array))
    for name in ("0.0.0", "0/0/0"):
        (path / "0" / name).write_bytes(pickle.dumps(Payload(mark)))
    assert refused(path).reason == "unreadable"
    assert not mark.exists()
    pickle.loads((path / "0" / "0.0.0").read_bytes())  # noqa: S301 - shows that the mark would be there
    assert mark.exists()


@pytest.mark.parametrize("name", ["../other", "/etc", "a/../../other"])
def test_arrays_outside_of_the_image_are_not_opened(name: str, tmp_path: Path) -> None:
    zarr.open_group(str(tmp_path / "other.zarr"), mode="w", zarr_format=3)
    zarr.create_array(str(tmp_path / "other"), data=noise().transpose(2, 0, 1), zarr_format=3)
    root = zarr.open_group(str(tmp_path / "a.zarr"), mode="w", zarr_format=3)
    root.attrs["ome"] = {"multiscales": [{"axes": ["c", "y", "x"], "datasets": [{"path": name}]}]}
    assert "leads out" in str(refused(tmp_path / "a.zarr"))


def test_a_store_is_not_an_image_but_says_where_they_are(tiny_store: Path) -> None:
    error = refused(tiny_store)
    assert error.reason == "not-an-image"
    assert str(tiny_store / "fields") in str(error)


def test_other_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    assert refused(tmp_path / "plain").reason == "not-an-image"
    zarr.create_array(str(tmp_path / "array.zarr"), data=np.ones((3, 4, 5), np.uint8), zarr_format=3)
    assert refused(tmp_path / "array.zarr").reason == "not-an-image"
    zarr.open_group(str(tmp_path / "group.zarr"), mode="w", zarr_format=2)
    assert refused(tmp_path / "group.zarr").reason == "not-an-image"
    zarr.open_group(str(tmp_path / "plate.zarr"), mode="w", zarr_format=3).attrs["ome"] = {"plate": {}}
    assert refused(tmp_path / "plate.zarr").reason == "several-images"


DAMAGES: list[tuple[str, Any]] = [
    ("multiscales", 5),
    ("multiscales", []),
    ("multiscales", [5]),
    ("multiscales", [{}]),
    ("multiscales", {"a": 1}),
    ("axes", None),
    ("axes", ["c", "y"]),
    ("axes", ["c", "y", "y"]),
    ("axes", [{"x": 1}, 2, 3]),
    ("datasets", []),
    ("datasets", [{"path": 7}]),
    ("datasets", [{}]),
    ("datasets", "0"),
]


@pytest.mark.parametrize(("key", "value"), DAMAGES)
def test_damaged_metadata_are_an_error(key: str, value: Any, tmp_path: Path) -> None:
    root = zarr.open_group(str(tmp_path / "a.zarr"), mode="w", zarr_format=3)
    root.create_array("0", data=noise().transpose(2, 0, 1))
    image = {"axes": ["c", "y", "x"], "datasets": [{"path": "0"}]}
    root.attrs["ome"] = {"multiscales": value} if key == "multiscales" else {"multiscales": [image | {key: value}]}
    refused(tmp_path / "a.zarr")


@pytest.mark.parametrize("text", ["", "{", "[]", "5", '{"attributes": 5}', "[" * 100_000, "\0\xff"])
def test_files_of_metadata_that_are_no_metadata(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.zarr").mkdir()
    for name in ("zarr.json", ".zattrs"):
        (tmp_path / "a.zarr" / name).write_text(text, encoding="latin-1")
    refused(tmp_path / "a.zarr")
