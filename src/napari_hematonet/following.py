"""Which cells the user means: the selection of the current layer of cells, and the keys that act on it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from qtpy.QtCore import QEvent, QObject, Signal
from qtpy.QtWidgets import QWidget

from napari_hematonet.cell_points import rows_of
from napari_hematonet.cells_layer import watch_layers
from napari_hematonet.settings import key_of
from napari_hematonet.state import (
    FieldState,
    camera_of,
    cells_layers,
    current_layer,
    guarded,
    nothing_shown,
    notify,
    selected_cells,
    state_of,
)

if TYPE_CHECKING:
    import napari
    from napari.layers import Points

    from hematokit.review.session import Review

__all__ = [
    "Follower",
    "FollowingDock",
    "Keys",
    "QUEUE_KEY",
    "click_instead",
    "go_on",
    "pick_with_mouse",
    "queue_of",
    "select_cells",
    "selected_cells",
    "step",
    "step_keys",
    "usable_key",
]

_instead: Final[weakref.WeakKeyDictionary[Any, weakref.WeakMethod[Callable[[Any], object]]]] = (
    weakref.WeakKeyDictionary()
)

_CLICK: Final = 5
"""Screen pixels that the mouse may move in a click."""

_CANVAS: Final = 600  # pixels; napari before 0.9 does not state the size of its canvas

_SMALL: Final = 7
"""A cell of which more than these fit across the view is too small to judge; half as many do then."""


def select_cells(viewer: napari.Viewer, layer: Points, cell_ids: Sequence[str], *, look: bool = False) -> None:
    """Select cells of a layer that are not hidden, and bring the first into view where `look` says so."""
    rows = [row for row in rows_of(layer, cell_ids) if layer.shown[row]]
    layer.selected_data = set(rows)
    viewer.layers.selection.active = layer
    if look and rows:
        _look_at(viewer, layer, rows[0])


def _look_at(viewer: napari.Viewer, layer: Points, row: int) -> None:
    place = np.asarray(layer.data_to_world(layer.data[row]), np.float64)
    shown = list(viewer.dims.displayed)
    for axis in range(len(place)):
        if axis not in shown:
            viewer.dims.set_point(axis, place[axis])
    # Points are drawn as wide as their size times the last scale.
    width = float(layer.size[row]) * abs(float(layer.scale[-1]))
    canvas = min(viewer.canvas.size) if hasattr(viewer, "canvas") else _CANVAS
    camera = camera_of(viewer)
    if width * camera.zoom < canvas / _SMALL:
        camera.zoom = canvas / _SMALL / width * 2
    camera.center = tuple([0.0] * (3 - len(shown)) + [place[axis] for axis in shown])


def step(viewer: napari.Viewer, layer: Points, order: Sequence[str], forward: bool = True) -> str | None:
    """Select the next or previous cell in an order, relative to the selected one; return its id.

    Hidden cells are passed over. Where the selected cell is not in the order, it begins at its first or last cell.
    """
    ids = layer.features["cell_id"].to_numpy(object)
    visible = set(ids[np.asarray(layer.shown, bool)].tolist())
    there = [cell for cell in order if cell in visible]
    if not there:
        return None
    chosen = [place for place, cell in enumerate(there) if cell in set(selected_cells(layer))]
    if not chosen:
        target = there[0 if forward else -1]
    else:
        place = chosen[-1] + 1 if forward else chosen[0] - 1
        target = there[place % len(there)]
    select_cells(viewer, layer, [target], look=True)
    return target


def pick_with_mouse(viewer: napari.Viewer) -> None:
    """Let a click select the cell under the mouse while the mouse moves the camera; once per viewer.

    Shift adds to the selection. In napari's own selection mode nothing changes.
    """
    if not any(getattr(callback, "__name__", "") == _picked.__name__ for callback in viewer.mouse_drag_callbacks):
        viewer.mouse_drag_callbacks.append(_picked)


def click_instead(viewer: napari.Viewer, action: Callable[[Any], object] | None) -> None:
    """Replace the action of a click on the image.

    Parameters
    ----------
    viewer : napari.Viewer
    action : bound method, optional
        Is given the position in the world; None lets clicks select again.
    """
    if action is None:
        _instead.pop(viewer, None)
    else:
        _instead[viewer] = weakref.WeakMethod(action)


def _picked(viewer: napari.Viewer, event: Any) -> Iterator[None]:
    active = viewer.layers.selection.active
    layer = current_layer(viewer)
    if layer is None or event.button != 1:
        return
    if active is not None and str(getattr(active, "mode", "pan_zoom")) != "pan_zoom":
        return
    start = np.asarray(event.pos)
    yield
    while event.type == "mouse_move":
        yield
    if np.abs(np.asarray(event.pos) - start).max() <= _CLICK:
        _select_under(viewer, layer, event)


@guarded
def _select_under(viewer: napari.Viewer, layer: Points, event: Any) -> None:
    instead = _instead[viewer]() if viewer in _instead else None
    if instead is not None:
        instead(np.asarray(event.position))
        return
    row = layer.get_value(
        event.position, view_direction=event.view_direction, dims_displayed=event.dims_displayed, world=True
    )
    # A click on a cell makes the layer of cells active, even if the image was, so that keys act on cells.
    if row is None or not layer.shown[row]:
        if "Shift" not in event.modifiers:
            layer.selected_data = set()
        return
    viewer.layers.selection.active = layer
    layer.selected_data = set(layer.selected_data) ^ {int(row)} if "Shift" in event.modifiers else {int(row)}


class Follower(QObject):  # type: ignore[misc] # Qt has no types here
    """Follows the layer of cells that the docks act on, and its selected cells.

    Signals
    -------
    layer_changed ()
        Another layer of cells is meant, or none.
    selection_changed ()
        Other cells are selected.
    cells_changed (str, list)
        The review changed: what happened, to which cells.
    """

    layer_changed = Signal()
    selection_changed = Signal()
    cells_changed = Signal(str, list)

    def __init__(self, viewer: napari.Viewer, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self.viewer = viewer
        self.layer: Points | None = None
        self.state: FieldState | None = None
        self._reviews: list[Any] = []
        self._alive = True
        self._last: list[str] = []
        self._missing = ""
        watch_layers(viewer)
        for emitter in self._emitters():
            emitter.connect(self._look)
        self._look()

    def close(self) -> None:
        """Stop following; for when the dock goes."""
        if not self._alive:
            return
        self._alive = False
        for emitter in (*self._emitters(), *(layer.events.visible for layer in cells_layers(self.viewer))):
            emitter.disconnect(self._look)
        self._leave()

    def _emitters(self) -> list[Any]:
        layers, dims = self.viewer.layers, self.viewer.dims.events
        return [
            layers.events.inserted,
            layers.events.removed,
            layers.selection.events.active,
            dims.point,
            dims.ndisplay,
        ]

    @property
    def cell_ids(self) -> list[str]:
        """Ids of the selected cells."""
        return selected_cells(self.layer)

    def _leave(self) -> None:
        if self.layer is not None:
            self.layer.selected_data.events.items_changed.disconnect(self._selected)

    @guarded
    def _look(self, event: Any = None) -> None:
        if not self._alive:
            return
        for each in cells_layers(self.viewer):
            each.events.visible.connect(self._look)  # connected once, even if called again
        layer = current_layer(self.viewer)
        missing = nothing_shown(self.viewer) if layer is None else ""
        if layer is self.layer and missing == self._missing:
            return
        self._leave()
        self.layer, self.state, self._missing = layer, state_of(layer), missing
        self._last = self.cell_ids
        if layer is not None and self.state is not None:
            layer.selected_data.events.items_changed.connect(self._selected)
            self._listen(self.state.review)
        self.layer_changed.emit()
        self.selection_changed.emit()

    def _listen(self, review: Any) -> None:
        # A review never removes listeners: it has one per dock, and that of a closed dock does nothing.
        if any(known is review for known in self._reviews):
            return
        self._reviews.append(review)
        review.on_change(_teller(self, review))

    @guarded
    def _selected(self, *_: Any) -> None:
        # While a layer is updated from its review, its selection is empty for a moment.
        updating = self.state is not None and self.state.updating
        if self._alive and not updating and self.cell_ids != self._last:
            self._last = self.cell_ids
            self.selection_changed.emit()


class FollowingDock(QWidget):  # type: ignore[misc] # Qt has no types here
    """Dock that follows the cells until it is closed.

    napari takes the widget out of a dock that is closed and leaves it to whoever still knows it; without letting go it
    would go on answering keys and clicks unseen.
    """

    _docked = False

    def let_go(self) -> None:
        """Release keys, stop work, stop following; called once the dock has been closed."""

    def changeEvent(self, event: Any) -> None:
        """Notice that the dock has gone."""
        super().changeEvent(event)
        if event.type() == QEvent.Type.ParentChange:
            gone = self._docked and self.parent() is None
            self._docked = self.parent() is not None
            if gone:
                guarded(self.let_go)()


def _teller(follower: Follower, review: Any) -> Callable[[str, list[str]], None]:
    known = weakref.ref(follower)

    @guarded
    def tell(kind: str, cell_ids: list[str]) -> None:
        there = known()
        if there is not None and there._alive and there.state is not None and there.state.review is review:
            there.cells_changed.emit(kind, cell_ids)
            there._selected()

    return tell


QUEUE_KEY: Final = "hematokit_queue"
"""Where the order in which cells are gone through stands in the layer's ``metadata``; without, it is the table's."""

_ALIASES: Final = {"return": "Enter", "esc": "Escape", "del": "Delete"}
"""Names of keys as keyboards have them, and as napari knows them."""


def usable_key(name: str) -> str | None:
    """Return a key as napari names it; None if there is no such key.

    Examples
    --------
    >>> usable_key("Return"), usable_key("b"), usable_key("banana")
    ('Enter', 'B', None)
    """
    from app_model.types import KeyBinding

    name = name.strip()
    *modifiers, last = name.split("+") if len(name) > 1 else [name]
    last = _ALIASES.get(last.strip().lower(), last.strip())
    try:
        key = str(KeyBinding.from_str("+".join([*modifiers, last])))
    except (ValueError, KeyError):
        return None
    # An unknown key is an empty name to napari, not an error.
    return key if key and not key.endswith("+") else None


class Keys:
    """Keys of one dock on one layer at a time.

    Parameters
    ----------
    what : str
        Named where a key cannot be bound: ``"Review"``.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._layer: weakref.ref[Points] | None = None
        self._bound: dict[str, _Key] = {}

    def bind(self, layer: Points | None, actions: Mapping[str, Callable[[], object]]) -> dict[str, str]:
        """Bind keys on a layer, and release those that were bound before.

        Parameters
        ----------
        layer : Points or None
        actions : mapping of str to callable
            By key; a later one has the word where two share a key.

        Returns
        -------
        dict of str to str
            For each key as it was given, the key as napari names it; keys that do not exist are left out, and said.
        """
        self.release()
        if layer is None:
            return {}
        self._layer = weakref.ref(layer)
        names = {given: usable_key(given) for given in actions}
        unknown = [given for given, name in names.items() if name is None]
        if unknown:
            notify(
                f"{self._what}: key {unknown[0]!r} does not exist; set another under Preferences > HematoNet", "warning"
            )
        for given, name in names.items():
            if name is not None:
                key = _Key(actions[given])
                before = layer.bind_key(name, key.pressed, overwrite=True)
                key.before = self._bound[name].before if name in self._bound else before
                self._bound[name] = key
        return {given: name for given, name in names.items() if name is not None}

    def release(self) -> None:
        """Give the keys back to whom they were before; those that somebody else has bound since stay theirs."""
        layer = self._layer() if self._layer is not None else None
        for name, key in self._bound.items():
            key.released = True
            if layer is None:
                continue
            now = layer.bind_key(name, None)
            if now is not key.pressed:
                before: Any = now
            else:
                before = key.before
                while isinstance(owner := getattr(before, "key", None), _Key) and owner.released:
                    before = owner.before
            if before is not None:
                layer.bind_key(name, before, overwrite=True)
        self._bound, self._layer = {}, None


class _Key:
    """What one key does, and what it did before."""

    def __init__(self, action: Callable[[], object]) -> None:
        self.before: Any = None
        self.released = False

        @guarded
        def pressed(layer: Any) -> None:
            action()

        pressed.key = self  # type: ignore[attr-defined]
        self.pressed = pressed


def queue_of(layer: Points, review: Review) -> list[str]:
    """Return the order in which the cells of a layer are gone through: the review queue, else the table's."""
    table = [str(cell_id) for cell_id in review.cells["cell_id"]]
    queue = layer.metadata.get(QUEUE_KEY)
    if queue is None:
        return table
    there = set(table)
    return [cell for cell in queue if cell in there]


def go_on(viewer: napari.Viewer, forward: bool = True) -> str | None:
    """Select the next or the previous cell of the current layer, bring it into view, and return its id."""
    layer = current_layer(viewer)
    if layer is None:
        notify(nothing_shown(viewer), "warning")
        return None
    return step(viewer, layer, queue_of(layer, layer.metadata["hematokit"].review), forward)


def step_keys(viewer: napari.Viewer) -> dict[str, Callable[[], object]]:
    """The keys of the settings for the next and the previous cell, and what they do."""
    return {key_of("next_cell"): lambda: go_on(viewer), key_of("previous_cell"): lambda: go_on(viewer, False)}
