"""A field's pixels as arrays that napari reads piece by piece."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from hematokit.imaging.geometry import Box

if TYPE_CHECKING:
    from hematokit.imaging.fieldfiles import Field

__all__ = ["FieldArray", "field_placement", "layer_arrays"]

_WHOLE: Final = 64_000_000
"""Pixels up to which a field is given to napari whole, in memory: four pictures of a camera of 16 megapixels."""

_OVERVIEW: Final = 4096
"""Longest side of the overview that stands for a larger field until the user zooms in."""


class FieldArray:
    """The pixels of a field, read when napari looks at them: an array (height, width, 3) of uint8.

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
            raise IndexError("a field is not read backwards")
        return start, stop
    index = int(part) + (side if part < 0 else 0)
    if not 0 <= index < side:
        raise IndexError(f"{part} is not in a field of {side}")
    return index, index + 1


def field_placement(field: Field) -> dict[str, Any]:
    """Return ``scale`` and ``units`` of a field's layers: micrometres where the pixel size is known, else nothing."""
    if field.pixel_size_um is None:
        return {}
    return {"scale": (field.pixel_size_um,) * 2, "units": ("micrometer", "micrometer")}


def layer_arrays(field: Field) -> list[Any]:
    """Return a field as napari shows it best.

    One array in memory; of a large field the full resolution, read as it is looked at, and an overview.

    Raises
    ------
    ImageError
        If the file is damaged.
    """
    if field.height * field.width <= _WHOLE:
        return [field.read(Box(0, 0, field.height, field.width))]
    return [FieldArray(field), field.thumbnail(_OVERVIEW)[0]]
