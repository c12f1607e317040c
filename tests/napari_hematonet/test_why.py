"""The dock "Why", driven as a person does."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pytest
from fieldkit import CENTRES, Opened, open_classified, wait_for
from qtpy.QtCore import QPoint, Qt
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication

from hematokit.explanation import at_cells
from hematokit.explanation.at_cells import explain_at, joined_map
from hematokit.explanation.running import make_explainer
from hematokit.imaging.geometry import patch_box
from hematokit.models import load_model
from hematokit.plugins import registered
from hematokit.plugins.specs import ExplainerSpec
from napari_hematonet.explaining import WHY_LAYER
from napari_hematonet.following import select_cells
from napari_hematonet.models import get_model
from napari_hematonet.state import WHY_KEY
from napari_hematonet.why_widget import WhyWidget

SHIFT = Qt.KeyboardModifier.ShiftModifier
TURNED = {"scale": (0.1, 0.1), "rotate": 30.0, "translate": (5.0, -3.0), "units": ("micrometer", "micrometer")}


def dock(opened: Opened) -> WhyWidget:
    widget = WhyWidget(opened.viewer)
    opened.viewer.window.add_dock_widget(widget, name="Why", area="right")
    opened.viewer.reset_view()
    QApplication.processEvents()
    return widget


def answered(opened: Opened, *cell_ids: str) -> bool:
    if WHY_LAYER not in opened.viewer.layers:
        return False
    return bool(opened.viewer.layers[WHY_LAYER].metadata[WHY_KEY]["cells"] == list(cell_ids))


def errors(told: list[tuple[str, str]]) -> list[str]:
    return [message for severity, message in told if severity == "error"]


class _Slow:
    """Passes through the network again and again."""

    passes = 0

    def attribute(self, classifier: Any, images: Any, targets: Any) -> Any:
        for _ in range(2000):
            classifier(images)
            _Slow.passes += 1
            time.sleep(0.005)
        return images.mean(1)


class _Broken:
    def attribute(self, classifier: Any, images: Any, targets: Any) -> Any:
        raise ZeroDivisionError("in third-party code")


@pytest.fixture
def third_party() -> Iterator[None]:
    """Explainers as an installed package would register them."""
    slow = ExplainerSpec("slow", "Takes its time", lambda **options: _Slow())
    broken = ExplainerSpec("broken", "Fails", lambda **options: _Broken())
    with registered(slow, broken, package="hematokit"):
        yield


@pytest.mark.parametrize("placement", [{}, TURNED], ids=["plain", "micrometres and turned"])
def test_a_click_shows_crop_probabilities_and_the_map_exactly_on_the_cell(
    viewer: Any, tiny_run: Path, tmp_path: Path, placement: dict[str, Any]
) -> None:
    opened = open_classified(viewer, tiny_run, tmp_path, **placement)
    why = dock(opened)
    opened.click(*CENTRES[4])
    wait_for(lambda: answered(opened, opened.id_at(4)))

    table = opened.review.cells.set_index("cell_id", drop=False)
    row = table.loc[[opened.id_at(4)]]
    bars = {bar.code: bar.share for bar in why.bars.bars}
    assert bars == pytest.approx({code: row[f"p_{code}"].iloc[0] for code in opened.state.classifier.codes})
    assert why.bars.bars[0].code == row["predicted"].iloc[0] == why.bars.asked
    assert not why.crop.pixmap().isNull()
    assert not why.overlay.pixmap().isNull()

    explained = list(
        explain_at(opened.state.field, row, opened.state.classifier, make_explainer("grad-cam"), [why.bars.asked])
    )
    box, expected = joined_map(explained, opened.state.field.height, opened.state.field.width)
    assert box == patch_box(*CENTRES[4], opened.state.classifier.patch_size)
    layer = viewer.layers[WHY_LAYER]
    np.testing.assert_allclose(layer.data, expected, atol=1e-5)
    for corner in ((0, 0), (box.height - 1, box.width - 1)):
        in_field = (corner[0] + box.y0, corner[1] + box.x0)
        np.testing.assert_allclose(layer.data_to_world(corner), opened.image.data_to_world(in_field), atol=1e-6)
    # Keys and clicks are still the cells', and the rings are drawn over the map.
    assert viewer.layers.selection.active is opened.layer
    assert viewer.layers.index(layer) < viewer.layers.index(opened.layer)


def test_a_click_makes_one_forward_pass(
    viewer: Any, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(at_cells, "_COPIES", WeakKeyDictionary())
    opened = open_classified(viewer, tiny_run, tmp_path)
    passes: list[int] = []
    # Explanations go through copies of the model, which have its hooks.
    hook = get_model(str(tiny_run), "cpu").backbone.register_forward_hook(lambda *_: passes.append(1))
    dock(opened)
    counts = []
    for number in (0, 3, 4):
        passes.clear()
        opened.click(*CENTRES[number])
        wait_for(lambda number=number: answered(opened, opened.id_at(number)))
        counts.append(len(passes))
    hook.remove()
    # At first Grad-CAM looks for its layer, with an empty image.
    assert counts == [2, 1, 1]


def test_why_not_another_class_and_back_from_what_is_kept(viewer: Any, tiny_run: Path, tmp_path: Path) -> None:
    opened = open_classified(viewer, tiny_run, tmp_path)
    why = dock(opened)
    opened.click(*CENTRES[0])
    wait_for(lambda: answered(opened, opened.id_at(0)))
    own = np.array(viewer.layers[WHY_LAYER].data)
    other = why.bars.bars[1].code
    QTest.mouseClick(why.bars, Qt.MouseButton.LeftButton, pos=QPoint(30, why.bars.row_centre(other)))
    assert why.target.value == other
    wait_for(lambda: viewer.layers[WHY_LAYER].metadata[WHY_KEY]["targets"] == [other])
    assert not np.array_equal(viewer.layers[WHY_LAYER].data, own)
    why.target.value = ""
    wait_for(lambda: "computed before" in why.status.text())
    np.testing.assert_array_equal(viewer.layers[WHY_LAYER].data, own)


def test_arrow_keys_lead_from_cell_to_cell(viewer: Any, tiny_run: Path, tmp_path: Path) -> None:
    opened = open_classified(viewer, tiny_run, tmp_path)
    dock(opened)
    opened.click(*CENTRES[0])
    opened.press(Qt.Key.Key_Right)
    wait_for(lambda: answered(opened, opened.id_at(1)))
    opened.press(Qt.Key.Key_Right)
    opened.press(Qt.Key.Key_Left)
    opened.press(Qt.Key.Key_Left)
    wait_for(lambda: answered(opened, opened.id_at(0)))


def test_selected_cells_share_one_map(viewer: Any, tiny_run: Path, tmp_path: Path) -> None:
    opened = open_classified(viewer, tiny_run, tmp_path)
    why = dock(opened)
    opened.click(*CENTRES[0])
    opened.click(*CENTRES[5], modifier=SHIFT)
    opened.click(*CENTRES[2], modifier=SHIFT)
    assert why.explain_button.text() == "Explain 3 selected"
    why.explain_button.click()
    chosen = [opened.id_at(number) for number in (0, 2, 5)]
    wait_for(lambda: answered(opened, *chosen))
    layer, size = viewer.layers[WHY_LAYER], opened.state.classifier.patch_size
    first, last = patch_box(*CENTRES[0], size), patch_box(*CENTRES[2], size)
    assert layer.data.shape[1] == last.x1 - first.x0
    for number in (0, 2, 5):
        y, x = (round(value) for value in layer.world_to_data(CENTRES[number]))
        assert layer.data[y - size // 2 : y + size // 2, x - size // 2 : x + size // 2].max() > 0.5
    y, x = (round(value) for value in layer.world_to_data(CENTRES[1]))
    assert not layer.data[y - 5 : y + 5, x - 5 : x + 5].any()


def test_cancelling_ends_the_work(viewer: Any, tiny_run: Path, tmp_path: Path, third_party: None) -> None:
    opened = open_classified(viewer, tiny_run, tmp_path)
    why = dock(opened)
    assert "slow" in why.method.choices
    why.method.value = "slow"
    _Slow.passes = 0
    opened.click(*CENTRES[0])
    wait_for(lambda: _Slow.passes)
    assert why.cancel_button.isEnabled()
    why.cancel_button.click()
    wait_for(lambda: not why.job.busy)
    assert _Slow.passes < 2000
    assert WHY_LAYER not in viewer.layers
    # The next request is answered as if nothing had been.
    why.method.value = "grad-cam"
    wait_for(lambda: answered(opened, opened.id_at(0)))


def test_the_next_cell_is_not_kept_waiting(viewer: Any, tiny_run: Path, tmp_path: Path, third_party: None) -> None:
    opened = open_classified(viewer, tiny_run, tmp_path)
    why = dock(opened)
    why.method.value = "slow"
    _Slow.passes = 0
    opened.click(*CENTRES[0])
    wait_for(lambda: _Slow.passes)
    why.method.value = "grad-cam"
    opened.press(Qt.Key.Key_Right)
    wait_for(lambda: answered(opened, opened.id_at(1)))
    assert _Slow.passes < 2000


def test_an_explainer_that_fails_is_said_in_a_line(
    viewer: Any, tiny_run: Path, tmp_path: Path, third_party: None, told: list[tuple[str, str]]
) -> None:
    opened = open_classified(viewer, tiny_run, tmp_path)
    why = dock(opened)
    why.method.value = "broken"
    opened.click(*CENTRES[0])
    wait_for(lambda: errors(told))
    assert "'broken'" in errors(told)[0]
    assert "ZeroDivisionError" in errors(told)[0]
    assert WHY_LAYER not in viewer.layers
    assert not why.cancel_button.isEnabled()


def test_layers_that_go_while_it_computes(viewer: Any, tiny_run: Path, tmp_path: Path, third_party: None) -> None:
    opened = open_classified(viewer, tiny_run, tmp_path)
    why = dock(opened)
    opened.click(*CENTRES[0])
    wait_for(lambda: answered(opened, opened.id_at(0)))
    why.method.value = "slow"
    _Slow.passes = 0
    wait_for(lambda: _Slow.passes)
    viewer.layers.remove(opened.layer)
    wait_for(lambda: not why.job.busy)
    assert WHY_LAYER not in viewer.layers
    assert "No cells yet" in why.title.text()
    opened.click(*CENTRES[0])  # nothing to select, nothing to break


def test_closing_the_viewer_while_it_computes(
    make_viewer: Any, tiny_run: Path, tmp_path: Path, third_party: None
) -> None:
    opened = open_classified(make_viewer(), tiny_run, tmp_path)
    why = dock(opened)
    why.method.value = "slow"
    _Slow.passes = 0
    opened.click(*CENTRES[0])
    wait_for(lambda: _Slow.passes)
    opened.viewer.close()
    wait_for(lambda: (lambda before: (time.sleep(0.1), before == _Slow.passes)[1])(_Slow.passes))
    assert _Slow.passes < 2000


def test_a_map_that_was_removed_comes_back_with_the_next_cell(viewer: Any, tiny_run: Path, tmp_path: Path) -> None:
    opened = open_classified(viewer, tiny_run, tmp_path)
    dock(opened)
    opened.click(*CENTRES[0])
    wait_for(lambda: answered(opened, opened.id_at(0)))
    viewer.layers.remove(WHY_LAYER)
    opened.click(*CENTRES[3])
    wait_for(lambda: answered(opened, opened.id_at(3)))


def test_a_map_that_was_asked_for_stays_while_its_cells_are_reviewed(
    viewer: Any, tiny_run: Path, tmp_path: Path
) -> None:
    opened = open_classified(viewer, tiny_run, tmp_path)
    why = dock(opened)
    asked = [opened.id_at(number) for number in (0, 1, 4)]
    select_cells(viewer, opened.layer, asked)
    why.explain_button.click()
    wait_for(lambda: answered(opened, *asked))
    layer = viewer.layers[WHY_LAYER]
    # One of them is clicked: its own picture in the dock, the map of all of them in the field.
    opened.click(*CENTRES[1])
    wait_for(lambda: "computed before" in why.status.text())
    assert viewer.layers[WHY_LAYER] is layer
    assert answered(opened, *asked)
    # A correction is no other answer of the model.
    opened.review.correct([asked[1]], "NGS")
    assert answered(opened, *asked)
    # The map of a deleted cell goes, those of the others stay.
    opened.review.delete([asked[1]])
    wait_for(lambda: answered(opened, asked[0], asked[2]))
    opened.review.delete([asked[2]])
    wait_for(lambda: answered(opened, asked[0]))
    # Undone, they come back with their cells.
    opened.review.undo()
    wait_for(lambda: answered(opened, asked[0], asked[2]))
    opened.review.undo()
    wait_for(lambda: answered(opened, *asked))
    opened.review.delete(asked)
    assert WHY_LAYER not in viewer.layers
    opened.review.undo()
    assert WHY_LAYER not in viewer.layers


def test_a_map_goes_with_its_cell_its_layer_and_its_dock(viewer: Any, tiny_run: Path, tmp_path: Path) -> None:
    opened = open_classified(viewer, tiny_run, tmp_path)
    why = dock(opened)
    opened.click(*CENTRES[0])
    wait_for(lambda: answered(opened, opened.id_at(0)))
    opened.review.delete([opened.id_at(3)])
    assert answered(opened, opened.id_at(0))
    opened.review.delete([opened.id_at(0)])
    assert WHY_LAYER not in viewer.layers
    opened.click(*CENTRES[1])
    wait_for(lambda: answered(opened, opened.id_at(1)))
    viewer.window.remove_dock_widget(why)
    assert WHY_LAYER not in viewer.layers
    dock(opened)
    opened.click(*CENTRES[4])
    wait_for(lambda: answered(opened, opened.id_at(4)))
    viewer.layers.remove(opened.layer)
    assert WHY_LAYER not in viewer.layers


def test_a_model_that_has_gone_since_is_said(
    viewer: Any, tiny_run: Path, tmp_path: Path, told: list[tuple[str, str]]
) -> None:
    opened = open_classified(viewer, tiny_run, tmp_path)
    opened.state.classifier = SimpleNamespace(runtime="onnxruntime", patch_size=64, pixel_size_um=None, identity="")
    opened.state.model_path = str(tmp_path / "gone")
    dock(opened)
    opened.click(*CENTRES[0])
    wait_for(lambda: errors(told))
    assert "the model of these cells is no longer there" in errors(told)[0]
    assert str(tmp_path / "gone") in errors(told)[0]


def test_a_model_trained_again_does_not_explain_earlier_cells(
    viewer: Any, tiny_run: Path, tmp_path: Path, told: list[tuple[str, str]]
) -> None:
    """As after opening a folder of results, whose run.json says which model it was."""
    opened = open_classified(viewer, tiny_run, tmp_path)
    opened.state.classifier, opened.state.model_identity = None, "0" * 64
    dock(opened)
    opened.click(*CENTRES[0])
    wait_for(lambda: errors(told))
    assert "is another model than the one used so far" in errors(told)[0]
    opened.state.model_identity = load_model(tiny_run, "cpu").identity
    opened.click(*CENTRES[1])
    wait_for(lambda: answered(opened, opened.id_at(1)))


def test_cells_of_another_runtime_are_explained_by_the_bundle(viewer: Any, tiny_run: Path, tmp_path: Path) -> None:
    opened = open_classified(viewer, tiny_run, tmp_path)
    opened.state.classifier = SimpleNamespace(runtime="onnxruntime", patch_size=64, pixel_size_um=None, identity="")
    dock(opened)
    opened.click(*CENTRES[0])
    wait_for(lambda: answered(opened, opened.id_at(0)))


def test_an_onnx_file_computes_no_reasons_and_says_so(
    viewer: Any, tiny_run: Path, tmp_path: Path, told: list[tuple[str, str]]
) -> None:
    from hematokit.cli.main import main

    file = tmp_path / "model.onnx"
    assert main(["export", str(tiny_run), "--format", "onnx", "--output", str(file)]) == 0
    opened = open_classified(viewer, tiny_run, tmp_path)
    opened.state.classifier, opened.state.model_path = load_model(file, "cpu", "onnxruntime"), str(file)
    why = dock(opened)
    opened.click(*CENTRES[0])
    wait_for(lambda: errors(told))
    (said,) = errors(told)
    assert "ONNX" in said
    assert "Traceback" not in said
    assert "please report" not in said
    assert why.status.text() == said
    # The crop and the probabilities are there all the same.
    assert not why.crop.pixmap().isNull()
    assert why.bars.bars
    assert WHY_LAYER not in viewer.layers


def test_a_network_without_feature_layers_says_which_explainers_can(
    viewer: Any, tiny_run: Path, tmp_path: Path, told: list[tuple[str, str]]
) -> None:
    opened = open_classified(viewer, tiny_run, tmp_path)
    opened.state.classifier.backbone.feature_info = []  # as of many a transformer
    opened.state.model_path = ""
    why = dock(opened)
    opened.click(*CENTRES[0])
    wait_for(lambda: errors(told))
    (said,) = errors(told)
    assert "please report" not in said
    assert "names no feature layers" in said
    assert "smoothgrad" in said
    why.method.value = "smoothgrad"
    wait_for(lambda: answered(opened, opened.id_at(0)))


def test_cells_that_no_model_classified_are_shown_without_reasons(
    viewer: Any, tiny_run: Path, tmp_path: Path, told: list[tuple[str, str]]
) -> None:
    opened = open_classified(viewer, tiny_run, tmp_path, model=False)
    why = dock(opened)
    opened.click(*CENTRES[0])
    wait_for(lambda: "not classified" in why.status.text())
    assert why.bars.bars == ()
    assert WHY_LAYER not in viewer.layers
    assert not errors(told)


def test_cells_whose_image_has_gone(viewer: Any, tiny_run: Path, tmp_path: Path, told: list[tuple[str, str]]) -> None:
    opened = open_classified(viewer, tiny_run, tmp_path)
    opened.state.field = None
    dock(opened)
    select_cells(viewer, opened.layer, [opened.id_at(0)])
    wait_for(lambda: errors(told))
    assert "image of these cells is not open" in errors(told)[0]


def test_the_dock_opens_without_any_cells(viewer: Any) -> None:
    why = WhyWidget(viewer)
    viewer.window.add_dock_widget(why, name="Why")
    why.next_button.click()
    why.explain_button.click()
    assert "classify a field first" in why.title.text()
