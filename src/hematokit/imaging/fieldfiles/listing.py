"""Which files and folders are fields, their names, and their ids."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from hematokit.errors import ImageError, printable
from hematokit.imaging.fieldfiles.omezarr import is_image_folder, stored_fields
from hematokit.imaging.reading import IMAGE_SUFFIXES

__all__ = ["SUFFIXES", "VENDOR_SUFFIXES", "field_name", "list_fields", "name_fields", "safe_name"]

VENDOR_SUFFIXES: Final = frozenset({".czi", ".nd2", ".lif", ".oib", ".oif", ".vsi", ".dv"})
"""Endings, lower case, of vendors' formats; those of Zeiss and Nikon have readers in the extra ``hematokit[bioio]``."""

SUFFIXES: Final = IMAGE_SUFFIXES | {".btf", ".tf8"} | VENDOR_SUFFIXES
"""Endings, lower case, of files that are fields."""

_DOUBLE: Final = (".ome", ".zarr")
"""Endings before the ending that belong to it: slide.ome.tif, slide.zarr.ome.zarr."""

_LONGEST: Final = 100
"""Bytes of the longest id."""

_RESERVED: Final = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
"""Names that Windows keeps for devices: results move between systems."""


def list_fields(paths: Sequence[Path]) -> list[Path]:
    """Return the fields in files and folders.

    A folder is searched recursively for files whose ending is one of `SUFFIXES` and for OME-Zarr images; hidden files
    and folders are left out. A store of hematokit has the fields inside it.

    Parameters
    ----------
    paths : sequence of Path

    Returns
    -------
    list of Path
        Each once; the paths in the order given, the content of a folder sorted by name.

    Raises
    ------
    ImageError
        ``"missing"`` if a path does not exist, ``"not-an-image"`` for a file of another ending, ``"no-fields"`` if
        there is no field in one of the folders.
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
    """Yield the fields below a folder, except in folders `seen` before: links may form a circle."""
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


def field_name(path: Path) -> str:
    """Return the name of a field: the file's name without its endings.

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


def safe_name(name: str) -> str:
    """Return a name that every file system accepts for a folder.

    Letters and digits of all scripts, and ``. _ + -``, are kept; other characters become ``_``.

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
    """Return an id for each field: its stem, or where several have the same, the stem and part of a hash of its key.

    Parameters
    ----------
    stems : mapping of str to str
        Stem by key; a key identifies a field for good, such as its path.
    known : mapping of str to str, optional
        Ids by key from earlier calls; they stay.

    Returns
    -------
    dict of str to str
        Id by key, for every key of `stems`. No two differ in case only.
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
