"""Coordinates: boxes, patches, windows and orientation of a field, and all conversions between conventions.

Coordinates are integer pixels of the full-resolution field, row first. A box is ``(y0, x0, height, width)``, half-open:
it covers rows ``y0 .. y0 + height - 1``. A centre ``(y, x)`` is in the same units with pixel *corners* on the integers,
so the centre of a box of 250 px that starts at 0 is 125.0, the boundary between its two halves. Contours are ``(n, 2)``
arrays of ``(y, x)`` in the same system, not closed (the first point is not repeated at the end).

Other conventions: napari has *pixel centres* on the integers, QuPath and GeoJSON have pixel corners with x first,
scale bars use micrometres. All conversions are in this module.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "Box",
    "Window",
    "box_ring",
    "contour_area",
    "cut_patch",
    "pad_to_square",
    "patch_box",
    "stored_box",
    "to_geojson_ring",
    "to_micrometres",
    "to_napari",
    "turn_pixels",
    "whole_image_box",
    "windows",
]

Pixels = npt.NDArray[np.uint8]

# EXIF orientations (tag 274) in which the stored image, transposed for 5 to 8, is flipped vertically, or horizontally.
_FROM_BELOW, _FROM_RIGHT = (3, 4, 7, 8), (2, 3, 6, 7)


@dataclass(frozen=True, slots=True)
class Box:
    """A half-open box in integer pixels of a field.

    Attributes
    ----------
    y0, x0 : int
        First row and first column; negative if the box starts outside the field.
    height, width : int
        Size in pixels, at least 1.
    """

    y0: int
    x0: int
    height: int
    width: int

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ValueError(f"a box needs a height and width of at least 1 pixel, not {self.height}x{self.width}")

    @property
    def centre(self) -> tuple[float, float]:
        """Centre ``(y, x)`` in pixels."""
        return self.y0 + self.height / 2, self.x0 + self.width / 2

    @property
    def y1(self) -> int:
        """First row below the box."""
        return self.y0 + self.height

    @property
    def x1(self) -> int:
        """First column right of the box."""
        return self.x0 + self.width

    @property
    def slices(self) -> tuple[slice, slice]:
        """Index of the box's pixels in an array of the whole field, for a box inside it."""
        return slice(self.y0, self.y1), slice(self.x0, self.x1)

    def inside(self, height: int, width: int) -> bool:
        """Return whether the whole box is inside a field of that size."""
        return self.y0 >= 0 and self.x0 >= 0 and self.y1 <= height and self.x1 <= width

    def clipped(self, height: int, width: int) -> Box | None:
        """Return the part of the box inside a field of that size, ``None`` if the box is outside."""
        y0, x0 = max(self.y0, 0), max(self.x0, 0)
        y1, x1 = min(self.y1, height), min(self.x1, width)
        return Box(y0, x0, y1 - y0, x1 - x0) if y1 > y0 and x1 > x0 else None


def whole_image_box(height: int, width: int) -> Box:
    """Return the box of a whole image, for a crop that is its own field."""
    return Box(0, 0, height, width)


def pad_to_square(image: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    """Pad an image by reflection to ``size x size``, with the image in the centre.

    If the number of added rows or columns is odd, the extra one is at the bottom or right.

    Parameters
    ----------
    image : ndarray of uint8, shape (H, W, 3)
        Image no larger than `size` in either direction.
    size : int
        Side of the result in pixels.

    Returns
    -------
    ndarray of uint8, shape (size, size, 3)

    Raises
    ------
    ValueError
        If the image is larger than `size`.
    """
    height, width = image.shape[:2]
    if height > size or width > size:
        raise ValueError(f"an image of {width}x{height} px cannot be padded to {size} px: it is larger")
    top, left = (size - height) // 2, (size - width) // 2
    margins = ((top, size - height - top), (left, size - width - left), (0, 0))
    return np.pad(image, margins, mode="reflect")


def patch_box(y: float, x: float, size: int) -> Box:
    """Return the box of a square patch around a centre.

    The corner is rounded to the nearest integer (halves up), so that the patch around the centre of a box of `size` px
    is that box. The patch may begin or end outside the field.

    Parameters
    ----------
    y, x : float
        Centre in pixels.
    size : int
        Side in pixels.
    """
    return Box(math.floor(y - size / 2 + 0.5), math.floor(x - size / 2 + 0.5), size, size)


def _mirror(start: int, stop: int, length: int) -> npt.NDArray[np.intp]:
    """Return the indices in 0 to `length` - 1 of ``start .. stop - 1`` after reflection, as by ``numpy.pad``."""
    if length == 1:
        return np.zeros(stop - start, np.intp)
    period = 2 * (length - 1)
    place = np.arange(start, stop) % period
    return np.where(place < length, place, period - place)


def cut_patch(read: Callable[[Box], Pixels], height: int, width: int, box: Box) -> Pixels:
    """Return the pixels of a box; the part outside the field is padded by reflection, and the box is never shifted.

    Parameters
    ----------
    read : callable
        ``read(box)`` returns the pixels (h, w, 3) of a box inside the field; called once.
    height, width : int
        Size of the field in pixels.
    box : Box
        The box, which may be partly or completely outside the field.

    Returns
    -------
    ndarray of uint8, shape (box.height, box.width, 3)
        The same pixels as from ``numpy.pad(field, ..., mode="reflect")``.

    Examples
    --------
    >>> field = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    >>> cut_patch(lambda box: field[box.slices], 2, 2, Box(-1, 0, 3, 1))[:, 0, 0].tolist()
    [6, 0, 6]
    """
    if box.inside(height, width):
        return np.ascontiguousarray(read(box))
    rows, columns = _mirror(box.y0, box.y1, height), _mirror(box.x0, box.x1, width)
    y0, x0 = int(rows.min()), int(columns.min())
    source = read(Box(y0, x0, int(rows.max()) + 1 - y0, int(columns.max()) + 1 - x0))
    return np.ascontiguousarray(source[(rows - y0)[:, None], columns - x0])


@dataclass(frozen=True, slots=True)
class Window:
    """A part of a field that is processed separately.

    Attributes
    ----------
    core : Box
        The pixels that belong to the window; the cores of all windows cover the field without overlap.
    outer : Box
        The pixels to read: the core and a margin around it, clipped to the field.
    """

    core: Box
    outer: Box


def windows(height: int, width: int, side: int, margin: int) -> Iterator[Window]:
    """Divide a field into windows of about equal size, row by row.

    Parameters
    ----------
    height, width : int
        Size of the field in pixels.
    side : int
        Largest side of a core in pixels.
    margin : int
        Width in pixels of the margin around a core; margins are clipped to the field.
    """
    rows = np.linspace(0, height, math.ceil(height / side) + 1).round().astype(int).tolist()
    columns = np.linspace(0, width, math.ceil(width / side) + 1).round().astype(int).tolist()
    for y0, y1 in pairwise(rows):
        for x0, x1 in pairwise(columns):
            core = Box(y0, x0, y1 - y0, x1 - x0)
            wide = Box(y0 - margin, x0 - margin, y1 - y0 + 2 * margin, x1 - x0 + 2 * margin)
            outer = wide.clipped(height, width)
            assert outer is not None  # it contains the core
            yield Window(core, outer)


def turn_pixels(pixels: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """Return an image in the orientation in which it is to be displayed.

    Parameters
    ----------
    pixels : ndarray, shape (H, W, ...)
        The image as stored.
    orientation : int
        1 to 8, as in EXIF and TIFF (tag 274); 5 to 8 swap height and width.

    Returns
    -------
    ndarray, shape (H, W, ...) or (W, H, ...)
        A view.
    """
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    return pixels[:: -1 if orientation in _FROM_BELOW else 1, :: -1 if orientation in _FROM_RIGHT else 1]


def stored_box(box: Box, orientation: int, height: int, width: int) -> Box:
    """Convert a box in the displayed image, of size `height` x `width`, to the box in the stored image.

    This is the inverse of `turn_pixels`, which describes `orientation`.
    """
    y0 = height - box.y1 if orientation in _FROM_BELOW else box.y0
    x0 = width - box.x1 if orientation in _FROM_RIGHT else box.x0
    return Box(y0, x0, box.height, box.width) if orientation < 5 else Box(x0, y0, box.width, box.height)


def to_napari(points: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Convert points (..., 2) as ``(y, x)`` to napari's coordinates, with pixel centres on the integers."""
    return np.asarray(points, np.float64) - 0.5


def to_geojson_ring(contour: npt.ArrayLike) -> list[list[float]]:
    """Convert a contour (n, 2) as ``(y, x)`` to a closed ring ``[[x, y], ...]`` of GeoJSON, in pixel corners.

    The ring is counterclockwise in GeoJSON's right-handed sense (RFC 7946, section 3.1.6), whatever the direction of
    the contour, and ends with its first point. Coordinates are rounded to a hundredth of a pixel.

    Raises
    ------
    ValueError
        If the contour has fewer than three points.
    """
    points = np.asarray(contour, np.float64)
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < 3:
        raise ValueError(f"a contour needs three or more points (y, x), not an array of shape {points.shape}")
    ring = points[:, ::-1]
    if _signed_area(ring) < 0:
        ring = ring[::-1]
    rows: list[list[float]] = np.round(np.vstack([ring, ring[:1]]), 2).tolist()
    return rows


def box_ring(box: Box) -> npt.NDArray[np.float64]:
    """Return the outline of a box as a contour (4, 2) of ``(y, x)``."""
    return np.array([(box.y0, box.x0), (box.y0, box.x1), (box.y1, box.x1), (box.y1, box.x0)], np.float64)


def contour_area(contour: npt.ArrayLike) -> float:
    """Return the area inside a contour (n, 2), in square pixels (shoelace formula)."""
    return abs(_signed_area(np.asarray(contour, np.float64)))


def _signed_area(points: npt.NDArray[np.float64]) -> float:
    first, second = points[:, 0], points[:, 1]
    return float(np.dot(first, np.roll(second, -1)) - np.dot(second, np.roll(first, -1))) / 2


def to_micrometres(pixels: float, pixel_size_um: float) -> float:
    """Convert a length in pixels to micrometres."""
    return pixels * pixel_size_um
