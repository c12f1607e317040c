"""Which files and folders are fields, and what they are called."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from hematokit.errors import ImageError
from hematokit.imaging.fieldfiles.omezarr import is_image_folder, stored_fields
from hematokit.imaging.fieldfiles.vendor import VENDOR_SUFFIXES
from hematokit.imaging.reading import IMAGE_SUFFIXES, printable

__all__ = ["SUFFIXES", "field_name", "list_fields"]

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
