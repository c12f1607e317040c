"""The legend: counts that follow the cells, classes shown and hidden, figures taken away."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import napari
import numpy as np
import pandas as pd
import pytest
from qtpy.QtCore import Qt
from qtpy.QtGui import QGuiApplication
from qtpy.QtWidgets import QTreeWidgetItem

from hematokit.annotations.cells import name_cells
from hematokit.review.session import Review
from hematokit.taxonomy import MATEK_21, CellClass, Taxonomy
from napari_hematonet.cells_layer import add_cells_layer
from napari_hematonet.classify_widget import ClassifyWidget
from napari_hematonet.legend_widget import Counted, LegendWidget

CALLED = ["NGS"] * 6 + ["BLA"] * 2 + ["EBO"] * 2 + ["NGB"] * 3


def table(called: list[str] = CALLED, first: int = 0) -> pd.DataFrame:
    n = len(called)
    y = 40.0 * (np.arange(n) + first) + 30
    found = {
        "y": y,
        "x": y,
        "y0": y.astype(int) - 15,
        "x0": y.astype(int) - 15,
        "height": 30,
        "width": 30,
        "score": 1.0,
    }
    cells = name_cells(pd.DataFrame({**found, "area": 1.0, "touches_border": False, "contour": None}), "f", "f.png")
    return cells.assign(predicted=called, probability=0.9, reviewed=False)


@pytest.fixture
def review() -> Review:
    return Review(table(), MATEK_21, field_id="f")


@pytest.fixture
def legend(viewer: napari.Viewer, review: Review) -> LegendWidget:
    add_cells_layer(viewer, review)
    _, widget = viewer.window.add_plugin_dock_widget("hematokit", "Legend and differential")
    return widget


def rows(legend: LegendWidget) -> dict[str, QTreeWidgetItem]:
    found = {}
    for number in range(legend.tree.topLevelItemCount()):
        top = legend.tree.topLevelItem(number)
        found[top.text(0)] = top
        found |= {top.child(row).text(0): top.child(row) for row in range(top.childCount())}
    return found


def texts(item: QTreeWidgetItem) -> list[str]:
    return [item.text(column) for column in range(6)]


def test_counts_follow_corrections_and_new_cells(legend: LegendWidget, review: Review, qtbot: Any) -> None:
    assert texts(rows(legend)["Segmented neutrophil"])[:3] == ["Segmented neutrophil", "6", "46.2"]
    assert texts(rows(legend)["granulopoiesis"])[1:3] == ["9", "69.2"]
    assert "13 cells: 13 counted" in legend.figures.text()
    assert "Blasts 15.4 % (4.3 – 42.2)" in legend.figures.text()
    assert "M:E 4.5" in legend.figures.text()
    assert "Plasma cell" not in rows(legend)
    legend.tree.topLevelItem(0).setExpanded(False)
    review.correct([review.cells["cell_id"][0]], "PLM")
    review.append(table(["BLA"], first=20))
    qtbot.waitUntil(lambda: "Plasma cell" in rows(legend), timeout=5000)
    assert texts(rows(legend)["Plasma cell"])[1::4] == ["1", "1"]
    assert texts(rows(legend)["Blast"])[1] == "3"
    assert not legend.tree.topLevelItem(0).isExpanded()
    review.undo()
    qtbot.waitUntil(lambda: "Plasma cell" not in rows(legend), timeout=5000)
    legend.empty_button.click()
    assert len(rows(legend)) == len(MATEK_21) + len({entry.lineage for entry in MATEK_21})


def test_many_cells_are_counted_beside_the_window(
    legend: LegendWidget, review: Review, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting: list[int] = []
    real = Counted.of

    def of(*arguments: Any) -> Counted:
        counting.append(threading.get_ident())
        return real(*arguments)

    monkeypatch.setattr(Counted, "of", of)
    review.append(table(["PLM"] * 6000, first=20))
    qtbot.waitUntil(lambda: "Plasma cell" in rows(legend), timeout=20_000)
    assert "6,013 cells" in legend.figures.text()
    assert counting
    assert threading.get_ident() not in counting
    # Ticks need no counting.
    counting.clear()
    legend.tree.topLevelItem(0).setCheckState(0, Qt.CheckState.Unchecked)
    legend.show_all()
    assert not counting
    assert texts(rows(legend)["Plasma cell"])[1] == "6,000"


def test_ticks_hide_and_a_click_shows_one_class_alone(
    viewer: napari.Viewer, legend: LegendWidget, review: Review, qtbot: Any
) -> None:
    layer = legend.layer
    called = np.array(CALLED)
    rows(legend)["Blast"].setCheckState(0, Qt.CheckState.Unchecked)
    legend._just_ticked = False  # the mouse's release over the box
    assert layer.shown.tolist() == (called != "BLA").tolist()
    assert ((layer.border_color[:, 3] > 0) == layer.shown).all()  # on the picture, too
    assert rows(legend)["blast"].checkState(0) == Qt.CheckState.Unchecked
    review.append(table(["BLA", "NGS"], first=20))
    qtbot.waitUntil(lambda: not layer.shown[-2], timeout=5000)
    assert layer.shown[-1]
    viewer.window._qt_window.resize(1400, 1000)
    qtbot.wait(100)
    item = rows(legend)["Segmented neutrophil"]
    legend.tree.scrollToItem(item)
    place = legend.tree.visualItemRect(item)
    where = place.center()
    qtbot.mouseClick(legend.tree.viewport(), Qt.MouseButton.LeftButton, pos=where)
    assert set(layer.features["label"][layer.shown]) == {"NGS"}
    qtbot.mouseClick(legend.tree.viewport(), Qt.MouseButton.LeftButton, pos=where)
    assert layer.shown.all()
    legend.tree.itemClicked.emit(rows(legend)["granulopoiesis"], 0)
    assert set(layer.features["label"][layer.shown]) == {"NGS", "NGB"}
    legend.all_button.click()
    assert layer.shown.all()
    assert (layer.border_color[:, 3] > 0).all()
    assert legend.tree.topLevelItem(0).checkState(0) == Qt.CheckState.Checked


def test_the_differential_is_copied_and_exported(
    legend: LegendWidget, review: Review, tmp_path: Path, told: list[tuple[str, str]]
) -> None:
    legend.copy_button.click()
    copied = QGuiApplication.clipboard().text()
    assert "NGS\tSegmented neutrophil\t6\t46.2" in copied
    legend.export(tmp_path / "d.csv")
    legend.export(tmp_path / "d.json")
    legend.export(tmp_path / "d.cells.csv")
    written = pd.read_csv(tmp_path / "d.csv").set_index("code")
    assert written.loc["NGS", "count"] == 6
    assert written["count"].sum() == 13
    assert json.loads((tmp_path / "d.json").read_text())["myeloid_erythroid"]["ratio"] == 4.5
    assert len(pd.read_csv(tmp_path / "d.cells.csv")) == 13
    legend.export(tmp_path / "d.xlsx")
    assert told[-1][0] == "error"
    assert "is written to .csv or .json" in told[-1][1]


def test_the_button_and_the_menu_open_the_same_dock(viewer: napari.Viewer) -> None:
    from napari._app_model import get_app_model

    form = ClassifyWidget(viewer)
    viewer.window.add_dock_widget(form)
    form.legend_button.click()
    form.legend_button.click()

    def docks() -> list[LegendWidget]:
        return [inner for inner in viewer.window.dock_widgets.values() if isinstance(inner, LegendWidget)]

    (legend,) = docks()
    assert legend.isVisible()
    # What the menu does: it shows and hides.
    for visible in (False, True):
        get_app_model().commands.execute_command("hematokit.legend").result()
        assert docks() == [legend]
        assert legend.isVisible() is visible


def test_without_cells_it_says_where_to_begin(viewer: napari.Viewer) -> None:
    _, legend = viewer.window.add_plugin_dock_widget("hematokit", "Legend and differential")
    assert "Classify field" in legend.title.text()
    assert not legend.copy_button.isEnabled()


def test_codes_that_look_like_numbers_or_nothing(viewer: napari.Viewer, tmp_path: Path, qtbot: Any) -> None:
    codes = ("0", "02", "NO", "1e5", "nan", "None", "True", "NA", "values")
    taxonomy = Taxonomy(
        "lab", tuple(CellClass(code, f"Name {code}", colour=f"#0000{n}f") for n, code in enumerate(codes))
    )
    review = Review(table([*codes, "0"]), taxonomy, field_id="f")
    layer = add_cells_layer(viewer, review)
    _, legend = viewer.window.add_plugin_dock_widget("hematokit", "Legend and differential")
    _, reviewing = viewer.window.add_plugin_dock_widget("hematokit", "Review")
    review.correct([review.cells["cell_id"][0]], "NA")
    qtbot.waitUntil(lambda: texts(rows(legend)["Name NA"])[1] == "2", timeout=5000)
    assert {code: texts(rows(legend)[f"Name {code}"])[1] for code in codes} == dict.fromkeys(codes, "1") | {"NA": "2"}
    assert layer.features["label"].tolist() == ["NA", *codes[1:], "0"]
    assert layer.border_color[0].tolist() == layer.border_color[codes.index("NA")].tolist()
    assert [reviewing.classes.item(row).text().split()[-3:-1] for row in range(2)] == [["Name", "0"], ["Name", "02"]]
    legend.export(tmp_path / "d.csv")
    layer.save(str(tmp_path / "cells.csv"), plugin="hematokit")
    layer.save(str(tmp_path / "cells.geojson"), plugin="hematokit")
    counted = pd.read_csv(tmp_path / "d.csv", dtype=str, keep_default_na=False)
    assert dict(zip(counted["code"], counted["count"], strict=True)) == dict.fromkeys(codes, "1") | {"NA": "2"}
    cells = pd.read_csv(tmp_path / "cells.csv", dtype=str, keep_default_na=False)
    assert cells["predicted"].tolist() == [*codes, "0"]
    assert cells["label"].tolist() == ["NA", *[""] * 9]
    features = json.loads((tmp_path / "cells.geojson").read_text())["features"]
    assert [each["properties"]["classification"]["name"] for each in features] == ["NA", *codes[1:], "0"]
