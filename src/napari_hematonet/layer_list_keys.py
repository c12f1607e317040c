"""Keys pressed over napari's list of layers act on the cells, and none removes a layer of cells.

With the list in focus, as after a click on a layer, napari removes the selected layers on Delete, and goes to the layer
whose name begins with a letter that is pressed, before the letter's own key does something to that layer.
"""

from __future__ import annotations

import logging
import weakref
from typing import TYPE_CHECKING, Any, Final

from qtpy.QtCore import QEvent, QObject, Qt
from qtpy.QtGui import QKeyEvent
from qtpy.QtWidgets import QApplication

from napari_hematonet.state import cells_layers, guarded, notify, selected_cells

if TYPE_CHECKING:
    import napari

__all__ = ["guard_layer_list"]

_log = logging.getLogger("napari_hematonet")

_OTHERS: Final = (
    Qt.KeyboardModifier.ControlModifier | Qt.KeyboardModifier.AltModifier | Qt.KeyboardModifier.MetaModifier
)


def guard_layer_list(viewer: napari.Viewer) -> None:
    """Let keys over the list of layers act on cells as they do over the picture.

    Delete and Backspace delete the selected cells of the layer that is selected, and remove no layer of cells. Where no
    layer of cells is selected, they remove the selected layers as before.

    Parameters
    ----------
    viewer : napari.Viewer
        With a window; without one, nothing happens.
    """
    # The list is not public; where napari's internals have changed, its own keys stay.
    try:
        view = viewer.window._qt_viewer.layers
        view.installEventFilter(_Keys(viewer, view))
    except Exception as error:
        _log.debug("the list of layers has its keys as before: %r", error)


class _Keys(QObject):  # type: ignore[misc] # Qt has no types here
    def __init__(self, viewer: napari.Viewer, view: Any) -> None:
        super().__init__(view)
        self._viewer, self._view = weakref.ref(viewer), view

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        """Handle the keys that act on cells."""
        return event.type() == QEvent.Type.KeyPress and bool(self._taken(event))

    @guarded
    def _taken(self, event: Any) -> bool:
        viewer = self._viewer()
        cells = [] if viewer is None else cells_layers(viewer)
        if viewer is None or not cells or event.modifiers() & _OTHERS:
            return False
        selection, text = viewer.layers.selection, event.text()
        active = selection.active if selection.active in cells else None
        if event.key() in (Qt.Key.Key_Delete, Qt.Key.Key_Backspace):
            if not any(layer in selection for layer in cells):
                return False
            if active is None or not selected_cells(active):
                reason = "several layers are selected" if active is None else "no cell is selected"
                notify(f"nothing was deleted: {reason}; the trash button below the list removes layers", "warning")
                return True
        elif event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter):
            if active is None:
                return False
        elif not text or not text.isprintable() or text.isspace():
            return False
        # From here it goes up to the picture, as any key that the list has no use for.
        copy = QKeyEvent(event.type(), event.key(), event.modifiers(), text, event.isAutoRepeat())
        QApplication.sendEvent(self._view.parentWidget(), copy)
        if active is None:
            self._view.keyboardSearch(text)
        return True
