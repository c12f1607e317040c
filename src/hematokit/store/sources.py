"""The sources of an import: class folders, tables of paths and labels, and zip files, listed as items.

Each source lists its items in an order that depends only on names. An item that cannot be used is listed too, with
the reason, so that nothing is passed over in silence.
"""

from __future__ import annotations

import os
import posixpath
import re
import stat
import threading
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from lzma import LZMAError
from pathlib import Path, PurePosixPath

from hematokit.errors import ImageError, StoreError, printable
from hematokit.imaging.fieldfiles.pixelsize import check_given
from hematokit.imaging.reading import IMAGE_SUFFIXES, read_bytes
from hematokit.store.smears import read_named_columns
from hematokit.taxonomy import Taxonomy

__all__ = ["Item", "Listing", "open_source"]

_COLUMNS = {
    "path": ("path", "file", "filename"),
    "label": ("label", "class"),
    "smear": ("smear_id", "smear"),
    "patient": ("patient_id", "patient"),
    "pixel_size": ("pixel_size_um",),
}


@dataclass(frozen=True, slots=True)
class _LabelRow:
    """One line of a table of labels: its number, the path as written, and what it states of that file."""

    line: int
    path: str
    label: str
    smear: str
    patient: str
    pixel_size_um: float | None = None


def _read_label_rows(table: Path) -> list[_LabelRow]:
    """Read a CSV with the columns ``path`` and ``label``, and possibly ``smear_id``, ``patient_id`` and
    ``pixel_size_um``.

    Separated by commas, semicolons or tabs, in UTF-8, with a header; other columns are ignored.

    Raises
    ------
    StoreError
        If it cannot be read, lacks a column, or has a line without a path or with an invalid pixel size.
    """
    needs = "'path' and 'label' (and may have 'smear_id', 'patient_id' and 'pixel_size_um')"
    rows = [
        _LabelRow(
            line,
            row["path"],
            row["label"],
            printable(row["smear"]),
            printable(row["patient"]),
            _pixel_size(row["pixel_size"], f"{printable(str(table))}, line {line}"),
        )
        for line, row in read_named_columns(table, _COLUMNS, ("path", "label"), needs)
    ]
    nameless = next((row.line for row in rows if not row.path or "\0" in row.path), None)
    if nameless is not None:
        raise StoreError(f"{printable(str(table))}, line {nameless}: no usable path; fill it in or remove the line")
    return rows


def _pixel_size(text: str, where: str) -> float | None:
    if not text:
        return None
    try:
        size = float(text)
        check_given(size)
    except (ValueError, ImageError) as error:
        raise StoreError(
            f"{where}: pixel_size_um {printable(text)!r} is no pixel size; give micrometres per pixel, such as 0.1, or "
            "leave it empty"
        ) from error
    return size


@dataclass(frozen=True, slots=True)
class Item:
    """One file that an import considers.

    Attributes
    ----------
    name : str
        Path inside the source, with ``/``; what identifies the file together with its bytes.
    source : str
        The path as given by the user, for the cells table.
    label, label_source, smear_id, patient_id : str
    read : callable
        Returns the file's bytes, at most as many as it is given, or raises `ImageError`.
    problem : ImageError or None
        Why the file cannot be used, where the listing alone shows that.
    pixel_size_um : float or None
        Micrometres per pixel of the file as a table states it.
    """

    name: str
    source: str
    read: Callable[[int], bytes] = field(repr=False)
    label: str = ""
    label_source: str = ""
    smear_id: str = ""
    patient_id: str = ""
    problem: ImageError | None = None
    pixel_size_um: float | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """All items of a source.

    Attributes
    ----------
    items : list of Item
        In the order of import.
    ignored : dict of str to int
        Files that are no images by their name: how many of each ending.
    """

    items: list[Item]
    ignored: dict[str, int]


@contextmanager
def open_source(source: Path, taxonomy: Taxonomy, labels: Path | None = None) -> Iterator[Listing]:
    """List the files of `source`, which stay readable inside the block.

    Parameters
    ----------
    source : Path
        A folder of class folders, a ``.csv`` of paths and labels, or a ``.zip`` of such a folder.
    taxonomy : Taxonomy
        The class codes that folders or labels may have.
    labels : Path, optional
        A CSV whose paths are inside `source` (a folder or zip); only the files it lists are imported, with its labels.

    Raises
    ------
    StoreError
        If the source is missing, empty, of an unknown kind, or has labels or class folders that the taxonomy lacks.
    """
    if not source.exists():
        raise StoreError(f"{_show(source)} does not exist; give a folder of class folders, a .csv or a .zip")
    if source.is_dir():
        listing = _table(labels, source, _FolderFiles(source), taxonomy) if labels else _folder(source, taxonomy)
        yield _not_empty(listing, source)
    elif source.suffix.lower() == ".csv":
        if labels:
            raise StoreError(f"{_show(source)} is a table of labels already; a second one goes with a folder or zip")
        yield _not_empty(_table(source, source.parent, _FolderFiles(source.parent), taxonomy), source)
    elif source.suffix.lower() == ".zip":
        with _open_zip(source) as archive:
            files = _ZipFiles(source, archive)
            listing = _table(labels, source, files, taxonomy) if labels else _zip(files, taxonomy)
            yield _not_empty(listing, source)
    else:
        raise StoreError(f"{_show(source)} is not a folder, .csv or .zip; put the images in a folder per class")


def _show(path: Path | str) -> str:
    return printable(str(path))


def _not_empty(listing: Listing, source: Path) -> Listing:
    if not listing.items:
        found = ", ".join(f"{count} {suffix or 'without ending'}" for suffix, count in sorted(listing.ignored.items()))
        raise StoreError(
            f"{_show(source)} holds no JPEG, PNG, TIFF or BMP image{f' (only {found})' if found else ''}; "
            "give the folder whose subfolders are named after the classes"
        )
    return listing


# --- class folders -------------------------------------------------------------------------------------------------


class _Codes:
    """Looks up class codes in the names of folders and in tables, in upper or lower case."""

    def __init__(self, taxonomy: Taxonomy) -> None:
        self._taxonomy = taxonomy
        # A taxonomy has no two codes that differ only in case.
        self._folded = {code.casefold(): code for code in taxonomy.codes}

    def find(self, name: str) -> str | None:
        return self._folded.get(name.casefold())

    def nearest(self, folders: tuple[str, ...]) -> str | None:
        """Return the code of the innermost folder that has one."""
        return next((code for code in map(self.find, reversed(folders)) if code), None)

    def unknown(self, where: str, names: list[str]) -> StoreError:
        shown = ", ".join(repr(name) for name in names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        return StoreError(
            f"{where}: no class of taxonomy {self._taxonomy.name!r} for {shown}; rename to one of "
            f"{', '.join(self._taxonomy.codes)}, or give a taxonomy file that has it (--taxonomy FILE.yaml)"
        )


def _label_by_folder(found: list[Item], source: Path, taxonomy: Taxonomy, own_name: str | None) -> list[Item]:
    """Give every item the class of its folder; a folder under no class is an error, not a silent loss."""
    codes = _Codes(taxonomy)
    top = (own_name,) if own_name else ()
    labelled: list[Item] = []
    unknown: dict[str, None] = {}
    for item in found:
        folders = PurePosixPath(item.name).parts[:-1]
        label = codes.nearest(top + folders)
        if label is None and item.problem is None:
            unknown["/".join(folders) or "."] = None
        labelled.append(_relabel(item, label or "", "folder"))
    if unknown:
        raise codes.unknown(f"{_show(source)}", list(unknown))
    return labelled


def _relabel(item: Item, label: str, label_source: str, smear_id: str = "", patient_id: str = "") -> Item:
    return Item(item.name, item.source, item.read, label, label_source, smear_id, patient_id, item.problem)


def _is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def _is_litter(parts: tuple[str, ...]) -> bool:
    """Whether a file is hidden, or a copy of metadata that macOS leaves in folders and archives."""
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


class _FolderFiles:
    """Files of a folder, none of which may be outside it."""

    def __init__(self, root: Path) -> None:
        self._given = root
        self._real = Path(os.path.realpath(root))

    def item(self, name: str) -> Item:
        """Return the item of the file at `name`, a path below the folder with ``/``."""
        path = self._given / name
        problem = None
        real = Path(os.path.realpath(path))
        if not real.is_relative_to(self._real):
            problem = ImageError(
                "outside-folder",
                f"{_show(path)} leads out of {_show(self._given)}; copy the file in, or import the folder it is in",
            )
        shown = _show(path)
        return Item(_show(name), shown, partial(self._read, name), problem=problem)

    def _read(self, name: str, limit: int) -> bytes:
        path = self._given / name
        return read_bytes(path, max_bytes=limit, name=str(path))

    def walk(self) -> Iterator[str]:
        """Names of all files in no particular order; folders that are links are listed, not entered."""

        def fail(error: OSError) -> None:
            raise StoreError(
                f"folder {_show(error.filename)} cannot be read ({error.strerror}); check its permissions"
            ) from error

        for folder, subfolders, files in os.walk(self._given, onerror=fail):
            if "zarr.json" in files:
                subfolders.clear()  # a store in the folder is no source
                continue
            inside = os.path.relpath(folder, self._given)
            prefix = Path(inside).parts
            links = [name for name in subfolders if os.path.islink(os.path.join(folder, name))]  # noqa: PTH114, PTH118
            for name in files + links:
                yield "/".join((*prefix, name))


def _folder(root: Path, taxonomy: Taxonomy) -> Listing:
    files = _FolderFiles(root)
    items: list[Item] = []
    ignored: Counter[str] = Counter()
    for name in sorted(files.walk()):
        if _is_litter(PurePosixPath(name).parts):
            continue
        linked_folder = not _is_image(name) and (root / name).is_dir()
        if not _is_image(name) and not linked_folder:
            ignored[_show(PurePosixPath(name).suffix.lower())] += 1
            continue
        item = files.item(name)
        if linked_folder:
            if item.problem is None:
                continue  # its files are met in their own place
            item = _relabel(item, "", "folder")
        items.append(item)
    own = _Codes(taxonomy).find(Path(os.path.realpath(root)).name)
    return Listing(_label_by_folder(items, root, taxonomy, own), dict(ignored))


# --- zip files -----------------------------------------------------------------------------------------------------


@contextmanager
def _open_zip(source: Path) -> Iterator[zipfile.ZipFile]:
    try:
        archive = zipfile.ZipFile(source)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        detail = printable(str(error))
        raise StoreError(f"{_show(source)} cannot be read as a zip file ({detail}); copy it again") from error
    with archive:
        yield archive


_DRIVE = re.compile(r"[A-Za-z]:")


class _ZipFiles:
    """Files of a zip archive, read one by one into memory, never written to disk."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self._path = path
        self._archive = archive
        self._lock = threading.Lock()  # opening entries counts references without one
        # Archives made on Windows may separate folders by backslashes.
        self.entries = {info.filename.replace("\\", "/"): info for info in archive.infolist() if not info.is_dir()}

    def item(self, name: str) -> Item:
        """Return the item of the entry `name`."""
        shown = f"{_show(self._path)}/{_show(name)}"
        info = self.entries.get(name)
        problem = None
        if name.startswith("/") or ".." in name.split("/") or _DRIVE.match(name):
            problem = ImageError("outside-folder", f"{shown} leads out of the zip file; make it again without that")
        elif info is None:
            problem = ImageError("unreadable", f"{shown} is not in the zip file; correct the path")
        elif stat.S_ISLNK(info.external_attr >> 16):
            problem = ImageError("outside-folder", f"{shown} is a link, not a file; zip the file itself")
        elif info.flag_bits & 0x1:
            problem = ImageError("unreadable", f"{shown} is encrypted; make the zip file without a password")
        return Item(_show(name), shown, partial(self._read, name), problem=problem)

    def _read(self, name: str, limit: int) -> bytes:
        info, shown = self.entries[name], f"{_show(self._path)}/{_show(name)}"
        too_large = ImageError("too-large", f"{shown} is larger than {limit:,} bytes unpacked; give a smaller file")
        if info.file_size > limit:
            raise too_large
        try:
            with self._lock, self._archive.open(info) as file:
                # The declared size may be wrong, so what is unpacked is limited too.
                data = file.read(limit + 1)
        except (zipfile.BadZipFile, zlib.error, LZMAError, OSError, EOFError, RuntimeError, ValueError) as error:
            detail = printable(str(error))
            raise ImageError("unreadable", f"{shown} cannot be unpacked ({detail}); make the zip file again") from error
        if len(data) > limit:
            raise too_large
        if not data:
            raise ImageError("empty", f"{shown} is empty (0 bytes); make the zip file again")
        return data


def _zip(files: _ZipFiles, taxonomy: Taxonomy) -> Listing:
    items: list[Item] = []
    ignored: Counter[str] = Counter()
    for name in sorted(files.entries):
        if _is_litter(tuple(part for part in name.split("/") if part not in ("..", "."))):
            continue
        if _is_image(name):
            items.append(files.item(name))
        else:
            ignored[_show(PurePosixPath(name).suffix.lower())] += 1
    return Listing(_label_by_folder(items, files._path, taxonomy, None), dict(ignored))


# --- tables --------------------------------------------------------------------------------------------------------


def _table(table: Path, base: Path, files: _FolderFiles | _ZipFiles, taxonomy: Taxonomy) -> Listing:
    """List the files of a CSV of paths and labels."""
    codes = _Codes(taxonomy)
    rows = _read_label_rows(table)
    unknown = {row.label: None for row in rows if row.label and codes.find(row.label) is None}
    if unknown:
        lines = ", ".join(str(row.line) for row in rows if row.label in unknown)
        lines = lines if len(lines) <= 30 else lines[:30].rsplit(",", 1)[0] + ", ..."
        raise codes.unknown(f"{_show(table)} (line {lines})", list(unknown))
    found: dict[str, tuple[Item, set[tuple[str, str, str, float | None]]]] = {}
    for row in rows:
        item = _inside(row.path, base, files)
        found.setdefault(item.name, (item, set()))[1].add(
            (codes.find(row.label) or "", row.smear, row.patient, row.pixel_size_um)
        )
    items = []
    for item, entries in found.values():
        label, smear, patient, pixel_size = min(entries, key=str)
        problem = item.problem
        if len(entries) > 1:
            problem = ImageError(
                "conflicting-rows", f"{item.source} stands in {_show(table)} with different entries; keep one"
            )
        elif not label:
            problem = ImageError("no-label", f"{item.source} has no label in {_show(table)}; give it a class code")
        items.append(Item(item.name, item.source, item.read, label, "csv", smear, patient, problem, pixel_size))
    return Listing(items, {})


def _inside(path: str, base: Path, files: _FolderFiles | _ZipFiles) -> Item:
    """Return the item at a path of a table, below `base`."""
    name = path
    if isinstance(files, _FolderFiles):
        if "\\" in name and not (base / name).exists():
            name = name.replace("\\", "/")  # written on Windows
        if Path(name).is_absolute():
            name = os.path.relpath(name, os.path.realpath(base))
        name = os.path.normpath(name).replace(os.sep, "/")
    else:
        name = posixpath.normpath(name.replace("\\", "/"))
    return files.item(name)
