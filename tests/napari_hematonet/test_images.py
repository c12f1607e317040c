"""Image layers of all kinds as fields, or one line that says what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Picture

from hematokit.detection.windows import detect_cells, make_detector
from hematokit.errors import ImageError
from hematokit.imaging.fieldfiles import open_field
from hematokit.imaging.geometry import Box
from napari_hematonet.images import field_of, is_field_image, orientation_note, show_in_micrometres


@pytest.fixture
def model() -> Any:
    from napari.components import ViewerModel

    return ViewerModel()


@pytest.fixture
def pixels() -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)


def whole(field: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.asarray(field.read(Box(0, 0, field.height, field.width)))


def test_a_colour_image_is_read_as_it_is(model: Any, pixels: Any) -> None:
    layer = model.add_image(pixels, name="smear 1")
    field = field_of(layer, viewer=model)
    assert (field.height, field.width, field.name, field.plane) == (90, 120, "smear 1", ())
    assert field.pixel_size_um is None
    assert (whole(field) == pixels).all()
    assert (field.read(Box(10, 20, 5, 7)) == pixels[10:15, 20:27]).all()
    model.layers.clear()
    assert (whole(field) == pixels).all()  # the layer may go while the field is worked on


def test_other_kinds_of_pixels(model: Any, pixels: Any) -> None:
    import dask.array

    wide = pixels.astype(np.uint16) * 16 + 8
    kinds = {
        "alpha": np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)]),
        "float": pixels / 255,
        "dask": dask.array.from_array(pixels, chunks=(32, 32, 3)),
        "16 bits": wide,
    }
    for name, data in kinds.items():
        field = field_of(model.add_image(data, rgb=True, name=name))
        assert np.abs(whole(field).astype(int) - pixels).max() <= (1 if name == "16 bits" else 0), name
    assert any("16 bits" in note for note in field.notes)
    pyramid = model.add_image([pixels, pixels[::2, ::2], pixels[::4, ::4]], rgb=True, multiscale=True)
    field = field_of(pyramid)
    assert (whole(field) == pixels).all()
    assert max(field.thumbnail(30)[0].shape) == 30


def test_the_plane_that_is_shown_is_taken(model: Any, pixels: Any) -> None:
    stack = np.stack([pixels, pixels // 2, 255 - pixels])
    layer = model.add_image(stack, rgb=True)
    model.dims.set_point(0, 2)
    field = field_of(layer, viewer=model)
    assert field.plane == (2,)
    assert (whole(field) == 255 - pixels).all()
    assert any("plane 2" in note for note in field.notes)


def test_the_pixel_size_is_the_layers_or_its_files(make_viewer: Any, pixels: Any, tmp_path: Path) -> None:
    model = make_viewer(show=False)  # with napari's own readers
    assert field_of(model.add_image(pixels, scale=(0.1, 0.1), units="um")).pixel_size_um == pytest.approx(0.1)
    assert field_of(model.add_image(pixels, scale=(1e-4, 1e-4), units="mm")).pixel_size_um == pytest.approx(0.1)
    turned = model.add_image(pixels, scale=(0.1, 0.1), units="um", rotate=30, translate=(5, 6))
    assert field_of(turned).pixel_size_um == pytest.approx(0.1)
    doubled = model.add_image(pixels, scale=(0.1, 0.1), units="um", affine=np.diag([2.0, 2.0, 1.0]))
    assert field_of(doubled).pixel_size_um == pytest.approx(0.2)
    # A scale without a unit may be anything.
    assert field_of(model.add_image(pixels, scale=(0.1, 0.1))).pixel_size_um is None
    assert field_of(model.add_image(pixels), pixel_size_um=0.2).pixel_size_um == 0.2
    stretched = field_of(model.add_image(pixels, scale=(0.1, 0.3), units="um"))
    assert stretched.pixel_size_um is None
    assert any("not square" in note for note in stretched.notes)
    Picture.fromarray(pixels).save(tmp_path / "slide.png", dpi=(25400 / 0.25,) * 2)
    (layer,) = model.open(str(tmp_path / "slide.png"), plugin="napari")
    field = field_of(layer)
    assert field.pixel_size_um == pytest.approx(0.25, rel=1e-3)
    assert (field.name, field.path) == ("slide", tmp_path / "slide.png")
    show_in_micrometres(model, 0.25)
    assert field_of(layer).pixel_size_um == pytest.approx(0.25)


def test_what_is_no_field_is_said_in_one_line(model: Any, pixels: Any) -> None:
    grey = pixels[..., 0]
    cases = [
        (None, "missing", "Open Sample"),
        (model.add_points([[1, 2]]), "not-an-image", "points"),
        (model.add_labels(grey.astype(int)), "not-an-image", "labels"),
        (model.add_image(grey, name="grey\nday"), "not-rgb", "greyscale"),
        (model.add_image(np.stack([grey] * 3), rgb=False), "not-rgb", "Merge to RGB"),
        (model.add_image(pixels[:20], rgb=True), "too-small", "120x20"),
        (model.add_image(pixels.astype(np.int32), rgb=True), "not-rgb", "int32"),
    ]
    for layer, reason, words in cases:
        with pytest.raises(ImageError) as caught:
            field_of(layer, viewer=model)
        assert caught.value.reason == reason
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)
        assert reason != "not-an-image" or not is_field_image(layer)
    with pytest.raises(ImageError, match="pixel size"):
        field_of(model.add_image(pixels), pixel_size_um=-1)
    see_through = np.dstack([pixels, np.zeros(pixels.shape[:2], np.uint8)])
    with pytest.raises(ImageError, match="transparent"):
        whole(field_of(model.add_image(see_through)))


def test_detection_sees_in_the_layer_what_it_sees_in_the_file(make_viewer: Any, real_data: Path) -> None:
    model = make_viewer(show=False)  # with napari's own readers
    file = sorted((real_data / "bccd" / "JPEGImages").glob("*.jpg"))[0]
    (layer,) = model.open(str(file), plugin="napari")
    layer.rotate, layer.translate = 20, (50, -30)
    detector = make_detector()
    with open_field(file) as opened:
        expected = detect_cells(opened, detector)
    found = detect_cells(field_of(layer, viewer=model), detector)
    assert len(found) > 0
    assert np.allclose(found[["y", "x"]], expected[["y", "x"]])


def test_an_image_that_napari_does_not_turn_is_said_and_kept_as_shown(model: Any, pixels: Any, tmp_path: Path) -> None:
    from napari_hematonet.jobs import _image_of

    exif = Picture.Exif()
    for orientation in (1, 6):
        exif[274] = orientation
        Picture.fromarray(pixels).save(tmp_path / f"{orientation}.png", exif=exif, dpi=(254_000, 254_000))
        (layer,) = model.open(tmp_path / f"{orientation}.png", plugin="napari")
        assert layer.data.shape[:2] == (90, 120), "napari applies no orientation"
        note = orientation_note(layer)
        assert bool(note) == (orientation == 6)
        field = field_of(layer)
        assert (whole(field) == pixels).all()
        assert field.pixel_size_um == pytest.approx(0.1, rel=1e-3)
        # A store is made of what was looked at: of the file only where it is shown in the same way.
        assert _image_of(field, ()) == (tmp_path / "1.png" if orientation == 1 else field)
