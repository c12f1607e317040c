"""The orientation that an image states is applied: pixels, boxes and annotations are those of the image as shown."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image, ImageOps

from hematokit.cli.main import main
from hematokit.errors import ImageError
from hematokit.imaging.fieldfiles import Field, open_field
from hematokit.imaging.geometry import Box
from hematokit.imaging.reading import read_rgb
from hematokit.pipelines.store_corrected import store_corrected
from hematokit.pipelines.tile import tile
from hematokit.results.reading import open_results
from hematokit.review.session import Review
from hematokit.store import import_crops, open_store, open_stored_field
from hematokit.taxonomy import MATEK_21

ORIENTATIONS = range(1, 9)
HEIGHT, WIDTH = 150, 203


def noise(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (height, width, 3), np.uint8)


def shown(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """The reference: what Pillow makes of an image that states this orientation."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", exif=exif_of(orientation))
    return np.asarray(ImageOps.exif_transpose(Image.open(buffer)))


def exif_of(orientation: object) -> Image.Exif:
    exif = Image.Exif()
    exif[274] = orientation
    return exif


def tag_of(orientation: int) -> list[tuple[int, str, int, int, bool]]:
    return [(274, "H", 1, orientation, True)]


def assert_reads(field: Field, expected: np.ndarray) -> None:
    height, width = expected.shape[:2]
    assert (field.height, field.width) == (height, width)
    boxes = [Box(0, 0, height, width), Box(height - 1, 0, 1, 1), Box(3, width - 9, 7, 9), Box(31, 20, 80, 99)]
    for box in boxes:
        pixels = field.read(box)
        assert pixels.flags.c_contiguous
        np.testing.assert_array_equal(pixels, expected[box.slices])


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_images_are_what_pillow_shows(kind: str, orientation: int, tmp_path: Path) -> None:
    path = tmp_path / f"a.{kind.lower()}"
    Image.fromarray(noise()).save(path, kind, exif=exif_of(orientation))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    if kind != "JPEG":
        assert np.array_equal(expected, shown(noise(), orientation))
    assert np.array_equal(read_rgb(path), expected)
    with open_field(path) as field:
        assert_reads(field, expected)
        assert field.orientation == orientation
        assert field.notes == (
            () if orientation == 1 else (f"turned as its metadata state (orientation {orientation})",)
        )
    with open_field(path, orient=False) as field:
        assert (field.height, field.width, field.orientation) == (HEIGHT, WIDTH, 1)


TIFFS: dict[str, dict[str, object]] = {
    "one strip": {},
    "strips, LZW": {"rowsperstrip": 16, "compression": "lzw"},
    "tiles": {"tile": (64, 48)},
    "tiles, Deflate, BigTIFF": {"tile": (32, 32), "compression": "zlib", "bigtiff": True},
    "16 bits": {"tile": (64, 64), "dtype": np.uint16},
}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("kind", TIFFS)
def test_windows_of_tiffs_are_those_of_the_image_as_shown(kind: str, orientation: int, tmp_path: Path) -> None:
    options = dict(TIFFS[kind])
    pixels = noise().astype(options.pop("dtype", np.uint8))
    pixels[0, 0] = 255  # white of 8 bits in 16
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", extratags=tag_of(orientation), **options)
    with open_field(tmp_path / "a.tif") as field:
        assert_reads(field, shown(pixels.astype(np.uint8), orientation))


@pytest.mark.parametrize("orientation", [3, 5, 6, 7, 8])
def test_a_pyramid_is_turned_at_every_level_and_read_by_windows(
    orientation: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    y, x = np.mgrid[:1200, :1800]
    pixels = np.stack([y // 8, x // 8, (x + y) // 16], axis=-1).astype(np.uint8)
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        options = {"photometric": "rgb", "tile": (128, 128), "compression": "zlib", "extratags": tag_of(orientation)}
        file.write(pixels, subifds=2, **options)
        file.write(pixels[::2, ::2], subfiletype=1, **options)
        file.write(pixels[::4, ::4], subfiletype=1, **options)
    expected = shown(pixels, orientation)
    with open_field(tmp_path / "a.tif") as field:
        assert [(level.height, level.width) for level in field._levels()] == [
            shown(pixels[::step, ::step], orientation).shape[:2] for step in (1, 2, 4)
        ]
        read: list[int] = []
        pread = os.pread
        monkeypatch.setattr("os.pread", lambda *given: read.append(given[1]) or pread(*given))
        box = Box(700, 300, 60, 70)
        np.testing.assert_array_equal(field.read(box), expected[box.slices])
        assert len(read) <= 4, "only the tiles under the window are read"
        small, scale = field.thumbnail(450)
        assert scale == 4
        np.testing.assert_array_equal(small, shown(pixels[::4, ::4], orientation))


def test_orientations_that_are_none_change_nothing(tmp_path: Path) -> None:
    for number, orientation in enumerate((0, 9, 300)):
        Image.fromarray(noise()).save(tmp_path / f"{number}.png", exif=exif_of(orientation))
        tifffile.imwrite(tmp_path / f"{number}.tif", noise(), photometric="rgb", extratags=tag_of(orientation))
        for ending in ("png", "tif"):
            assert np.array_equal(read_rgb(tmp_path / f"{number}.{ending}"), noise())
            with open_field(tmp_path / f"{number}.{ending}") as field:
                assert_reads(field, noise())
    Image.fromarray(noise()).save(tmp_path / "broken.png", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff")
    assert np.array_equal(read_rgb(tmp_path / "broken.png"), noise())


def test_ome_tiff_and_slides_keep_the_axes_of_the_file(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.ome.tif", noise(), photometric="rgb", extratags=tag_of(6), metadata={"axes": "YXS"})
    about = "Aperio Image Library v11.2.1\n203x150 [0,0 203x150] |AppMag = 20|MPP = 0.4990"
    tifffile.imwrite(
        tmp_path / "a.svs", noise(), photometric="rgb", tile=(64, 64), description=about, extratags=tag_of(6)
    )
    for name in ("a.ome.tif", "a.svs"):
        with open_field(tmp_path / name) as field:
            assert_reads(field, noise())


def test_real_photos_are_what_pillow_shows(real_data: Path) -> None:
    for path in sorted((real_data / "formats").glob("exif-rotation-*.jpg")):
        expected = np.asarray(ImageOps.exif_transpose(Image.open(path)))
        assert np.array_equal(read_rgb(path), expected)
        with open_field(path) as field:
            assert_reads(field, expected)


# --- annotations, stores and results ----------------------------------------------------------------------------------


def photo(folder: Path, orientation: int = 6, name: str = "phone.jpg") -> Path:
    """A photo of 480x640 px as stored, with one dark cell at y=100, x=160 of the stored image."""
    y, x = np.mgrid[:480, :640]
    pixels = np.full((480, 640, 3), (240, 225, 232), np.uint8)
    pixels[(y - 100) ** 2 + (x - 160) ** 2 < 2000] = (200, 180, 215)
    pixels[(y - 100) ** 2 + (x - 160) ** 2 < 900] = (90, 50, 140)
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(folder / name, quality=95, exif=exif_of(orientation))
    return folder / name


def cell_in(pixels: np.ndarray) -> tuple[float, float]:
    """Centre (y, x) of the dark cell."""
    found = np.argwhere(pixels[..., 1] < 150)
    y, x = found.mean(axis=0) + 0.5
    return float(y), float(x)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_boxes_drawn_on_the_image_as_shown_are_at_the_cell(
    orientation: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = photo(tmp_path / "f", orientation)
    pixels = np.asarray(ImageOps.exif_transpose(Image.open(image)))
    (height, width), (y, x) = pixels.shape[:2], cell_in(pixels)
    labels = tmp_path / "labels"
    labels.mkdir()
    (labels / "classes.txt").write_text("LYT\n")
    (labels / "phone.txt").write_text(f"0 {x / width:.6f} {y / height:.6f} {80 / width:.6f} {80 / height:.6f}\n")
    command = ["tile", str(tmp_path / "f"), str(tmp_path / "t.zarr"), "--cells", str(labels), "--pixel-size", "0.1"]
    assert main(command) == 0
    assert main(command) == 0  # again: nothing new
    assert "1 of 1 fields were there already" in capsys.readouterr().out
    store = open_store(tmp_path / "t.zarr")
    assert store.cells[["y", "x"]].to_numpy() == pytest.approx(np.array([[y, x]]), abs=0.5)
    patch = store.patches(store.cells["cell_id"].tolist())[0]
    assert cell_in(patch) == pytest.approx((125, 125), abs=1)
    with open_stored_field(store, "phone") as field:
        np.testing.assert_array_equal(field.read(Box(0, 0, height, width)), pixels)


def before_orientation(monkeypatch: pytest.MonkeyPatch, work: Callable[[], object]) -> None:
    """Do something as versions did that applied no orientation and recorded none."""
    import hematokit.pipelines.field_run as job
    import hematokit.pipelines.tile as tiling

    def opened(*given: object, **options: object) -> Field:
        return open_field(*given, **(options | {"orient": False}))  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(job, "open_field", opened)
        patch.setattr(tiling, "open_field", opened)
        work()


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_store_from_before_is_not_mixed(orientation: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image, store = photo(tmp_path / "f", orientation), tmp_path / "old.zarr"
    before_orientation(monkeypatch, lambda: tile([image], store))
    old = open_store(store).cells
    summary = tile([image], store)
    assert (summary.added, summary.rejected) == (0, {"orientation-differs": 1})
    message = open_store(store).rejects["message"].iloc[0]
    assert "before orientation was applied" in message
    assert "tile it into a new store" in message
    pd.testing.assert_frame_equal(open_store(store).cells, old)
    assert len(open_store(store).fields) == 1
    # Corrections of cells that were found on the image as shown belong to no cell of that store.
    assert main(["detect", str(image), "--output", str(tmp_path / "results")]) == 0
    review = Review(open_results(tmp_path / "results").fields[0].cells(), MATEK_21, field_id="phone", who="A")
    review.correct([review.cells["cell_id"].iloc[0]], "LYT")
    with pytest.raises(ImageError, match="before orientation was applied"):
        store_corrected(review, image, store)


def test_results_from_before_are_not_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    image, output = photo(tmp_path / "f"), tmp_path / "results"
    command = ["detect", str(image), "--output", str(output)]
    before_orientation(monkeypatch, lambda: main(command))
    done = output / "fields" / "phone" / "field.json"
    # What 0.1.0 wrote has no orientation.
    document = json.loads(done.read_text())
    del document["orientation"]
    done.write_text(json.dumps(document))
    saved = {file: file.read_bytes() for file in output.rglob("*") if file.is_file()}
    capsys.readouterr()
    assert main(command) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "before its orientation (6) was applied" in said
    assert "--output" in said
    assert {file: file.read_bytes() for file in output.rglob("*") if file.is_file()} == saved
    assert [field.oriented for field in open_results(output).fields] == [False]
    assert main([*command[:-1], str(tmp_path / "new")]) == 0
    assert main([*command[:-1], str(tmp_path / "new")]) == 0
    new = open_results(tmp_path / "new").fields[0]
    assert new.oriented
    pixels = np.asarray(ImageOps.exif_transpose(Image.open(image)))
    assert new.cells()[["y", "x"]].to_numpy() == pytest.approx(np.array([cell_in(pixels)]), abs=2)


def test_crops_are_turned_and_crops_from_before_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "crops" / "BLA"
    folder.mkdir(parents=True)
    for orientation in ORIENTATIONS:
        Image.fromarray(noise(32, 32)).save(folder / f"{orientation}.png", exif=exif_of(orientation))
    import_crops(folder.parent, tmp_path / "new.zarr", patch_size=32, near_duplicates=False)
    store = open_store(tmp_path / "new.zarr")
    for orientation in ORIENTATIONS:
        np.testing.assert_array_equal(store.patches([str(orientation)])[0], shown(noise(32, 32), orientation))
    again = import_crops(folder.parent, tmp_path / "new.zarr", near_duplicates=False)
    assert (again.added, again.present, again.rejected) == (0, 8, {})

    import hematokit.store.loading as loading

    with monkeypatch.context() as patch:
        decode = loading.decode_rgb
        patch.setattr(loading, "decode_rgb", lambda *given, **options: decode(*given, **(options | {"orient": False})))
        import_crops(folder.parent, tmp_path / "old.zarr", patch_size=32, near_duplicates=False)
    old = open_store(tmp_path / "old.zarr").cells
    again = import_crops(folder.parent, tmp_path / "old.zarr", near_duplicates=False)
    assert (again.added, again.present, again.rejected) == (0, 1, {"orientation-differs": 7})
    assert open_store(tmp_path / "old.zarr").rejects["message"].str.contains("import into a new store").all()
    pd.testing.assert_frame_equal(open_store(tmp_path / "old.zarr").cells, old)
