"""The layer of cells: one point a cell, in the colour of its class."""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from hematokit.imaging.geometry import to_napari
from napari_hematonet._settings import setting
from napari_hematonet.cell_text import attach_text, text_options
from napari_hematonet.images import show_in_micrometres
from napari_hematonet.napari_versions import scale_bar_of
from napari_hematonet.state import METADATA_KEY, FieldState, current_layer, guarded, is_shown, notify

if TYPE_CHECKING:
    import napari
    from napari.layers import Layer, Points

    from hematokit.review.session import Review
    from hematokit.taxonomy import Taxonomy

__all__ = [
    "add_cells_layer",
    "cells_layer_data",
    "class_colours",
    "follow_review",
    "placement_of",
    "rows_of",
    "update_cells_layer",
    "watch_current_viewer",
    "watch_layers",
]

_FACE_ALPHA: Final = 0.15  # of a sure cell; more, and the colour of the stain beneath could not be judged
_UNKNOWN: Final = (0.5, 0.5, 0.5, 1.0)
_BORDER: Final = 0.07  # of a cell's width
_UNSURE_BORDER: Final = 0.04
_AROUND: Final = 1.15  # times a cell's width: the ring lies around the cell, not on it
_SMALLEST: Final = 4.0  # pixels
_AGAIN: Final = 5.0
"""Seconds after which the message that cells cannot be moved is shown again."""

_MOVES: Final = ("added", "changed", "removing", "removed")
"""Actions in napari's events of the data that come from edits by hand."""

_DRAWN: Final = ("size", "symbol", "border_width", "face_color", "border_color")
_TRANSFORMS: Final = ("scale", "translate", "rotate", "shear", "affine", "units", "axis_labels")
_LEFT_OUT: Final = ("contour",)
"""Columns of the cells table that are no feature: arrays, which napari can neither show nor save."""

_FIRST: Final = ("label", "probability", "reviewed", "predicted")
"""Features that come first: napari's status bar shows them in order until it is full."""


def class_colours(taxonomy: Taxonomy) -> dict[str, tuple[float, float, float, float]]:
    """Return the fixed colour of every class of a taxonomy as RGBA, 0 to 1."""
    return {
        entry.code: (
            int(entry.colour[1:3], 16) / 255,
            int(entry.colour[3:5], 16) / 255,
            int(entry.colour[5:7], 16) / 255,
            1.0,
        )
        for entry in taxonomy
    }


def placement_of(layer: Layer) -> dict[str, Any]:
    """Return how a layer lies in the world, as arguments for another layer of the same dimensions.

    ``scale``, ``translate``, ``rotate``, ``shear``, ``affine``, ``units`` and ``axis_labels``.
    """
    _, state, _ = layer.as_layer_data_tuple()
    return {name: state[name] for name in _TRANSFORMS if name in state}


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
    """Show the cells of a review.

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


_watched: weakref.WeakSet[Any] = weakref.WeakSet()
_adopted: weakref.WeakKeyDictionary[Any, weakref.ref[Any]] = weakref.WeakKeyDictionary()
"""Layers of cells, and the viewer that each is in."""


def watch_layers(viewer: napari.Viewer) -> None:
    """Give layers of cells that come into a viewer by themselves (readers, samples, copies) what the others have.

    A hidden layer of cells becomes the active layer when it is shown, and not before. Keys pressed over the list of
    layers are the cells', and do not remove a layer of cells.
    """
    viewer = getattr(viewer, "__wrapped__", viewer)
    if viewer in _watched:
        return
    _watched.add(viewer)
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
        # napari makes each new layer active, in several steps; this is the last, after the layer has been selected.
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
        from napari_hematonet.layer_list_keys import guard_layer_list

        guard_layer_list(viewer)


def watch_current_viewer() -> None:
    """As `watch_layers`, for the viewer that a reader or a sample is called by: napari does not say which that is."""
    import napari

    viewer = napari.current_viewer()
    if viewer is not None:
        watch_layers(viewer)


def _adopt(viewer: napari.Viewer, layer: Points) -> None:
    if layer in _adopted:
        return
    _adopted[layer] = weakref.ref(viewer)
    state = layer.metadata[METADATA_KEY]
    follow_review(layer, state)
    if state.image is None and state.image_layer_name in viewer.layers:
        # Layers of a reader or a sample know only what their image is called, which the user may change.
        state.image = weakref.ref(viewer.layers[state.image_layer_name])
    attach_text(viewer, layer)
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


def cells_layer_data(
    state: FieldState, *, name: str = "cells", placement: Mapping[str, Any] | None = None
) -> tuple[npt.NDArray[np.float64], dict[str, Any], str]:
    """Return the layer of cells as napari's readers give layers: data, options, ``"points"``."""
    drawn = _drawn(state, _stretch(placement or {}))
    options = {
        "name": name,
        "ndim": drawn["data"].shape[1],
        "features": _features(state.review),
        # napari makes no layer of empty lists of colours; it invents one, which the first cells replace.
        **({name: drawn[name] for name in _DRAWN} if len(state.review) else {}),
        "antialiasing": 1.0,
        "text": text_options(shown=bool(setting("show_text"))),
        "metadata": {METADATA_KEY: state},
        **(placement or {}),
    }
    return drawn["data"], options, "points"


def follow_review(layer: Points, state: FieldState) -> None:
    """Update a layer whenever its review changes; linking twice changes nothing."""
    if id(layer) in state.linked:
        return
    state.linked.add(id(layer))
    known = weakref.ref(layer, lambda _: state.linked.discard(id_of))
    id_of = id(layer)

    @guarded
    def update(kind: str, cell_ids: list[str]) -> None:
        followed = known()
        # A layer that was removed from the viewer may live on in napari's history.
        if followed is not None:
            update_cells_layer(followed, state.review, kind, cell_ids)

    @guarded
    def put_back(*_: object) -> None:
        # napari pastes points, and selects them, without an event of the data.
        followed = known()
        if followed is not None and not state.updating and len(followed.data) > len(state.review):
            _put_back(followed, state)

    state.review.on_change(update)
    layer.events.data.connect(_keep_in_step)
    layer.selected_data.events.items_changed.connect(put_back)


@guarded
def _keep_in_step(event: Any) -> None:
    """Make of points that somebody takes away with napari's own tools deleted cells; put moved and added ones back.

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
    stretch = _stretch({"scale": layer.scale, "affine": layer.affine.affine_matrix})
    if len(now) != len(there) or not np.array_equal(layer.data, _drawn(state, stretch)["data"]):
        _put_back(layer, state)


def _put_back(layer: Points, state: FieldState) -> None:
    update_cells_layer(layer, state.review)
    # A drag calls this at every step.
    if time.monotonic() - state.put_back_at > _AGAIN:
        notify("cells stay where they were found; add and delete them in Plugins > HematoNet > Review")
    state.put_back_at = time.monotonic()


def _unseen(layer: Points) -> set[str]:
    """Ids of the cells that are not shown."""
    viewer = _adopted[layer]() if layer in _adopted else None
    ids = layer.features["cell_id"].to_numpy(object)
    seen = layer.visible if viewer is None else is_shown(layer, viewer)
    return set(ids[~layer.shown] if seen else ids)


def update_cells_layer(layer: Points, review: Review, kind: str = "", cell_ids: Iterable[str] = ()) -> None:
    """Bring a layer to what its review says now.

    Selected cells stay selected and hidden ones hidden, by their ids. `add_cells_layer` has this done by itself.

    Parameters
    ----------
    layer : Points
        From `add_cells_layer`.
    review : Review
    kind : str
        What happened: ``"label"``, ``"confirm"``, ``"delete"``, ``"add"`` or ``"append"``.
    cell_ids : iterable of str
        The cells that it happened to.
    """
    state = layer.metadata[METADATA_KEY]
    was_updating, state.updating = state.updating, True
    try:
        _update(layer, state)
    finally:
        state.updating = was_updating


def _update(layer: Points, state: FieldState) -> None:
    review = state.review
    drawn = _drawn(state, _stretch({"scale": layer.scale, "affine": layer.affine.affine_matrix}))
    before = layer.features["cell_id"].to_numpy(object) if "cell_id" in layer.features else np.zeros(0, object)
    now = review.cells["cell_id"].to_numpy(object)
    same = len(before) == len(now) and bool((before == now).all())
    grown = len(now) > len(before) and bool((now[: len(before)] == before).all())
    selected = set(before[sorted(layer.selected_data)].tolist())
    hidden = set(before[~layer.shown].tolist())
    if selected and not (same or grown):
        layer.selected_data = set()
    if hidden:
        # napari 0.9 draws points of a plain, two-dimensional image whether they are shown or not.
        unseen = np.array([cell in hidden for cell in now], bool)
        for colour in ("face_color", "border_color"):
            drawn[colour][unseen, 3] = 0.0
    features = _features(review)
    # One drawing at the end instead of one for each attribute: with 5,000 cells the difference is 200 ms.
    with layer.events.blocker_all():
        if not same or not np.array_equal(layer.data, drawn["data"]):
            layer.data = drawn["data"]
        for attribute in _DRAWN:
            if len(now) and not np.array_equal(getattr(layer, attribute), drawn[attribute]):
                setattr(layer, attribute, drawn[attribute])
        if hidden and not (same or grown):
            layer.shown = np.array([cell not in hidden for cell in now], bool)
        layer.features = features
    if not same:
        layer.refresh()  # where the layer ends has changed
        layer.events.data(value=layer.data, action="changed", data_indices=(), vertex_indices=((),))
    else:
        layer.refresh(extent=False)
    layer.events.features()
    if selected and not (same or grown):
        layer.selected_data = set(np.flatnonzero(np.isin(now, list(selected))).tolist())


def rows_of(layer: Points, cell_ids: Iterable[str]) -> list[int]:
    """Return the rows of cells in a layer; cells that are not in it are left out."""
    place = {cell: row for row, cell in enumerate(layer.features["cell_id"].tolist())}
    return [place[cell] for cell in cell_ids if cell in place]


def _drawn(state: FieldState, stretch: float) -> dict[str, npt.NDArray[Any]]:
    """Position, size, colours and symbol of every cell."""
    review = state.review
    cells = review.cells
    colours = class_colours(review.taxonomy)
    table = np.array([*colours.values(), _UNKNOWN], np.float32)
    place = _class_numbers(review)
    border = table[place]  # -1, no class or one that the taxonomy does not know, takes the last
    face = border.copy()
    unsure = review.unsure().to_numpy(bool)
    face[:, 3] = np.where(unsure, 0.0, _FACE_ALPHA)
    numbers = cells.reindex(columns=["y", "x", "height", "width"]).to_numpy(np.float64)
    plane = np.broadcast_to(np.asarray(state.plane, np.float64), (len(cells), len(state.plane)))
    sides = np.maximum(np.nan_to_num(numbers[:, 2:]).max(axis=1, initial=0), _SMALLEST)
    reviewed = cells["reviewed"].to_numpy(bool) if "reviewed" in cells else np.zeros(len(cells), bool)
    return {
        "data": np.hstack([plane, to_napari(numbers[:, :2])]),
        "size": sides * _AROUND * stretch,
        "face_color": face,
        "border_color": border,
        "border_width": np.where(unsure, _UNSURE_BORDER, _BORDER),
        "symbol": np.where(reviewed, "square", "disc"),
    }


def _class_numbers(review: Review) -> npt.NDArray[np.intp]:
    """The class that counts for each cell, by its place in the taxonomy; -1 for none, and for one it does not have."""
    return pd.Index(review.taxonomy.codes).get_indexer(pd.Index(review.shown_label()))


def _features(review: Review) -> pd.DataFrame:
    """The cells table as napari's features: ``label`` is the class that counts, as a category."""
    cells = review.cells
    label = pd.Categorical.from_codes(_class_numbers(review), categories=pd.Index(review.taxonomy.codes))
    columns = [name for name in cells.columns if name not in _LEFT_OUT]
    features = cells[columns].assign(label=label)
    first = [name for name in _FIRST if name in features.columns]
    return features[first + [name for name in features.columns if name not in first]].reset_index(drop=True)


def _stretch(placement: Mapping[str, Any]) -> float:
    """How much larger than its ``scale`` says a layer is.

    napari multiplies the size of points by the last number of ``scale`` only; where the affine of an image enlarges
    it too, or its pixels are not square, cells would be drawn too small.
    """
    scale = np.atleast_1d(np.asarray(placement.get("scale", 1.0), np.float64))[-2:]
    affine = placement.get("affine")
    matrix = np.eye(3) if affine is None else np.asarray(getattr(affine, "affine_matrix", affine), np.float64)
    linear = matrix[:-1, :-1][-2:, -2:]
    area = abs(float(np.linalg.det(linear))) * float(np.abs(np.broadcast_to(scale, 2)).prod())
    return float(np.sqrt(area) / abs(scale[-1])) if area > 0 else 1.0
