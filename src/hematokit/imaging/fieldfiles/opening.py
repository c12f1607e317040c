"""Opening a field, whatever it is."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from hematokit.errors import ImageError
from hematokit.imaging.fieldfiles import omezarr, vendor
from hematokit.imaging.fieldfiles.field import Field, unreadable
from hematokit.imaging.fieldfiles.levels import Source
from hematokit.imaging.fieldfiles.listing import field_name
from hematokit.imaging.fieldfiles.pixelsize import PixelSize, check_given
from hematokit.imaging.reading import printable, read_bytes, read_orientation

__all__ = ["file_orientation", "open_field", "stated_pixel_size"]

_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def open_field(
    path: str | Path,
    *,
    pixel_size_um: float | None = None,
    force_pixel_size: bool = False,
    max_pixels: int | None = None,
    orient: bool = True,
) -> Field:
    """Open a microscope image.

    What a file is, is told from its content: TIFF, OME-TIFF, PNG, JPEG or BMP; a folder is an OME-Zarr image (0.4 or
    0.5). The endings of vendors' formats (``.czi``, ``.nd2``, ...) are read through `bioio`, the extra
    ``hematokit[bioio]``.

    Taken are images of one plane with red, green and blue in 8 or 16 bits. Colour profiles are not applied; an alpha
    channel that is opaque everywhere is dropped. The orientation that a JPEG, PNG or TIFF states (EXIF, tag 274) is
    applied, as viewers do; in OME-TIFF and Aperio's SVS the axes are those of the file, as in QuPath and Bio-Formats.

    Parameters
    ----------
    path : str or Path
        File, or folder of an OME-Zarr image.
    pixel_size_um : float, optional
        Micrometres per pixel; used where the metadata state none.
    force_pixel_size : bool
        `pixel_size_um` wins over the metadata.
    max_pixels : int, optional
        Largest height x width that is taken, judged by the header; without it, formats that are decoded whole have a
        limit (`hematokit.imaging.reading.MAX_PIXELS`), and those that are read by windows have none.
    orient : bool
        Apply the orientation. Without it, a field is read as earlier versions did.

    Returns
    -------
    Field
        To be closed, or used as a context manager.

    Raises
    ------
    ImageError
        With `reason` ``"missing"``, ``"unreadable"``, ``"empty"``, ``"too-large"``, ``"not-rgb"``,
        ``"several-images"``, ``"not-an-image"``, ``"needs-bioio"`` or ``"pixel-size"``, and a message of one line.
    """
    path = Path(path)
    check_given(pixel_size_um)
    source = _open_source(path, max_pixels, orient)
    try:
        base = source.levels[0]
        if max_pixels is not None and base.height * base.width > max_pixels:
            raise ImageError(
                "too-large",
                f"{printable(str(path))} is {base.width}x{base.height} px, more than {max_pixels:,} pixels; give a "
                "smaller field",
            )
        return Field(path, field_name(path), source, pixel_size_um=pixel_size_um, force_pixel_size=force_pixel_size)
    except BaseException:
        source.close()
        raise


def stated_pixel_size(data: bytes) -> PixelSize:
    """Read what the metadata of an image file say about its pixel size.

    Parameters
    ----------
    data : bytes
        Content of a TIFF, PNG, JPEG or BMP file, which may be damaged.

    Returns
    -------
    PixelSize
        Unknown where the file says nothing, or nothing that a microscope can have, such as 72 dots per inch.
    """
    if data[:4] in _TIFF_MAGIC:
        from hematokit.imaging.fieldfiles.tiff import stated_in_tiff

        return stated_in_tiff(data)
    from hematokit.imaging.fieldfiles.plain import stated_in_plain

    return stated_in_plain(data)


def file_orientation(path: Path) -> int:
    """Return the orientation that `open_field` applies to a file, without decoding its pixels.

    Parameters
    ----------
    path : Path
        A field.

    Returns
    -------
    int
        1 to 8 as in EXIF; 1 also where the file cannot be read, and for folders and vendors' formats.
    """
    try:
        if not path.is_file() or path.suffix.lower() in vendor.VENDOR_SUFFIXES:
            return 1
        with path.open("rb") as file:
            head = file.read(4)
        if head in _TIFF_MAGIC:
            with open_field(path) as opened:
                return opened.orientation
        return read_orientation(read_bytes(path))
    except (ImageError, OSError):
        return 1


def _open_source(path: Path, max_pixels: int | None, orient: bool) -> Source:
    shown = printable(str(path))
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise ImageError("missing", f"{shown} does not exist; check the path") from error
    except (OSError, ValueError) as error:
        raise unreadable(shown, error) from error
    if stat.S_ISDIR(mode):
        return omezarr.open_omezarr(path)
    if not stat.S_ISREG(mode):
        raise ImageError("unreadable", f"{shown} is not a regular file; give an image file")
    if path.suffix.lower() in vendor.VENDOR_SUFFIXES:
        return vendor.open_vendor(path)
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            head = os.read(descriptor, 8)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise unreadable(shown, error) from error
    if head[:4] in _TIFF_MAGIC:
        from hematokit.imaging.fieldfiles.tiff import open_tiff

        return open_tiff(path, orient=orient)
    from hematokit.imaging.fieldfiles.plain import open_plain

    return open_plain(path, max_pixels, orient=orient)
