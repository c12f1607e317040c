"""Reading of image files as RGB arrays.

JPEG, PNG, TIFF and BMP files are decoded by Pillow; the pixels are exactly those of
``numpy.asarray(PIL.ImageOps.exif_transpose(PIL.Image.open(path)))``. The format is determined from the content, not
from the name.

- The orientation in the metadata (EXIF, XMP, TIFF tag 274) is applied, so that coordinates in the array are the same as
  in viewers and annotations.
- Damaged and incomplete files are rejected, even if a decoder would fill in missing pixels
  (`hematokit.imaging.damage`).
- Embedded colour profiles are not applied.
- An alpha channel that is opaque everywhere is dropped (the colours are unchanged); transparency is rejected, because
  the background is unknown.
- Greyscale, palette, CMYK, 16-bit and floating-point images are rejected: their conversion to 8-bit RGB depends on how
  they were acquired.
- Files with several images (TIFF pages, animations) are rejected.

Sizes are checked in the header before decoding, so that a small file that unpacks to gigabytes (a "decompression bomb")
uses no memory.
"""

from __future__ import annotations

import io
import os
import stat
import threading
import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError

from hematokit.errors import ImageError, printable
from hematokit.imaging.damage import find_damage
from hematokit.imaging.geometry import turn_pixels

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_BYTES",
    "MAX_PIXELS",
    "decode_rgb",
    "open_image",
    "read_bytes",
    "read_orientation",
    "read_rgb",
]

_IMAGE_FORMATS = ("JPEG", "PNG", "TIFF", "BMP")
"""Pillow's names of the supported formats; no other decoder is used."""

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".png", ".tif", ".tiff", ".bmp"})
"""Suffixes of image files, in lower case."""

MAX_PIXELS = 64 * 1024 * 1024
"""Default limit on height x width; fields from microscope cameras have 5 to 25 million pixels."""

MAX_BYTES = 512 * 1024 * 1024
"""Default limit on the size of a file."""

_MAY_STATE_ORIENTATION = (b"Exif\0", b"eXIf", b"profile type exif", b"adobe")
"""Byte strings of which every JPEG or PNG with EXIF or XMP metadata has one; files without them need not be opened."""

# Pillow warns about large images and damaged metadata through the process-wide warnings module. MAX_PIXELS replaces the
# first warning, and the second does not concern pixels. Filters of warnings are not thread-safe
# (https://docs.python.org/3/library/warnings.html#warnings.catch_warnings), so this lock is held while they are set.
_OPEN_LOCK = threading.Lock()


def read_bytes(path: Path, *, max_bytes: int = MAX_BYTES, name: str | None = None) -> bytes:
    """Read a regular file of limited size.

    Parameters
    ----------
    path : Path
        The file.
    max_bytes : int
        Largest size; a larger file is rejected.
    name : str, optional
        Name of the file in errors; its path by default.

    Raises
    ------
    ImageError
        ``"unreadable"`` if the file is missing, not a regular file, or not readable; ``"empty"``; ``"too-large"``.
    """
    shown = printable(name or str(path))
    try:
        # O_NONBLOCK, because opening a named pipe would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ImageError("unreadable", f"{shown} is not a regular file; give an image file")
            data = file.read(max_bytes + 1)
    except (OSError, ValueError) as error:
        cause = getattr(error, "strerror", None) or error
        raise ImageError(
            "unreadable", f"{shown} cannot be read ({cause}); check the file and its permissions"
        ) from error
    if len(data) > max_bytes:
        raise ImageError("too-large", f"{shown} is larger than {max_bytes:,} bytes; give a smaller file")
    if not data:
        raise ImageError("empty", f"{shown} is empty (0 bytes); copy the file again")
    return data


def decode_rgb(
    data: bytes,
    *,
    name: str,
    max_pixels: int = MAX_PIXELS,
    expect: tuple[int, int] | None = None,
    orient: bool = True,
) -> npt.NDArray[np.uint8]:
    """Decode the bytes of an image file.

    Parameters
    ----------
    data : bytes
        Content of a JPEG, PNG, TIFF or BMP file.
    name : str
        Name of the file in errors.
    max_pixels : int
        Largest height x width that is decoded.
    expect : tuple of int, optional
        ``(height, width)`` in pixels as stored in the file; any other size is rejected without decoding.
    orient : bool
        Whether to apply the orientation in the metadata. Earlier versions did not apply it.

    Returns
    -------
    ndarray of uint8, shape (H, W, 3)

    Raises
    ------
    ImageError
        With `reason` ``"unreadable"``, ``"too-large"``, ``"wrong-size"``, ``"not-rgb"`` or ``"several-images"``.
    """
    shown = printable(name)
    try:
        with open_image(data) as image:
            _check_header(image, shown, max_pixels, expect)
            if problem := find_damage(data, image.format or ""):
                raise ImageError(
                    "unreadable",
                    f"{shown} is damaged or not complete ({printable(problem)}); copy or export the file again",
                )
            pixels = np.asarray(image)
            see_through = image.info.get("transparency")  # of a PNG without alpha channel: one colour
            orientation = _orientation(image) if orient else 1
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(
            "too-large", f"{shown} has far more than {max_pixels:,} pixels; give a smaller image"
        ) from error
    except MemoryError as error:
        raise ImageError("too-large", f"{shown} needs more memory than there is; give a smaller image") from error
    except Exception as error:
        # Pillow's decoders raise nearly any exception for damaged files; none of them may stop an import.
        unknown = isinstance(error, UnidentifiedImageError)
        detail = "not a JPEG, PNG, TIFF or BMP" if unknown else printable(str(error))
        raise ImageError(
            "unreadable", f"{shown} cannot be decoded ({detail}); copy or export the file again"
        ) from error
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (3, 4):
        raise ImageError("not-rgb", f"{shown} does not decode to 8-bit RGB; convert it to RGB")
    transparent = (pixels == see_through).all(axis=2) if isinstance(see_through, tuple) else np.False_
    if pixels.shape[2] == 4:
        transparent, pixels = pixels[..., 3] != 255, pixels[..., :3]
    if transparent.any():
        raise ImageError("not-rgb", f"{shown} has transparent pixels; save it as RGB without an alpha channel")
    return np.ascontiguousarray(turn_pixels(pixels, orientation))


def read_orientation(data: bytes) -> int:
    """Return the orientation in the metadata of a JPEG or PNG, which `decode_rgb` applies.

    Parameters
    ----------
    data : bytes
        Content of an image file.

    Returns
    -------
    int
        1 to 8 as in EXIF; 1 (the orientation as stored) also if it is missing or invalid, and for TIFF and BMP.
    """
    if not any(name in data for name in _MAY_STATE_ORIENTATION):
        return 1
    try:
        with open_image(data) as image:
            if image.format == "PNG":
                image.load()  # metadata may follow the pixels
            return _orientation(image)
    except Exception:
        # Damaged metadata are ignored; damaged pixels are detected when they are decoded.
        return 1


def _orientation(image: Image.Image) -> int:
    if image.format == "TIFF":
        return 1  # already applied by Pillow
    try:
        with _OPEN_LOCK, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stated = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        # Pillow raises many exceptions for damaged EXIF data, which does not affect the pixels.
        return 1
    return stated if stated in range(1, 9) else 1


def open_image(data: bytes) -> Image.Image:
    """Open an image file with Pillow, which reads only its header; thread-safe, and without Pillow's warnings.

    Raises
    ------
    Exception
        As `PIL.Image.open` does.
    """
    with _OPEN_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Image.open(io.BytesIO(data), formats=_IMAGE_FORMATS)


def _check_header(image: Image.Image, shown: str, max_pixels: int, expect: tuple[int, int] | None) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(
            "too-large", f"{shown} is {width}x{height} px, more than {max_pixels:,} pixels; give a smaller image"
        )
    if expect is not None and (height, width) != expect:
        raise ImageError("wrong-size", f"{shown} is {width}x{height} px, not {expect[1]}x{expect[0]}")
    # An MPO is a JPEG followed by a preview or second view; its first image is the photograph.
    if image.format != "MPO" and _has_another(image):
        raise ImageError("several-images", f"{shown} has several images; save each in a separate file")
    if image.mode not in ("RGB", "RGBA"):
        raise ImageError("not-rgb", f"{shown} is not 8-bit RGB (its mode is {image.mode}); convert it to RGB")
    if _is_16_bit(image):
        raise ImageError("not-rgb", f"{shown} has 16 bits per channel; convert it to 8-bit RGB")


def _has_another(image: Image.Image) -> bool:
    """Return whether there is a second image, without counting all images, which is slow for thousands."""
    try:
        image.seek(1)
    except EOFError:
        return False
    return True


def _is_16_bit(image: Image.Image) -> bool:
    """Return whether Pillow would truncate 16-bit RGB to 8 bits."""
    for tile in getattr(image, "tile", ()):
        arguments = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        if any(isinstance(argument, str) and ";16" in argument for argument in arguments):
            return True
    bits = getattr(image, "tag_v2", {}).get(258, (8,))  # TIFF BitsPerSample
    return any(bit > 8 for bit in (bits if isinstance(bits, tuple) else (bits,)))


def read_rgb(
    source: Path | bytes, *, name: str | None = None, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES
) -> npt.NDArray[np.uint8]:
    """Read an image file as 8-bit RGB, bit-exact with Pillow's decoding, in the orientation from its metadata.

    Parameters
    ----------
    source : Path or bytes
        A file, or the content of a file.
    name : str, optional
        Name of the file in errors; its path by default.
    max_pixels : int
        Largest height x width that is decoded; checked before decoding. Pillow itself refuses more than about
        179 million pixels.
    max_bytes : int
        Largest file that is read.

    Returns
    -------
    ndarray of uint8, shape (H, W, 3)

    Raises
    ------
    ImageError
        With `reason` ``"unreadable"``, ``"empty"``, ``"too-large"``, ``"not-rgb"`` or ``"several-images"``, and a
        message of one line.
    """
    if isinstance(source, bytes):
        return decode_rgb(source, name=name or "image", max_pixels=max_pixels)
    shown = name or str(source)
    data = read_bytes(source, max_bytes=max_bytes, name=shown)
    return decode_rgb(data, name=shown, max_pixels=max_pixels)
