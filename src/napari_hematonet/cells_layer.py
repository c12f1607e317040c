"""The layer of cells in a viewer: adding it, and keeping it consistent with its review.

It follows its review and the review follows it: points that are deleted with napari's own tools are deleted cells,
points that are moved are put back. Its text shows the codes of the cells in view only, because napari lays out the text
of all points whenever the view moves: half a second and more with 1,000 cells.

Keys pressed over napari's list of layers act on the cells, and none removes a layer of cells: with the list in focus,
as after a click on a layer, napari removes the selected layers on Delete, and goes to the layer whose name begins with
a letter before that letter's own key acts.
"""

from __future__ import annotations

import time
import weakref
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from qtpy.QtCore import QEvent, QObject, Qt, QTimer
from qtpy.QtGui import QKeyEvent
from qtpy.QtWidgets import QAbstractItemView, QApplication, QDockWidget

from napari_hematonet.cell_points import cells_layer_data, in_step, placement_of, refresh_text, update_cells_layer
from napari_hematonet.images import show_in_micrometres
from napari_hematonet.state import (
    METADATA_KEY,
    FieldState,
    camera_of,
    cells_layers,
    current_layer,
    guarded,
    is_shown,
    notify,
    scale_bar_of,
    selected_cells,
    unwrapped,
)

if TYPE_CHECKING:
    import napari
    from napari.layers import Layer, Points

    from hematokit.review.session import Review

__all__ = ["add_cells_layer", "watch_current_viewer", "watch_layers"]


_AGAIN: Final = 5.0
"""Seconds after which the message that cells cannot be moved is shown again."""


_MOVES: Final = ("added", "changed", "removing", "removed")
"""Actions in napari's events of the data that come from edits by hand."""


_REST_MS: Final = 150  # milliseconds without movement after which the camera is regarded as stopped


_LAYER_LIST: Final = "layer list"  # name of the dock of napari
_OTHERS: Final = (
    Qt.KeyboardModifier.ControlModifier | Qt.KeyboardModifier.AltModifier | Qt.KeyboardModifier.MetaModifier
)


_watched: weakref.WeakSet[Any] = weakref.WeakSet()


_adopted: weakref.WeakKeyDictionary[Any, weakref.ref[Any]] = weakref.WeakKeyDictionary()
"""Layers of cells, and the viewer that each is in."""


def add_cells_layer(
    viewer: napari.Viewer,
    review: Review,
    *,
    image: Layer | None = None,
    state: FieldState | None = None,
    name: str = "cells",
    visible: bool = True,
    **placement: Any,
) -> Points:
    """Add a layer with the cells of a review.

    The layer follows the review: corrections, deletions and cells that are added appear by themselves.

    Parameters
    ----------
    viewer : napari.Viewer
    review : Review
        The cells; may be empty at first.
    image : Image layer, optional
        The image that the cells are of, for its place in the world.
    state : FieldState, optional
        Stored in ``layer.metadata["hematokit"]``; made of the review where it is not given.
    name : str
    visible : bool
        Whether it is shown at once.
    **placement
        ``scale``, ``translate``, ``rotate``, ``shear``, ``affine`` and ``units`` of the image, where there is no
        layer of it.

    Returns
    -------
    Points
        One point a cell, in the order of ``review.cells``.
    """
    state = state or FieldState(review, pixel_size_um=review.pixel_size_um)
    if image is not None:
        state.image_layer_name = state.image_layer_name or image.name
        state.image = weakref.ref(image)
        placement = {**placement_of(image), **placement}
    data, options, _ = cells_layer_data(state, name=name, placement=placement)
    watch_layers(viewer)
    layer = viewer.add_points(data, visible=visible, **options)
    _adopt(viewer, layer)
    return layer


def watch_layers(viewer: napari.Viewer) -> None:
    """Connect layers of cells that readers, samples or copies add to a viewer.

    A hidden layer of cells becomes the active layer when it is shown, and not before. Keys pressed over the list of
    layers are the cells', and do not remove a layer of cells.
    """
    viewer = unwrapped(viewer)
    if viewer in _watched:
        return
    _watched.add(viewer)
    for layer in cells_layers(viewer):
        _adopt(viewer, layer)
    known = weakref.ref(viewer)
    hidden: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
    selected: weakref.WeakSet[Any] = weakref.WeakSet()

    @guarded
    def adopt(event: Any) -> None:
        opened, layer = known(), event.value
        if opened is None or not isinstance(layer.metadata.get(METADATA_KEY), FieldState):
            return
        _adopt(opened, layer)
        if not layer.visible:
            before = opened.layers.selection.active
            hidden[layer] = None if before is None else weakref.ref(before)

    @guarded
    def note_selected(event: Any) -> None:
        selected.update(layer for layer in event.added if layer in hidden)

    @guarded
    def keep_active(event: Any) -> None:
        # napari activates a new layer in several steps; this is the last, after its selection.
        opened = known()
        if opened is None or event.value not in selected:
            return
        selected.discard(event.value)
        reference = hidden.pop(event.value)
        if event.value.visible:
            return
        before = None if reference is None else reference()
        if before is None or not before.visible or before not in opened.layers:
            before = current_layer(opened)
        if before is not None:
            opened.layers.selection.active = before

    viewer.layers.events.inserted.connect(adopt)
    viewer.layers.selection.events.changed.connect(note_selected)
    viewer.layers.selection.events.active.connect(keep_active)
    if hasattr(viewer, "window"):
        _guard_layer_list(viewer)


def watch_current_viewer() -> None:
    """As `watch_layers`, for the viewer that called a reader or a sample; napari does not pass it."""
    import napari

    viewer = napari.current_viewer()
    if viewer is not None:
        watch_layers(viewer)


def _adopt(viewer: napari.Viewer, layer: Points) -> None:
    if layer in _adopted:
        return
    _adopted[layer] = weakref.ref(viewer)
    state = layer.metadata[METADATA_KEY]
    _follow_review(layer, state)
    if state.image is None and state.image_layer_name in viewer.layers:
        # Layers of a reader or a sample know only the name of their image, which the user may change.
        state.image = weakref.ref(viewer.layers[state.image_layer_name])
    _attach_text(viewer, layer)
    _choose_when_shown(viewer, layer)
    if state.pixel_size_um is not None:
        show_in_micrometres(viewer, state.pixel_size_um)
    scale_bar_of(viewer).visible = True


def _choose_when_shown(viewer: napari.Viewer, layer: Points) -> None:
    """Make a hidden layer of cells the active one when it is shown, so that docks and keys act on it."""
    opened, known = weakref.ref(viewer), weakref.ref(layer)

    @guarded
    def choose(event: object = None) -> None:
        there, shown = opened(), known()
        if there is not None and shown is not None and shown.visible and shown in there.layers:
            there.layers.selection.active = shown

    layer.events.visible.connect(choose)


def _follow_review(layer: Points, state: FieldState) -> None:
    """Update a layer whenever its review changes; linking twice changes nothing."""
    if id(layer) in state.linked:
        return
    state.linked.add(id(layer))
    known = weakref.ref(layer, lambda _: state.linked.discard(id_of))
    id_of = id(layer)

    @guarded
    def update(kind: str, cell_ids: list[str]) -> None:
        followed = known()
        # A removed layer may still exist in the history of napari.
        if followed is not None:
            update_cells_layer(followed, state.review, kind, cell_ids)

    @guarded
    def put_back(*_: object) -> None:
        # napari pastes and selects points without a data event.
        followed = known()
        if followed is not None and not state.updating and len(followed.data) > len(state.review):
            _put_back(followed, state)

    state.review.on_change(update)
    layer.events.data.connect(_keep_in_step)
    layer.selected_data.events.items_changed.connect(put_back)


@guarded
def _keep_in_step(event: Any) -> None:
    """Delete the cells of points removed with the tools of napari; restore moved points and remove added ones.

    Cells that are hidden, with their class or with the whole layer, are put back, too.
    """
    layer = event.source
    state = layer.metadata.get(METADATA_KEY)
    action = str(getattr(event, "action", ""))
    if not isinstance(state, FieldState) or state.updating or action not in _MOVES:
        return
    if action == "removing":
        state.unseen = _unseen(layer)
        return
    review = state.review
    now = review.cells["cell_id"].to_numpy(object)
    there = layer.features["cell_id"].to_numpy(object) if "cell_id" in layer.features else np.zeros(0, object)
    if action == "removed":
        gone = now[~np.isin(now, there)].tolist()
        seen = [cell for cell in gone if cell not in state.unseen]
        if seen:
            review.delete(seen)
        if len(seen) < len(gone):
            update_cells_layer(layer, review)
            notify("hidden cells are not deleted; show them first", "warning")
        return
    if len(now) != len(there) or not in_step(layer, state):
        _put_back(layer, state)


def _put_back(layer: Points, state: FieldState) -> None:
    update_cells_layer(layer, state.review)
    # A drag calls this function at every step.
    if time.monotonic() - state.put_back_at > _AGAIN:
        notify("cells cannot be moved; add and delete them in Plugins > HematoNet > Review")
    state.put_back_at = time.monotonic()


def _unseen(layer: Points) -> set[str]:
    """Ids of the cells that are not shown."""
    viewer = _adopted[layer]() if layer in _adopted else None
    ids = layer.features["cell_id"].to_numpy(object)
    seen = layer.visible if viewer is None else is_shown(layer, viewer)
    return set(ids[~layer.shown] if seen else ids)


def _attach_text(viewer: napari.Viewer, layer: Points) -> None:
    """Let napari's tick "display text" of a layer of cells show the codes of the cells in view.

    Parameters
    ----------
    viewer : napari.Viewer
    layer : Points
        Made with `text_options`, with a feature ``label``.
    """
    timer = QTimer()
    timer.setSingleShot(True)
    timer.setInterval(_REST_MS)
    owner = weakref.ref(layer)

    @guarded
    def wait(event: object = None) -> None:
        if owner() is not None:
            timer.start()

    @guarded
    def write() -> None:
        seen = owner()
        if seen is not None and seen in viewer.layers:
            refresh_text(seen)

    @guarded
    def stop(event: object = None) -> None:
        if owner() is None or owner() not in viewer.layers:
            timer.stop()
            for emitter in (camera_of(viewer).events.zoom, camera_of(viewer).events.center):
                emitter.disconnect(wait)
            viewer.layers.events.removed.disconnect(stop)

    timer.timeout.connect(write)
    for emitter in (camera_of(viewer).events.zoom, camera_of(viewer).events.center):
        emitter.connect(wait)
    viewer.layers.events.removed.connect(stop)
    layer.text.events.visible.connect(wait)
    layer.events.features.connect(wait)
    if layer.text.visible:
        wait()


def _guard_layer_list(viewer: napari.Viewer) -> None:
    """Let keys over the list of layers act on cells, as they do over the image.

    Delete and Backspace delete the selected cells of the layer that is selected, and remove no layer of cells. Where no
    layer of cells is selected, they remove the selected layers as before.

    Parameters
    ----------
    viewer : napari.Viewer
        With a window; without one, nothing happens.
    """
    dock = viewer.window.main_menu.window().findChild(QDockWidget, _LAYER_LIST)
    view = None if dock is None else dock.findChild(QAbstractItemView)
    if view is not None:
        view.installEventFilter(_Keys(viewer, view))


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
                notify(f"no cell was deleted: {reason}; the trash button below the list removes layers", "warning")
                return True
        elif event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter):
            if active is None:
                return False
        elif not text or not text.isprintable() or text.isspace():
            return False
        # From here the key is passed to the canvas, as any key that the list does not use.
        copy = QKeyEvent(event.type(), event.key(), event.modifiers(), text, event.isAutoRepeat())
        QApplication.sendEvent(self._view.parentWidget(), copy)
        if active is None:
            self._view.keyboardSearch(text)
        return True
