"""The form "Classify field", used as a person does; the results are looked for in layers."""

from __future__ import annotations

import os
import shutil
import threading
import warnings
from pathlib import Path
from typing import Any

import napari
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hematokit.errors import ModelError
from hematokit.explanation.at_cells import explainable
from hematokit.imaging.geometry import patch_box
from hematokit.pipelines.classify import classify
from hematokit.plugins import MadeDetector
from hematokit.plugins.specs import DetectorSpec
from hematokit.synthetic import PIXEL_SIZE_UM, synthesize_field
from napari_hematonet import jobs
from napari_hematonet.background import Background
from napari_hematonet.classify_widget import ClassifyWidget
from napari_hematonet.explaining import Request, WhyJob
from napari_hematonet.review_widget import missed_cell
from napari_hematonet.state import FieldState, cells_layers, current_layer, state_of
from tinykit import seal_bundle

WAIT = 60_000


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return synthesize_field(600, 800, cells=24, seed=5).pixels


@pytest.fixture
def form(viewer: napari.Viewer, qtbot: Any, tiny_run: Path) -> ClassifyWidget:
    _, widget = viewer.window.add_plugin_dock_widget("hematokit", "Classify field")
    widget.model.choose(tiny_run)
    return widget


def wait(qtbot: Any, form: ClassifyWidget) -> None:
    qtbot.waitUntil(lambda: not form.running, timeout=WAIT)


def click_run(qtbot: Any, form: ClassifyWidget) -> None:
    form.run_button.click()
    wait(qtbot, form)


def test_a_picture_from_disk_gets_its_cells(
    viewer: napari.Viewer, form: ClassifyWidget, pixels: np.ndarray, tmp_path: Path, qtbot: Any
) -> None:
    path = tmp_path / "smear 1.png"
    Image.fromarray(pixels).save(path, dpi=(254_000, 254_000))
    viewer.open(str(path))
    assert form.image.value == "smear 1"
    click_run(qtbot, form)
    (layer,) = cells_layers(viewer)
    state = state_of(layer)
    assert state is not None
    assert 10 < len(layer.data) == len(state.review.cells)
    assert set(layer.features["label"].dropna()) <= {"BLA", "LYT", "NGS"}
    assert state.review.cells["cell_id"].str.startswith("smear_1-").all()
    assert state.pixel_size_um == pytest.approx(0.1)
    assert f"{len(layer.data)} cells" in form.status.text()
    assert "torch on the CPU" in form.status.text()
    # Again: the old cells, which nobody worked on, make room; corrected ones are kept.
    click_run(qtbot, form)
    (layer,) = cells_layers(viewer)
    state_of(layer).review.confirm([layer.features["cell_id"][0]])
    click_run(qtbot, form)
    assert [cells.visible for cells in cells_layers(viewer)] == [False, True]
    # Renamed, it is the same image: its cells are meant when it is chosen, and are put away for the next.
    (_, layer) = cells_layers(viewer)
    image = viewer.layers["smear 1"]
    other = viewer.add_image(pixels, name="another")
    image.name = "renamed"
    viewer.layers.selection.active = image
    assert current_layer(viewer) is layer
    form.image.value = "renamed"
    viewer.layers.remove(other)
    click_run(qtbot, form)
    assert [cells.visible for cells in cells_layers(viewer)] == [False, False, True]


def test_a_field_of_another_pixel_size_is_rescaled_to_the_model(
    viewer: napari.Viewer,
    form: ClassifyWidget,
    pixels: np.ndarray,
    tiny_run: Path,
    measured_run: Path,
    tmp_path: Path,
    qtbot: Any,
) -> None:
    path, coarse = tmp_path / "smear.png", 2 * PIXEL_SIZE_UM
    Image.fromarray(pixels[::2, ::2]).save(path)
    scales = {"pixel_size_um": coarse, "model_pixel_size_um": PIXEL_SIZE_UM}
    classify([path], tiny_run, tmp_path / "out", device="cpu", runtime="torch", **scales)
    expected = pd.read_parquet(tmp_path / "out" / "fields" / "smear" / "cells.parquet").set_index("cell_id")
    viewer.open(str(path))

    def run(model: Path, size: float, model_size: float) -> tuple[FieldState, str]:
        form.model.choose(model)
        form.pixel_size.value, form.model_pixel_size.value = size, model_size
        click_run(qtbot, form)
        state = state_of(cells_layers(viewer)[-1])
        assert state is not None
        return state, form.status.text()

    for model, model_size in ((measured_run, 0.0), (tiny_run, round(PIXEL_SIZE_UM, 4))):
        state, said = run(model, round(coarse, 4), model_size)
        cells = state.review.cells.set_index("cell_id")
        np.testing.assert_allclose(cells["p_BLA"], expected.loc[cells.index, "p_BLA"], atol=2e-5)
        assert "Warning" not in said
        # A cell that is added, and the reason for one, are of the same patch.
        first = cells.iloc[0]
        (added,) = missed_cell(Background(), state, float(first["y"]), float(first["x"]))
        assert added.row["p_BLA"].item() == pytest.approx(first["p_BLA"], abs=2e-5)
        found: list[Any] = []
        job = WhyJob()
        job.answered.connect(found.append)
        job.ask(Request(state, (cells.index[0],), (first["predicted"],), "grad-cam"))
        qtbot.waitUntil(lambda found=found: bool(found), timeout=WAIT)
        patch = patch_box(first["y"], first["x"], state.classifier.patch_size // 2)
        assert found[0].box == patch.clipped(state.field.height, state.field.width)
    # The layer has got its pixel size, so another one is opened.
    viewer.layers.clear()
    viewer.open(str(path))
    _, said = run(measured_run, 0.0, 0.0)
    assert "Warning: the pixel size of 1 field is not known" in said
    assert "give it with Pixel size above" in said
    _, said = run(tiny_run, coarse, 0.0)
    assert "Warning: the pixel size that the model was trained at is not known" in said


def test_corrections_of_a_plain_image_outlive_the_viewer(
    viewer: napari.Viewer,
    form: ClassifyWidget,
    pixels: np.ndarray,
    qtbot: Any,
    told: list[tuple[str, str]],
    no_corrections_of_others: Path,
) -> None:
    image = viewer.add_image(pixels, name="smear")
    click_run(qtbot, form)
    (layer,) = cells_layers(viewer)
    review = state_of(layer).review
    corrected, deleted = review.cells["cell_id"][:2]
    other = next(code for code in ("BLA", "NGS") if code != review.cells["predicted"][0])
    review.correct([corrected], other)
    (journal,) = (no_corrections_of_others / "corrections").glob("*.jsonl")
    assert told[-1] == ("info", f"corrections are saved as you make them, in {journal}")
    review.delete([deleted])
    assert len(told) == 1
    # As after a crash: nothing is left but what is on the disk.
    viewer.layers.clear()
    del image, layer, review
    viewer.add_image(pixels, name="smear")
    click_run(qtbot, form)
    (layer,) = cells_layers(viewer)
    cells = state_of(layer).review.cells.set_index("cell_id")
    assert cells.loc[corrected, "label"] == other
    assert cells.loc[corrected, "reviewed"]
    assert deleted not in cells.index
    assert told[-1][1].startswith("2 earlier corrections of this image are applied again")
    # Another image has none.
    viewer.layers.clear()
    viewer.add_image(pixels[::-1].copy(), name="smear")
    click_run(qtbot, form)
    assert not cells_layers(viewer)[0].features["reviewed"].any()
    # A damaged file is said before the work.
    journal.write_text("{no correction}\n")
    viewer.layers.clear()
    viewer.add_image(pixels, name="smear")
    click_run(qtbot, form)
    assert told[-1][0] == "error"
    assert str(journal) in told[-1][1]
    assert not cells_layers(viewer)


def test_where_corrections_cannot_be_kept_the_user_is_told(
    viewer: napari.Viewer,
    form: ClassifyWidget,
    pixels: np.ndarray,
    qtbot: Any,
    told: list[tuple[str, str]],
    no_corrections_of_others: Path,
) -> None:
    (no_corrections_of_others / "corrections").write_text("a file where a folder should be")
    viewer.add_image(pixels)
    click_run(qtbot, form)
    assert [severity for severity, _ in told] == ["warning"]
    assert "kept only until you close the viewer" in told[0][1]
    (layer,) = cells_layers(viewer)
    state_of(layer).review.confirm([layer.features["cell_id"][0]])
    assert layer.features["reviewed"].sum() == 1


def test_another_runtime_gives_the_same_classes(
    viewer: napari.Viewer,
    form: ClassifyWidget,
    pixels: np.ndarray,
    qtbot: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    monkeypatch.setenv("HEMATOKIT_CACHE", str(tmp_path))
    viewer.add_image(pixels)
    click_run(qtbot, form)
    by_torch = cells_layers(viewer)[0].features[["cell_id", "predicted"]]
    assert form.device.enabled
    form.runtime.value = "onnxruntime"
    assert not form.device.enabled
    click_run(qtbot, form)
    (layer,) = cells_layers(viewer)
    assert "onnxruntime on the CPU" in form.status.text()
    assert layer.features[["cell_id", "predicted"]].equals(by_torch)
    # "Why" needs gradients, which the same bundle has by torch.
    state = state_of(layer)
    assert state.classifier.runtime == "onnxruntime"
    assert explainable(state.classifier, state.model_path).runtime == "torch"


def test_work_side_by_side_leaves_the_warnings_of_the_program_alone(qapp: Any, qtbot: Any) -> None:
    before = warnings.showwarning
    ended: list[str] = []
    gates = [threading.Event(), threading.Event()]
    works = [Background(), Background()]
    for work, gate, name in zip(works, gates, "ab", strict=True):
        work.start(lambda gate=gate: iter([gate.wait(10)]), lambda step: None, lambda name=name: ended.append(name))
    # The first to begin is the first to end.
    for number, gate in enumerate(gates):
        gate.set()
        qtbot.waitUntil(lambda number=number: len(ended) == number + 1, timeout=10_000)
    assert ended == ["a", "b"]
    assert warnings.showwarning is before


def test_only_the_drawn_region_of_a_scaled_and_rotated_image(
    viewer: napari.Viewer, form: ClassifyWidget, pixels: np.ndarray, qtbot: Any
) -> None:
    image = viewer.add_image(pixels, scale=(0.1, 0.1), units=("um", "um"), rotate=30, translate=(5, 7), name="turned")
    form.region.value = "\n"  # "draw one…"
    shapes = viewer.layers["region"]
    assert viewer.layers.selection.active is shapes
    assert form.region.value == "region"
    shapes.add_rectangles([[[50, 50], [50, 450], [450, 450], [450, 50]]])
    click_run(qtbot, form)
    (layer,) = cells_layers(viewer)
    assert len(layer.data) > 2
    # Inside the square, in the image's own pixels, by way of the world.
    places = np.array([image.world_to_data(layer.data_to_world(point)) for point in layer.data])
    assert places.min() >= 49
    assert places.max() <= 451
    dark = [pixels[tuple(place.astype(int))].sum() for place in places]
    assert np.median(dark) < np.median(pixels.sum(axis=2))


def test_what_cannot_be_classified_is_said_in_one_line(
    viewer: napari.Viewer, form: ClassifyWidget, qtbot: Any, told: list[tuple[str, str]]
) -> None:
    for pixels, says in [
        (np.zeros((300, 300), np.uint8), "greyscale"),
        (np.zeros((5, 300, 300), np.uint16), "greyscale"),
        (np.zeros((20, 20, 3), np.uint8), "20x20 px"),
        (np.full((300, 300, 3), 240, np.uint8), "no cells were detected in this image"),
    ]:
        layer = viewer.add_image(pixels, rgb=pixels.shape[-1] == 3)
        click_run(qtbot, form)
        assert says in told[-1][1]
        viewer.layers.remove(layer)
    assert len(told) == 4
    assert all("\n" not in message and "Traceback" not in message for _, message in told)


def test_without_an_image_or_a_model_the_user_is_told_what_to_do(
    viewer: napari.Viewer, form: ClassifyWidget, told: list[tuple[str, str]], tiny_run: Path, tmp_path: Path, qtbot: Any
) -> None:
    form.run_button.click()
    assert "no image is open" in told[-1][1]
    viewer.add_image(np.full((300, 300, 3), 240, np.uint8))
    form.model.refresh([])
    form.run_button.click()
    assert "no model is chosen yet: click 'Demo model'" in told[-1][1]
    broken = tmp_path / "broken"
    shutil.copytree(tiny_run / "bundle", broken)
    (broken / "model.safetensors").write_bytes(b"nothing of use")
    form.model.choose(broken)
    click_run(qtbot, form)
    assert told[-1][0] == "error"
    assert "model.safetensors" in told[-1][1]
    with pytest.raises(ModelError):
        form.model.choose(tmp_path)


class Slow:
    """A model that takes its time, and tells when it is asked."""

    def __init__(self, model: Any, asked: list[int], pause: Any) -> None:
        self._model, self._asked, self._pause = model, asked, pause

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def predict(self, patches: np.ndarray, batch_size: int = 64) -> Any:
        self._asked.append(len(patches))
        self._pause.wait(0.3)
        return self._model.predict(patches, batch_size)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    asked: list[int] = []
    real = jobs.get_model
    monkeypatch.setattr(jobs, "get_model", lambda *a: Slow(real(*a), asked, threading.Event()))
    return asked


def test_cancel_closing_the_image_or_the_dock_stops_the_work(
    viewer: napari.Viewer,
    form: ClassifyWidget,
    pixels: np.ndarray,
    qtbot: Any,
    slow: list[int],
    told: list[tuple[str, str]],
) -> None:
    image = viewer.add_image(pixels)
    form.run_button.click()
    assert not form.run_button.isEnabled()
    qtbot.waitUntil(lambda: any(len(layer.data) for layer in cells_layers(viewer)), timeout=WAIT)
    form.cancel_button.click()
    assert not form.running
    assert "Stopped" in form.status.text()
    count = len(cells_layers(viewer)[0].data)
    assert count == 8  # the first batch, shown as soon as it was there
    qtbot.wait(900)
    assert len(cells_layers(viewer)[0].data) == count
    form.run_button.click()
    asked = len(slow)
    qtbot.waitUntil(lambda: len(slow) > asked, timeout=WAIT)
    viewer.layers.remove(image)
    assert not form.running
    assert "its image was removed" in told[-1][1]
    viewer.add_image(pixels)
    earlier = cells_layers(viewer)
    form.run_button.click()
    qtbot.waitUntil(lambda: len(cells_layers(viewer)) > len(earlier), timeout=WAIT)
    (new,) = (layer for layer in cells_layers(viewer) if layer not in earlier)
    viewer.layers.remove(new)
    assert not form.running
    assert "its layer of cells was removed" in told[-1][1]
    form.run_button.click()
    asked = len(slow)
    qtbot.waitUntil(lambda: len(slow) > asked, timeout=WAIT)
    viewer.window.remove_dock_widget(form)
    asked = len(slow)
    qtbot.wait(900)
    assert len(slow) <= asked + 1  # the batch under way, which cannot be stopped in the middle
    assert not [severity for severity, _ in told if severity == "error"]


def test_a_full_graphics_processor_and_a_failing_detector_are_told(
    viewer: napari.Viewer,
    form: ClassifyWidget,
    pixels: np.ndarray,
    qtbot: Any,
    told: list[tuple[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    viewer.add_image(pixels)
    real = jobs.get_model

    class Full(Slow):
        def predict(self, patches: np.ndarray, batch_size: int = 64) -> Any:
            if batch_size > 2:
                raise RuntimeError("CUDA out of memory")
            return self._model.predict(patches, batch_size)

    with monkeypatch.context() as patch:
        patch.setattr(jobs, "get_model", lambda *a: Full(real(*a), [], None))
        click_run(qtbot, form)
    assert ("warning", "GPU memory is full: continuing with 2 cells at a time") in told
    assert cells_layers(viewer)

    class Broken:
        def detect(self, field: np.ndarray, pixel_size_um: float | None) -> Any:
            raise ZeroDivisionError("oops")

    made = MadeDetector(DetectorSpec("stain", "", object), "other-package", "1", {}, Broken(), {})
    monkeypatch.setattr("hematokit.detection.windows.make_detector", lambda name: made)
    click_run(qtbot, form)
    assert told[-1] == ("error", "detector 'stain' of package other-package failed: ZeroDivisionError: oops")


def test_the_demo_model_is_made_by_one_click_and_found_the_next_time(
    viewer: napari.Viewer,
    form: ClassifyWidget,
    qtbot: Any,
    tiny_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(jobs, "demo_folder", lambda: tmp_path / "demo")
    monkeypatch.setattr("napari_hematonet.choices.demo_folder", lambda: tmp_path / "demo")
    calls: list[Path] = []

    def train_demo(folder: Path, *, device: str, progress: Any, step: Any) -> Path:
        calls.append(folder)
        step("Training a small CoAtNet")
        progress(1, 3, "epoch 1/3 lr 2e-3")
        shutil.copytree(tiny_run, folder / "run")
        return folder / "run"

    monkeypatch.setattr("hematokit.pipelines.demo.train_demo", train_demo)
    form.model.demo_button.click()
    wait(qtbot, form)
    assert form.model.path == str(tmp_path / "demo" / "run")
    assert form.model.list.currentText() == "demo model (drawn cells)"
    form.model.choose(tiny_run)
    form.model.demo_button.click()
    assert form.model.path == str(tmp_path / "demo" / "run")
    assert calls == [tmp_path / "demo"]


def test_the_advice_follows_the_model_chosen(viewer: napari.Viewer, form: ClassifyWidget, tiny_run: Path) -> None:
    form.model.refresh([])
    assert "No model yet" in form.status.text()
    form.model.choose(tiny_run)
    assert "Run" in form.status.text()
    assert "No model" not in form.status.text()


def test_a_model_trained_again_is_loaded_again(tiny_run: Path, tmp_path: Path) -> None:
    """Its content decides, not when its files were written; and the same content is one copy for all."""
    import torch
    from safetensors.torch import load_file, save_file

    from hematokit.models import cached_model

    bundle = Path(shutil.copytree(tiny_run / "bundle", tmp_path / "bundle"))
    first = jobs.get_model(str(bundle), "cpu")
    assert cached_model(tiny_run, "cpu", "torch") is first
    about = (bundle / "config.json").stat()
    state = load_file(bundle / "model.safetensors")
    state["fc.weight"] = torch.zeros_like(state["fc.weight"])
    save_file(state, bundle / "model.safetensors")
    seal_bundle(bundle)
    os.utime(bundle / "config.json", ns=(about.st_atime_ns, about.st_mtime_ns))
    second = jobs.get_model(str(bundle), "cpu")
    assert second.identity != first.identity
    assert not second.backbone.fc.weight.any()
    assert first.backbone.fc.weight.any()


def test_a_model_that_does_not_fit_on_the_gpu_is_loaded_on_the_cpu(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What asks for the GPU the next time gets the GPU, if it has room by then."""
    import torch

    from hematokit.models import loading

    said: list[str] = []
    devices: list[str] = []
    load = loading._load

    def full(files: Any, device: str, runtime: str) -> Any:
        devices.append(device)
        if device != "cpu":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return load(files, device, runtime)

    monkeypatch.setattr(loading, "_load", full)
    monkeypatch.setattr(loading, "_computed_by", lambda path, device, runtime: (device, runtime))
    monkeypatch.setattr(loading, "_LOADED", {})
    for _ in range(2):
        assert str(jobs.get_model(str(tiny_run), "cuda:0", "torch", said.append).device) == "cpu"
    assert devices == ["cuda:0", "cpu", "cuda:0"]
    assert "on the CPU" in said[0]
