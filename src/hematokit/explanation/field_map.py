"""A saliency layer for a whole field: cell maps at their places, overlaps blended.

The map of each cell is divided by the 99th percentile of its absolute values, because values of different cells are not
comparable; where maps overlap, a pixel has their mean, weighted by how near each patch's
centre is (a raised cosine in both directions). A pixel that only one cell covers has that cell's value; one that no
cell covers is zero. The unscaled maps are in ``attributions.zarr``.

The layer is made window by window, so memory does not grow with the field. `maps_to_patch` brings maps from pixels of
the network's input back to pixels of the patch: the inverse of `Classifier.prepare`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from hematokit.imaging.geometry import Box, patch_box, windows
from hematokit.progress import Progress, no_progress

if TYPE_CHECKING:
    from hematokit.plugins.specs import InputSpec

__all__ = [
    "blend_maps",
    "blend_weights",
    "cell_boxes",
    "maps_to_patch",
    "read_layer",
    "downsample_layer",
    "write_layer",
]

Maps = npt.NDArray[np.float32]

_WINDOW: Final = 1024
_CHUNK: Final = 512
_PERCENTILE: Final = 99.0
_LEAST_WEIGHT: Final = 1e-3
"""Of a pixel at a patch's edge, because the sum of weights is divided by."""


def maps_to_patch(maps: Maps, patch_size: int, spec: InputSpec, *, side: int | None = None) -> Maps:
    """Bring maps to the patch's own pixels.

    Parameters
    ----------
    maps : ndarray of float32, shape (..., S, S)
        In pixels of the input.
    patch_size : int
        Side of the model's patches in pixels.
    spec : InputSpec
        How patches became the input.
    side : int, optional
        Side of the result in pixels, where a patch took another number of pixels of a field than `patch_size`.

    Returns
    -------
    ndarray of float32, shape (..., side, side)
        A reflected margin of the input is cut off; what the input did not show, because it was cropped, is zero.
    """
    import torch
    from torch.nn import functional

    start, length = spec.region(patch_size)
    shape = maps.shape[:-2]
    planes = torch.from_numpy(np.ascontiguousarray(maps).reshape(-1, 1, *maps.shape[-2:]))
    if length != planes.shape[-1]:
        planes = functional.interpolate(planes, size=(length, length), mode="bilinear", align_corners=False)
    # Negative padding cuts.
    after = patch_size - start - length
    planes = functional.pad(planes, (start, after, start, after))
    if side is not None and side != patch_size:
        shrinking = side < patch_size
        planes = functional.interpolate(
            planes, size=(side, side), mode="bilinear", align_corners=False, antialias=shrinking
        )
    result: Maps = planes.numpy().reshape(*shape, *planes.shape[-2:])
    return result


def cell_boxes(centres: npt.ArrayLike, side: int) -> list[Box]:
    """Return the boxes of the patches around centres (n, 2) as ``(y, x)``, as they were cut."""
    return [patch_box(y, x, side) for y, x in np.asarray(centres, np.float64).reshape(-1, 2).tolist()]


def blend_weights(side: int) -> Maps:
    """Return the weights of a cell's map in pixels (side, side) of its patch: 1 in the middle, near 0 at the edge."""
    place = (np.arange(side) + 0.5) / side
    bump = np.maximum(np.sin(np.pi * place) ** 2, _LEAST_WEIGHT)
    return np.asarray(np.outer(bump, bump), np.float32)


def write_layer(
    folder: Path,
    name: str,
    height: int,
    width: int,
    boxes: list[Box],
    read: Callable[[int], Maps],
    *,
    pixel_size_um: float | None = None,
    progress: Progress = no_progress,
) -> Path:
    """Write a field's saliency layer as an OME-Zarr 0.5 image of one level.

    Parameters
    ----------
    folder : Path
        The image's folder; replaced if it is there.
    name : str
        Name of the image.
    height, width : int
        Size of the field in pixels.
    boxes : list of Box
        Boxes of the cells' patches; they may extend beyond the field.
    read : callable
        ``read(number) -> map (side, side) float32`` of a cell, in pixels of the field, unscaled.
    pixel_size_um : float, optional
        Micrometres per pixel.
    progress : Progress
        Called with the number of windows that are done.

    Returns
    -------
    Path
        `folder`; the array ``0`` in it is float32 (height, width).
    """
    import zarr
    from ome_zarr.format import FormatV05
    from ome_zarr.writer import write_multiscales_metadata

    group = zarr.open_group(folder, mode="w", zarr_format=3)
    array = group.create_array(
        "0",
        shape=(height, width),
        chunks=(min(_CHUNK, height), min(_CHUNK, width)),
        dtype="float32",
        fill_value=0.0,
        dimension_names=("y", "x"),
    )
    scale = pixel_size_um or 1.0
    axes = [{"name": axis, "type": "space"} | ({"unit": "micrometer"} if pixel_size_um else {}) for axis in "yx"]
    datasets = [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [scale, scale]}]}]
    write_multiscales_metadata(group, datasets, fmt=FormatV05(), axes=axes, name=name)
    tiles = [window.core for window in windows(height, width, _WINDOW, 0)]
    for number, tile in enumerate(tiles):
        inside = [place for place, box in enumerate(boxes) if _overlap(box, tile) is not None]
        if inside:
            array[tile.slices] = blend_maps(tile, boxes, inside, read)
        progress(number + 1, len(tiles), "")
    return folder


def blend_maps(tile: Box, boxes: Sequence[Box], inside: Iterable[int], read: Callable[[int], Maps]) -> Maps:
    """Blend the maps of cells over one part of a field.

    Parameters
    ----------
    tile : Box
        The part.
    boxes : sequence of Box
        Boxes of the cells' patches.
    inside : iterable of int
        Which of them overlap the part.
    read : callable
        ``read(number) -> map (side, side) float32`` of a cell, in pixels of the field, unscaled.

    Returns
    -------
    ndarray of float32, shape (tile.height, tile.width)
        Relative attributions, see the module.
    """
    total = np.zeros((tile.height, tile.width), np.float32)
    weight = np.zeros_like(total)
    for place in inside:
        box = boxes[place]
        part = _overlap(box, tile)
        assert part is not None  # it was chosen for that
        found = read(place)
        size = np.abs(found)
        highest = float(np.percentile(size, _PERCENTILE)) or float(size.max())
        source = (slice(part.y0 - box.y0, part.y1 - box.y0), slice(part.x0 - box.x0, part.x1 - box.x0))
        target = (slice(part.y0 - tile.y0, part.y1 - tile.y0), slice(part.x0 - tile.x0, part.x1 - tile.x0))
        weights = blend_weights(box.height)[source]
        total[target] += weights * found[source] / (highest or 1.0)
        weight[target] += weights
    return np.divide(total, weight, out=total, where=weight > 0)


def _overlap(one: Box, two: Box) -> Box | None:
    y0, x0 = max(one.y0, two.y0), max(one.x0, two.x0)
    y1, x1 = min(one.y1, two.y1), min(one.x1, two.x1)
    return Box(y0, x0, y1 - y0, x1 - x0) if y1 > y0 and x1 > x0 else None


def read_layer(folder: Path) -> Any:
    """Open a layer's array (height, width) float32, to be read by slices."""
    import zarr

    return zarr.open_array(folder / "0", mode="r")


def downsample_layer(folder: Path, height: int, width: int) -> Maps:
    """Return a layer downsampled to (height, width) by the mean over areas; it is read in bands of rows."""
    array = read_layer(folder)
    rows = np.linspace(0, array.shape[0], height + 1).round().astype(int)
    columns = np.linspace(0, array.shape[1], width + 1).round().astype(int)
    if (array.shape[0], array.shape[1]) == (height, width):
        whole: Maps = np.asarray(array[:], np.float32)
        return whole
    small = np.empty((height, width), np.float32)
    step = max(1, _WINDOW * height // array.shape[0])
    for first in range(0, height, step):
        last = min(first + step, height)
        band = np.asarray(array[rows[first] : rows[last]], np.float32)
        sums = np.add.reduceat(band, rows[first:last] - rows[first], axis=0)
        sums = np.add.reduceat(sums, columns[:-1], axis=1)
        small[first:last] = sums / (np.diff(rows[first : last + 1])[:, None] * np.diff(columns))
    return small
