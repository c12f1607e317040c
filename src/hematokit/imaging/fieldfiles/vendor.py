"""Vendors' formats, through `bioio` and its readers (the extra ``hematokit[bioio]``).

Such a file is decoded whole: the readers work plane by plane.
"""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from hematokit.errors import ImageError
from hematokit.imaging.fieldfiles.levels import MAX_WHOLE_BYTES, ArrayLevel, Source, check_size, drop_alpha
from hematokit.imaging.fieldfiles.pixelsize import PixelSize, from_lengths, nothing
from hematokit.imaging.reading import printable

__all__ = ["VENDOR_SUFFIXES", "open_vendor"]

VENDOR_SUFFIXES = frozenset({".czi", ".nd2", ".lif", ".oib", ".oif", ".vsi", ".dv"})
"""Endings that are given to `bioio`: Zeiss and Nikon, whose readers the extra installs, and others that have one."""

# bioio logs every reader that it tried in vain, which would land on the screen where nobody has set logging up.
for _name in ("bioio", "bioio_base"):
    logging.getLogger(_name).addHandler(logging.NullHandler())


_READERS: Final = {"czi": "hematokit[bioio]", "nd2": "hematokit[bioio]", "lif": "bioio-lif", "dv": "bioio-dv"}
"""What reads a format, by the ending of its files."""


def open_vendor(path: Path) -> Source:
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
        return _read(bioio.BioImage(path), path, shown)
    except ImageError:
        raise
    except UnsupportedFileFormatError as error:
        raise _unsupported(path.suffix.lower().lstrip("."), shown) from error
    except MemoryError as error:
        raise ImageError("too-large", f"{shown} needs more memory than there is; export it as OME-TIFF") from error
    except Exception as error:
        # The readers wrap many libraries, which fail with whatever they like on a damaged file.
        detail = printable(" ".join(str(error).split())[:200]) or type(error).__name__
        raise ImageError("unreadable", f"{shown} cannot be read ({detail}); export it as OME-TIFF") from error


def _unsupported(ending: str, shown: str) -> ImageError:
    if importlib.util.find_spec(f"bioio_{ending}") is not None:
        return ImageError(
            "unreadable", f"{shown} is damaged or no {ending.upper()} file; copy or export the file again"
        )
    package = _READERS.get(ending)
    advice = f"run: pip install '{package}', or export it" if package else "export it"
    return ImageError("needs-bioio", f"{shown} is in a format for which no reader is installed; {advice} as OME-TIFF")


def _read(image: Any, path: Path, shown: str) -> Source:
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
        # CZI stores blue first, and bioio-czi hands the samples over as they are stored.
        pixels = pixels[..., ::-1]
    return Source((ArrayLevel(np.ascontiguousarray(pixels)),), _pixel_size(image))


def _pixel_size(image: Any) -> PixelSize:
    sizes = image.physical_pixel_sizes  # micrometres, by bioio's convention
    if not sizes.X and not sizes.Y:
        return nothing
    return from_lengths(sizes.X or sizes.Y, sizes.Y or sizes.X, "um", "um", "the scaling in its metadata")
