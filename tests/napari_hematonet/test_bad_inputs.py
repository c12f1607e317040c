"""What people open, choose and take away by mistake: one line that says what is wrong, or cells where they belong."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import napari
import numpy as np
import pytest

from hematokit.synthetic import synthesize_field
from napari_hematonet import jobs
from napari_hematonet.classify_widget import ClassifyWidget
from napari_hematonet.state import cells_layers, state_of

WAIT = 60_000
DRAW = "\n"


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return synthesize_field(300, 400, cells=8, seed=5).pixels


@pytest.fixture
def form(viewer: napari.Viewer, tiny_run: Path) -> ClassifyWidget:
    _, widget = viewer.window.add_plugin_dock_widget("hematokit", "Classify field")
    widget.model.choose(tiny_run)
    return widget


def run(qtbot: Any, form: ClassifyWidget) -> None:
    form.run_button.click()
    qtbot.waitUntil(lambda: not form.running, timeout=WAIT)
    assert form.run_button.isEnabled()
    assert not form.cancel_button.isEnabled()


def found(viewer: napari.Viewer, image: Any) -> np.ndarray:
    """Where the cells are, in pixels of their image, by way of the world."""
    layer = cells_layers(viewer)[-1]
    return np.array([image.world_to_data(layer.data_to_world(point))[-2:] for point in layer.data])


def refused(told: list[tuple[str, str]], form: ClassifyWidget, words: str) -> None:
    """The last word was an error, in one line, which the form shows in full."""
    severity, message = told[-1]
    assert severity == "error", told
    assert words in message
    assert "please report" not in message
    assert "\n" not in message
    assert form.status.text() == message


def test_cells_are_the_same_however_the_colours_are_kept_and_the_image_lies(
    viewer: napari.Viewer, form: ClassifyWidget, pixels: np.ndarray, qtbot: Any, told: list[tuple[str, str]]
) -> None:
    image = viewer.add_image(pixels)
    run(qtbot, form)
    expected = found(viewer, image)
    labels = cells_layers(viewer)[0].features["predicted"].tolist()
    assert len(expected) > 2
    small = [pixels, pixels[::2, ::2]]
    cases: list[tuple[Any, dict[str, Any]]] = [
        (np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)]), {}),
        (pixels.astype(np.uint16) * 257, {}),
        (pixels / 255, {}),
        (pixels.astype(np.float32), {}),
        (np.stack([pixels[::-1], pixels]), {}),
        (small, {"multiscale": True}),
        (pixels, {"scale": (-1, 1)}),
        (pixels, {"scale": (0.5, 2)}),
        (pixels, {"rotate": 30, "translate": (50, -70)}),
        (pixels, {"shear": [0.3], "affine": [[1.2, 0.1, 5], [0, 0.9, -4], [0, 0, 1]]}),
    ]
    for data, placement in cases:
        viewer.layers.clear()
        image = viewer.add_image(data, rgb=True, **placement)
        if image.ndim == 3:
            viewer.dims.set_point(0, 1)
        run(qtbot, form)
        assert np.allclose(found(viewer, image), expected), placement
        assert cells_layers(viewer)[0].features["predicted"].tolist() == labels
    # A layer on top that is no image changes nothing.
    viewer.add_labels(np.zeros(pixels.shape[:2], int))
    run(qtbot, form)
    assert np.allclose(found(viewer, image), expected)
    assert not told


def test_where_nothing_was_recorded_there_is_glass(
    viewer: napari.Viewer, form: ClassifyWidget, pixels: np.ndarray, qtbot: Any, told: list[tuple[str, str]]
) -> None:
    image = viewer.add_image(pixels)
    run(qtbot, form)
    whole = found(viewer, image)
    viewer.layers.clear()
    holed = pixels / 255
    holed[:, :100] = np.nan
    image = viewer.add_image(holed, rgb=True)
    run(qtbot, form)
    far = whole[whole[:, 1] > 200]
    assert len(far)
    there = found(viewer, image)
    assert all(np.abs(there - place).sum(axis=1).min() < 3 for place in far)
    assert not told


def test_what_is_no_picture_of_cells_is_refused_in_words(
    viewer: napari.Viewer, form: ClassifyWidget, pixels: np.ndarray, qtbot: Any, told: list[tuple[str, str]]
) -> None:
    run(qtbot, form)
    refused(told, form, "no image is open")
    viewer.add_labels(np.zeros((50, 50), int))
    run(qtbot, form)
    refused(told, form, "no image is open")
    for data, options, words in [
        (pixels[:20, :20], {}, "20x20 px, no larger than a cell"),
        (pixels[..., 0], {}, "greyscale"),
        (np.moveaxis(pixels, -1, 0), {}, "the colormaps red, green and blue"),
        (pixels.astype(np.int32), {"rgb": True}, "int32"),
        (pixels.astype(np.float32) * 257, {"rgb": True}, "in floating point"),
        (np.full(pixels.shape, np.nan), {"rgb": True}, "only NaN"),
    ]:
        viewer.layers.clear()
        viewer.add_image(data, **options)
        run(qtbot, form)
        refused(told, form, words)
        assert not cells_layers(viewer)


def test_a_pixel_size_that_finds_nothing_is_asked_about(
    viewer: napari.Viewer, form: ClassifyWidget, pixels: np.ndarray, qtbot: Any, told: list[tuple[str, str]]
) -> None:
    viewer.add_image(pixels)
    form.pixel_size.value = 9.0
    run(qtbot, form)
    assert told[-1][0] == "warning"
    assert "is a pixel 9 µm?" in told[-1][1]
    assert "No cells were detected" in form.status.text()
    viewer.layers.clear()
    form.pixel_size.value = 0.0
    viewer.add_image(pixels, scale=(0.1, 0.2), units=("um", "um"))
    run(qtbot, form)
    assert "not square" in form.status.text()


def test_regions_that_enclose_nothing_go_or_get_another_name(
    viewer: napari.Viewer, form: ClassifyWidget, pixels: np.ndarray, qtbot: Any, told: list[tuple[str, str]]
) -> None:
    image = viewer.add_image(pixels, name="field")
    form.region.value = DRAW
    shapes = viewer.layers["region"]
    run(qtbot, form)
    refused(told, form, "no area drawn yet")
    shapes.add_rectangles([[[50, 50]] * 4])  # a click, not a drag
    run(qtbot, form)
    refused(told, form, "no area drawn yet")
    shapes.add_rectangles([[[-90, -90], [-90, -50], [-50, -50], [-50, -90]]])
    run(qtbot, form)
    refused(told, form, "outside the field")
    # Renamed layers are still the ones that were chosen.
    shapes.data = []
    shapes.add_rectangles([[[0, 0], [0, 200], [300, 200], [300, 0]]])
    shapes.name, image.name = "left half", "slide 7"
    assert (form.image.value, form.region.value) == ("slide 7", "left half")
    count = len(told)
    run(qtbot, form)
    assert (found(viewer, image)[:, 1] < 200).all()
    viewer.layers.remove(shapes)
    assert form.region.value == ""
    run(qtbot, form)
    assert (found(viewer, image)[:, 1] > 200).any()
    assert len(told) == count


def test_a_name_of_several_lines_is_one_line_of_the_list(
    viewer: napari.Viewer, form: ClassifyWidget, pixels: np.ndarray, qtbot: Any
) -> None:
    viewer.add_image(pixels, name="smear\n" + "x" * 200)
    text = form.image.native.currentText()
    assert "\n" not in text
    assert len(text) <= 60
    run(qtbot, form)
    assert cells_layers(viewer)


def test_run_pressed_twice_is_one_run(
    viewer: napari.Viewer, form: ClassifyWidget, pixels: np.ndarray, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    viewer.add_image(pixels)
    asked = []
    real = jobs.get_model
    monkeypatch.setattr(jobs, "get_model", lambda *a: (asked.append(a), real(*a))[1])
    form.run_button.click()
    form.run_button.click()
    form.run()
    qtbot.waitUntil(lambda: not form.running, timeout=WAIT)
    assert len(asked) == 1
    run(qtbot, form)
    assert len(cells_layers(viewer)) == 1


def test_damaged_and_missing_models(
    viewer: napari.Viewer,
    form: ClassifyWidget,
    pixels: np.ndarray,
    qtbot: Any,
    told: list[tuple[str, str]],
    tiny_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    viewer.add_image(pixels)
    for name in ("config.json", "model.safetensors"):
        bundle = tmp_path / name.split(".", maxsplit=1)[0]
        shutil.copytree(tiny_run / "bundle", bundle)
        whole = (bundle / name).read_bytes()
        (bundle / name).write_bytes(whole[: len(whole) // 2])
        form.model.choose(bundle)
        run(qtbot, form)
        refused(told, form, name)
        # What is wrong with one model is not said of the next.
        form.model.choose(tiny_run)
        assert "Press Run" in form.status.text()
    gone = tmp_path / "gone"
    shutil.copytree(tiny_run / "bundle", gone)
    form.model.choose(gone)
    shutil.rmtree(gone)
    run(qtbot, form)
    refused(told, form, "no longer there")
    form.model.choose(tiny_run)
    (tmp_path / "holiday").mkdir()
    dialog = "napari_hematonet.choices.QFileDialog"
    monkeypatch.setattr(f"{dialog}.getExistingDirectory", lambda *_: str(tmp_path / "holiday"))
    form.model.folder_button.click()
    assert told[-1][0] == "error"
    assert "neither a run nor a bundle" in told[-1][1]
    assert form.model.path == str(tiny_run)
    strange = tmp_path / "strange.onnx"
    strange.write_text("no network")
    monkeypatch.setattr(f"{dialog}.getOpenFileName", lambda *_: (str(strange), ""))
    pytest.importorskip("onnxruntime")
    form.model.file_button.click()
    run(qtbot, form)
    refused(told, form, "strange.onnx")
    assert not cells_layers(viewer)


def test_a_graphics_processor_that_is_too_small_hands_over_to_the_cpu(
    viewer: napari.Viewer,
    form: ClassifyWidget,
    pixels: np.ndarray,
    qtbot: Any,
    told: list[tuple[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    real = jobs.get_model

    class Full:
        """A model that runs on the CPU only, whatever it says."""

        def __init__(self, model: Any) -> None:
            self._model, self.device = model, "mps"

        def __getattr__(self, name: str) -> Any:
            return getattr(self._model, name)

        def predict(self, patches: np.ndarray, batch_size: int = 64) -> Any:
            if self.device != "cpu":
                raise torch.OutOfMemoryError("out of memory. Tried to allocate 2 GiB")
            return self._model.predict(patches, batch_size)

    monkeypatch.setattr(jobs, "get_model", lambda *a: Full(real(*a)))
    viewer.add_image(pixels)
    run(qtbot, form)
    assert {severity for severity, _ in told} == {"warning"}
    assert "continuing on the CPU" in told[-1][1]
    assert state_of(cells_layers(viewer)[0]).review.cells["predicted"].notna().all()
    # The form says what computed the cells in the end.
    assert "torch on the CPU" in form.status.text()


def test_layers_that_go_at_once(
    viewer: napari.Viewer, form: ClassifyWidget, pixels: np.ndarray, qtbot: Any, told: list[tuple[str, str]]
) -> None:
    image = viewer.add_image(pixels)
    form.run_button.click()
    viewer.layers.remove(image)
    assert not form.running
    assert "its image was removed" in told[-1][1]
    viewer.add_image(pixels)
    form.run_button.click()
    viewer.layers.clear()
    assert not form.running
    qtbot.wait(500)
    assert not viewer.layers
    assert form.run_button.isEnabled()
    assert [severity for severity, _ in told] == ["info", "info"]
