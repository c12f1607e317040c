"""Which classes of a layer of cells are shown; kept by class, so that it holds for cells that come later."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from napari_hematonet.cells_layer import update_cells_layer
from napari_hematonet.state import METADATA_KEY

if TYPE_CHECKING:
    from collections.abc import Iterable

    from napari.layers import Points

__all__ = ["hidden_classes", "show_classes"]

_KEY: Final = "hematokit_hidden"


def hidden_classes(layer: Points) -> set[str]:
    """Return the codes of the classes that are hidden."""
    return set(layer.metadata.get(_KEY, ()))


def show_classes(layer: Points, hidden: Iterable[str]) -> None:
    """Hide the cells of some classes, and show all others.

    Parameters
    ----------
    layer : Points
        A layer of cells.
    hidden : iterable of str
        Codes.
    """
    codes = sorted(set(hidden))
    if not codes and _KEY not in layer.metadata:
        return
    layer.metadata[_KEY] = codes
    shown = ~layer.features["label"].isin(codes).to_numpy(bool)
    if not np.array_equal(layer.shown, shown):
        layer.shown = shown
        update_cells_layer(layer, layer.metadata[METADATA_KEY].review)
        # What cannot be seen must not be changed by a key.
        layer.selected_data = {row for row in layer.selected_data if shown[row]}
