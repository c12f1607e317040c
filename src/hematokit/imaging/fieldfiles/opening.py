"""Opening a field, whatever it is.

PNG, JPEG and BMP: decoded whole, by the same rules as single crops (`hematokit.imaging.reading`).

Vendors' formats, through `bioio` and its readers (the extra ``hematokit[bioio]``).

Such a file is decoded whole: the readers work plane by plane.

Names of fields: short, unique, fit for a folder, and the same in every run.

Which files and folders are fields, and what they are called.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from hematokit.errors import ImageError
from hematokit.imaging.fieldfiles import omezarr
from hematokit.imaging.fieldfiles import opening as vendor
from hematokit.imaging.fieldfiles.field import (
    MAX_WHOLE_BYTES,
    ArrayLevel,
    Field,
    Source,
    check_size,
    drop_alpha,
    unreadable,
)
from hematokit.imaging.fieldfiles.omezarr import is_image_folder, stored_fields
from hematokit.imaging.fieldfiles.pixelsize import PixelSize, check_given, from_density, from_lengths, nothing
from hematokit.imaging.reading import (
    IMAGE_SUFFIXES,
    MAX_PIXELS,
    decode_rgb,
    open_image,
    printable,
    read_bytes,
    read_orientation,
)

__all__ = [
    "SUFFIXES",
    "VENDOR_SUFFIXES",
    "field_name",
    "file_orientation",
    "list_fields",
    "name_fields",
    "open_field",
    "open_plain",
    "open_vendor",
    "safe_name",
    "stated_in_plain",
    "stated_pixel_size",
]


def open_plain(path: Path, max_pixels: int | None = None, *, orient: bool = True) -> Source:
    """Read a PNG, JPEG or BMP file of at most `max_pixels`, if given, and never more than `MAX_PIXELS`.

    With `orient`, the orientation that the metadata state is applied.

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
    return Source((ArrayLevel(pixels),), stated_in_plain(data), orientation=orientation)


def stated_in_plain(data: bytes) -> PixelSize:
    """Pixel size by the density that a PNG, JPEG or BMP file states; `nothing` where it cannot be read."""
    try:
        with open_image(data) as image:
            x, y = image.info["dpi"]
            return from_density(float(x), float(y), 25400.0)
    except Exception:
        # The pixels were decoded: whatever is wrong with the density must not stop that.
        return nothing


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


_LONGEST: Final = 100

# What Windows keeps for devices; results move between systems.
_RESERVED: Final = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def safe_name(name: str) -> str:
    """Turn a file's stem into one that any file system takes as a folder's name.

    Letters and digits of all scripts, and ``. _ + -``, stay; the rest becomes ``_``.

    Examples
    --------
    >>> safe_name("smear 3/field*7")
    'smear_3_field_7'
    """
    normal = unicodedata.normalize("NFC", name.encode("utf-8", "replace").decode("utf-8"))
    plain = re.sub(r"[^\w.+-]", "_", normal).strip(".")
    while len(plain.encode()) > _LONGEST:
        plain = plain[:-1]
    plain = plain.rstrip(".") or "field"
    return f"_{plain}" if _RESERVED.fullmatch(plain) else plain


def name_fields(stems: Mapping[str, str], known: Mapping[str, str] | None = None) -> dict[str, str]:
    """Give each field an id: its stem, or where several have that, the stem and a piece of a hash of its key.

    Parameters
    ----------
    stems : mapping of str to str
        Stem by key; a key is what tells fields apart for good, a path say.
    known : mapping of str to str, optional
        Ids by key that were given before; they stay.

    Returns
    -------
    dict of str to str
        Id by key, for every key of `stems`. No two differ by upper and lower case only.
    """
    known = known or {}
    ids = {key: known[key] for key in stems if key in known}
    taken = {field_id.casefold() for field_id in known.values()}
    plain = {key: safe_name(stem) for key, stem in stems.items() if key not in ids}
    counts = Counter(name.casefold() for name in plain.values())
    for key, name in plain.items():
        chosen = name
        if counts[name.casefold()] > 1 or name.casefold() in taken:
            digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
            chosen = next(
                longer for length in range(8, 65, 8) if (longer := f"{name}-{digest[:length]}").casefold() not in taken
            )
        taken.add(chosen.casefold())
        ids[key] = chosen
    return ids


SUFFIXES = IMAGE_SUFFIXES | {".btf", ".tf8"} | VENDOR_SUFFIXES
"""File name endings, lower case, that mark a file in a folder as a field."""

_DOUBLE = (".ome", ".zarr")  # slide.ome.tif, slide.zarr.ome.zarr: the ending before the ending belongs to it


def field_name(path: Path) -> str:
    """Return a field's name: the file's name without its endings.

    Examples
    --------
    >>> [field_name(Path(name)) for name in ("slide1.ome.tif", "a.b.PNG", "slide1.ome.zarr", "field-7")]
    ['slide1', 'a.b', 'slide1', 'field-7']
    """
    name = path.name or path.resolve().name
    stem, _, ending = name.rpartition(".")
    if not stem or f".{ending.lower()}" not in SUFFIXES | {".zarr"}:
        return name
    for extra in _DOUBLE:
        if stem.lower().endswith(extra) and len(stem) > len(extra):
            stem = stem[: -len(extra)]
    return stem


def list_fields(paths: Sequence[Path]) -> list[Path]:
    """Find the fields in files and folders.

    A folder is searched, with all its folders, for files whose ending is one of `SUFFIXES`
    and for OME-Zarr images; hidden files and folders are left out. A folder that is a store of hematokit stands for
    the fields in it.

    Parameters
    ----------
    paths : sequence of Path

    Returns
    -------
    list of Path
        Each once; the paths in the order given, what is found in a folder sorted by name.

    Raises
    ------
    ImageError
        ``"missing"`` if a path does not exist, ``"not-an-image"`` for a file of another ending, ``"no-fields"`` if
        nothing is found in one of the folders.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        shown = printable(str(path))
        try:
            mode = path.stat().st_mode
        except (OSError, ValueError) as error:
            raise ImageError("missing", f"{shown} does not exist or cannot be reached; check the path") from error
        if not stat.S_ISDIR(mode):
            if path.suffix.lower() not in SUFFIXES:
                raise ImageError(
                    "not-an-image",
                    f"{shown} has none of the endings of fields: {', '.join(sorted(SUFFIXES))}, or .zarr for a folder",
                )
            found.setdefault(path.absolute(), path)
            continue
        inside = sorted(_search(path, set()), key=lambda file: file.parts)
        if not inside:
            raise ImageError(
                "no-fields", f"{shown} holds no fields; give image files, OME-Zarr images, or a folder of them"
            )
        for file in inside:
            found.setdefault(file.absolute(), file)
    if not found:
        raise ImageError("no-fields", "no fields were given; give image files, OME-Zarr images, or a folder of them")
    return list(found.values())


def _search(folder: Path, seen: set[tuple[int, int]]) -> Iterator[Path]:
    """Fields below a folder; folders that were `seen` are left out, so that links in a circle end."""
    try:
        about = folder.stat()
        if (about.st_dev, about.st_ino) in seen:
            return
        seen.add((about.st_dev, about.st_ino))
        stored = stored_fields(folder)
        if stored is not None:
            yield from stored
            return
        if is_image_folder(folder):
            yield folder
            return
        with os.scandir(folder) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
    except OSError as error:
        shown = printable(str(folder))
        raise ImageError("unreadable", f"{shown} cannot be listed ({error.strerror}); check its permissions") from error
    for entry in entries:
        if entry.name.startswith("."):
            continue
        path = folder / entry.name
        try:
            if entry.is_dir():
                yield from _search(path, seen)
            elif path.suffix.lower() in SUFFIXES and entry.is_file():
                yield path
        except OSError:
            # A link that leads nowhere or to itself is no field.
            continue


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

    return open_plain(path, max_pixels, orient=orient)
