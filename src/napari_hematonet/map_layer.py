"""The image layer that lays a map over its cells."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from napari_hematonet.cells_layer import placement_of

if TYPE_CHECKING:
    import napari
    from napari.layers import Image, Points

    from napari_hematonet.why_job import Reason, Request

__all__ = ["WHY_KEY", "WHY_LAYER", "MapLayer"]

WHY_LAYER: Final = "why"
"""Name of the layer."""

WHY_KEY: Final = "hematokit_why"
"""In its ``metadata``: the cells, the classes that were asked about, and the explainer."""


@cache
def _colormap() -> Any:
    """The heat of the reports, clear where the map says nothing, so that the cell stays to be seen."""
    from napari.utils.colormaps import Colormap

    from hematokit.reports.attributions import HEAT

    shares = np.linspace(0.0, 1.0, 64)
    colours = HEAT(shares)
    colours[:, 3] = np.clip(0.85 * shares, 0.0, 0.7)
    return Colormap(colours, name="hematokit heat")


class MapLayer:
    """One layer that goes from cell to cell; made when there is something to show, and again if it was removed.

    Parameters
    ----------
    viewer : napari.Viewer

    Attributes
    ----------
    layer : Image or None
    """

    def __init__(self, viewer: napari.Viewer) -> None:
        self.viewer = viewer
        self.layer: Image | None = None

    def show(self, reason: Reason, cells: Points) -> None:
        """Show a map: where the layer of cells lies in the world, the map lies."""
        from napari.utils.transforms import Affine

        plane = reason.request.state.plane
        place = placement_of(cells)
        data = reason.map.reshape((1,) * len(plane) + reason.map.shape)
        # A pixel's centre is at its whole number in napari, so the map begins at the first pixel of its box.
        corner = np.array([*plane, reason.box.y0, reason.box.x0], np.float64)
        stretched = Affine(**{name: place[name] for name in ("scale", "rotate", "shear", "translate")})
        place["translate"] = np.asarray(stretched(corner))
        meaning = {WHY_KEY: _meaning(reason.request)}
        layer, layers = self.layer, self.viewer.layers
        if layer is not None and layer in layers:
            layer.data = data
            for name in ("scale", "rotate", "shear", "translate", "affine"):
                setattr(layer, name, place[name])
            layer.metadata.update(meaning)
            layer.visible = True
            return
        selected = list(layers.selection)
        # With its metadata from the start, so that lists of images leave it out.
        layer = self.layer = self.viewer.add_image(
            data,
            name=WHY_LAYER,
            colormap=_colormap(),
            contrast_limits=(0.0, 1.0),
            blending="translucent_no_depth",
            metadata=meaning,
            **place,
        )
        layer.bounding_box.visible = True
        layer.bounding_box.points = False
        layer.bounding_box.line_color = "white"
        layers.move(layers.index(layer), layers.index(cells))
        # A new layer becomes the active one, and the keys would be its.
        layers.selection = {each for each in selected if each in layers}

    def shows(self, request: Request) -> bool:
        """Whether the map of a request is there."""
        if self.layer is None or self.layer not in self.viewer.layers:
            return False
        return bool(self.layer.metadata.get(WHY_KEY) == _meaning(request))

    def remove(self) -> None:
        """Take the layer away."""
        layer, self.layer = self.layer, None
        if layer is not None and layer in self.viewer.layers:
            self.viewer.layers.remove(layer)


def _meaning(request: Request) -> dict[str, Any]:
    return {"cells": list(request.cell_ids), "targets": list(request.targets), "method": request.method}
