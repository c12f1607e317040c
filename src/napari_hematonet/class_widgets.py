"""Widgets that show classes: a list with keys and counts, and bars of probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from qtpy.QtCore import QRectF, QSize, Qt, Signal
from qtpy.QtGui import QColor, QIcon, QPainter, QPixmap
from qtpy.QtWidgets import QAbstractItemView, QListWidget, QListWidgetItem, QSizePolicy, QWidget

from napari_hematonet.state import guarded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hematokit.taxonomy import Taxonomy

__all__ = ["Bar", "ClassList", "ProbabilityBars", "swatch"]

_SWATCH: Final = 12


class ClassList(QListWidget):  # type: ignore[misc] # Qt has no types here
    """List of classes.

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
            self.addItem(QListWidgetItem(swatch(entry.colour), entry.code))

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


def swatch(colour: str) -> QIcon:
    """Return a square in the colour of a class, ``#rrggbb``."""
    pixels = QPixmap(_SWATCH, _SWATCH)
    pixels.fill(QColor(colour))
    return QIcon(pixels)


_ROW: Final = 22
_CODE: Final = 38
_NAME: Final = 146
_NUMBER: Final = 46
_FEWEST: Final = 3


@dataclass(frozen=True)
class Bar:
    """One class: its code, name, colour ``#rrggbb`` and probability, 0 to 1."""

    code: str
    name: str
    colour: str
    share: float


class ProbabilityBars(QWidget):  # type: ignore[misc] # Qt has no types here
    """Bars of probabilities, in the given order; the explained class is framed.

    Signals
    -------
    chosen (str)
        Code of the class whose bar was clicked.
    """

    chosen = Signal(str)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.bars: tuple[Bar, ...] = ()
        self.asked = ""
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setCursor(Qt.CursorShape.PointingHandCursor)
        self.setToolTip("Click a class to see the pixels for or against it")

    def show_bars(self, bars: Sequence[Bar], asked: str) -> None:
        """Show these classes; `asked` is the code of the one that is asked about."""
        self.bars, self.asked = tuple(bars), asked
        self.setMinimumHeight(self.sizeHint().height())
        self.updateGeometry()
        self.update()

    def row_centre(self, code: str) -> int:
        """Vertical middle of a class's row in this widget, in pixels."""
        return [bar.code for bar in self.bars].index(code) * _ROW + _ROW // 2

    def sizeHint(self) -> QSize:
        """As high as the rows are."""
        return QSize(240, _ROW * max(len(self.bars), _FEWEST))

    def mousePressEvent(self, event: Any) -> None:
        """Choose the class under the mouse."""
        row = int(event.position().y()) // _ROW if event is not None else -1
        if 0 <= row < len(self.bars):
            self.chosen.emit(self.bars[row].code)

    def paintEvent(self, event: Any) -> None:
        """Draw the rows."""
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        text = self.palette().color(self.foregroundRole())
        for row, bar in enumerate(self.bars):
            self._draw(painter, row, bar, text)
        painter.end()

    def _draw(self, painter: QPainter, row: int, bar: Bar, text: QColor) -> None:
        top, width = row * _ROW, self.width()
        left, middle = Qt.AlignmentFlag.AlignVCenter | Qt.AlignmentFlag.AlignLeft, Qt.AlignmentFlag.AlignVCenter
        if bar.code == self.asked:
            painter.setPen(text)
            painter.drawRoundedRect(QRectF(0.5, top + 0.5, width - 1, _ROW - 1), 3, 3)
        painter.setPen(text)
        painter.drawText(QRectF(6, top, _CODE, _ROW), left, bar.code)
        name = painter.fontMetrics().elidedText(bar.name, Qt.TextElideMode.ElideRight, _NAME)
        painter.drawText(QRectF(6 + _CODE, top, _NAME, _ROW), left, name)
        start = 12 + _CODE + _NAME
        room = QRectF(start, top + 5, max(10, width - start - _NUMBER - 10), _ROW - 10)
        faint = QColor(text)
        faint.setAlpha(35)
        painter.fillRect(room, faint)
        painter.fillRect(QRectF(room.x(), room.y(), room.width() * bar.share, room.height()), QColor(bar.colour))
        number = QRectF(width - _NUMBER - 6, top, _NUMBER, _ROW)
        painter.drawText(number, middle | Qt.AlignmentFlag.AlignRight, f"{100 * bar.share:.1f} %")
