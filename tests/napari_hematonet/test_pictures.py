"""What a person sees before and after a correction: colours of known classes at known places, in two screenshots."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fieldkit import CELL, CENTRES, Opened, open_classified
from qtpy.QtCore import Qt
from qtpy.QtTest import QTest

from hematokit.store.corrections import read_corrections
from napari_hematonet.explaining import WHY_LAYER
from napari_hematonet.following import select_cells
from napari_hematonet.review_widget import ReviewWidget
from napari_hematonet.state import WHY_KEY


def seen(opened: Opened, picture: np.ndarray, y: float, x: float) -> np.ndarray:
    """The colour of a place of the field, in pixels of the field, in a picture of the canvas."""
    world = np.asarray(opened.image.data_to_world((y - 0.5, x - 0.5)))
    view = opened.viewer.window._qt_viewer.canvas.view
    column, row, _, weight = view.scene.transform.map([world[1], world[0], 0, 1])
    ratio = picture.shape[0] / opened.viewer.window._qt_viewer.canvas.size[0]
    return picture[round(row / weight * ratio), round(column / weight * ratio), :3].astype(int)


def ring_has(opened: Opened, picture: np.ndarray, number: int, code: str) -> bool:
    """Whether the line around a cell of `CENTRES`, to the left of it, has the colour of a class."""
    y, x = CENTRES[number]
    text = opened.review.taxonomy[code].colour
    colour = np.array([int(text[at : at + 2], 16) for at in (1, 3, 5)])
    line = [seen(opened, picture, y, x - far) for far in np.arange(CELL / 2 + 0.5, CELL / 2 + 5, 0.25)]
    return bool(np.abs(np.array(line) - colour).max(axis=1).min() < 30)


def test_the_colours_of_classes_before_and_after_a_correction(
    make_viewer: Callable[..., Any], tiny_run: Path, tmp_path: Path, qtbot: Any
) -> None:
    viewer = make_viewer(size=(1590, 900))  # else the thin rings of low-confidence cells are thinner than a pixel
    opened = open_classified(viewer, tiny_run, tmp_path)
    review = ReviewWidget(viewer)
    viewer.window.add_dock_widget(review, name="Review", area="right")
    review.advance.value = False  # the camera stays where it is
    qtbot.wait(300)
    viewer.scale_bar.visible = False
    viewer.reset_view()
    viewer.camera.zoom *= 0.9
    qtbot.wait(300)
    before = viewer.screenshot(canvas_only=True, flash=False)
    predicted = list(opened.review.cells["predicted"])
    assert len(set(predicted)) == 3
    assert all(ring_has(opened, before, number, code) for number, code in enumerate(predicted))
    assert not any(ring_has(opened, before, number, "HAC") for number in range(len(predicted)))

    select_cells(viewer, opened.layer, [opened.id_at(4)])
    opened.press(Qt.Key.Key_H)
    opened.layer.selected_data = set()
    qtbot.wait(200)
    after = viewer.screenshot(canvas_only=True, flash=False)
    now = [code if number != 4 else "HAC" for number, code in enumerate(predicted)]
    assert all(ring_has(opened, after, number, code) for number, code in enumerate(now))
    assert not ring_has(opened, after, 4, predicted[4])


@pytest.mark.parametrize("key", [Qt.Key.Key_Delete, Qt.Key.Key_Backspace], ids=["Delete", "Backspace"])
def test_a_key_deletes_a_cell_also_without_the_review_dock(
    viewer: Any, tiny_run: Path, tmp_path: Path, key: Qt.Key
) -> None:
    opened = open_classified(viewer, tiny_run, tmp_path)
    opened.review.who = "Ada"
    gone = opened.id_at(2)
    select_cells(viewer, opened.layer, [gone])
    QTest.keyClick(opened.canvas, key)
    assert gone not in set(opened.review.cells["cell_id"])
    assert gone not in set(opened.layer.features["cell_id"])
    assert list(opened.review.deleted["cell_id"]) == [gone]
    entry = read_corrections(tmp_path / "corrections.jsonl")[-1]
    assert (entry.kind, entry.who, entry.cell_id) == ("delete", "Ada", gone)
    opened.review.undo()
    assert gone in set(opened.layer.features["cell_id"])
    assert len(opened.layer.data) == len(CENTRES)


def test_docks_are_tabs_of_one_column_and_the_window_stays_as_large(viewer: Any, qtbot: Any) -> None:
    window = viewer.window._qt_window
    window.resize(1300, 800)
    qtbot.wait(100)
    names = ["Classify field", "Legend and differential", "Why", "Review", "Classify folder"]
    docks = []
    for name in names:
        docks.append(viewer.window.add_plugin_dock_widget("hematokit", name)[0])
        qtbot.wait(200)
    assert set(window.tabifiedDockWidgets(docks[0])) == set(docks[1:])
    assert window.size().height() <= 800
    legend = docks[1].inner_widget()
    docks[1].raise_()
    qtbot.wait(100)
    header = legend.tree.header()
    assert header.length() <= legend.tree.viewport().width()  # no figure out of sight


def test_nothing_is_explained_behind_another_tab(viewer: Any, tiny_run: Path, tmp_path: Path, qtbot: Any) -> None:
    opened = open_classified(viewer, tiny_run, tmp_path)
    dock, why = viewer.window.add_plugin_dock_widget("hematokit", "Why")
    qtbot.wait(200)
    select_cells(viewer, opened.layer, [opened.id_at(1)])
    qtbot.waitUntil(lambda: WHY_LAYER in viewer.layers and not why.job.busy, timeout=20_000)
    viewer.window.add_plugin_dock_widget("hematokit", "Review")
    qtbot.wait(300)
    select_cells(viewer, opened.layer, [opened.id_at(2)])
    qtbot.wait(500)
    assert WHY_LAYER not in viewer.layers
    dock.raise_()
    qtbot.waitUntil(lambda: WHY_LAYER in viewer.layers, timeout=20_000)
    assert viewer.layers[WHY_LAYER].metadata[WHY_KEY]["cells"] == [opened.id_at(2)]
