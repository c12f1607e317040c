"""The dock "Review": steps through cells, confirms and corrects their classes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pandas as pd
from magicgui.widgets import CheckBox, ComboBox, Container, FileEdit
from qtpy.QtCore import Qt, QTimer
from qtpy.QtWidgets import QGridLayout, QHBoxLayout, QLabel, QProgressBar, QPushButton, QVBoxLayout

from hematokit.errors import FieldError, StoreError, printable
from hematokit.review.session import QUEUE_ORDERS
from napari_hematonet.background import Background, Failed
from napari_hematonet.cell_points import hidden_classes, show_classes
from napari_hematonet.class_widgets import ClassList
from napari_hematonet.docks import join_docks
from napari_hematonet.following import (
    QUEUE_KEY,
    Follower,
    FollowingDock,
    Keys,
    click_instead,
    go_on,
    pick_with_mouse,
    queue_of,
    select_cells,
    step_keys,
    usable_key,
)
from napari_hematonet.images import to_field
from napari_hematonet.jobs import Stored, classified_cell, stored_cells
from napari_hematonet.models import WantedModel
from napari_hematonet.settings import class_keys, key_of, reviewer
from napari_hematonet.state import METADATA_KEY, cells_layers, guarded, is_shown, nothing_shown, notify, unwrapped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import napari
    import numpy as np
    from napari.layers import Points

    from napari_hematonet.state import FieldState

__all__ = ["Added", "ReviewWidget", "missed_cell"]

_UNDO: Final = "Ctrl+Z"
_REDO: Final = "Ctrl+Shift+Z"
_ORDER_NAMES: Final = {"least sure": "Least certain first", "class": "Class by class", "place": "Top to bottom"}


class _ReviewForm(FollowingDock):
    """Layout of the dock; `ReviewWidget` defines the behaviour."""

    def __init__(self) -> None:
        super().__init__()
        self.header = QLabel()
        self.header.setWordWrap(True)
        self.share = QProgressBar()
        self.share.setTextVisible(False)
        self.share.setFixedHeight(6)
        self.order = ComboBox(label="Order", choices=[(_ORDER_NAMES.get(name, name), name) for name in QUEUE_ORDERS])
        self.only = ComboBox(label="Only", choices=[("all classes", "")])
        self.advance = CheckBox(text="Show the next cell after each decision", value=True)
        queue = Container(widgets=[self.order, self.only, self.advance])
        self.cell = QLabel()
        self.cell.setWordWrap(True)
        self.classes = ClassList()
        self.confirm_button, self.delete_button = QPushButton(), QPushButton()
        self.add_button = QPushButton("Add missed cells")
        self.add_button.setCheckable(True)
        self.add_button.setToolTip("Then click on the image where a cell was missed; it is classified at once")
        self.undo_button, self.redo_button = QPushButton(f"Undo ({_UNDO})"), QPushButton("Redo")
        self.redo_button.setToolTip(_REDO)
        self.previous_button, self.next_button = QPushButton("◀ Previous"), QPushButton("Next ▶")
        self.store = FileEdit(label="Store", mode="w", filter="*.zarr")
        self.export_button = QPushButton("Export corrected cells to store")
        self.export_button.setToolTip("Write the reviewed cells to a store, as a training set for hematokit train")
        self.status = QLabel()
        self.status.setWordWrap(True)
        export = Container(widgets=[self.store])
        for form in (queue, export):
            form.native.layout().setContentsMargins(0, 0, 0, 0)
        steps, grid = QHBoxLayout(), QGridLayout()
        steps.addWidget(self.previous_button)
        steps.addWidget(self.next_button)
        grid.addWidget(self.confirm_button, 0, 0)
        grid.addWidget(self.delete_button, 0, 1)
        grid.addWidget(self.undo_button, 1, 0)
        grid.addWidget(self.redo_button, 1, 1)
        grid.addWidget(self.add_button, 2, 0, 1, 2)
        column = QVBoxLayout(self)
        column.addWidget(self.header)
        column.addWidget(self.share)
        column.addWidget(queue.native)
        column.addLayout(steps)
        column.addWidget(self.cell)
        column.addWidget(self.classes, stretch=1)
        column.addLayout(grid)
        column.addWidget(export.native)
        column.addWidget(self.export_button)
        column.addWidget(self.status)
        # So that the commands in the message can be copied.
        self.status.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        for label in (self.header, self.cell, self.status):
            label.setTextFormat(Qt.TextFormat.PlainText)
        self.setMinimumWidth(320)
        join_docks(self, "Review")


def _cell_text(row: pd.Series[Any], shown: str) -> str:
    """Return the class of a cell and the prediction of the model, as text."""
    name = f"{row['cell_id']}: {shown or 'no class'}"
    model = str(row.get("predicted") or "")
    share = float(row["probability"]) if model else 0.0
    prediction = f"{model} {100 * share:.0f} %" if model else ""
    if bool(row["reviewed"]):
        return f"{name}, reviewed" + (f" (model: {prediction})" if prediction else "")
    return f"{name} (model: {prediction})" if prediction else name


_ALSO_DELETE: Final = "Backspace"
_OTHERS_MS: Final = 2000
"""Milliseconds between two checks of the journal for corrections of others."""


class ReviewWidget(_ReviewForm):
    """Dock that corrects, confirms, deletes and adds cells, and steps through them.

    Parameters
    ----------
    napari_viewer : napari.Viewer
    """

    def __init__(self, napari_viewer: napari.Viewer) -> None:
        super().__init__()
        self.viewer = unwrapped(napari_viewer)
        self._working: list[Background] = []
        self.follower = Follower(self.viewer, self)
        pick_with_mouse(self.viewer)
        self._keys = Keys("Review")
        self._key_of: dict[str, str] = {}
        self._complaint = ""
        self._others = QTimer(self)
        self._others.setInterval(_OTHERS_MS)
        self._connect()
        self._new_layer()

    def _connect(self) -> None:
        self.follower.layer_changed.connect(self._new_layer)
        self.follower.selection_changed.connect(self._show_cell)
        self.follower.cells_changed.connect(self._changed)
        self.order.changed.connect(self._new_queue)
        self.only.changed.connect(self._new_queue)
        self.classes.chosen.connect(self.correct)
        self.confirm_button.clicked.connect(self.confirm)
        self.delete_button.clicked.connect(self.delete)
        self.undo_button.clicked.connect(self.undo)
        self.redo_button.clicked.connect(self.redo)
        self.add_button.toggled.connect(self._adding)
        self.next_button.clicked.connect(self._go_on)
        self.previous_button.clicked.connect(self._go_back)
        self.export_button.clicked.connect(self.export_to_store)
        for emitter in self._named_by():
            emitter.connect(self._name)
        self._others.timeout.connect(self.take_over)
        self._others.start()

    def let_go(self) -> None:
        """Release keys, stop work, stop following."""
        click_instead(self.viewer, None)
        for emitter in self._named_by():
            emitter.disconnect(self._name)
        for layer in cells_layers(self.viewer):
            layer.metadata.pop(QUEUE_KEY, None)
        self._others.stop()
        self._keys.release()
        self.follower.close()
        for background in self._working:
            background.stop()

    # --- decisions ----------------------------------------------------------------------------------------------------

    @guarded
    def correct(self, code: str) -> None:
        """Set the class of the selected cells."""
        self._decide(lambda review, ids: review.correct(ids, code))

    @guarded
    def confirm(self) -> None:
        """Confirm the class of the selected cells."""
        self._decide(lambda review, ids: review.confirm(ids))

    @guarded
    def delete(self) -> None:
        """Delete the selected cells."""
        self._decide(lambda review, ids: review.delete(ids))

    def _decide(self, action: Callable[[Any, list[str]], object]) -> None:
        state, layer, ids = self.follower.state, self.follower.layer, self.follower.cell_ids
        if state is None or layer is None:
            notify(nothing_shown(self.viewer), "warning")
            return
        if not ids:
            notify("no cell is selected; click one first, or press Next", "warning")
            return
        state.review.who = reviewer()
        after = self._following(ids[-1])
        action(state.review, ids)
        self.status.clear()
        if self.advance.value and len(ids) == 1:
            if after is not None:
                select_cells(self.viewer, layer, [after], look=True)
            else:
                self.status.setText("All cells are reviewed.")

    def _following(self, cell_id: str) -> str | None:
        """Return the next unreviewed cell of the queue."""
        state, layer = self.follower.state, self.follower.layer
        assert state is not None  # checked by the caller
        assert layer is not None
        order = queue_of(layer, state.review)
        place = order.index(cell_id) if cell_id in order else -1
        cells = state.review.cells
        done = set(cells["cell_id"][cells["reviewed"].to_numpy(bool)])
        hidden = set(layer.features["cell_id"][~layer.shown])
        rest = order[place + 1 :] + order[: max(place, 0)]
        return next((cell for cell in rest if cell not in done and cell not in hidden), None)

    @guarded
    def undo(self) -> None:
        """Undo the last decision."""
        self._turn("undo")

    @guarded
    def redo(self) -> None:
        """Redo the decision that was undone last."""
        self._turn("redo")

    def _turn(self, which: str) -> None:
        state, layer = self.follower.state, self.follower.layer
        if state is None or layer is None:
            notify(nothing_shown(self.viewer), "warning")
            return
        touched: list[str] = []
        self._touched = touched
        state.review.who = reviewer()
        words = getattr(state.review, which)()
        self._touched = None
        if words is None:
            self.status.setText(f"There is nothing to {which}.")
            return
        show_classes(layer, hidden_classes(layer))  # as the legend does a moment later
        select_cells(self.viewer, layer, touched, look=True)
        unseen = set(layer.features["cell_id"][~layer.shown]).intersection(touched)
        self.status.setText(
            f"{'Undone' if which == 'undo' else 'Done again'}: {words}"
            + (" (not in view: its class is hidden)" if unseen else "")
        )

    _touched: list[str] | None = None

    @guarded
    def take_over(self) -> None:
        """Show corrections that others made in the same results or store."""
        state = self.follower.state
        if state is None:
            return
        try:
            news = state.review.refresh()
        except StoreError as error:
            # Reported once, although the check is repeated.
            if str(error) != self._complaint:
                self._complaint = str(error)
                self.status.setText(self._complaint)
                notify(error, "error")
            return
        self._complaint = ""
        if news:
            people = sorted({entry.who or "somebody" for entry in news})
            self.status.setText(f"Updated with corrections by {' and '.join(people)}.")

    # --- missed cells -------------------------------------------------------------------------------------------------

    @guarded
    def _adding(self, on: bool) -> None:
        if self.follower.layer is None:
            self.add_button.setChecked(False)
        elif on:
            click_instead(self.viewer, self._missed_at)
            self.status.setText(
                "Click on the image where a cell was missed. Click the button again to stop adding cells."
            )
        if not self.add_button.isChecked():
            click_instead(self.viewer, None)
            self.status.clear()

    @guarded
    def _missed_at(self, position: np.ndarray) -> None:
        """Add a cell where the user clicked, in world coordinates."""
        state, layer = self.follower.state, self.follower.layer
        if state is None or layer is None:
            return
        y, x = to_field(layer, position)
        self.status.setText("Classifying the cell …")
        self._start(lambda job: missed_cell(job, state, float(y), float(x)))

    def _add(self, added: Added) -> None:
        if not any(is_shown(layer, self.viewer) for layer in self._layers_of(added.state)):
            notify("the missed cell was not added, because its field is no longer shown", "warning")
            return
        added.state.review.who = reviewer()
        cell_id = added.state.review.add(added.row)
        if added.state is self.follower.state and self.follower.layer is not None:
            select_cells(self.viewer, self.follower.layer, [cell_id])
            self.status.setText(f"Added {cell_id}. Correct its class if the prediction is wrong.")
        else:
            notify(f"added {cell_id}, to a field that is no longer active")

    def _layers_of(self, state: FieldState) -> list[Points]:
        return [layer for layer in cells_layers(self.viewer) if layer.metadata[METADATA_KEY] is state]

    # --- the queue ----------------------------------------------------------------------------------------------------

    @guarded
    def _new_queue(self) -> None:
        state, layer = self.follower.state, self.follower.layer
        if state is None or layer is None or self.order.value is None:
            return
        layer.metadata[QUEUE_KEY] = state.review.queue(str(self.order.value), str(self.only.value or "") or None)
        self._count()

    @guarded
    def _go_on(self) -> None:
        go_on(self.viewer)

    @guarded
    def _go_back(self) -> None:
        go_on(self.viewer, False)

    # --- the training set ---------------------------------------------------------------------------------------------

    @guarded
    def export_to_store(self) -> None:
        """Write the reviewed cells to a patch store, in the background."""
        state = self.follower.state
        if state is None:
            notify(nothing_shown(self.viewer), "warning")
            return
        path = Path(str(self.store.value))
        if not path.name or path == Path():
            notify("choose a store (*.zarr) to write to; a new name creates a new store", "warning")
            return
        self.export_button.setEnabled(False)
        self.status.setText(f"Writing to {path} …")
        target = path if path.suffix else path.with_suffix(".zarr")
        self._exporting = self._start(lambda job: stored_cells(state, target, job.tell))

    # --- in the background --------------------------------------------------------------------------------------------

    def _start(self, work: Callable[[Background], Iterator[object]]) -> Background:
        background = Background()
        self._working.append(background)
        background.start(lambda: work(background), self._step, lambda: self._end(background))
        return background

    _exporting: Background | None = None

    @guarded
    def _step(self, step: object) -> None:
        if isinstance(step, Added):
            self._add(step)
        elif isinstance(step, Stored):
            self.status.setText(step.message)
            notify(step.message)
        elif isinstance(step, Failed):
            self.status.setText(step.reason)
            notify(step.reason, "error")

    @guarded
    def _end(self, background: Background) -> None:
        self._working.remove(background)
        if background is self._exporting:
            self._exporting = None
            self.export_button.setEnabled(self.follower.state is not None)

    # --- what is shown ------------------------------------------------------------------------------------------------

    @guarded
    def _new_layer(self) -> None:
        self.add_button.setChecked(False)
        state, layer = self.follower.state, self.follower.layer
        self.classes.clear()
        self._key_of = {}
        for part in (self.classes, self.confirm_button, self.delete_button, self.add_button, self.export_button):
            part.setEnabled(state is not None)
        if self._exporting is not None:
            self.export_button.setEnabled(False)
        self._bind()
        if state is None or layer is None:
            self.header.setText(nothing_shown(self.viewer))
            self.header.setToolTip("")
            self.share.setValue(0)
            self._show_cell()
            return
        self.classes.show_classes(state.review.taxonomy)
        choices = [
            ("all classes", ""),
            *((f"{entry.code}  {entry.name}", entry.code) for entry in state.review.taxonomy),
        ]
        self.only.choices = choices
        self._new_queue()
        self._show_cell()

    def _bind(self) -> None:
        state, layer = self.follower.state, self.follower.layer
        chosen = {} if state is None else class_keys(state.review.taxonomy)
        actions: dict[str, Callable[[], object]] = {key: self._giver(code) for key, code in chosen.items()}
        actions |= {_ALSO_DELETE: self.delete, _UNDO: self.undo, _REDO: self.redo, **step_keys(self.viewer)}
        actions |= {key_of("delete_cell"): self.delete, key_of("confirm_cell"): self.confirm}
        bound = self._keys.bind(layer, actions)
        taken = {usable_key(key) for key in actions if key not in chosen}
        self._key_of = {code: bound[key] for key, code in chosen.items() if key in bound and bound[key] not in taken}
        self.confirm_button.setText(f"Confirm ({usable_key(key_of('confirm_cell')) or 'no key'})")
        self.delete_button.setText(f"Delete cell ({usable_key(key_of('delete_cell')) or 'no key'})")

    def _giver(self, code: str) -> Callable[[], object]:
        return lambda: self.correct(code)

    @guarded
    def _changed(self, kind: str, cell_ids: list[str]) -> None:
        state, layer = self.follower.state, self.follower.layer
        if self._touched is not None:
            self._touched += cell_ids
        if state is None or layer is None:
            return
        if kind in ("append", "add"):
            # Cells that appear during a classification are sorted among the unreviewed ones.
            self._new_queue()
        self._show_cell()

    def _named_by(self) -> list[Any]:
        """Return the values that decide whether and how the header names the layer."""
        layers = self.viewer.layers
        return [
            layers.events.inserted,
            layers.events.removed,
            *(layer.events.name for layer in cells_layers(self.viewer)),
        ]

    @guarded
    def _name(self, event: object = None) -> None:
        for layer in cells_layers(self.viewer):
            layer.events.name.connect(self._name)  # connected once, even if called again
        self._count()

    def _count(self) -> None:
        state, layer = self.follower.state, self.follower.layer
        if state is None or layer is None:
            return
        cells = state.review.cells
        done, total = int(cells["reviewed"].sum()), len(cells)
        who = reviewer()
        several = len(cells_layers(self.viewer)) > 1
        self.header.setText(
            (f"{printable(layer.name)}: " if several else "")
            + f"{done:,} of {total:,} cells reviewed"
            + (f", as {who}" if who else "")
        )
        journal = state.review.journal
        self.header.setToolTip(
            f"Saved at once, in {journal}"
            if journal
            else "Not saved automatically: export the cells, or save the layer"
        )
        self.share.setRange(0, max(total, 1))
        self.share.setValue(done)
        self.classes.show_counts(state.review.shown_label().value_counts().to_dict(), self._key_of)

    @guarded
    def _show_cell(self) -> None:
        self._count()
        state, ids = self.follower.state, self.follower.cell_ids
        self.classes.mark("")
        if state is None or not ids:
            self.cell.setText("Click a cell, or press Next." if state is not None else "")
            return
        cells = state.review.cells
        rows = cells.index[cells["cell_id"].isin(ids)]
        shown = state.review.shown_label().loc[rows]
        codes = sorted(set(shown))
        if len(ids) > 1:
            self.cell.setText(f"{len(ids)} cells selected: {', '.join(code or 'no class' for code in codes[:6])}")
        else:
            self.cell.setText(_cell_text(cells.loc[rows[0]], codes[0]))
        if len(codes) == 1:
            self.classes.mark(codes[0])


@dataclass(frozen=True)
class Added:
    """Missed cell with its class: one row of a cells table."""

    state: FieldState
    row: pd.DataFrame


def missed_cell(job: Background, state: FieldState, y: float, x: float) -> Iterator[Added]:
    """Add a cell at a position, in pixels of the field, and classify it.

    Raises
    ------
    HematokitError
        If the image or the model has gone, or the place is outside the image.
    """
    if state.field is None:
        raise FieldError("the image of these cells is not open; open the image again")
    review = state.review
    arguments = (WantedModel.of(state), review.cells, (y, x), review.field_id, state.model_pixel_size_um)
    for step in job.compute(classified_cell, *arguments, field=state.field):
        if isinstance(step, pd.DataFrame):
            yield Added(state, step)
        elif state.classifier is None:
            state.classifier = step
