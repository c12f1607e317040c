"""Fields in files and folders, their names, and their ids."""

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
"""Suffixes, in lower case, of vendors' formats; the extra ``hematokit[bioio]`` has readers for Zeiss and Nikon."""

SUFFIXES: Final = IMAGE_SUFFIXES | {".btf", ".tf8"} | VENDOR_SUFFIXES
"""Suffixes, in lower case, of files that are fields."""

_DOUBLE: Final = (".ome", ".zarr")
"""Additional suffixes before the last one, as in slide.ome.tif and slide.zarr.ome.zarr."""

_LONGEST: Final = 100
"""Largest length of an id in bytes."""

_RESERVED: Final = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
"""Names reserved for devices by Windows; they are avoided because results are moved between systems."""


def list_fields(paths: Sequence[Path]) -> list[Path]:
    """Return the fields in files and folders.

    A folder is searched recursively for files with one of the `SUFFIXES` and for OME-Zarr images; hidden files and
    folders are skipped. The fields in a hematokit store are those stored in it.

    Parameters
    ----------
    paths : sequence of Path
        Files and folders.

    Returns
    -------
    list of Path
        Fields without duplicates, in the order of `paths`; those in a folder are sorted by name.

    Raises
    ------
    ImageError
        ``"missing"`` if a path does not exist, ``"not-an-image"`` for a file with another suffix, ``"no-fields"`` if a
        folder has no field.
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
    """Yield the fields below a folder, except in folders already `seen`, because links may form a cycle."""
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
            # Skip broken and circular links.
            continue


def field_name(path: Path) -> str:
    """Return the name of a field: the file name without its suffixes.

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
    """Return a name that is valid for a folder on every file system.

    Letters and digits of all scripts and ``. _ + -`` are kept; other characters are replaced by ``_``.

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
    """Return an id for each field: its stem, followed by part of a hash of its key if several fields share the stem.

    Parameters
    ----------
    stems : mapping of str to str
        Stem by key; a key identifies a field permanently, such as its path.
    known : mapping of str to str, optional
        Ids by key from earlier calls, which are kept.

    Returns
    -------
    dict of str to str
        Id by key, for every key of `stems`. Ids are unique even if case is ignored.
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
