"""What a format's module hands over: levels of pixels, and what the metadata say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from hematokit.errors import ImageError
from hematokit.imaging.fieldfiles.pixelsize import PixelSize, nothing
from hematokit.imaging.geometry import Box, stored_box, turn_pixels

__all__ = [
    "MAX_CACHE_BYTES",
    "MAX_WHOLE_BYTES",
    "ArrayLevel",
    "Level",
    "Source",
    "TurnedLevel",
    "check_size",
    "drop_alpha",
]

MAX_WHOLE_BYTES = 512 * 1024 * 1024
"""Largest piece, decoded, that is held in memory at once: a tile, a strip, a chunk, or a file that has no pieces."""

MAX_CACHE_BYTES = 256 * 1024 * 1024
"""Decoded pieces that are kept, because the next window needs them again."""

_MAX_SIDE = 1 << 24  # pixels; more is a damaged header: at 0.1 um it would be a slide of 1.7 m


class Level(Protocol):
    """The pixels of a field at one resolution.

    Attributes
    ----------
    height, width : int
        Size in pixels.
    dtype : numpy.dtype
        uint8 or uint16.
    """

    height: int
    width: int
    dtype: np.dtype[Any]

    def read(self, box: Box) -> npt.NDArray[Any]:
        """Return the pixels (h, w, 3) of a box inside the level. Any thread may call it at any time."""


@dataclass(frozen=True)
class Source:
    """An opened file.

    Attributes
    ----------
    levels : sequence of Level
        Full resolution first, then smaller and smaller.
    pixel_size : PixelSize
        What the metadata say.
    notes : tuple of str
        Remarks for the user.
    significant_bits : int or None
        Bits in use of 16, where the metadata state them.
    close : callable
        Releases the file.
    orientation : int
        As the metadata state it (1 to 8 as in EXIF); `levels` are turned accordingly.
    """

    levels: Sequence[Level]
    pixel_size: PixelSize = nothing
    notes: tuple[str, ...] = ()
    significant_bits: int | None = None
    close: Callable[[], None] = lambda: None
    orientation: int = 1


class ArrayLevel:
    """A level that lies in memory.

    Parameters
    ----------
    pixels : ndarray of uint8 or uint16, shape (H, W, 3)
    """

    def __init__(self, pixels: npt.NDArray[Any]) -> None:
        self._pixels = pixels
        self.height, self.width = pixels.shape[:2]
        self.dtype = pixels.dtype

    def read(self, box: Box) -> npt.NDArray[Any]:
        """Return a copy of the pixels of a box."""
        return self._pixels[box.slices].copy()


class TurnedLevel:
    """A level turned as its file's orientation states.

    Parameters
    ----------
    stored : Level
        The pixels as stored.
    orientation : int
        2 to 8, as in EXIF.
    """

    def __init__(self, stored: Level, orientation: int) -> None:
        self._stored, self._orientation = stored, orientation
        sides = stored.height, stored.width
        self.height, self.width = sides if orientation < 5 else sides[::-1]
        self.dtype = stored.dtype

    def read(self, box: Box) -> npt.NDArray[Any]:
        """Return the pixels of a box, reading only that part of the file."""
        pixels = self._stored.read(stored_box(box, self._orientation, self.height, self.width))
        return turn_pixels(pixels, self._orientation)


def check_size(height: int, width: int, shown: str) -> None:
    """Refuse sizes that no field has.

    Raises
    ------
    ImageError
        ``"empty"`` without any pixel, ``"too-large"`` for what only a damaged header says.
    """
    if height < 1 or width < 1:
        raise ImageError("empty", f"{shown} has no pixels ({width}x{height} px); export the image again")
    if height > _MAX_SIDE or width > _MAX_SIDE:
        raise ImageError("too-large", f"{shown} claims to be {width}x{height} px; export the image again")


def drop_alpha(pixels: npt.NDArray[Any], opaque: int, shown: str) -> npt.NDArray[Any]:
    """Return the colours of pixels (h, w, 4).

    Raises
    ------
    ImageError
        ``"not-rgb"`` if a pixel is not `opaque`: there is no telling which background it belongs on.
    """
    if not (pixels[..., 3] == opaque).all():
        raise ImageError("not-rgb", f"{shown} has transparent pixels; save it as RGB without an alpha channel")
    return pixels[..., :3]
