"""Opening a field in any format: TIFF, OME-Zarr, PNG, JPEG, BMP and vendors' formats.

PNG, JPEG and BMP are decoded whole, by the rules of single crops (`hematokit.imaging.reading`). Vendors' formats are
decoded whole too, through `bioio` and its readers (the extra ``hematokit[bioio]``), which work plane by plane. The
others are read by windows (`hematokit.imaging.fieldfiles.tiff`, `hematokit.imaging.fieldfiles.omezarr`).
"""

from __future__ import annotations

import importlib.util
import logging
import os
import stat
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from hematokit.errors import ImageError, printable
from hematokit.imaging.fieldfiles.field import (
    MAX_WHOLE_BYTES,
    ArrayLevel,
    Field,
    Source,
    check_size,
    drop_alpha,
    unreadable,
)
from hematokit.imaging.fieldfiles.listing import VENDOR_SUFFIXES, field_name
from hematokit.imaging.fieldfiles.omezarr import open_omezarr
from hematokit.imaging.fieldfiles.pixelsize import PixelSize, check_given, from_density, from_lengths, nothing
from hematokit.imaging.reading import MAX_PIXELS, decode_rgb, open_image, read_bytes, read_orientation

__all__ = ["file_orientation", "open_field", "stated_pixel_size"]

_TIFF_MAGIC: Final = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""First bytes of TIFF and BigTIFF files, in either byte order."""

# bioio logs every reader that fails, which Python prints if logging is not configured.
for _name in ("bioio", "bioio_base"):
    logging.getLogger(_name).addHandler(logging.NullHandler())


_READERS: Final = {"czi": "hematokit[bioio]", "nd2": "hematokit[bioio]", "lif": "bioio-lif", "dv": "bioio-dv"}
"""Package that reads a format, by the suffix of its files."""


def open_field(
    path: str | Path,
    *,
    pixel_size_um: float | None = None,
    force_pixel_size: bool = False,
    max_pixels: int | None = None,
    orient: bool = True,
) -> Field:
    """Open a microscope image.

    The format of a file is detected from its content: TIFF, OME-TIFF, PNG, JPEG or BMP. A folder is an OME-Zarr image
    (0.4 or 0.5). Files with a vendor's ending (``.czi``, ``.nd2``, ...) are read through `bioio`, the extra
    ``hematokit[bioio]``.

    The image must have one plane with red, green and blue in 8 or 16 bits. Colour profiles are not applied; an alpha
    channel that is opaque everywhere is dropped. The orientation that a JPEG, PNG or TIFF states (EXIF, tag 274) is
    applied, as viewers do; in OME-TIFF and Aperio's SVS the axes are those of the file, as in QuPath and Bio-Formats.

    Parameters
    ----------
    path : str or Path
        File, or folder of an OME-Zarr image.
    pixel_size_um : float, optional
        Micrometres per pixel, for files without a pixel size in their metadata.
    force_pixel_size : bool
        Use `pixel_size_um` even if the metadata have a pixel size.
    max_pixels : int, optional
        Largest height x width, checked in the header; by default, formats that are decoded whole have a limit
        (`hematokit.imaging.reading.MAX_PIXELS`), and those that are read by windows have none.
    orient : bool
        Whether to apply the orientation. Earlier versions did not apply it.

    Returns
    -------
    Field
        The opened field, to be closed or used as a context manager.

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


def _open_source(path: Path, max_pixels: int | None, orient: bool) -> Source:
    shown = printable(str(path))
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise ImageError("missing", f"{shown} does not exist; check the path") from error
    except (OSError, ValueError) as error:
        raise unreadable(shown, error) from error
    if stat.S_ISDIR(mode):
        return open_omezarr(path)
    if not stat.S_ISREG(mode):
        raise ImageError("unreadable", f"{shown} is not a regular file; give an image file")
    if path.suffix.lower() in VENDOR_SUFFIXES:
        return _open_vendor(path)
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

    return _open_plain(path, max_pixels, orient=orient)


def _open_plain(path: Path, max_pixels: int | None = None, *, orient: bool = True) -> Source:
    """Read a PNG, JPEG or BMP file of at most `max_pixels`, if given, and never more than `MAX_PIXELS`.

    With `orient`, the orientation in the metadata is applied.

    Raises
    ------
    ImageError
        As `hematokit.imaging.reading.read_rgb` does.
    """
    data = read_bytes(path)
    try:
        most = min(max_pixels or MAX_PIXELS, MAX_PIXELS)
        pixels = decode_rgb(data, name=str(path), max_pixels=most, orient=orient)
    except ImageError as error:
        if error.reason != "too-large" or max_pixels is not None:
            raise
        raise ImageError(
            "too-large",
            f"{printable(str(path))} has more than {MAX_PIXELS:,} pixels, too many for a format that is decoded whole; "
            "save it as a tiled TIFF or OME-Zarr",
        ) from error
    orientation = read_orientation(data) if orient else 1
    return Source((ArrayLevel(pixels),), _stated_in_plain(data), orientation=orientation)


def _open_vendor(path: Path) -> Source:
    """Read a file in a vendor's format.

    Raises
    ------
    ImageError
        ``"needs-bioio"`` where bioio or its reader of the format is missing, else as for every other format.
    """
    shown = printable(str(path))
    try:
        import bioio
        from bioio_base.exceptions import UnsupportedFileFormatError
    except ImportError as error:
        raise ImageError(
            "needs-bioio", f"{shown} is in a vendor's format; to read it: pip install 'hematokit[bioio]'"
        ) from error
    try:
        return _read_vendor(bioio.BioImage(path), path, shown)
    except ImageError:
        raise
    except UnsupportedFileFormatError as error:
        raise _unsupported(path.suffix.lower().lstrip("."), shown) from error
    except MemoryError as error:
        raise ImageError("too-large", f"{shown} needs more memory than there is; export it as OME-TIFF") from error
    except Exception as error:
        # The readers wrap many libraries, which raise any exception for damaged files.
        detail = printable(" ".join(str(error).split())[:200]) or type(error).__name__
        raise ImageError("unreadable", f"{shown} cannot be read ({detail}); export it as OME-TIFF") from error


def _unsupported(ending: str, shown: str) -> ImageError:
    if importlib.util.find_spec(f"bioio_{ending}") is not None:
        return ImageError(
            "unreadable", f"{shown} is damaged or not a {ending.upper()} file; copy or export the file again"
        )
    package = _READERS.get(ending)
    advice = f"run: pip install '{package}', or export it" if package else "export it"
    return ImageError("needs-bioio", f"{shown} is in a format for which no reader is installed; {advice} as OME-TIFF")


def _read_vendor(image: Any, path: Path, shown: str) -> Source:
    if len(image.scenes) != 1:
        raise ImageError(
            "several-images", f"{shown} holds {len(image.scenes)} scenes; export the one that is the field"
        )
    sizes = dict(zip(image.dims.order, image.dims.shape, strict=True))
    if sizes.get("T", 1) * sizes.get("Z", 1) > 1:
        what = f"{sizes.get('T', 1)} time points and {sizes.get('Z', 1)} z planes"
        raise ImageError("several-images", f"{shown} holds {what}; export the one image that is the field")
    samples, channels = sizes.get("S", 1), sizes.get("C", 1)
    if samples not in (3, 4) or channels != 1:
        what = "is greyscale" if samples * channels == 1 else f"has {channels} channels of {samples} samples"
        raise ImageError("not-rgb", f"{shown} {what}; a field is a bright-field image in red, green and blue")
    dtype = np.dtype(image.dtype)
    if dtype not in (np.uint8, np.uint16):
        raise ImageError("not-rgb", f"{shown} has pixels of type {dtype}, not of 8 or 16 bits; export it as RGB")
    check_size(sizes["Y"], sizes["X"], shown)
    size = sizes["Y"] * sizes["X"] * samples * dtype.itemsize
    if size > MAX_WHOLE_BYTES:
        raise ImageError(
            "too-large",
            f"{shown} is {sizes['X']}x{sizes['Y']} px, too large for a format that is read whole; export it as a tiled "
            "OME-TIFF",
        )
    pixels: npt.NDArray[Any] = np.asarray(image.get_image_data("YXS"))
    if samples == 4:
        pixels = drop_alpha(pixels, int(np.iinfo(dtype).max), shown)
    if path.suffix.lower() == ".czi":
        # CZI stores blue first, and bioio-czi returns the samples in stored order.
        pixels = pixels[..., ::-1]
    return Source((ArrayLevel(np.ascontiguousarray(pixels)),), _vendor_pixel_size(image))


def _vendor_pixel_size(image: Any) -> PixelSize:
    sizes = image.physical_pixel_sizes  # micrometres, by bioio's convention
    if not sizes.X and not sizes.Y:
        return nothing
    return from_lengths(sizes.X or sizes.Y, sizes.Y or sizes.X, "um", "um", "the scaling in its metadata")


def stated_pixel_size(data: bytes) -> PixelSize:
    """Return the pixel size in the metadata of an image file.

    Parameters
    ----------
    data : bytes
        Content of a TIFF, PNG, JPEG or BMP file, which may be damaged.

    Returns
    -------
    PixelSize
        Unknown if the file has none, or one that is not from a microscope, such as 72 dots per inch.
    """
    if data[:4] in _TIFF_MAGIC:
        from hematokit.imaging.fieldfiles.tiff import stated_in_tiff

        return stated_in_tiff(data)

    return _stated_in_plain(data)


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
        if not path.is_file() or path.suffix.lower() in VENDOR_SUFFIXES:
            return 1
        with path.open("rb") as file:
            head = file.read(4)
        if head in _TIFF_MAGIC:
            with open_field(path) as opened:
                return opened.orientation
        return read_orientation(read_bytes(path))
    except (ImageError, OSError):
        return 1


def _stated_in_plain(data: bytes) -> PixelSize:
    """Return the pixel size from the density in a PNG, JPEG or BMP file; `nothing` if it is unreadable."""
    try:
        with open_image(data) as image:
            x, y = image.info["dpi"]
            return from_density(float(x), float(y), 25400.0)
    except Exception:
        # A damaged density must not stop the decoding of the pixels.
        return nothing
