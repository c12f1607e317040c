"""TIFF and OME-TIFF: the pages of the field, and their metadata.

Pages are not grouped by tifffile's `series`, which joins several images and fills missing ones. Of OME-XML a field
needs ten attributes; they are read without a model of the whole standard, because many programs write OME-XML that no
strict parser accepts.
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hematokit.errors import ImageError, printable
from hematokit.imaging.fieldfiles.field import Source, TurnedLevel
from hematokit.imaging.fieldfiles.pixelsize import PixelSize, from_density, from_lengths, nothing
from hematokit.imaging.fieldfiles.segments import COMPRESSIONS, PieceCache, TiffLevel

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

__all__ = ["open_tiff", "stated_in_tiff"]


@dataclass(frozen=True)
class _OmeImage:
    """The image of an OME-TIFF.

    Attributes
    ----------
    images : int
        Number of images in the file, of which this is the first.
    channels, planes : int
        Number of channels (each sample of a channel counts), and z planes times time points.
    significant_bits : int or None
        Bits in use.
    fluorescent : bool
        Whether a channel has a fluorophore or an emission wavelength.
    files : int
        Number of files that have the planes; 0 or 1 for a single file.
    pixel_size : PixelSize
    """

    images: int = 1
    channels: int | None = None
    planes: int = 1
    significant_bits: int | None = None
    fluorescent: bool = False
    files: int = 0
    pixel_size: PixelSize = nothing


def _read_omexml(text: str) -> _OmeImage | None:
    """Read OME-XML.

    Parameters
    ----------
    text : str
        Description of the first page of a TIFF.

    Returns
    -------
    _OmeImage or None
        None if the text is not OME-XML, or is damaged.
    """
    if "<OME" not in text[:4096] and ":OME" not in text[:4096]:
        return None
    from defusedxml import ElementTree

    try:
        # Some writers end the text with a zero byte. Encode it, because XML in a str must not declare an encoding.
        root = ElementTree.fromstring(text.strip("\0 \r\n\t").encode(), forbid_dtd=True)
        images = list(_find(root, "Image"))
        pixels = next(_find(images[0], "Pixels"))
        return _describe(len(images), pixels)
    except (ValueError, SyntaxError, LookupError, StopIteration, RecursionError):
        return None


def _find(element: Element, name: str) -> Iterator[Element]:
    """Return descendants by name, whatever the version of the standard in their namespace."""
    return (child for child in element.iter() if child.tag == name or child.tag.endswith("}" + name))


def _describe(images: int, pixels: Element) -> _OmeImage:
    about = pixels.attrib
    bits = about.get("SignificantBits")
    channels = list(_find(pixels, "Channel"))
    files = {uuid.get("FileName", "") for uuid in _find(pixels, "UUID")}
    size = nothing
    if "PhysicalSizeX" in about or "PhysicalSizeY" in about:
        x = about.get("PhysicalSizeX", about.get("PhysicalSizeY"))
        y = about.get("PhysicalSizeY", x)
        unit_x, unit_y = about.get("PhysicalSizeXUnit", "µm"), about.get("PhysicalSizeYUnit", "µm")
        size = from_lengths(x, y, unit_x, unit_y, "PhysicalSize in its OME-XML")
    return _OmeImage(
        images=images,
        channels=int(about["SizeC"]) if "SizeC" in about else None,
        planes=int(about.get("SizeZ", 1)) * int(about.get("SizeT", 1)),
        significant_bits=int(bits) if bits is not None and bits.isdecimal() else None,
        fluorescent=any("EmissionWavelength" in channel.attrib or "Fluor" in channel.attrib for channel in channels),
        files=len(files),
        pixel_size=size,
    )


_MAX_PAGES = 64  # a pyramid has about ten pages; a stack has more
_RGB, _YCBCR, _GREY = 2, 6, 1
_PHOTOMETRIC = {0: "greyscale", 3: "palette", 4: "a mask", 5: "CMYK", 8: "CIELab", 32803: "a camera's raw mosaic"}
_CENTIMETRE_UM, _INCH_UM = 10_000.0, 25_400.0

# tifffile logs its repairs, which Python prints if logging is not configured. Relevant ones are raised as errors here.
logging.getLogger("tifffile").addHandler(logging.NullHandler())


def open_tiff(path: Path, *, orient: bool = True) -> Source:
    """Open a TIFF; with `orient`, its orientation (tag 274) is applied.

    Raises
    ------
    ImageError
        ``"unreadable"`` (damaged, cut short, an unknown compression), ``"not-rgb"``, ``"several-images"``,
        ``"empty"`` or ``"too-large"``.
    """
    import tifffile

    shown = printable(str(path))
    file: Any = None
    try:
        file = tifffile.TiffFile(path, _multifile=False)
        return _read_structure(file, shown, orient)
    except BaseException as error:
        if file is not None:
            file.close()
        if isinstance(error, ImageError) or not isinstance(error, Exception):
            raise
        if isinstance(error, MemoryError):
            raise ImageError("too-large", f"{shown} needs more memory than there is; export the file again") from error
        detail = printable(" ".join(str(error).split())[:200]) or type(error).__name__
        raise ImageError(
            "unreadable", f"{shown} is not a readable TIFF ({detail}); copy or export the file again"
        ) from error


def stated_in_tiff(data: bytes) -> PixelSize:
    """Return the pixel size in the metadata of the first image of a TIFF; `nothing` if they are unreadable."""
    import tifffile

    try:
        with tifffile.TiffFile(io.BytesIO(data), _multifile=False) as file:
            page: Any = file.pages[0]
            text = page.description or ""
            return _pixel_size(page, text, _read_omexml(text))
    except Exception:
        # Damage is reported when the pixels are read.
        return nothing


def _read_structure(file: Any, shown: str, orient: bool) -> Source:
    descriptor: int = file.filehandle.fileno()
    file_size = os.fstat(descriptor).st_size
    pages = _top_pages(file, shown)
    text = pages[0].description or ""
    ome = _read_omexml(text)
    base, rest = _split_pages(pages, text, ome, shown)
    for page in base:
        _check_page(page, len(base), shown)
    cache = PieceCache()
    levels = [TiffLevel(base, descriptor, file_size, cache, shown)]
    for smaller in [*_sub_pages(file, base), *([page] for page in rest)]:
        try:
            for page in smaller:
                _check_page(page, len(base), shown)
            level = TiffLevel(smaller, descriptor, file_size, cache, shown)
        except (ImageError, ValueError, AttributeError, TypeError):
            # A label, a macro image, or a damaged level; the full resolution does not depend on it.
            continue
        if level.dtype == levels[0].dtype and _is_smaller(levels[-1], level, levels[0]):
            levels.append(level)
    orientation = _orientation(base[0], text, ome) if orient else 1
    return Source(
        tuple(levels) if orientation == 1 else tuple(TurnedLevel(level, orientation) for level in levels),
        _pixel_size(base[0], text, ome),
        significant_bits=ome.significant_bits if ome is not None else None,
        close=file.close,
        orientation=orientation,
    )


def _orientation(page: Any, text: str, ome: _OmeImage | None) -> int:
    """Return the orientation to apply to all levels."""
    if ome is not None or text.startswith("Aperio"):
        # In these formats the axes are those of the file: Bio-Formats, OpenSlide and QuPath ignore the tag.
        return 1
    stated = page.tags.valueof("Orientation", 1)
    return int(stated) if stated in range(1, 9) else 1


def _top_pages(file: Any, shown: str) -> list[Any]:
    pages: list[Any] = []
    for index in range(_MAX_PAGES + 1):
        try:
            pages.append(file.pages[index])
        except IndexError:
            break
    if not pages:
        raise ImageError("empty", f"{shown} is a TIFF without an image; copy or export the file again")
    if len(pages) > _MAX_PAGES:
        raise _several(shown, f"more than {_MAX_PAGES} images")
    return pages


def _several(shown: str, what: str) -> ImageError:
    return ImageError("several-images", f"{shown} holds {what}; save the one image that is the field by itself")


def _split_pages(pages: list[Any], text: str, ome: _OmeImage | None, shown: str) -> tuple[list[Any], list[Any]]:
    """Return the pages of the field at full resolution, and those that may be smaller levels of it."""
    first = pages[0]
    channels = _stated_channels(text, ome, shown)
    samples = int(first.samplesperpixel)
    if samples == 1 and channels is not None and channels > 1:
        if channels != 3:
            raise ImageError("not-rgb", f"{shown} has {channels} channels, not red, green and blue; export it as RGB")
        if len(pages) < 3:
            what = "spread over several files, or cut short" if ome is not None and ome.files > 1 else "not all there"
            raise ImageError("unreadable", f"{shown} has 3 channels that are {what}; export it as one file")
        base, rest = pages[:3], pages[3:]
        if any(page.shape != first.shape or page.dtype != first.dtype for page in base):
            raise _several(shown, "several images of different sizes")
    else:
        base, rest = pages[:1], pages[1:]
    aperio = text.startswith("Aperio")
    if len(base) == 1 and not aperio:
        others = [page for page in rest if not page.is_reduced and not _is_level_of(first, page)]
        if others:
            raise _several(shown, "several images")
    elif len(base) == 3 and any(not page.is_reduced for page in rest):
        raise _several(shown, "several images")
    return base, [page for page in rest if len(base) == 1]


def _stated_channels(text: str, ome: _OmeImage | None, shown: str) -> int | None:
    """Return the number of channels in the metadata; raise an error for stacks and fluorescence."""
    if ome is not None:
        if ome.images > 1:
            raise _several(shown, f"{ome.images} images")
        if ome.planes > 1:
            raise _several(shown, f"{ome.planes} z planes or time points")
        if ome.fluorescent:
            raise ImageError("not-rgb", f"{shown} has fluorescence channels; a field is a bright-field image in RGB")
        return ome.channels
    if text.startswith("ImageJ="):
        about = _imagej(text)
        planes = _number(about.get("slices")) * _number(about.get("frames"))
        if planes > 1:
            raise _several(shown, f"{planes} z planes or time points")
        return _number(about.get("channels"))
    if text.startswith('{"shape"'):  # written by tifffile itself
        try:
            about = json.loads(text)
            shape, axes = list(about["shape"]), str(about.get("axes", ""))
            if len(shape) == 3 and (shape[0] == 3) and axes in ("", "CYX", "SYX"):
                return 3
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
    return None


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.isdecimal() else 1


def _imagej(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def _is_level_of(base: Any, page: Any) -> bool:
    """Return whether a page without the flag of reduced images may be a smaller level; old writers omit the flag."""
    return bool(
        page.imagewidth < base.imagewidth
        and page.imagelength < base.imagelength
        and abs(base.imagewidth / page.imagewidth - base.imagelength / page.imagelength)
        < 0.02 * base.imagewidth / page.imagewidth
        and page.samplesperpixel == base.samplesperpixel
        and page.dtype == base.dtype
    )


def _is_smaller(last: TiffLevel, level: TiffLevel, base: TiffLevel) -> bool:
    """Return whether a level continues the pyramid: smaller than the last one, with the proportions of the field."""
    if level.height >= last.height or level.width >= last.width:
        return False
    # Sizes are rounded at every level, so the sides of a small level may differ by two pixels.
    scale = base.width / level.width
    return abs(base.height / scale - level.height) <= 2 + 0.01 * level.height


def _sub_pages(file: Any, base: list[Any]) -> list[list[Any]]:
    """Return the sub-pages (SubIFDs) of the field's pages, level by level."""
    from tifffile import TiffPage

    offsets = [list(page.subifds or ()) for page in base]
    if len({len(each) for each in offsets}) != 1:
        return []
    levels = []
    for index in range(min(len(offsets[0]), _MAX_PAGES)):
        try:
            level = []
            for page, each in zip(base, offsets, strict=True):
                file.filehandle.seek(each[index])
                level.append(TiffPage(file, (page.index, index)))
        except Exception:
            # Skip a damaged level of the pyramid; the full resolution does not depend on it.
            continue
        levels.append(level)
    return levels


def _check_page(page: Any, pages: int, shown: str) -> None:
    """Raise an error unless a page is an image in red, green and blue with 8 or 16 bits."""

    def not_rgb(what: str) -> ImageError:
        return ImageError("not-rgb", f"{shown} {what}; convert it to RGB")

    photometric, samples = int(page.photometric), int(page.samplesperpixel)
    if photometric in _PHOTOMETRIC:
        raise not_rgb(f"is not RGB but {_PHOTOMETRIC[photometric]}")
    if photometric not in (_RGB, _YCBCR, _GREY):
        raise not_rgb(f"is not RGB (photometric interpretation {photometric})")
    if int(page.imagedepth) > 1:
        raise _several(shown, f"{page.imagedepth} z planes")
    if pages == 1:
        if samples == 1:
            raise not_rgb("is greyscale")
        if samples == 2 or samples > 4 or (samples == 4 and photometric != _RGB):
            raise not_rgb(f"has {samples} channels, not red, green and blue")
        if samples == 4 and tuple(int(extra) for extra in page.extrasamples) not in ((1,), (2,)):
            raise not_rgb("has a fourth channel that is not an alpha channel")
    elif samples != 1:
        raise not_rgb(f"has {pages} images of {samples} channels")
    if page.dtype is None or page.dtype.kind not in "u" or page.dtype.itemsize > 2:
        kind = {"f": "floating point", "i": "signed"}.get(getattr(page.dtype, "kind", ""), "an unusual depth")
        raise not_rgb(f"has pixels of {kind} ({page.bitspersample} bits), not of 8 or 16 bits")
    if not isinstance(page.bitspersample, int) or not 8 <= page.bitspersample <= 16:
        raise not_rgb(f"has {page.bitspersample} bits per channel, not 8 or 16")
    compression = int(page.compression)
    if compression not in COMPRESSIONS:
        name = getattr(page.compression, "name", compression)
        raise ImageError("unreadable", f"{shown} is compressed with {name}, which is not read; save it with Deflate")
    if (photometric == _YCBCR and compression != 7) or compression == 33003:
        # Decoders return the stored luma and chroma, which would be interpreted as wrong colours.
        raise not_rgb(f"stores luma and chroma (YCbCr) with {COMPRESSIONS[compression]} compression")


def _pixel_size(page: Any, text: str, ome: _OmeImage | None) -> PixelSize:
    """Return the pixel size from the most specific metadata."""
    if ome is not None and ome.pixel_size != nothing:
        return ome.pixel_size
    resolution = _resolution(page)
    if text.startswith("ImageJ=") and resolution is not None:
        unit = _imagej(text).get("unit", "")
        if unit and unit.lower() not in ("pixel", "pixels"):
            x, y = resolution
            return from_lengths(1 / x, 1 / y, unit, _imagej(text).get("yunit", unit), "the calibration of ImageJ")
    if text.startswith("Aperio"):
        stated = re.search(r"\|\s*MPP\s*=\s*([^|\s]+)", text)
        if stated:
            return from_lengths(stated[1], stated[1], "um", "um", "MPP")
    factor = {2: _INCH_UM, 3: _CENTIMETRE_UM}.get(int(page.tags.valueof("ResolutionUnit", 2)))
    if resolution is None or factor is None:
        return nothing
    return from_density(*resolution, factor)


def _resolution(page: Any) -> tuple[float, float] | None:
    """Return pixels per unit in x and y; None if they are missing or impossible."""
    sides = []
    for name in ("XResolution", "YResolution"):
        value = page.tags.valueof(name)
        try:
            numerator, denominator = (int(part) for part in value)
            sides.append(numerator / denominator)
        except (TypeError, ValueError, ZeroDivisionError):
            return None
    return (sides[0], sides[1]) if all(side > 0 for side in sides) else None
