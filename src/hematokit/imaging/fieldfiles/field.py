"""A field: one microscope image, opened for reading by windows as 8-bit RGB.

The module of a format opens a file as a `Source`: levels of pixels and metadata. A field of 16 bits per channel is
converted to 8 by one rule for the whole field.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from hematokit.errors import ImageError, printable
from hematokit.imaging.fieldfiles.pixelsize import PixelSize, choose, nothing
from hematokit.imaging.geometry import Box, stored_box, turn_pixels

__all__ = [
    "ArrayLevel",
    "Field",
    "Level",
    "MAX_CACHE_BYTES",
    "MAX_WHOLE_BYTES",
    "Source",
    "TurnedLevel",
    "check_size",
    "drop_alpha",
    "unreadable",
]

MAX_WHOLE_BYTES = 512 * 1024 * 1024
"""Largest decoded piece in memory at once: a tile, a strip, a chunk, or a file without pieces."""

MAX_CACHE_BYTES = 256 * 1024 * 1024
"""Size of the cache of decoded pieces, which neighbouring windows share."""

_MAX_SIDE = 1 << 24  # pixels; a larger size is from a damaged header: 1.7 m at 0.1 um per pixel


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
        """Return the pixels (h, w, 3) of a box inside the level. Thread-safe."""


@dataclass(frozen=True)
class Source:
    """An opened file.

    Attributes
    ----------
    levels : sequence of Level
        Full resolution first, then in decreasing size.
    pixel_size : PixelSize
        From the metadata.
    notes : tuple of str
        Notes for the user.
    significant_bits : int or None
        Bits used of 16, if stated in the metadata.
    close : callable
        Releases the file.
    orientation : int
        Orientation from the metadata (1 to 8 as in EXIF); it is already applied to `levels`.
    """

    levels: Sequence[Level]
    pixel_size: PixelSize = nothing
    notes: tuple[str, ...] = ()
    significant_bits: int | None = None
    close: Callable[[], None] = lambda: None
    orientation: int = 1


class ArrayLevel:
    """A level in memory.

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
    """A level with the orientation of its file applied.

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
    """Raise an error for sizes that no field has.

    Raises
    ------
    ImageError
        ``"empty"`` without any pixel, ``"too-large"`` for a size that only a damaged header states.
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
        ``"not-rgb"`` if a pixel is not `opaque`: its background is unknown.
    """
    if not (pixels[..., 3] == opaque).all():
        raise ImageError("not-rgb", f"{shown} has transparent pixels; save it as RGB without an alpha channel")
    return pixels[..., :3]


_DEPTHS = (8, 10, 12, 14, 16)
"""Bit depths of cameras, of 16 bits stored."""

_SAMPLE_PIXELS = 4_000_000  # a level of up to this size is read whole
_SAMPLE_GRID, _SAMPLE_SIDE = 8, 128  # of a larger one: 8 x 8 boxes of 128 px


def _choose_depth(maximum: int, significant_bits: int | None) -> int:
    """Return the number of bits, of 16 stored, that the camera used.

    Parameters
    ----------
    maximum : int
        Largest value of the sampled pixels.
    significant_bits : int or None
        Number from the metadata. 16 is ignored, because programs write it for every 16-bit image.

    Returns
    -------
    int
        The stated number if it is below 16 and the maximum fits into it, otherwise the smallest of `_DEPTHS` into which
        it fits.
    """
    if significant_bits is not None and 8 <= significant_bits < 16 and maximum < 1 << significant_bits:
        return significant_bits
    return next(depth for depth in _DEPTHS if maximum < 1 << depth)


def _lookup_table(depth: int) -> npt.NDArray[np.uint8]:
    """Return the 8-bit value of each 16-bit value: linear, rounded, 255 from ``2 ** depth - 1``."""
    white = (1 << depth) - 1
    values = np.minimum(np.arange(1 << 16, dtype=np.uint32), white)
    return ((values * 255 + white // 2) // white).astype(np.uint8)


def _sample_maximum(levels: Sequence[Level]) -> int:
    """Return the largest value of a field's smallest level, or of evenly distributed boxes in it if it is large."""
    level = levels[-1]
    if level.height * level.width <= _SAMPLE_PIXELS:
        return _maximum(level.read(Box(0, 0, level.height, level.width)))
    height, width = min(_SAMPLE_SIDE, level.height), min(_SAMPLE_SIDE, level.width)
    rows = np.linspace(0, level.height - height, _SAMPLE_GRID).round().astype(int).tolist()
    columns = np.linspace(0, level.width - width, _SAMPLE_GRID).round().astype(int).tolist()
    return max(_maximum(level.read(Box(y, x, height, width))) for y in rows for x in columns)


def _maximum(pixels: npt.NDArray[Any]) -> int:
    return int(pixels.max())


_BAND_BYTES = 16 * 1024 * 1024  # pixels in memory at once for a thumbnail


class Field:
    """One microscope image, read by windows as 8-bit RGB.

    Made by `open_field`; a context manager. Reading is safe from several threads.

    Attributes
    ----------
    path : Path
        The file or folder.
    name : str
        The stem, from which the id of the field is derived: ``slide1`` for ``slide1.ome.tif``.
    height, width : int
        Size at full resolution, in pixels.
    pixel_size_um : float or None
        Side of a pixel in micrometres; None if unknown.
    pixel_size_source : str
        ``"metadata"``, ``"given"``, or ``""`` where it is unknown.
    orientation : int
        The applied orientation, 1 to 8 as in EXIF; 1 is the image as stored.
    notes : tuple of str
        Notes for the user, one line each: conversions, and metadata that were not used.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        source: Source,
        *,
        pixel_size_um: float | None = None,
        force_pixel_size: bool = False,
    ) -> None:
        self.path = path
        self.name = name
        self._shown = printable(str(path))
        self._source: Source | None = source
        base = source.levels[0]
        self.height, self.width = base.height, base.width
        self.orientation = source.orientation
        self.pixel_size_um, self.pixel_size_source, notes = choose(
            source.pixel_size, pixel_size_um, force=force_pixel_size
        )
        if source.orientation != 1:
            notes = (*notes, f"turned as its metadata state (orientation {source.orientation})")
        self._table: npt.NDArray[np.uint8] | None = None
        if base.dtype == np.uint16:
            try:
                depth = _choose_depth(_sample_maximum(source.levels), source.significant_bits)
            except Exception as error:
                raise unreadable(self._shown, error) from error
            self._table = _lookup_table(depth)
            notes = (*notes, f"16 bits per channel, shown as 8: white at {(1 << depth) - 1}")
        self.notes = tuple(printable(note) for note in (*source.notes, *notes))

    def __enter__(self) -> Field:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Field {self._shown}: {self.width}x{self.height} px>"

    def close(self) -> None:
        """Close the file."""
        source, self._source = self._source, None
        if source is not None:
            source.close()

    def read(self, box: Box) -> npt.NDArray[np.uint8]:
        """Read a part of the field at full resolution.

        Parameters
        ----------
        box : Box
            Must be inside the field.

        Returns
        -------
        ndarray of uint8, shape (box.height, box.width, 3)
            A contiguous copy.

        Raises
        ------
        ImageError
            If the file is damaged there, or has transparent pixels.
        ValueError
            If the box is not inside the field, or the field is closed.
        """
        if not box.inside(self.height, self.width):
            raise ValueError(f"{box} is not inside a field of {self.width}x{self.height} px")
        return self._read(self._levels()[0], box)

    def _levels(self) -> list[Level]:
        source = self._source
        if source is None:
            raise ValueError(f"field {self._shown} is closed")
        return list(source.levels)

    def _read(self, level: Level, box: Box) -> npt.NDArray[np.uint8]:
        try:
            pixels = level.read(box)
        except Exception as error:
            raise unreadable(self._shown, error) from error
        if self._table is not None:
            pixels = self._table[pixels]
        return np.ascontiguousarray(pixels, np.uint8)

    def thumbnail(self, longest: int) -> tuple[npt.NDArray[np.uint8], float]:
        """Return the whole field, downsampled.

        From the smallest level of the file's pyramid that is large enough, else from the full resolution. Pixels are
        area means; only a band is in memory at a time. A field that is small enough is returned as it is.

        Parameters
        ----------
        longest : int
            Largest height and width in pixels, at least 1.

        Returns
        -------
        pixels : ndarray of uint8, shape (h, w, 3)
        scale : float
            Full-resolution pixels per pixel of the thumbnail.

        Raises
        ------
        ImageError
            If the file is damaged.
        """
        if longest < 1:
            raise ValueError(f"a thumbnail needs at least one pixel, not {longest}")
        if max(self.height, self.width) <= longest:
            return self.read(Box(0, 0, self.height, self.width)), 1.0
        scale = max(self.height, self.width) / longest
        height, width = (max(1, round(side / scale)) for side in (self.height, self.width))
        base, *smaller = self._levels()
        for level in reversed(smaller):
            if level.height >= height and level.width >= width:
                try:
                    return self._downsample(level, height, width), scale
                except ImageError:
                    # This level of the pyramid is damaged; the next larger one may be intact.
                    continue
        return self._downsample(base, height, width), scale

    def _downsample(self, level: Level, height: int, width: int) -> npt.NDArray[np.uint8]:
        from PIL import Image

        factor = max(1, min(level.height // height, level.width // width))
        rows = max(1, _BAND_BYTES // (level.width * 3 * factor)) * factor
        bands = []
        for y0 in range(0, level.height, rows):
            pixels = self._read(level, Box(y0, 0, min(rows, level.height - y0), level.width))
            # Means over blocks of factor x factor pixels; those at the bottom and right may be smaller.
            bands.append(np.asarray(Image.fromarray(pixels).reduce(factor)) if factor > 1 else pixels)
        small = np.concatenate(bands)
        if small.shape[:2] == (height, width):
            return small
        # The last blocks may be partial; the box has the exact extent of the image.
        extent = (0, 0, level.width / factor, level.height / factor)
        resized = Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR, box=extent)
        return np.array(resized)


def unreadable(shown: str, error: Exception) -> ImageError:
    """Return a one-line error for pixels that cannot be read; decoders raise any exception for damaged files."""
    if isinstance(error, ImageError):
        return error
    if isinstance(error, MemoryError):
        return ImageError("too-large", f"{shown} needs more memory than there is; save it as a tiled, compressed TIFF")
    text = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())[:200]
    detail = printable(text) or type(error).__name__
    # An error of the operating system does not mean that the file is damaged, unless the medium fails.
    refused = isinstance(error, OSError) and error.errno not in (None, errno.EIO, errno.EINVAL)
    advice = "correct that and open it again" if refused else "copy or export the file again"
    return ImageError("unreadable", f"{shown} cannot be read ({detail}); {advice}")
