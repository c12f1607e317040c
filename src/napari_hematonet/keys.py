"""Keys on a layer of cells: bound while a dock that answers them is there, and given back afterwards."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from napari_hematonet._settings import key_of
from napari_hematonet.following import step
from napari_hematonet.state import current_layer, guarded, nothing_shown, notify

if TYPE_CHECKING:
    import napari
    from napari.layers import Points

    from hematokit.review.session import Review

__all__ = ["QUEUE_KEY", "Keys", "go_on", "queue_of", "step_keys", "usable_key"]

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
    """The keys of one dock on one layer at a time.

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
                f"{self._what}: there is no key {unknown[0]!r}; set another under Preferences > HematoNet", "warning"
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
