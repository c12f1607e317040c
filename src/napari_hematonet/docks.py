"""Where our docks stand: as tabs of one column, each of them as high as the window."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from qtpy.QtCore import QEvent, QObject, QSize, Qt, QTimer
from qtpy.QtWidgets import QAbstractSpinBox, QApplication, QComboBox, QDockWidget, QLineEdit, QMainWindow, QWidget

from napari_hematonet.state import guarded

if TYPE_CHECKING:
    import napari

__all__ = ["in_front", "join_docks", "open_dock", "show_dock"]

_OURS: Final = "hematokit_tab"
"""Property of our widgets: what their tab says."""

_LAID_OUT: Final = 50
"""Milliseconds after which a window has laid its docks out again."""


def join_docks(widget: QWidget, tab: str, on_turn: Callable[[bool], object] | None = None) -> None:
    """Add the dock of a widget as a tab to the open docks of HematoNet; the user may drag it out.

    napari puts each new dock below the others, where a form of twenty lines gets room for five.

    What the widget has in it by now leaves the keys to the cells: see `_Typing`.

    Parameters
    ----------
    widget : QWidget
        What the dock holds; it need not be in one yet.
    tab : str
        Short, as five of them stand side by side.
    on_turn : callable, optional
        Slot that is called when the tab comes to the front (True), or goes behind another.
    """
    widget.setProperty(_OURS, tab)
    widget.installEventFilter(_Joining(widget, on_turn))
    _Typing(widget)


def _dock_of(widget: QWidget) -> QDockWidget | None:
    """Return the dock that a widget is in, if any."""
    parent = widget.parent()
    while parent is not None and not isinstance(parent, QDockWidget):
        parent = parent.parent()
    return parent


def show_dock(widget: QWidget) -> None:
    """Bring the dock of a widget to the front."""
    dock = _dock_of(widget)
    if dock is not None:
        dock.show()
        dock.raise_()


def open_dock(viewer: napari.Viewer, name: str, make: Callable[[napari.Viewer], QWidget]) -> QWidget:
    """Bring a dock of HematoNet to the front, or open it, and return its widget.

    napari's menu knows a dock by the plugin's display name, `Window.add_plugin_dock_widget` by the distribution's: with
    that there would be two of them.

    Parameters
    ----------
    viewer : napari.Viewer
    name : str
        As the manifest's ``widgets`` call it.
    make : callable
        The widget's class.
    """
    known = viewer.window.dock_widgets
    for plugin in ("HematoNet", "hematokit"):
        if (there := known.get(f"{name} ({plugin})")) is not None:
            show_dock(there)
            return there
    widget = make(viewer)
    viewer.window.add_dock_widget(widget, name=f"{name} (HematoNet)")
    show_dock(widget)
    return widget


def in_front(widget: QWidget) -> bool:
    """Tell whether somebody can see a widget: Qt keeps what is behind another tab visible, outside of the window."""
    return bool(widget.isVisible() and not widget.visibleRegion().isEmpty())


class _Joining(QObject):  # type: ignore[misc] # Qt has no types here
    """Waits for the widget to be shown in a dock of a window, once."""

    def __init__(self, widget: QWidget, on_turn: Callable[[bool], object] | None) -> None:
        super().__init__(widget)
        self._widget, self._on_turn = widget, on_turn
        # Once the widget is shown, the window is known and has its final size.
        self._sizes = {id(window): window.size() for window in QApplication.topLevelWidgets() if window.isVisible()}
        self._size = QSize()
        # Not before the window has laid out the new dock.
        self._soon = QTimer(self)
        self._soon.setSingleShot(True)
        self._soon.setInterval(0)
        self._soon.timeout.connect(self._join)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        """Look for the widget's first appearance."""
        if event.type() == QEvent.Type.Show and _dock_of(self._widget) is not None:
            self._widget.removeEventFilter(self)
            window = self._widget.window()
            self._size = self._sizes.get(id(window), window.size())
            self._soon.start()
        return False

    @guarded
    def _join(self) -> None:
        dock = _dock_of(self._widget)
        window = None if dock is None else dock.parent()
        if dock is None or not isinstance(window, QMainWindow):
            return
        if self._on_turn is not None:
            dock.visibilityChanged.connect(self._on_turn)
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
            if not window.isMaximized() and not window.isFullScreen():
                # The dock did not fit below the others, and the window may have grown beyond the screen.
                self._soon.timeout.disconnect(self._join)
                self._soon.timeout.connect(self._shrink)
                self._soon.start(_LAID_OUT)

    @guarded
    def _shrink(self) -> None:
        window = self._widget.window()
        window.resize(window.size().boundedTo(self._size))


_DONE: Final = (Qt.Key.Key_Return, Qt.Key.Key_Enter, Qt.Key.Key_Escape)
_TYPED_IN: Final = (QLineEdit, QAbstractSpinBox)


class _Typing(QObject):  # type: ignore[misc] # Qt has no types here
    """Separates the keys of a dock: input boxes keep the keys typed into them, all others act on cells.

    Lists, tick boxes and buttons do not take the focus when they are clicked: a list would search in itself on a
    letter, a button answer the space bar. They can be reached with Tab; letters go to the cells even then. Fields for
    text and numbers take it, and give it back on Return, and when something else in a dock is clicked; that Return, or
    another key that they have no use for, does nothing to a cell. A letter that is typed into a number acts
    on the cells.
    """

    def __init__(self, dock: QWidget) -> None:
        super().__init__(dock)
        self._dock = dock
        dock.installEventFilter(self)
        for part in dock.findChildren(QWidget):
            if isinstance(part, _TYPED_IN):
                part.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
                if isinstance(part, QAbstractSpinBox):
                    part.installEventFilter(self)
            elif not isinstance(part.parent(), QComboBox):
                if part.focusPolicy() != Qt.FocusPolicy.NoFocus:
                    part.setFocusPolicy(Qt.FocusPolicy.TabFocus)
                part.installEventFilter(self)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        """Look at the keys that come to a number or up to the dock, and at clicks beside the fields."""
        if event.type() == QEvent.Type.MouseButtonPress and not isinstance(watched, _TYPED_IN):
            field = QApplication.focusWidget()
            if isinstance(field, _TYPED_IN):
                field.clearFocus()
        return event.type() == QEvent.Type.KeyPress and bool(self._taken(watched, event))

    @guarded
    def _taken(self, watched: QObject, event: Any) -> bool:
        field = QApplication.focusWidget()
        if field is None or not self._dock.isAncestorOf(field):
            return False
        if not isinstance(field, _TYPED_IN):
            if watched is field and event.text().isalpha():
                event.ignore()
                return True
            return False
        if watched is self._dock:
            if event.key() in _DONE:
                field.clearFocus()
            event.accept()
            return True
        if event.text().isalpha():
            field.clearFocus()
            event.ignore()  # passed on to the dock, and from there to the canvas
            return True
        return False
