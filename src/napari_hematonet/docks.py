"""Where our docks stand: as tabs of one column, each of them as high as the window."""

from __future__ import annotations

from typing import Final

from qtpy.QtCore import QEvent, QObject, QTimer
from qtpy.QtWidgets import QDockWidget, QMainWindow, QWidget

from napari_hematonet.state import guarded

__all__ = ["dock_of", "join_docks", "show_dock"]

_OURS: Final = "hematokit_tab"
"""Property of our widgets: what their tab says."""


def join_docks(widget: QWidget, tab: str) -> None:
    """Let a widget's dock join those of ours that are there, as a tab; the user may drag it out again.

    napari puts each new dock below the others, where a form of twenty lines gets room for five.

    Parameters
    ----------
    widget : QWidget
        What the dock holds; it need not be in one yet.
    tab : str
        Short, as five of them stand side by side.
    """
    widget.setProperty(_OURS, tab)
    widget.installEventFilter(_Joining(widget))


def dock_of(widget: QWidget) -> QDockWidget | None:
    """Return the dock that a widget is in, if any."""
    parent = widget.parent()
    while parent is not None and not isinstance(parent, QDockWidget):
        parent = parent.parent()
    return parent


def show_dock(widget: QWidget) -> None:
    """Bring the dock of a widget to the front."""
    dock = dock_of(widget)
    if dock is not None:
        dock.show()
        dock.raise_()


class _Joining(QObject):  # type: ignore[misc] # Qt has no types here
    """Waits for the widget to be shown in a dock of a window, once."""

    def __init__(self, widget: QWidget) -> None:
        super().__init__(widget)
        self._widget = widget
        # Not while the window is still at laying out the new dock.
        self._soon = QTimer(self)
        self._soon.setSingleShot(True)
        self._soon.setInterval(0)
        self._soon.timeout.connect(self._join)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        """Look for the widget's first appearance."""
        if event.type() == QEvent.Type.Show and dock_of(self._widget) is not None:
            self._widget.removeEventFilter(self)
            self._soon.start()
        return False

    @guarded
    def _join(self) -> None:
        dock = dock_of(self._widget)
        window = None if dock is None else dock.parent()
        if dock is None or not isinstance(window, QMainWindow):
            return
        dock.setWindowTitle(str(self._widget.property(_OURS)))
        area = window.dockWidgetArea(dock)
        others = [
            other
            for other in window.findChildren(QDockWidget)
            if other is not dock
            and not other.isFloating()
            and window.dockWidgetArea(other) == area
            and other.widget() is not None
            and other.widget().property(_OURS)
        ]
        if others and not dock.isFloating():
            window.tabifyDockWidget(others[-1], dock)
            dock.show()
            dock.raise_()
