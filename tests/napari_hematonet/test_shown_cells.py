"""Whatever is opened, hidden, activated or late: docks and keys act on the cells that are shown and chosen."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fieldkit import CENTRES, MISSED, Opened, open_classified, wait_for
from qtpy.QtCore import QPoint, Qt
from qtpy.QtGui import QGuiApplication
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication
from test_readers import write_results

from cellkit import made_up_cells
from hematokit.explanation import at_cells
from hematokit.imaging.geometry import Box
from hematokit.pipelines import interactive
from hematokit.review.session import Review
from hematokit.store.corrections import read_corrections
from hematokit.synthetic import synthesize_field
from hematokit.taxonomy import MATEK_21
from napari_hematonet import jobs
from napari_hematonet.cell_points import show_classes
from napari_hematonet.cells_layer import add_cells_layer
from napari_hematonet.classify_widget import ClassifyWidget
from napari_hematonet.explaining import WHY_LAYER
from napari_hematonet.folder_widget import FolderWidget
from napari_hematonet.following import select_cells
from napari_hematonet.legend_widget import LegendWidget
from napari_hematonet.review_widget import ReviewWidget
from napari_hematonet.state import WHY_KEY, FieldState, current_layer, is_shown, nothing_shown, selected_cells
from napari_hematonet.why_widget import WhyWidget

SHIFT = Qt.KeyboardModifier.ShiftModifier


def dock(viewer: Any, make: Any) -> Any:
    widget = make(viewer)
    viewer.window.add_dock_widget(widget, name=make.__name__, area="right")
    viewer.reset_view()
    QApplication.processEvents()
    return widget


@pytest.fixture
def two(viewer: Any, tiny_run: Path, tmp_path: Path) -> tuple[Opened, Opened]:
    """Two classified fields, both visible."""
    return tuple(open_classified(viewer, tiny_run, tmp_path, name=name) for name in ("a", "b"))  # type: ignore[return-value]


def labels(opened: Opened) -> list[str]:
    """The classes that people gave."""
    cells = opened.review.cells
    return cells["label"][cells["reviewed"]].tolist()


def errors(told: list[tuple[str, str]]) -> list[str]:
    return [message for severity, message in told if severity == "error"]


def map_of(viewer: Any) -> list[str]:
    return list(viewer.layers[WHY_LAYER].metadata[WHY_KEY]["cells"]) if WHY_LAYER in viewer.layers else []


def layer_list(viewer: Any) -> Any:
    """Napari's list of layers."""
    return viewer.window._qt_viewer.layers


def click_layer(viewer: Any, layer: Any) -> None:
    """Click on the name of a layer in napari's list, as a person does before pressing a key."""
    view = layer_list(viewer)
    row = len(viewer.layers) - 1 - viewer.layers.index(layer)
    place = view.visualRect(view.model().index(row, 0)).center()
    QTest.mouseClick(view.viewport(), Qt.MouseButton.LeftButton, pos=place)
    view.setFocus()


# --- which layer is meant ---------------------------------------------------------------------------------------------


def test_why_stays_with_the_lower_of_two_visible_fields(
    viewer: Any, two: tuple[Opened, Opened], told: list[tuple[str, str]]
) -> None:
    a, _ = two
    why, form = dock(viewer, WhyWidget), dock(viewer, ClassifyWidget)
    form.image.value = "a"
    why.automatic.value = False
    viewer.layers.selection.active = a.layer
    select_cells(viewer, a.layer, [a.id_at(1)])
    why.explain_button.click()
    wait_for(lambda: map_of(viewer) == [a.id_at(1)])
    assert not errors(told)
    assert why.follower.layer is a.layer
    assert why.title.text().startswith(a.id_at(1))
    assert viewer.layers.selection.active is a.layer
    assert form.image.value == "a"
    # The map, an image or a layer of somebody else may be active or come: it is still about the same cells.
    others = [viewer.layers[WHY_LAYER], viewer.add_shapes(name="region"), viewer.add_points(np.zeros((2, 2)))]
    for other in others:
        viewer.layers.selection.active = other
        assert why.follower.layer is a.layer
    select_cells(viewer, a.layer, [a.id_at(2)])
    viewer.layers.selection.active = others[1]
    why.explain_button.click()
    wait_for(lambda: map_of(viewer) == [a.id_at(2)])
    assert viewer.layers.selection.active is others[1]
    # The cells of another field are meant when they are chosen.
    viewer.layers.selection.active = two[1].image
    assert why.follower.layer is two[1].layer
    assert WHY_LAYER not in viewer.layers
    assert not errors(told)


def test_opening_results_leaves_the_shown_field_active(viewer: Any, tmp_path: Path) -> None:
    from PIL import Image

    pictures = {name: tmp_path / f"{name}.png" for name in ("one", "two", "three")}
    for path in pictures.values():
        Image.fromarray(np.random.default_rng(1).integers(0, 256, (300, 400, 3), np.uint8)).save(path)
    folder = write_results(tmp_path / "results", pictures)
    legend, review = dock(viewer, LegendWidget), dock(viewer, ReviewWidget)
    form = dock(viewer, ClassifyWidget)
    viewer.open(str(folder), plugin="hematokit")
    shown = viewer.layers["cells of one"]
    assert viewer.layers.selection.active is shown
    assert set(viewer.layers.selection) == {shown}
    view = layer_list(viewer)
    assert [index.data() for index in view.selectedIndexes()] == ["cells of one"]
    assert view.currentIndex().data() == "cells of one"
    assert legend.layer is review.follower.layer is shown
    assert legend.title.text() == "<b>cells of one</b>"
    assert review.header.text().startswith("cells of one: 0 of 12 cells reviewed")
    assert form.image.value == "one"
    select_cells(viewer, shown, ["one-3"])
    QTest.keyClick(viewer.window._qt_viewer.canvas.native, Qt.Key.Key_B)
    assert (folder / "fields" / "one" / "corrections.jsonl").is_file()
    assert not (folder / "fields" / "three" / "corrections.jsonl").exists()
    # The next field is shown, over the first: it is meant, and a click is on its cells.
    for name in ("two", "cells of two"):
        viewer.layers[name].visible = True
    assert viewer.layers.selection.active is legend.layer is review.follower.layer is viewer.layers["cells of two"]
    assert legend.title.text() == "<b>cells of two</b>"
    assert review.header.text().startswith("cells of two: 0 of 12 cells reviewed")


def test_a_hidden_layer_is_not_counted_exported_or_corrected(
    viewer: Any, two: tuple[Opened, Opened], tmp_path: Path, told: list[tuple[str, str]]
) -> None:
    a, b = two
    review, legend, why = dock(viewer, ReviewWidget), dock(viewer, LegendWidget), dock(viewer, WhyWidget)
    why.automatic.value = review.advance.value = False
    for opened in (a, b):
        select_cells(viewer, opened.layer, [opened.id_at(0), opened.id_at(1)])
    a.review.correct([a.id_at(5)], "MON")
    b.review.delete([b.id_at(8)])
    assert legend.layer is b.layer
    b.layer.visible = False
    # At once, whatever is active.
    assert viewer.layers.selection.active is b.layer
    assert legend.layer is review.follower.layer is why.follower.layer is a.layer
    assert legend.title.text() == "<b>cells of a</b>"
    assert "9 cells" in legend.figures.text()
    assert "2 cells selected" in review.cell.text()
    legend.export(tmp_path / "cells.cells.csv")
    assert "b-" not in (tmp_path / "cells.cells.csv").read_text().replace("cells-", "")
    before = (a.review.cells, b.review.cells)
    b.press(Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier)
    for key in (Qt.Key.Key_B, Qt.Key.Key_Return, Qt.Key.Key_Delete, Qt.Key.Key_Backspace):
        b.press(key)
        click_layer(viewer, b.layer)
        QTest.keyClick(layer_list(viewer), key)
    assert b.layer in viewer.layers
    assert all(now.equals(then) for now, then in zip((a.review.cells, b.review.cells), before, strict=True))
    assert len(b.layer.data) == len(b.review.cells)
    # Buttons act on what is shown; undoing, too, and a second time finds nothing of the hidden layer's.
    review.undo_button.click()
    assert labels(a) == []
    review.undo_button.click()
    assert review.status.text() == "There is nothing to undo."
    assert len(b.review.cells) == 8
    a.layer.visible = False
    said = "The cells are hidden: click the eye of their layer to show them."
    assert legend.title.text() == review.header.text() == why.title.text() == said
    assert not legend.figures.text()
    assert legend.tree.topLevelItemCount() == 0
    assert not legend.copy_button.isEnabled()
    assert not review.confirm_button.isEnabled()
    assert not why.bars.bars
    for act in (review.undo, review.redo, review.confirm, review.delete, review.export_to_store):
        told.clear()
        act()
        assert [message for _, message in told] == [said]
    for button in (review.next_button, why.next_button):
        told.clear()
        button.click()
        assert [message for _, message in told] == [said]
    told.clear()
    legend.export(tmp_path / "none.csv")
    assert told == [("error", said)]
    assert not (tmp_path / "none.csv").exists()
    assert len(a.review.cells) == 9
    # Shown again, it is meant again, and nothing has changed.
    b.layer.visible = True
    assert legend.layer is review.follower.layer is why.follower.layer is b.layer
    assert "8 cells" in legend.figures.text()
    review.undo_button.click()
    assert len(b.review.cells) == 9


def test_naparis_own_delete_spares_what_is_hidden(qapp: Any, told: list[tuple[str, str]]) -> None:
    from napari.components import ViewerModel

    model = ViewerModel()
    review = Review(made_up_cells(20), MATEK_21)
    layer = add_cells_layer(model, review)
    hidden = review.cells["predicted"][0]
    kept = review.cells["cell_id"][review.cells["predicted"] != hidden]
    show_classes(layer, [hidden])
    layer.selected_data = set(range(20))
    assert set(selected_cells(layer)) == set(kept)
    layer.remove_selected()
    assert set(review.cells["predicted"]) == {hidden}
    assert len(layer.data) == len(review.cells) == 20 - len(kept)
    assert "hidden cells are not deleted" in told[-1][1]
    review.undo()
    show_classes(layer, [])
    layer.visible = False
    layer.selected_data = {1, 2}
    layer.remove_selected()
    assert len(layer.data) == len(review.cells) == 20
    assert layer.features["cell_id"].tolist() == review.cells["cell_id"].tolist()


def test_keys_do_nothing_to_hidden_classes(
    viewer: Any, tiny_run: Path, tmp_path: Path, told: list[tuple[str, str]]
) -> None:
    opened = open_classified(viewer, tiny_run, tmp_path)
    review = dock(viewer, ReviewWidget)
    review.advance.value = False
    code = opened.review.shown_label()[4]
    of_class = opened.review.cells["cell_id"][opened.review.shown_label() == code].tolist()
    show_classes(opened.layer, [code])
    # Not by a click, and not by napari's "select all".
    opened.click(*CENTRES[4])
    assert selected_cells(opened.layer) == []
    opened.layer.selected_data = set(range(len(CENTRES)))
    assert review.cell.text().startswith(f"{len(CENTRES) - len(of_class)} cells selected")
    opened.press(Qt.Key.Key_H)
    assert labels(opened) == ["HAC"] * (len(CENTRES) - len(of_class))
    assert not opened.review.cells.set_index("cell_id").loc[of_class, "reviewed"].any()
    opened.layer.selected_data = set(range(len(CENTRES)))
    opened.press(Qt.Key.Key_Delete)
    assert opened.review.cells["cell_id"].tolist() == of_class
    # An undo of what is hidden now says so.
    review.undo_button.click()
    review.undo_button.click()
    assert labels(opened) == []
    select_cells(viewer, opened.layer, [cell for cell in opened.review.cells["cell_id"] if cell not in of_class][:1])
    opened.press(Qt.Key.Key_Delete)
    show_classes(opened.layer, opened.review.taxonomy.codes)
    review.undo_button.click()
    assert "its class is hidden" in review.status.text()
    assert selected_cells(opened.layer) == []


def test_cells_of_another_plane_of_a_stack_are_not_meant(qapp: Any) -> None:
    from napari.components import ViewerModel

    model = ViewerModel()
    image = model.add_image(np.zeros((4, 300, 300, 3), np.uint8), rgb=True, scale=(2.0, 0.5, 0.5))
    layers = []
    for plane in (1, 3):
        review = Review(made_up_cells(5, side=300), MATEK_21)
        layers.append(add_cells_layer(model, review, image=image, state=FieldState(review, plane=(plane,))))
    for active in (image, *layers):
        model.layers.selection.active = active
        for plane, layer in ((1, layers[0]), (3, layers[1]), (0, None)):
            model.dims.set_point(0, 2.0 * plane)
            assert current_layer(model) is layer
    assert not is_shown(layers[0], model)
    assert "move the slider" in nothing_shown(model)
    model.dims.ndisplay = 3  # all planes at once
    assert is_shown(layers[0], model)
    layers[1].selected_data = {0}
    model.dims.ndisplay = 2
    layers[1].remove_selected()
    assert len(layers[1].data) == 5


def test_two_viewers_have_their_own_cells(make_viewer: Any, tiny_run: Path, tmp_path: Path) -> None:
    first, second = make_viewer(), make_viewer()
    a = open_classified(first, tiny_run, tmp_path, name="a")
    b = open_classified(second, tiny_run, tmp_path, name="b")
    reviews = [dock(opened.viewer, ReviewWidget) for opened in (a, b)]
    for opened in (a, b):
        select_cells(opened.viewer, opened.layer, [opened.id_at(0)])
    reviews[0].add_button.click()
    a.press(Qt.Key.Key_B)
    b.press(Qt.Key.Key_L)
    assert (labels(a), labels(b)) == (["BLA"], ["LYT"])
    b.click(*CENTRES[3])
    assert selected_cells(b.layer) == [b.id_at(3)]
    a.layer.visible = False
    assert [review.follower.layer for review in reviews] == [None, b.layer]


# --- keys -------------------------------------------------------------------------------------------------------------


def test_class_keys_reach_the_cell_after_a_choice_in_the_docks(viewer: Any, tiny_run: Path, tmp_path: Path) -> None:
    opened = open_classified(viewer, tiny_run, tmp_path)
    docks = [dock(viewer, make) for make in (ClassifyWidget, LegendWidget, WhyWidget, FolderWidget, ReviewWidget)]
    form, legend, why, folder, review = docks
    review.advance.value = why.automatic.value = False
    window = viewer.window._qt_window
    window.activateWindow()
    opened.canvas.setFocus()
    wait_for(lambda: QApplication.focusWidget() is not None)
    parts = [review.only.native, review.order.native, review.classes.viewport(), why.method.native, why.target.native]
    parts += [legend.tree.viewport(), form.detector.native, form.device.native, form.image.native, form.model.list]
    parts += [folder.table.viewport(), folder.runtime.native, form.threshold.native, folder.threshold.native]
    codes = iter(["BLA", "LYT", "MON", "EOS"] * len(parts))
    keys = {"BLA": Qt.Key.Key_B, "LYT": Qt.Key.Key_L, "MON": Qt.Key.Key_M, "EOS": Qt.Key.Key_E}
    for part in parts:
        owner = next(each for each in docks if each.isAncestorOf(part))
        owner.parent().raise_()
        select_cells(viewer, opened.layer, [opened.id_at(0)])
        QApplication.processEvents()
        before = (review.only.value, review.order.value, why.method.value, form.detector.value, form.threshold.value)
        # A click gives the focus to what may take it; a list that drops down is closed again.
        QTest.mouseClick(part, Qt.MouseButton.LeftButton, pos=part.rect().center())
        while (popup := QApplication.activePopupWidget()) is not None:
            QTest.keyClick(popup, Qt.Key.Key_Escape)
            popup.close()
        select_cells(viewer, opened.layer, [opened.id_at(0)])
        code = next(codes)
        QTest.keyClick(QApplication.focusWidget() or window, keys[code])
        assert opened.review.cells.set_index("cell_id").loc[opened.id_at(0), "label"] == code, part
        after = (review.only.value, review.order.value, why.method.value, form.detector.value, form.threshold.value)
        assert after == before, part


def test_the_parts_of_a_dock_are_reached_with_tab_and_leave_letters_to_the_cell(
    viewer: Any, tiny_run: Path, tmp_path: Path
) -> None:
    opened = open_classified(viewer, tiny_run, tmp_path)
    review = dock(viewer, ReviewWidget)
    review.advance.value = False
    select_cells(viewer, opened.layer, [opened.id_at(0)])
    viewer.window._qt_window.activateWindow()
    review.parent().raise_()
    QApplication.processEvents()
    field, order = review.store.line_edit.native, review.order.native
    QTest.mouseClick(field, Qt.MouseButton.LeftButton, pos=QPoint(6, field.height() // 2))
    wait_for(lambda: QApplication.focusWidget() is field)
    for _ in range(100):
        QTest.keyClick(QApplication.focusWidget(), Qt.Key.Key_Tab)
        wait_for(lambda: QApplication.focusWidget() is not None)
        if QApplication.focusWidget() is order:
            break
    assert QApplication.focusWidget() is order
    before = review.order.value
    QTest.keyClick(order, Qt.Key.Key_L)
    assert review.order.value == before
    assert labels(opened) == ["LYT"]


def test_what_is_typed_into_a_field_does_nothing_to_a_cell(viewer: Any, tiny_run: Path, tmp_path: Path) -> None:
    opened = open_classified(viewer, tiny_run, tmp_path)
    form, review = dock(viewer, ClassifyWidget), dock(viewer, ReviewWidget)
    select_cells(viewer, opened.layer, [opened.id_at(0)])
    viewer.window._qt_window.activateWindow()
    for field, typed in ((review.store.line_edit.native, "blm.zarr"), (form.threshold.native, "0.25")):
        owner = form if form.isAncestorOf(field) else review
        owner.parent().raise_()
        QApplication.processEvents()
        field.selectAll()
        QTest.mouseClick(field, Qt.MouseButton.LeftButton, pos=QPoint(6, field.height() // 2))
        wait_for(lambda field=field: QApplication.focusWidget() is field)
        field.selectAll()
        QTest.keyClicks(field, typed)
        for key in (Qt.Key.Key_Right, Qt.Key.Key_Delete, Qt.Key.Key_Return):
            QTest.keyClick(QApplication.focusWidget(), key)
        assert QApplication.focusWidget() is not field  # after Return, keys are the cells'
        assert labels(opened) == []
        assert len(opened.review.cells) == len(CENTRES)
        assert selected_cells(opened.layer) == [opened.id_at(0)]
    assert Path(review.store.value).name == "blm.zarr"
    assert form.threshold.value == 0.25
    QTest.keyClick(QApplication.focusWidget() or viewer.window._qt_window, Qt.Key.Key_B)
    assert labels(opened) == ["BLA"]
    # A click elsewhere ends the typing, too: in a dock, or on a cell.
    review.parent().raise_()
    field, button = review.store.line_edit.native, review.next_button
    places = (lambda: QTest.mouseClick(button, Qt.MouseButton.LeftButton), lambda: opened.click(*CENTRES[6]))
    for code, key, click in zip(("LYT", "MON"), (Qt.Key.Key_L, Qt.Key.Key_M), places, strict=True):
        QTest.mouseClick(field, Qt.MouseButton.LeftButton, pos=QPoint(6, field.height() // 2))
        wait_for(lambda: QApplication.focusWidget() is field)
        viewer.reset_view()
        click()
        (chosen,) = selected_cells(opened.layer)
        QTest.keyClick(QApplication.focusWidget() or viewer.window._qt_window, key)
        assert opened.review.cells.set_index("cell_id").loc[chosen, "label"] == code
    assert Path(review.store.value).name == "blm.zarr"


@pytest.mark.parametrize(
    ("key", "with_review"),
    [(Qt.Key.Key_Delete, True), (Qt.Key.Key_Backspace, False)],
    ids=["Delete, with Review", "Backspace, without"],
)
def test_delete_over_the_list_of_layers_deletes_cells_and_no_layer_of_them(
    viewer: Any, two: tuple[Opened, Opened], told: list[tuple[str, str]], key: Qt.Key, with_review: bool
) -> None:
    a, b = two
    if with_review:
        dock(viewer, ReviewWidget)
    a.review.correct([a.id_at(0)], "BLA")
    click_layer(viewer, a.layer)
    assert viewer.layers.selection.active is a.layer
    QTest.keyClick(layer_list(viewer), key)
    assert a.layer in viewer.layers
    assert "no cell is selected" in told[-1][1]
    assert "trash" in told[-1][1]
    a.layer.selected_data = {1}
    b.layer.selected_data = {2}
    QTest.keyClick(layer_list(viewer), key)
    assert a.layer in viewer.layers
    assert a.id_at(1) not in set(a.review.cells["cell_id"])
    assert len(b.review.cells) == len(CENTRES)
    # With others selected beside it, nothing at all.
    viewer.layers.selection = {a.layer, b.image}
    a.layer.selected_data = {1}
    QTest.keyClick(layer_list(viewer), key)
    assert {a.layer, b.image} <= set(viewer.layers)
    assert len(a.review.cells) == len(CENTRES) - 1
    assert "several layers" in told[-1][1]
    # Others' layers are removed as ever, and so are cells by the trash button.
    other = viewer.add_points(np.zeros((2, 2)), name="others")
    click_layer(viewer, other)
    QTest.keyClick(layer_list(viewer), key)
    assert other not in viewer.layers
    viewer.layers.selection.active = a.layer
    viewer.window._qt_viewer.layerButtons.deleteButton.click()
    assert a.layer not in viewer.layers
    assert read_corrections(a.review.journal)


def test_a_letter_over_the_list_of_layers_is_the_chosen_cells(viewer: Any, two: tuple[Opened, Opened]) -> None:
    a, b = two
    dock(viewer, ReviewWidget)
    other = viewer.add_points(np.zeros((2, 2)), name="others")
    a.layer.selected_data, b.layer.selected_data = {0}, {0}
    # "C", plasma cell: the list would go to the next layer whose name begins so, and that is "cells of b".
    click_layer(viewer, a.layer)
    QTest.keyClick(layer_list(viewer), Qt.Key.Key_C)
    assert viewer.layers.selection.active is not b.layer
    assert (labels(a), labels(b)) == (["PLM"], [])
    # From another layer the list goes there as ever, and the cells are left alone.
    a.layer.selected_data = {1}
    click_layer(viewer, other)
    QTest.keyClick(layer_list(viewer), Qt.Key.Key_C)
    assert viewer.layers.selection.active in (a.layer, b.layer)
    assert (labels(a), labels(b)) == (["PLM"], [])
    click_layer(viewer, b.layer)
    QTest.keyClick(layer_list(viewer), Qt.Key.Key_Return)
    assert b.review.cells["reviewed"].tolist() == [True] + [False] * (len(CENTRES) - 1)


# --- napari's own tools -----------------------------------------------------------------------------------------------


def test_points_that_are_dragged_added_or_pasted_change_no_cell(
    viewer: Any, tiny_run: Path, tmp_path: Path, told: list[tuple[str, str]]
) -> None:
    opened = open_classified(viewer, tiny_run, tmp_path)
    dock(viewer, ReviewWidget)
    layer, places = opened.layer, opened.layer.data.copy()
    told.clear()
    layer.mode = "select"
    layer.selected_data = {0}
    for step in range(5):
        layer._move([0], np.array([60.0 + 5 * step, 60.0]))
    layer._drag_start = None
    layer._copy_data()
    layer._paste_data()
    layer.add([[200.0, 200.0]])
    np.testing.assert_allclose(layer.data, places)
    assert layer.features["cell_id"].tolist() == opened.review.cells["cell_id"].tolist()
    assert len(layer.shown) == len(layer.size) == len(CENTRES)
    assert len([message for _, message in told if "cells cannot be moved" in message]) == 1
    assert all(row < len(CENTRES) for row in layer.selected_data)
    assert not opened.review.cells["reviewed"].any()


def test_a_copy_of_the_layer_while_missed_cells_are_added(
    viewer: Any, tiny_run: Path, tmp_path: Path, told: list[tuple[str, str]]
) -> None:
    from napari.layers._layer_actions import _duplicate_layer

    opened = open_classified(viewer, tiny_run, tmp_path)
    review = dock(viewer, ReviewWidget)
    review.add_button.click()
    viewer.layers.selection.active = opened.layer
    _duplicate_layer(viewer.layers)
    assert not errors(told)
    review.add_button.setChecked(False)
    opened.click(*CENTRES[1])
    for layer in list(viewer.layers):
        if layer is not opened.layer and layer is not opened.image:
            viewer.layers.selection.active = layer
            opened.click(*CENTRES[2])
            assert selected_cells(layer) == [opened.id_at(2)]
    assert len(opened.review.cells) == len(CENTRES)


def test_adding_ends_with_its_layer(viewer: Any, two: tuple[Opened, Opened]) -> None:
    a, b = two
    review = dock(viewer, ReviewWidget)
    viewer.layers.selection.active = a.layer
    review.add_button.click()
    viewer.layers.selection.active = b.layer
    assert not review.add_button.isChecked()
    viewer.layers.selection.active = a.layer
    a.click(*CENTRES[2])
    assert selected_cells(a.layer) == [a.id_at(2)]
    assert not review._working


# --- what comes late --------------------------------------------------------------------------------------------------


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Explanations that wait until they are let through."""
    waiting = SimpleNamespace(begun=threading.Event(), go=threading.Event())
    real = at_cells.explain_at

    def explain_at(*arguments: Any, **options: Any) -> Any:
        waiting.begun.set()
        waiting.go.wait(20)
        return real(*arguments, **options)

    monkeypatch.setattr(at_cells, "explain_at", explain_at)
    yield waiting
    waiting.go.set()


def test_a_map_that_comes_late_is_not_shown_over_another_cell(
    viewer: Any, tiny_run: Path, tmp_path: Path, gate: SimpleNamespace
) -> None:
    opened = open_classified(viewer, tiny_run, tmp_path)
    why = dock(viewer, WhyWidget)
    opened.click(*CENTRES[4])
    wait_for(gate.begun.is_set)
    wait_for(lambda: not why.crop.pixmap().isNull())
    opened.click(*CENTRES[0], modifier=SHIFT)  # comes first in the table, so name and bars are its
    assert why.title.text().startswith(opened.id_at(0))
    gate.go.set()
    wait_for(lambda: not why.job.busy)
    assert why.crop.pixmap().isNull()
    assert why.overlay.pixmap().isNull()
    assert map_of(viewer) == []
    assert not why.status.text()
    # Of the chosen cell it is shown, and what was computed meanwhile is not lost.
    opened.click(*CENTRES[0])
    wait_for(lambda: map_of(viewer) == [opened.id_at(0)])
    assert not why.overlay.pixmap().isNull()
    # Nothing chosen: nothing shown.
    gate.go.clear()
    gate.begun.clear()
    opened.click(*CENTRES[5])
    wait_for(gate.begun.is_set)
    opened.click(240, 500)
    assert why.title.text() == "Click a cell."
    gate.go.set()
    wait_for(lambda: not why.job.busy)
    assert map_of(viewer) == []
    assert why.crop.pixmap().isNull()


def test_crop_and_map_go_with_the_first_of_the_explained_cells(viewer: Any, tiny_run: Path, tmp_path: Path) -> None:
    opened = open_classified(viewer, tiny_run, tmp_path)
    why = dock(viewer, WhyWidget)
    why.automatic.value = False
    select_cells(viewer, opened.layer, [opened.id_at(1), opened.id_at(2)])
    why.explain_button.click()
    wait_for(lambda: not why.overlay.pixmap().isNull())
    select_cells(viewer, opened.layer, [opened.id_at(2)])
    assert why.title.text().startswith(opened.id_at(2))
    assert why.crop.pixmap().isNull()
    assert why.overlay.pixmap().isNull()
    assert map_of(viewer) == [opened.id_at(1), opened.id_at(2)]  # in the field, each lies on its cell


def test_the_crop_goes_with_its_layer_where_cells_have_the_same_ids(
    viewer: Any, tiny_run: Path, tmp_path: Path
) -> None:
    why = dock(viewer, WhyWidget)
    why.automatic.value = False
    (tmp_path / "other").mkdir()
    first, second = (open_classified(viewer, tiny_run, folder) for folder in (tmp_path, tmp_path / "other"))
    second.layer.selected_data = {1}
    select_cells(viewer, first.layer, [first.id_at(1)])
    why.explain_button.click()
    wait_for(lambda: not why.overlay.pixmap().isNull())
    viewer.layers.selection.active = second.layer
    assert why.title.text().startswith(second.id_at(1))
    assert why.crop.pixmap().isNull()
    assert why.overlay.pixmap().isNull()
    assert map_of(viewer) == []


def test_a_question_about_a_class_stays_with_its_cell(viewer: Any, tiny_run: Path, tmp_path: Path) -> None:
    opened = open_classified(viewer, tiny_run, tmp_path)
    why = dock(viewer, WhyWidget)
    opened.click(*CENTRES[0])
    wait_for(lambda: map_of(viewer) == [opened.id_at(0)])
    other = why.bars.bars[1].code
    why.target.value = other
    wait_for(lambda: viewer.layers[WHY_LAYER].metadata[WHY_KEY]["targets"] == [other])
    opened.click(*CENTRES[3], modifier=SHIFT)
    assert why.title.text().startswith(opened.id_at(0))
    assert (why.bars.asked, why.target.value) == (other, other)
    opened.click(*CENTRES[3])
    assert why.target.value == ""


def test_a_layer_hidden_while_why_computes(
    viewer: Any, tiny_run: Path, tmp_path: Path, gate: SimpleNamespace, told: list[tuple[str, str]]
) -> None:
    opened = open_classified(viewer, tiny_run, tmp_path)
    why = dock(viewer, WhyWidget)
    opened.click(*CENTRES[4])
    wait_for(gate.begun.is_set)
    opened.layer.visible = False
    gate.go.set()
    wait_for(lambda: not why.job.busy)
    assert map_of(viewer) == []
    assert "hidden" in why.title.text()
    assert not errors(told)


def test_a_missed_cell_that_comes_late_is_not_added_to_a_hidden_field(
    viewer: Any, two: tuple[Opened, Opened], monkeypatch: pytest.MonkeyPatch, told: list[tuple[str, str]]
) -> None:
    a, b = two
    review = dock(viewer, ReviewWidget)
    begun, go = threading.Event(), threading.Event()
    real = interactive.classify_one

    def slow(*arguments: Any, **options: Any) -> Any:
        begun.set()
        go.wait(20)
        return real(*arguments, **options)

    monkeypatch.setattr(interactive, "classify_one", slow)
    for hide in (True, False):
        begun.clear()
        go.clear()
        a.layer.visible = True
        viewer.layers.selection.active = a.layer
        review.add_button.setChecked(True)
        a.click(*MISSED)
        wait_for(begun.is_set)
        viewer.layers.selection.active = b.layer
        if hide:
            a.layer.visible = False
        b.layer.selected_data = {3}
        go.set()
        wait_for(lambda: not review._working)
        assert len(b.review.cells) == len(CENTRES)
        assert len(a.review.cells) == len(CENTRES) + (not hide)
        assert selected_cells(b.layer) == [b.id_at(3)]
        assert "Added" not in review.status.text()
        assert ("not added" if hide else "added a-") in told[-1][1]


def test_counts_that_come_late_are_not_shown_under_another_name(viewer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from napari_hematonet import legend_widget

    monkeypatch.setattr(legend_widget, "_AT_ONCE", 100)
    go = threading.Event()
    real = legend_widget._count

    def count(review: Any, *arguments: Any) -> Any:
        if review.field_id == "many":
            go.wait(20)
        yield from real(review, *arguments)

    monkeypatch.setattr(legend_widget, "_count", count)
    legend = dock(viewer, LegendWidget)
    layers = [
        add_cells_layer(viewer, Review(made_up_cells(number), MATEK_21, field_id=name), name=name)
        for name, number in (("many", 300), ("more", 200), ("few", 30))
    ]
    for layer, cells in ((layers[0], None), (layers[1], "200 cells"), (layers[0], None), (layers[2], "30 cells")):
        viewer.layers.selection.active = layer
        assert legend.title.text() == f"<b>{layer.name}</b>"
        # Either nothing, or this layer's own.
        wait_for(lambda cells=cells: legend.figures.text().startswith(cells or ""))
        assert cells is not None or not legend.figures.text()
        legend.copy_button.click()
        assert QGuiApplication.clipboard().text().startswith(f"{len(layer.data)} cells")
    go.set()
    for _ in range(50):
        QTest.qWait(10)
    assert legend.figures.text().startswith("30 cells")
    layers[2].name = "renamed"
    wait_for(lambda: legend.title.text() == "<b>renamed</b>")


def test_results_of_a_run_do_not_replace_the_list_that_was_chosen_meanwhile(
    viewer: Any, tmp_path: Path, tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [write_results(tmp_path / name, {f"{name}1": tmp_path / "gone.png"}) for name in ("early", "late")]
    go = threading.Event()

    def classify(*arguments: Any, **options: Any) -> Any:
        go.wait(20)
        return SimpleNamespace(output=folders[1], lines=lambda: ["1 field"])

    monkeypatch.setattr("hematokit.pipelines.classify.classify", classify)
    form = dock(viewer, FolderWidget)
    form.model.choose(tiny_run)
    (tmp_path / "fields").mkdir()
    form.folder.value = tmp_path / "fields"
    for chosen in (folders[0], None):
        go.clear()
        form.run_button.click()
        if chosen is not None:
            form.show_results(chosen)
        go.set()
        wait_for(lambda: not form.running)
        assert form.table.item(0, 0).text() == ("early1" if chosen else "late1")
        assert ("late" in form.status.text()) is (chosen is not None)


@pytest.fixture
def go(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """The model is loaded once this is set, so that something can be done while a field is classified."""
    event = threading.Event()
    real = jobs.get_model

    def get_model(*arguments: Any) -> Any:
        event.wait(20)
        return real(*arguments)

    monkeypatch.setattr(jobs, "get_model", get_model)
    return event


@pytest.mark.parametrize("hide", [False, True], ids=["image shown", "image hidden"])
def test_cells_that_come_late_do_not_take_the_docks_away(
    viewer: Any, tiny_run: Path, tmp_path: Path, go: threading.Event, hide: bool
) -> None:
    other = open_classified(viewer, tiny_run, tmp_path, name="other")
    image = viewer.add_image(synthesize_field(600, 800, cells=24, seed=5).pixels, name="smear", translate=(0, 600))
    form, review = dock(viewer, ClassifyWidget), dock(viewer, ReviewWidget)
    form.model.choose(tiny_run)
    assert form.image.value == "smear"
    form.run_button.click()
    # Meanwhile somebody goes through the cells of another field.
    select_cells(viewer, other.layer, [other.id_at(2)])
    image.visible = not hide
    go.set()
    wait_for(lambda: not form.running, 60)
    new = viewer.layers["cells of smear"]
    assert len(new.data) > 10
    assert new.visible is not hide
    assert ("They are hidden" in form.status.text()) is hide
    assert viewer.layers.selection.active is review.follower.layer is other.layer
    assert set(viewer.layers.selection) == {other.layer}
    other.press(Qt.Key.Key_B)
    assert labels(other) == ["BLA"]
    new.visible = False
    new.visible = True
    assert review.follower.layer is new


def test_layers_that_are_renamed_moved_or_copied_while_a_field_is_classified(
    viewer: Any, tiny_run: Path, go: threading.Event, told: list[tuple[str, str]]
) -> None:
    from napari.layers._layer_actions import _duplicate_layer

    drawn = [synthesize_field(600, 800, cells=24, seed=seed).pixels for seed in (5, 6)]
    image, other = (viewer.add_image(pixels, name=name) for pixels, name in zip(drawn, ("one", "two"), strict=True))
    form, legend = dock(viewer, ClassifyWidget), dock(viewer, LegendWidget)
    form.model.choose(tiny_run)
    form.image.value = "one"
    form.run_button.click()
    image.name, other.name = "two again", "one"
    viewer.layers.move(0, 2)
    viewer.layers.selection.active = image
    _duplicate_layer(viewer.layers)
    viewer.layers.selection.active = image
    go.set()
    wait_for(lambda: not form.running, 60)
    layer = viewer.layers["cells of two again"]
    state = layer.metadata["hematokit"]
    assert viewer.layers.selection.active is legend.layer is layer
    assert state.is_of(image, viewer)
    assert not state.is_of(other, viewer)
    np.testing.assert_array_equal(state.field.read(Box(0, 0, 600, 800)), drawn[0])
    viewer.layers.selection.active = other
    assert legend.layer is layer  # the other image has no cells
    assert not errors(told)


# --- what is low-confidence -----------------------------------------------------------------------------------------


def test_reviewed_cells_are_not_counted_as_low_confidence(viewer: Any, tiny_run: Path, qtbot: Any) -> None:
    viewer.add_image(synthesize_field(600, 800, cells=24, seed=5).pixels, name="smear")
    form = dock(viewer, ClassifyWidget)
    form.model.choose(tiny_run)
    form.threshold.value = 1.0
    form.run_button.click()
    qtbot.waitUntil(lambda: not form.running, timeout=60_000)
    layer = current_layer(viewer)
    assert layer is not None
    cells = len(layer.data)
    assert f"{cells} cells, {cells} of them low-confidence" in form.status.text()
    layer.metadata["hematokit"].review.confirm(layer.features["cell_id"][:3].tolist())
    # The same image again: the three hold again, and are sure.
    form.run_button.click()
    qtbot.waitUntil(lambda: not form.running, timeout=60_000)
    assert f"{cells} cells, {cells - 3} of them low-confidence" in form.status.text()
    legend = dock(viewer, LegendWidget)
    assert f"{cells - 3} low-confidence" in legend.figures.text()
    assert viewer.layers.selection.active is legend.layer
