"""The cells of a review as points of napari: place, size, colour, symbol, features, text; which classes are shown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from hematokit.imaging.geometry import to_napari
from napari_hematonet.settings import setting
from napari_hematonet.state import METADATA_KEY, FieldState

if TYPE_CHECKING:
    from napari.layers import Layer, Points

    from hematokit.review.session import Review
    from hematokit.taxonomy import Taxonomy

__all__ = [
    "MOST_IN_VIEW",
    "cells_layer_data",
    "class_colours",
    "hidden_classes",
    "in_step",
    "placement_of",
    "refresh_text",
    "rows_of",
    "show_classes",
    "update_cells_layer",
]

MOST_IN_VIEW: Final = 150
"""Cells in view up to which their codes are written."""


_FACE_ALPHA: Final = 0.15  # of a cell that is not low-confidence; a higher value would hide the colour of the stain


_UNKNOWN: Final = (0.5, 0.5, 0.5, 1.0)


_BORDER: Final = 0.07  # fraction of the width of a cell


_LOW_CONFIDENCE_BORDER: Final = 0.04


_AROUND: Final = 1.15  # factor on the width of a cell, so that the ring is around the cell


_SMALLEST: Final = 4.0  # pixels


_DRAWN: Final = ("size", "symbol", "border_width", "face_color", "border_color")


_TRANSFORMS: Final = ("scale", "translate", "rotate", "shear", "affine", "units", "axis_labels")


_LEFT_OUT: Final = ("contour",)
"""Columns of the cells table that are no feature: arrays, which napari can neither show nor save."""


_FIRST: Final = ("label", "probability", "reviewed", "predicted")
"""Features that come first: napari's status bar shows them in order until it is full."""


_COLOUR: Final = "white"  # readable on the nucleus, the darkest part of a smear


_NONE: Final = {"constant": ""}


_HIDDEN: Final = "hematokit_hidden"


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
    """Return the transform of a layer, as arguments for another layer of the same dimensions.

    ``scale``, ``translate``, ``rotate``, ``shear``, ``affine``, ``units`` and ``axis_labels``.
    """
    _, state, _ = layer.as_layer_data_tuple()
    return {name: state[name] for name in _TRANSFORMS if name in state}


def cells_layer_data(
    state: FieldState, *, name: str = "cells", placement: Mapping[str, Any] | None = None
) -> tuple[npt.NDArray[np.float64], dict[str, Any], str]:
    """Return the layer of cells as napari's readers give layers: data, options, ``"points"``."""
    drawn = _drawn(state, _stretch(placement or {}))
    options = {
        "name": name,
        "ndim": drawn["data"].shape[1],
        "features": _features(state.review),
        # napari does not accept empty lists of colours; the first cells replace its default.
        **({name: drawn[name] for name in _DRAWN} if len(state.review) else {}),
        "antialiasing": 1.0,
        "text": _text_options(shown=bool(setting("show_text"))),
        "metadata": {METADATA_KEY: state},
        **(placement or {}),
    }
    return drawn["data"], options, "points"


def update_cells_layer(layer: Points, review: Review, kind: str = "", cell_ids: Iterable[str] = ()) -> None:
    """Update a layer from its review.

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
        # On a two-dimensional image, napari 0.9 also draws points that are not shown.
        unseen = np.array([cell in hidden for cell in now], bool)
        for colour in ("face_color", "border_color"):
            drawn[colour][unseen, 3] = 0.0
    features = _features(review)
    # Drawn once at the end, not once per attribute: with 5,000 cells this saves 200 ms.
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
        layer.refresh()  # the extent of the layer has changed
        layer.events.data(value=layer.data, action="changed", data_indices=(), vertex_indices=((),))
    else:
        layer.refresh(extent=False)
    layer.events.features()
    if selected and not (same or grown):
        layer.selected_data = set(np.flatnonzero(np.isin(now, list(selected))).tolist())


def in_step(layer: Points, state: FieldState) -> bool:
    """Return whether the points of a layer are at the positions in its review."""
    stretch = _stretch({"scale": layer.scale, "affine": layer.affine.affine_matrix})
    return bool(np.array_equal(layer.data, _drawn(state, stretch)["data"]))


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
    low_confidence = review.low_confidence().to_numpy(bool)
    face[:, 3] = np.where(low_confidence, 0.0, _FACE_ALPHA)
    numbers = cells.reindex(columns=["y", "x", "height", "width"]).to_numpy(np.float64)
    plane = np.broadcast_to(np.asarray(state.plane, np.float64), (len(cells), len(state.plane)))
    sides = np.maximum(np.nan_to_num(numbers[:, 2:]).max(axis=1, initial=0), _SMALLEST)
    reviewed = cells["reviewed"].to_numpy(bool) if "reviewed" in cells else np.zeros(len(cells), bool)
    return {
        "data": np.hstack([plane, to_napari(numbers[:, :2])]),
        "size": sides * _AROUND * stretch,
        "face_color": face,
        "border_color": border,
        "border_width": np.where(low_confidence, _LOW_CONFIDENCE_BORDER, _BORDER),
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
    """Return the factor by which a layer is larger than its ``scale``.

    napari multiplies the size of points by the last number of ``scale`` only; where the affine of an image enlarges
    it too, or its pixels are not square, cells would be drawn too small.
    """
    scale = np.atleast_1d(np.asarray(placement.get("scale", 1.0), np.float64))[-2:]
    affine = placement.get("affine")
    matrix = np.eye(3) if affine is None else np.asarray(getattr(affine, "affine_matrix", affine), np.float64)
    linear = matrix[:-1, :-1][-2:, -2:]
    area = abs(float(np.linalg.det(linear))) * float(np.abs(np.broadcast_to(scale, 2)).prod())
    return float(np.sqrt(area) / abs(scale[-1])) if area > 0 else 1.0


def _text_options(*, shown: bool = False) -> dict[str, Any]:
    """The ``text`` of a new layer of cells; `shown`: whether napari's tick "display text" is set at first."""
    return {"string": _NONE, "size": 10, "color": _COLOUR, "anchor": "center", "visible": shown}


def refresh_text(layer: Points) -> None:
    """Write the codes of the cells in view; none if these are more than `MOST_IN_VIEW`, or text is not wanted."""
    inside = _in_view(layer) if layer.text.visible else np.zeros(len(layer.data), bool)
    if not 0 < int(inside.sum()) <= MOST_IN_VIEW:
        if np.asarray(layer.text.values).ndim:
            layer.text.string = _NONE
        return
    label = layer.features["label"].astype(object)
    codes = np.where(inside & layer.shown, label.where(label.notna(), ""), "").astype(str)
    if not np.array_equal(np.asarray(layer.text.values), codes):
        layer.text.string = list(codes)


def _in_view(layer: Points) -> npt.NDArray[np.bool_]:
    """Tell which cells of a layer the canvas shows, as far as a box in the layer's own coordinates can."""
    low, high = np.asarray(layer.corner_pixels, np.float64)[:, -2:] + ((-1,), (1,))  # they are rounded
    at = layer.data[:, -2:]
    return np.asarray(((at >= low) & (at <= high)).all(axis=1))


def hidden_classes(layer: Points) -> set[str]:
    """Return the codes of the classes that are hidden."""
    return set(layer.metadata.get(_HIDDEN, ()))


def show_classes(layer: Points, hidden: Iterable[str]) -> None:
    """Hide the cells of some classes and show the others.

    Parameters
    ----------
    layer : Points
        A layer of cells.
    hidden : iterable of str
        Codes.
    """
    codes = sorted(set(hidden))
    if not codes and _HIDDEN not in layer.metadata:
        return
    layer.metadata[_HIDDEN] = codes
    shown = ~layer.features["label"].isin(codes).to_numpy(bool)
    if not np.array_equal(layer.shown, shown):
        layer.shown = shown
        update_cells_layer(layer, layer.metadata[METADATA_KEY].review)
        # Hidden cells must not be changed by a key.
        layer.selected_data = {row for row in layer.selected_data if shown[row]}
