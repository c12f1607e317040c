"""Probabilities of classes as bars; a click on one asks about that class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from qtpy.QtCore import QRectF, QSize, Qt, Signal
from qtpy.QtGui import QColor, QPainter
from qtpy.QtWidgets import QSizePolicy, QWidget

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Bar", "ProbabilityBars"]

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
    """Bars, the longest on top as given; the class that is asked about is framed.

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
        self.setToolTip("Click a class to ask why it is, or is not, this one")

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
