"""The classes as a list: their key, colour, name, and how many cells count as each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from qtpy.QtCore import QSize, Signal
from qtpy.QtGui import QColor, QIcon, QPixmap
from qtpy.QtWidgets import QAbstractItemView, QListWidget, QListWidgetItem, QWidget

from napari_hematonet.state import guarded

if TYPE_CHECKING:
    from hematokit.taxonomy import Taxonomy

__all__ = ["ClassList"]

_SWATCH: Final = 12


class ClassList(QListWidget):  # type: ignore[misc] # Qt has no types here
    """Classes to choose one of.

    Signals
    -------
    chosen (str)
        Code of the class that was clicked.
    """

    chosen = Signal(str)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._names: dict[str, str] = {}
        self.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.setIconSize(QSize(_SWATCH, _SWATCH))
        self.setToolTip("Click a class, or press its key, to give it to the selected cells")
        self.itemClicked.connect(self._clicked)

    def show_classes(self, taxonomy: Taxonomy) -> None:
        """List the classes of a taxonomy, in its order."""
        self.clear()
        self._names = {entry.code: entry.name for entry in taxonomy}
        for entry in taxonomy:
            self.addItem(QListWidgetItem(_swatch(entry.colour), entry.code))

    def show_counts(self, counts: Mapping[Any, int], keys: Mapping[str, str]) -> None:
        """Say how many cells count as each class, and which key gives it; both by code."""
        for row, (code, name) in enumerate(self._names.items()):
            self.item(row).setText(f"{keys.get(code, ' ')}   {code}   {name}   {counts.get(code, 0) or ''}")

    def mark(self, code: str) -> None:
        """Mark one class, or none where there is no such class."""
        codes = list(self._names)
        self.clearSelection()
        if code in codes:
            self.setCurrentRow(codes.index(code))

    @guarded
    def _clicked(self, item: QListWidgetItem) -> None:
        self.chosen.emit(list(self._names)[self.row(item)])


def _swatch(colour: str) -> QIcon:
    pixels = QPixmap(_SWATCH, _SWATCH)
    pixels.fill(QColor(colour))
    return QIcon(pixels)
