"""How the dock "Review" looks: its buttons and lists, and what it says of a cell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from magicgui.widgets import CheckBox, ComboBox, Container, FileEdit
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QGridLayout, QHBoxLayout, QLabel, QProgressBar, QPushButton, QVBoxLayout

from hematokit.review.session import QUEUE_ORDERS
from napari_hematonet.class_list import ClassList
from napari_hematonet.docks import join_docks
from napari_hematonet.following import FollowingDock

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["REDO", "UNDO", "ReviewForm", "cell_words"]

UNDO: Final = "Ctrl+Z"
REDO: Final = "Ctrl+Shift+Z"
_ORDER_NAMES: Final = {"least sure": "Least sure first", "class": "Class by class", "place": "From top to bottom"}


class ReviewForm(FollowingDock):
    """The parts of the dock, in their places; what they do is `ReviewWidget`'s."""

    def __init__(self) -> None:
        super().__init__()
        self.header = QLabel()
        self.header.setWordWrap(True)
        self.share = QProgressBar()
        self.share.setTextVisible(False)
        self.share.setFixedHeight(6)
        self.order = ComboBox(label="Order", choices=[(_ORDER_NAMES.get(name, name), name) for name in QUEUE_ORDERS])
        self.only = ComboBox(label="Only", choices=[("all classes", "")])
        self.advance = CheckBox(text="Go on to the next cell after each decision", value=True)
        queue = Container(widgets=[self.order, self.only, self.advance])
        self.cell = QLabel()
        self.cell.setWordWrap(True)
        self.classes = ClassList()
        self.confirm_button, self.delete_button = QPushButton(), QPushButton()
        self.add_button = QPushButton("Add missed cells")
        self.add_button.setCheckable(True)
        self.add_button.setToolTip("Then click on the picture where a cell was missed; it is classified at once")
        self.undo_button, self.redo_button = QPushButton(f"Undo ({UNDO})"), QPushButton("Redo")
        self.redo_button.setToolTip(REDO)
        self.previous_button, self.next_button = QPushButton("◀ Previous"), QPushButton("Next ▶")
        self.store = FileEdit(label="Store", mode="w", filter="*.zarr")
        self.export_button = QPushButton("Export corrected cells to store")
        self.export_button.setToolTip("The cells that were reviewed become a training set for hematokit train")
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
        # The commands that it names are copied from there.
        self.status.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        for label in (self.header, self.cell, self.status):
            label.setTextFormat(Qt.TextFormat.PlainText)
        self.setMinimumWidth(320)
        join_docks(self, "Review")


def cell_words(row: pd.Series[Any], shown: str) -> str:
    """Say what a cell counts as, and what the model said of it."""
    name = f"{row['cell_id']}: {shown or 'no class'}"
    model = str(row.get("predicted") or "")
    share = float(row["probability"]) if model else 0.0
    said = f"{model} {100 * share:.0f} %" if model else ""
    if bool(row["reviewed"]):
        return f"{name}, reviewed" + (f" (model: {said})" if said else "")
    return f"{name} (model: {said})" if said else name
