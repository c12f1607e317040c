"""Which part of a field: the shapes that the user has drawn, as polygons in its pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from hematokit.errors import FieldError
from hematokit.imaging.reading import printable
from napari_hematonet.cells_layer import placement_of
from napari_hematonet.images import to_field

if TYPE_CHECKING:
    import napari
    from napari.layers import Layer, Shapes

__all__ = ["draw_region", "region_of"]

_CORNERS: Final = 48  # of the polygon that stands for an ellipse


def region_of(shapes: Shapes, image: Layer) -> tuple[npt.NDArray[np.float64], ...]:
    """Return the areas that shapes enclose.

    Parameters
    ----------
    shapes : Shapes layer
        Rectangles, ellipses, polygons, and paths taken as closed; lines enclose nothing.
    image : Image layer
        However the two lie in the world.

    Returns
    -------
    tuple of ndarray (n, 2)
        ``(y, x)`` in pixels of the field, at least one.

    Raises
    ------
    FieldError
        If no shape encloses an area.
    """
    areas = []
    for corners, kind in zip(shapes.data, shapes.shape_type, strict=True):
        outline = _ellipse(np.asarray(corners)) if kind == "ellipse" else np.asarray(corners, np.float64)
        if kind == "line" or len(outline) < 3:
            continue
        area = to_field(image, [shapes.data_to_world(corner) for corner in outline])
        # A click instead of a drag leaves a rectangle of nothing.
        if np.ptp(area, axis=0).min() >= 1:
            areas.append(area)
    if not areas:
        raise FieldError(
            f"layer '{printable(shapes.name)}' has no area drawn yet: draw a rectangle, an ellipse or a polygon"
        )
    return tuple(areas)


def _ellipse(corners: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The ellipse in a box (4, d), which may stand askew, as a polygon."""
    centre = corners.mean(axis=0)
    first, second = (corners[1] - corners[0]) / 2, (corners[3] - corners[0]) / 2
    angles = np.linspace(0, 2 * np.pi, _CORNERS, endpoint=False)[:, None]
    return np.asarray(centre + np.cos(angles) * first + np.sin(angles) * second)


def draw_region(viewer: napari.Viewer, image: Layer) -> Shapes:
    """Add a layer to draw a region in, where the image lies, with the rectangle in hand."""
    layer = viewer.add_shapes(
        name="region",
        ndim=image.ndim,
        face_color=[1, 1, 1, 0.1],
        edge_color="white",
        edge_width=4,
        **placement_of(image),
    )
    viewer.layers.selection.active = layer
    layer.mode = "add_rectangle"
    return layer
