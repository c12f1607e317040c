"""Between images in the viewer and fields: pixels, pixel size, and where a place in one is in the other."""

from __future__ import annotations

import contextlib
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from hematokit.errors import HematokitError, ImageError, printable
from hematokit.imaging.fieldfiles import Field, field_name, file_orientation, open_field
from hematokit.imaging.fieldfiles.field import Source, drop_alpha
from hematokit.imaging.fieldfiles.pixelsize import PixelSize, check_given, from_lengths, nothing
from hematokit.imaging.geometry import Box, to_napari
from napari_hematonet.state import camera_of

if TYPE_CHECKING:
    import napari
    from napari.layers import Image, Layer

    from hematokit.imaging.fieldfiles import Field

__all__ = [
    "FieldArray",
    "LayerField",
    "field_of",
    "field_placement",
    "from_field",
    "is_field_image",
    "layer_arrays",
    "orientation_note",
    "show_in_micrometres",
    "to_field",
]

_SMALLEST: Final = 32  # pixels; about the width of a nucleus
_LOOKED_AT: Final = 512
"""Pixels along each side from which it is seen what white is."""
_MICROMETRE: Final = "micrometer"


class LayerField(Field):
    """Field with the pixels of an image layer.

    The pixels stay readable when the layer has been removed from the viewer.

    Attributes
    ----------
    layer_name : str
    plane : tuple of int
        Which plane of a stack it is; empty for a plain image.
    """

    layer_name: str
    plane: tuple[int, ...]


class _LayerLevel:
    """One resolution of an image layer: an array (..., y, x, channels) of any type that numpy can read."""

    def __init__(self, array: Any, plane: tuple[int, ...], shown: str, white: _White) -> None:
        self._array, self._plane, self._shown, self._white = array, plane, shown, white
        self.height, self.width = (int(side) for side in array.shape[-3:-1])
        kind = np.dtype(array.dtype)
        self.dtype: np.dtype[Any] = np.dtype(np.uint16 if kind == np.uint16 else np.uint8)

    def read(self, box: Box) -> npt.NDArray[Any]:
        rows, columns = box.slices
        pixels = np.asarray(self._array[(*self._plane, rows, columns)])
        if pixels.shape[-1] == 4:
            opaque = self._white.value if pixels.dtype.kind == "f" else np.iinfo(pixels.dtype).max
            pixels = drop_alpha(pixels, opaque, self._shown)
        if pixels.dtype.kind == "f":
            # Transparent pixels become white, because black would be darker than any nucleus.
            shares = np.nan_to_num(pixels, nan=self._white.value) / self._white.value
            return np.ascontiguousarray(np.round(np.clip(shares, 0, 1) * 255).astype(np.uint8))
        return np.array(pixels)


class _White:
    """Return the value of white in a floating-point image: 1, or 255 for 8-bit values converted to float.

    napari shows both as one would like. Looked for at the first reading, once for all of the image.
    """

    def __init__(self, array: Any, shown: str) -> None:
        self._array, self._shown = array, shown

    @cached_property
    def value(self) -> int:
        rows, columns = (max(1, side // _LOOKED_AT) for side in self._array.shape[-3:-1])
        sample = np.asarray(self._array[..., ::rows, ::columns, :])
        finite = sample[np.isfinite(sample)]
        if not finite.size:
            raise ImageError("not-rgb", f"{self._shown} has only NaN values; open the image again")
        largest = float(finite.max())
        if largest > 256:
            raise ImageError(
                "not-rgb",
                f"{self._shown} has colours up to {largest:,.0f} in floating point; convert it to 8 or 16 bits",
            )
        # Sharpening and resizing may exceed the range slightly.
        return 255 if largest > 2 else 1


def is_field_image(layer: Layer | None) -> bool:
    """Tell whether a layer is worth offering as a field: an image in colour."""
    return layer is not None and _type_of(layer) == "image" and bool(getattr(layer, "rgb", False))


def _type_of(layer: Layer) -> str:
    """``"image"``, ``"labels"``, ``"points"``; a subclass of one of napari's is what that is."""
    from napari.layers import NAMES

    return next(name for kind in type(layer).__mro__ if (name := kind.__name__.lower()) in NAMES)


def field_of(
    layer: Layer | None, *, viewer: napari.Viewer | None = None, pixel_size_um: float | None = None
) -> LayerField:
    """Return an image layer as a field.

    Taken are colour images of 8 or 16 bits or floating point, in one resolution or several, in memory or not; of a
    stack, the plane that the viewer shows. The pixel size is the layer's, if its units are a length; else what the
    metadata of the layer's file say; else what is given.

    Parameters
    ----------
    layer : Layer or None
    viewer : napari.Viewer, optional
        Says which plane of a stack is shown; without it, the first.
    pixel_size_um : float, optional
        Micrometres per pixel, used where neither the layer nor its file says.

    Returns
    -------
    LayerField
        Read by windows, so that a large image is never whole in memory.

    Raises
    ------
    ImageError
        ``"missing"``, ``"not-an-image"``, ``"not-rgb"``, ``"too-small"`` or ``"pixel-size"``: in one line, what the
        layer is and what to do. Transparent pixels, and floating point that is no colour, show when it is read.
    """
    if layer is None:
        raise ImageError("missing", "no image is open; open a field, or File > Open Sample > HematoNet")
    shown = f"layer '{printable(layer.name)}'"
    if _type_of(layer) != "image":
        raise ImageError(
            "not-an-image", f"{shown} is not an image but of type {_type_of(layer)}; choose the layer of the field"
        )
    _check_pixels(layer, shown)
    check_given(pixel_size_um)
    plane = _shown_plane(layer, viewer)
    arrays = list(layer.data) if layer.multiscale else [layer.data]
    white = _White(arrays[0][plane] if plane else arrays[-1], shown)
    levels: list[_LayerLevel] = []
    for array in arrays:
        level = _LayerLevel(array, plane if array is arrays[0] else (), shown, white)
        # Only the full resolution of a stack: its smaller levels may have fewer planes.
        if not levels or (not plane and level.height < levels[-1].height and level.width < levels[-1].width):
            levels.append(level)
    height, width = levels[0].height, levels[0].width
    _check_size(height, width, shown)
    notes = (f"plane {'/'.join(str(number) for number in plane)} of a stack",) if plane else ()
    file = _file_of(layer)
    stated = _stated_size(layer, file, height, width)
    source = Source(tuple(levels), PixelSize(stated.um, (*notes, *stated.notes)))
    name = layer.name if file is None or _has_siblings(layer, file) else field_name(file)
    field = LayerField(file or Path(name), name, source, pixel_size_um=pixel_size_um)
    field.layer_name, field.plane = layer.name, plane
    return field


def orientation_note(layer: Layer) -> str:
    """Return a warning if an image is not shown in the orientation of its metadata, else an empty string.

    napari's own readers show JPEG, PNG and TIFF as stored; the commands and `open_field` turn them.
    """
    file = _file_of(layer)
    stated = 1 if file is None or layer.source.reader_plugin == "hematokit" else file_orientation(file)
    if file is None or stated == 1:
        return ""
    return (
        f"{printable(file.name)} is shown as stored, and its cells are placed there; its metadata state another "
        f"orientation ({stated}), which 'hematokit classify' applies: open that folder of results to see it rotated"
    )


def _check_pixels(layer: Image, shown: str) -> None:
    if not layer.rgb:
        shape = layer.data[0].shape if layer.multiscale else layer.data.shape
        if len(shape) == 3 and shape[-1] in (3, 4) and min(shape[:2]) < _SMALLEST:
            # napari reads such a small image as a stack.
            _check_size(shape[0], shape[1], shown)
        advice = "open the image in colour"
        if 3 in shape[:-2]:
            # napari gives the channels other colours, and merges by colour.
            advice = (
                "if its 3 planes are red, green and blue, right-click it: Split Stack; give the three the colormaps "
                "red, green and blue; select them, right-click: Merge to RGB"
            )
        raise ImageError("not-rgb", f"{shown} is greyscale; HematoNet needs the colours of the stain: {advice}")
    kind = np.dtype(layer.dtype)
    if kind not in (np.uint8, np.uint16) and kind.kind != "f":
        raise ImageError("not-rgb", f"{shown} has pixels of type {kind}; convert it to 8 bits per channel")


def _check_size(height: int, width: int, shown: str) -> None:
    if min(height, width) < _SMALLEST:
        raise ImageError("too-small", f"{shown} is {width}x{height} px, no larger than a cell; open a whole field")


def _shown_plane(layer: Image, viewer: napari.Viewer | None) -> tuple[int, ...]:
    shape = (layer.data[0] if layer.multiscale else layer.data).shape[:-3]
    if not shape:
        return ()
    if viewer is None:
        return (0,) * len(shape)
    at = np.round(layer.world_to_data(viewer.dims.point[-layer.ndim :])[: len(shape)]).astype(int)
    return tuple(int(number) for number in np.clip(at, 0, np.array(shape) - 1))


def _file_of(layer: Image) -> Path | None:
    path = getattr(layer.source, "path", None)
    return None if not path else Path(str(path))


def _has_siblings(layer: Image, file: Path) -> bool:
    """Whether a file gave several images (a store's fields): then the layer's name says which one it is."""
    return file.is_dir() and layer.name != field_name(file)


def _stated_size(layer: Image, file: Path | None, height: int, width: int) -> PixelSize:
    size = _size_in_layer(layer)
    if size is not None:
        return size
    if file is None or not file.exists():
        return nothing
    # The readers of napari do not read the pixel size.
    with contextlib.suppress(HematokitError), open_field(file) as opened:
        # Nor do they apply the orientation.
        if {opened.height, opened.width} == {height, width}:
            return PixelSize(opened.pixel_size_um)
    return nothing


def _size_in_layer(layer: Image) -> PixelSize | None:
    """Pixel size by the layer's units; None if these are pixels."""
    try:
        units = [(1 * unit).to(_MICROMETRE).magnitude for unit in layer.units[-2:]]
    except Exception:
        # pixel, second, or no units at all (napari before 0.6): pint has an error of its own for each.
        return None
    linear = np.asarray(layer.affine.linear_matrix) @ _linear(layer)
    sides = np.sqrt((linear[-2:, -2:] ** 2).sum(axis=0))
    return from_lengths(float(sides[1]) * units[1], float(sides[0]) * units[0], "um", "um", "the layer's scale")


def _linear(layer: Layer) -> npt.NDArray[np.float64]:
    """The linear part of a layer's own transform: rotation, shear and scale."""
    origin = np.zeros(layer.ndim)
    matrix = np.linalg.inv(np.asarray(layer.affine.linear_matrix))
    base = np.asarray(layer.data_to_world(origin))
    columns = [np.asarray(layer.data_to_world(unit)) - base for unit in np.eye(layer.ndim)]
    return np.asarray(matrix @ np.array(columns).T)


def to_field(image: Layer, world: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Convert world coordinates of the viewer to pixels of a field.

    Parameters
    ----------
    image : Layer
        The image, or the layer of its cells, which is at the same place.
    world : array-like, shape (n, d) or (d,)
        As ``viewer.cursor.position`` and ``layer.data_to_world`` give them.

    Returns
    -------
    ndarray, shape (n, 2) or (2,)
        ``(y, x)`` with pixel corners on the integers, as cells tables have them.
    """
    places = np.asarray(world, np.float64)
    flat = np.atleast_2d(places)
    found = np.array([image.world_to_data(place[-image.ndim :])[-2:] for place in flat]).reshape(-1, 2) + 0.5
    return found if places.ndim > 1 else found[0]


def from_field(image: Layer, points: npt.ArrayLike, plane: tuple[int, ...] = ()) -> npt.NDArray[np.float64]:
    """Convert pixels ``(y, x)`` of a field, shape (n, 2) or (2,), to places in the viewer's world; see `to_field`."""
    pixels = np.asarray(points, np.float64)
    data = [(*plane, *point) for point in to_napari(np.atleast_2d(pixels))]
    found = np.array([image.data_to_world(point) for point in data]).reshape(-1, image.ndim)
    return found if pixels.ndim > 1 else found[0]


def show_in_micrometres(viewer: napari.Viewer, pixel_size_um: float) -> None:
    """Set world coordinates to micrometres, so that the scale bar shows them.

    Every layer that is measured in pixels grows by the pixel size, and the camera with them: what the user sees does
    not move. Layers that have units of length already stay as they are.

    Parameters
    ----------
    viewer : napari.Viewer
    pixel_size_um : float
        Micrometres per pixel.
    """
    layers = [layer for layer in viewer.layers if all(str(unit) == "pixel" for unit in layer.units)]
    if not layers:
        return
    whole = len(layers) == len(viewer.layers)
    camera = camera_of(viewer)
    centre, zoom = camera.center, camera.zoom
    for layer in layers:
        factors = np.ones(layer.ndim)
        factors[-2:] = pixel_size_um
        matrix = np.array(layer.affine.affine_matrix)
        matrix[:-1, -1] *= factors
        # The same factor in y and x, so that it may be taken before the layer's rotation and shear.
        layer.affine = matrix
        layer.translate = np.asarray(layer.translate) * factors
        layer.scale = np.asarray(layer.scale) * factors
        layer.units = (*layer.units[:-2], _MICROMETRE, _MICROMETRE)
    if whole:
        camera.center = (centre[0], *(np.asarray(centre[1:]) * pixel_size_um))
        camera.zoom = zoom / pixel_size_um


_WHOLE: Final = 64_000_000
"""Pixels up to which a field is given to napari whole, in memory: four pictures of a camera of 16 megapixels."""

_OVERVIEW: Final = 4096
"""Longest side of the overview that stands for a larger field until the user zooms in."""


class FieldArray:
    """Pixels of a field, read when napari displays them: an array (height, width, 3) of uint8.

    Parameters
    ----------
    field : Field
        Stays open.
    """

    def __init__(self, field: Field) -> None:
        self._field = field
        self.shape = (field.height, field.width, 3)
        self.ndim = 3
        self.size = field.height * field.width * 3
        self.dtype = np.dtype(np.uint8)

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return np.asarray(self[:], dtype)

    def __getitem__(self, key: Any) -> npt.NDArray[Any]:
        parts = list(key) if isinstance(key, tuple) else [key]
        if Ellipsis in parts:
            at = parts.index(Ellipsis)
            parts[at : at + 1] = [slice(None)] * (4 - len(parts))
        parts += [slice(None)] * (3 - len(parts))
        rows, columns = (_bounds(part, side) for part, side in zip(parts, self.shape[:2], strict=False))
        if rows[0] >= rows[1] or columns[0] >= columns[1]:
            pixels = np.zeros((max(0, rows[1] - rows[0]), max(0, columns[1] - columns[0]), 3), np.uint8)
        else:
            pixels = self._field.read(Box(rows[0], columns[0], rows[1] - rows[0], columns[1] - columns[0]))
        within = tuple(slice(None, None, part.step) if isinstance(part, slice) else 0 for part in parts[:2])
        return pixels[(*within, parts[2])]


def _bounds(part: slice | int, side: int) -> tuple[int, int]:
    """First and end of the rows that a part of an index needs."""
    if isinstance(part, slice):
        start, stop, step = part.indices(side)
        if step < 1:
            raise IndexError("a field cannot be read with a negative step")
        return start, stop
    index = int(part) + (side if part < 0 else 0)
    if not 0 <= index < side:
        raise IndexError(f"index {part} is outside a field of {side} px")
    return index, index + 1


def field_placement(field: Field) -> dict[str, Any]:
    """Return ``scale`` and ``units`` of a field's layers: micrometres where the pixel size is known, else nothing."""
    if field.pixel_size_um is None:
        return {}
    return {"scale": (field.pixel_size_um,) * 2, "units": ("micrometer", "micrometer")}


def layer_arrays(field: Field) -> list[Any]:
    """Return a field in the form that napari displays best.

    One array in memory; of a large field the full resolution, read as it is looked at, and an overview.

    Raises
    ------
    ImageError
        If the file is damaged.
    """
    if field.height * field.width <= _WHOLE:
        return [field.read(Box(0, 0, field.height, field.width))]
    return [FieldArray(field), field.thumbnail(_OVERVIEW)[0]]
