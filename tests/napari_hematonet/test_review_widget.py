"""The dock "Review", driven as a person does."""

from __future__ import annotations

import getpass
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fieldkit import CENTRES, MISSED, Opened, open_classified, wait_for
from qtpy.QtCore import Qt
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication

from hematokit.imaging.geometry import to_napari
from hematokit.review.session import Review
from hematokit.store import open_store
from hematokit.store.corrections import read_corrections
from napari_hematonet.cell_points import class_colours
from napari_hematonet.review_widget import ReviewWidget
from napari_hematonet.settings import store_setting
from napari_hematonet.state import selected_cells
from napari_hematonet.why_widget import WhyWidget

CONTROL, SHIFT = Qt.KeyboardModifier.ControlModifier, Qt.KeyboardModifier.ShiftModifier
TURNED = {"scale": (0.1, 0.1), "rotate": 30.0, "translate": (5.0, -3.0), "units": ("micrometer", "micrometer")}


def dock(opened: Opened) -> ReviewWidget:
    widget = ReviewWidget(opened.viewer)
    opened.viewer.window.add_dock_widget(widget, name="Review", area="right")
    opened.viewer.reset_view()
    QApplication.processEvents()
    return widget


@pytest.fixture(autouse=True)
def own_settings() -> Iterator[None]:
    """The settings of a user who has set nothing, before and after."""
    nothing = {"classes": "", "delete_cell": "Delete", "confirm_cell": "Return"}
    yield
    store_setting("reviewer", "")
    for name, value in nothing.items():
        store_setting(name, value, group="keys")


def row_of(opened: Opened, cell_id: str) -> Any:
    return opened.review.cells.set_index("cell_id").loc[cell_id]


def click_class(review: ReviewWidget, code: str) -> None:
    """Click on a class in the list."""
    row = review.follower.state.review.taxonomy.codes.index(code)
    item = review.classes.item(row)
    review.classes.scrollToItem(item)
    place = review.classes.visualItemRect(item).center()
    QTest.mouseClick(review.classes.viewport(), Qt.MouseButton.LeftButton, pos=place)


def errors(told: list[tuple[str, str]]) -> list[str]:
    return [message for severity, message in told if severity == "error"]


def test_a_key_gives_the_class_saves_it_and_goes_on(viewer: Any, tiny_run: Path, tmp_path: Path) -> None:
    store_setting("reviewer", "Dr. Ada Person")
    opened = open_classified(viewer, tiny_run, tmp_path)
    review = dock(opened)
    queue = opened.review.queue()
    review.next_button.click()
    assert selected_cells(opened.layer) == queue[:1]
    opened.press(Qt.Key.Key_H)

    row = row_of(opened, queue[0])
    assert (row["label"], row["label_source"], row["reviewed"]) == ("HAC", "corrected", True)
    entry = read_corrections(tmp_path / "corrections.jsonl")[-1]
    assert (entry.kind, entry.who, entry.cell_id, entry.after) == ("label", "Dr. Ada Person", queue[0], "HAC")
    place = opened.review.cells["cell_id"].tolist().index(queue[0])
    assert opened.layer.features["label"].iloc[place] == "HAC"
    np.testing.assert_allclose(
        opened.layer.border_color[place], class_colours(opened.review.taxonomy)["HAC"], atol=0.01
    )
    assert selected_cells(opened.layer) == [queue[1]]
    assert review.header.text() == "1 of 9 cells reviewed, as Dr. Ada Person"


def test_confirm_undo_and_redo_by_key(viewer: Any, tiny_run: Path, tmp_path: Path) -> None:
    opened = open_classified(viewer, tiny_run, tmp_path)
    review = dock(opened)
    opened.click(*CENTRES[4])
    was = row_of(opened, opened.id_at(4))["predicted"]
    opened.press(Qt.Key.Key_Return)
    row = row_of(opened, opened.id_at(4))
    assert (row["label"], row["reviewed"]) == (was, True)
    opened.press(Qt.Key.Key_Z, CONTROL)
    assert not row_of(opened, opened.id_at(4))["reviewed"]
    # Undoing goes back to the cell, so that one sees what it did.
    assert selected_cells(opened.layer) == [opened.id_at(4)]
    assert "Undone" in review.status.text()
    opened.press(Qt.Key.Key_Z, CONTROL | SHIFT)
    assert row_of(opened, opened.id_at(4))["reviewed"]
    opened.press(Qt.Key.Key_Z, CONTROL)
    opened.press(Qt.Key.Key_Z, CONTROL)
    assert "nothing to undo" in review.status.text()


def test_several_cells_by_the_list(viewer: Any, tiny_run: Path, tmp_path: Path) -> None:
    opened = open_classified(viewer, tiny_run, tmp_path)
    review = dock(opened)
    opened.click(*CENTRES[0])
    opened.click(*CENTRES[3], modifier=SHIFT)
    assert review.cell.text().startswith("2 cells selected")
    click_class(review, "MON")
    for number in (0, 3):
        assert row_of(opened, opened.id_at(number))["label"] == "MON"
    assert selected_cells(opened.layer) == [opened.id_at(0), opened.id_at(3)]
    # Keys work after a click in the dock, too: it takes them from nobody.
    QTest.keyClick(review, Qt.Key.Key_B)
    assert row_of(opened, opened.id_at(3))["label"] == "BLA"


@pytest.mark.parametrize("key", [Qt.Key.Key_Delete, Qt.Key.Key_Backspace])
def test_a_cell_that_is_none_is_deleted_and_comes_back(
    viewer: Any, tiny_run: Path, tmp_path: Path, key: Qt.Key
) -> None:
    opened = open_classified(viewer, tiny_run, tmp_path)
    review = dock(opened)
    opened.click(*CENTRES[6])
    opened.press(key)
    assert len(opened.layer.data) == len(opened.review.cells) == len(CENTRES) - 1
    assert opened.id_at(6) not in opened.layer.features["cell_id"].tolist()
    assert read_corrections(tmp_path / "corrections.jsonl")[-1].kind == "delete"
    assert opened.id_at(6) not in selected_cells(opened.layer)
    review.undo_button.click()
    assert len(opened.layer.data) == len(CENTRES)
    assert selected_cells(opened.layer) == [opened.id_at(6)]


@pytest.mark.parametrize("placement", [{}, TURNED], ids=["plain", "micrometres and turned"])
def test_a_missed_cell_is_added_where_it_is_clicked_and_classified(
    viewer: Any, tiny_run: Path, tmp_path: Path, placement: dict[str, Any]
) -> None:
    opened = open_classified(viewer, tiny_run, tmp_path, **placement)
    review = dock(opened)
    review.add_button.click()
    opened.click(*MISSED)
    wait_for(lambda: len(opened.review.cells) == len(CENTRES) + 1)
    added = opened.review.cells.iloc[-1]
    assert (added["y"], added["x"]) == pytest.approx(MISSED, abs=1.5)
    assert added["predicted"] in opened.state.classifier.codes
    expected = opened.layer.data_to_world(opened.layer.data[-1])
    np.testing.assert_allclose(expected, opened.image.data_to_world(to_napari((added["y"], added["x"]))), atol=1e-6)
    assert read_corrections(tmp_path / "corrections.jsonl")[-1].kind == "add"
    assert selected_cells(opened.layer) == [added["cell_id"]]
    # Ended, a click selects again.
    review.add_button.click()
    opened.click(*CENTRES[1])
    assert selected_cells(opened.layer) == [opened.id_at(1)]
    assert len(opened.review.cells) == len(CENTRES) + 1


def test_a_missed_cell_outside_the_field(
    viewer: Any, tiny_run: Path, tmp_path: Path, told: list[tuple[str, str]]
) -> None:
    opened = open_classified(viewer, tiny_run, tmp_path)
    review = dock(opened)
    review.add_button.click()
    opened.click(-20, 100)
    wait_for(lambda: errors(told))
    assert "outside the field" in errors(told)[0]
    assert len(opened.review.cells) == len(CENTRES)


def test_the_queue_by_class(viewer: Any, tiny_run: Path, tmp_path: Path) -> None:
    opened = open_classified(viewer, tiny_run, tmp_path)
    review = dock(opened)
    code = opened.review.shown_label().value_counts().index[0]
    review.only.value = code
    wanted = opened.review.queue("least sure", code)
    seen = []
    for _ in wanted:
        review.next_button.click()
        seen += selected_cells(opened.layer)
    assert seen == wanted
    review.previous_button.click()
    assert selected_cells(opened.layer) == [wanted[-2]]


def test_keys_of_the_users_own(viewer: Any, tiny_run: Path, tmp_path: Path) -> None:
    store_setting("classes", "Q=BLA", group="keys")
    store_setting("confirm_cell", "Space", group="keys")
    opened = open_classified(viewer, tiny_run, tmp_path)
    review = dock(opened)
    opened.click(*CENTRES[0])
    opened.press(Qt.Key.Key_Q)
    assert row_of(opened, opened.id_at(0))["label"] == "BLA"
    assert review.classes.item(0).text().split()[:2] == ["Q", "BLA"]
    assert review.confirm_button.text() == "Confirm (Space)"


def test_a_key_that_does_not_exist_is_said(
    viewer: Any, tiny_run: Path, tmp_path: Path, told: list[tuple[str, str]]
) -> None:
    store_setting("delete_cell", "banana", group="keys")
    opened = open_classified(viewer, tiny_run, tmp_path)
    dock(opened)
    assert any("key 'banana' does not exist" in message for _, message in told)
    opened.click(*CENTRES[0])
    opened.press(Qt.Key.Key_B)
    assert row_of(opened, opened.id_at(0))["label"] == "BLA"


def test_reviewed_cells_become_a_training_set(
    viewer: Any, tiny_run: Path, tmp_path: Path, told: list[tuple[str, str]]
) -> None:
    opened = open_classified(viewer, tiny_run, tmp_path)
    review = dock(opened)
    review.export_button.click()
    assert "choose a store" in review.status.text() or any("choose a store" in message for _, message in told)
    review.store.value = tmp_path / "corrected.zarr"
    review.export_button.click()
    wait_for(lambda: errors(told))
    assert "no cell has been reviewed" in errors(told)[0]
    assert not (tmp_path / "corrected.zarr").exists()

    review.advance.value = False
    for number, code in ((0, "BLA"), (1, "LYT"), (2, "LYT")):
        opened.click(*CENTRES[number])
        click_class(review, code)
    review.export_button.click()
    wait_for(lambda: "3 cells added" in review.status.text())
    store = open_store(tmp_path / "corrected.zarr")
    assert sorted(store.cells["label"]) == ["BLA", "LYT", "LYT"]
    assert store.patch_size == opened.state.classifier.patch_size
    first = store.cells.sort_values("x").iloc[0]
    assert (first["y"], first["x"]) == CENTRES[0]

    opened.click(*CENTRES[3])
    click_class(review, "NGS")
    review.export_button.click()
    wait_for(lambda: "1 cell added" in review.status.text())
    assert review.status.text().startswith("1 cell added to corrected.zarr")
    assert "--pixel-size" not in review.status.text()
    # What comes next is said, in the order in which it works.
    assert review.status.text().endswith(
        f"hematokit split {tmp_path / 'corrected.zarr'}, then hematokit train {tmp_path / 'corrected.zarr'} "
        "--output runs/corrected"
    )
    assert {entry.who for entry in open_store(tmp_path / "corrected.zarr").corrections} == {getpass.getuser()}
    assert len(open_store(tmp_path / "corrected.zarr").cells) == 4


def test_a_closed_dock_gives_the_keys_back(viewer: Any, tiny_run: Path, tmp_path: Path) -> None:
    opened = open_classified(viewer, tiny_run, tmp_path)
    before = set(opened.layer.keymap)
    why = WhyWidget(viewer)
    viewer.window.add_dock_widget(why, name="Why")
    why.automatic.value = False
    only_why = {str(key) for key in opened.layer.keymap}
    review = dock(opened)
    assert {str(key) for key in opened.layer.keymap} > only_why
    viewer.window.remove_dock_widget(review)
    assert {str(key) for key in opened.layer.keymap} == only_why
    # The other dock's arrows are its own again.
    opened.click(*CENTRES[0])
    opened.press(Qt.Key.Key_Right)
    assert selected_cells(opened.layer) == [opened.id_at(1)]
    viewer.window.remove_dock_widget(why)
    assert set(opened.layer.keymap) == before


def test_the_dock_opens_without_any_cells_and_wakes_up(viewer: Any, tiny_run: Path, tmp_path: Path) -> None:
    review = ReviewWidget(viewer)
    viewer.window.add_dock_widget(review, name="Review")
    review.next_button.click()
    review.confirm_button.click()
    review.undo_button.click()
    assert "classify a field first" in review.header.text()
    opened = open_classified(viewer, tiny_run, tmp_path)
    assert review.classes.count() == len(opened.review.taxonomy)
    viewer.layers.remove(opened.layer)
    assert "classify a field first" in review.header.text()


def test_what_another_viewer_corrects_appears_and_is_said(
    viewer: Any, tiny_run: Path, tmp_path: Path, told: list[tuple[str, str]]
) -> None:
    opened = open_classified(viewer, tiny_run, tmp_path)
    review = dock(opened)
    journal = tmp_path / "corrections.jsonl"
    ben = Review(opened.review.cells, opened.review.taxonomy, field_id="field", who="Ben", journal=journal)
    ben.correct([opened.id_at(2)], "MON")
    ben.delete([opened.id_at(3)])
    wait_for(lambda: "Ben" in review.status.text())
    assert row_of(opened, opened.id_at(2))["label"] == "MON"
    assert opened.layer.features.set_index("cell_id").loc[opened.id_at(2), "label"] == "MON"
    assert len(opened.layer.data) == len(CENTRES) - 1
    assert review.header.text().startswith("1 of 8 cells reviewed")
    opened.click(*CENTRES[2])
    opened.press(Qt.Key.Key_B)
    assert [entry.before for entry in read_corrections(journal)][-1] == "MON"
    # A damaged journal is said once, not every two seconds, and correcting says it again.
    with journal.open("ab") as file:
        file.write(b"{}\n")
    review.take_over()
    review.take_over()
    assert [message for message in errors(told) if "no correction" in message] == errors(told)
    assert len(errors(told)) == 1
    opened.click(*CENTRES[0])
    opened.press(Qt.Key.Key_B)
    assert len(errors(told)) == 2
    assert not row_of(opened, opened.id_at(0))["reviewed"]
