"""Smears and patients: a CSV that states them for files, and checks of their identifiers.

They decide whether the cells of one patient stay on one side of a split.
"""

from __future__ import annotations

import csv
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

import pandas as pd

from hematokit.errors import FieldError, StoreError, printable, shell_word, some_of
from hematokit.imaging.fieldfiles import field_name
from hematokit.imaging.fieldfiles.listing import safe_name

__all__ = [
    "OTHER_SMEARS",
    "SMEAR_COLUMNS",
    "SmearMatch",
    "SmearTable",
    "composed",
    "count_other_smears",
    "id_warnings",
    "load_smears",
    "match_smears",
    "on_several_sides",
    "other_smears",
    "read_named_columns",
]

SMEAR_COLUMNS: Final = ("smear_id", "patient_id")
"""Columns of cells and fields that say where they are from."""

OTHER_SMEARS: Final = ("smear-differs", "patient-differs")
"""Reasons to refuse what is in a store with another smear or patient."""


def composed(name: str) -> str:
    """Return a name with composed accents: they look the same as decomposed ones, which macOS writes in file names."""
    return unicodedata.normalize("NFC", name)


def id_warnings(smears: Sequence[str], patients: Sequence[str], what: str) -> list[str]:
    """Return what is doubtful about the smears and patients of cells or fields.

    Parameters
    ----------
    smears, patients : sequence of str
        One of each for every cell or field; empty where unknown.
    what : str
        Their owner, for the text: ``"cells"``.

    Returns
    -------
    list of str
        A line each: patients known for some only, identifiers that differ by case or spaces only, and
        smears with several patients.
    """
    # As for groups, composed and decomposed accents are equal.
    table = pd.DataFrame({"smear": list(map(composed, smears)), "patient": list(map(composed, patients))}, dtype=object)
    lines = []
    unknown = int((table["patient"] == "").sum())
    if 0 < unknown < len(table):
        lines.append(f"{unknown} of {len(table)} {what} have no patient, though the others have one")
    pairs = table.drop_duplicates()
    for name in ("patient", "smear"):
        known = pairs.loc[pairs[name] != "", name].drop_duplicates().sort_values()
        alike = [list(group) for _, group in known.groupby(known.map(_essence)) if len(group) > 1]
        if alike:
            listed = some_of([" and ".join(map(repr, group)) for group in alike])
            lines.append(
                f"{name}s {listed} differ only by case or spaces and count as different {name}s; write each in one way"
            )
    both = pairs[(pairs["smear"] != "") & (pairs["patient"] != "")]
    several = [
        f"{smear!r} of {' and '.join(map(repr, sorted(group)))}"
        for smear, group in both.groupby("smear")["patient"]
        if len(group) > 1
    ]
    if several:
        lines.append(f"a smear is of one patient, but these have several: {some_of(several)}")
    return lines


def count_other_smears(rejects: Iterable[tuple[str, str, str]]) -> int:
    """Count the files refused because of their smear or patient, given the source, reason and message of each."""
    return sum(reason in OTHER_SMEARS for _, reason, _ in rejects)


def other_smears(count: int, store: str | Path, table: str | Path | None) -> list[str]:
    """Return a warning of files that are in a store with another smear or patient than a table gives, or none.

    Parameters
    ----------
    count : int
        Number of these files.
    store : str or Path
        The store.
    table : str or Path, optional
        The table.
    """
    if not count:
        return []
    return [
        f"{count} files are in the store with another smear or patient, which stays as it was: to set it, run "
        f"'hematokit store set-smears {shell_word(store)} {shell_word(table or 'TABLE.csv')}'"
    ]


def on_several_sides(cells: pd.DataFrame, column: str) -> list[str]:
    """Return the patients, smears or groups whose cells a split divides.

    Parameters
    ----------
    cells : DataFrame
        With ``split``, empty for cells in no split.
    column : str
        ``"patient_id"``, ``"smear_id"`` or ``"group"``; empty values are ignored.

    Returns
    -------
    list of str
        Sorted.
    """
    divided = cells[(cells["split"] != "") & (cells[column] != "")]
    sides = divided.groupby(column)["split"].nunique()
    return [str(name) for name in sides.index[sides > 1]]


def _essence(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


_COLUMNS: Final = {
    "file": ("file", "path", "source", "filename", "field_id", "field"),
    "smear": ("smear_id", "smear", "slide_id", "slide"),
    "patient": ("patient_id", "patient"),
}


@dataclass(frozen=True, slots=True)
class _Entry:
    line: int
    text: str
    parts: tuple[str, ...]
    smear: str
    patient: str

    @property
    def said(self) -> tuple[str, str]:
        return self.smear, self.patient


@dataclass(frozen=True)
class SmearTable:
    """Smear and patient of files.

    Attributes
    ----------
    path : Path
        The CSV.
    entries : tuple
        Its lines.
    """

    path: Path
    entries: tuple[_Entry, ...]
    _exact: dict[Path, _Entry] = field(repr=False)
    _by_end: dict[str, list[_Entry]] = field(repr=False)
    # The file that a line was used for: one line must not match two files of one name.
    _used: dict[int, Path] = field(default_factory=dict, repr=False)
    _used_exactly: set[int] = field(default_factory=set, repr=False)

    def lookup(self, path: str | Path, field_id: str = "") -> tuple[str, str]:
        """Return the smear and patient of a field.

        A line of the table names a file by its path (absolute, or relative to the folder of the CSV), by the end of
        its path, by its name with or without the ending, or by the field's id; the first of these that fits counts.

        Parameters
        ----------
        path : path
            The field's file.
        field_id : str
            Its id.

        Returns
        -------
        smear_id, patient_id : str
            Empty where the table does not name the field.

        Raises
        ------
        FieldError
            If several lines name it with different entries, or a line without a folder matches two files.
        """
        place = Path(path).resolve()
        exact = self._exact.get(place)
        if exact is not None:
            self._used[exact.line] = place
            return exact.said
        found = [entry for entry in self._matching(place, field_id) if entry.line not in self._used_exactly]
        if not found:
            return "", ""
        first = found[0]
        other = next((entry for entry in found if entry.said != first.said), None)
        shown = printable(str(path))
        if other is not None:
            raise FieldError(
                f"{printable(str(self.path))}: lines {first.line} and {other.line} both name {shown} and differ; write "
                "the path from the folder of the CSV, so that each file is named once"
            )
        for entry in found:
            used = self._used.setdefault(entry.line, place)
            if used != place:
                raise FieldError(
                    f"{printable(str(self.path))}, line {entry.line}: {printable(entry.text)!r} names both "
                    f"{printable(str(used))} and {shown}; write the path from the folder of the CSV"
                )
        return first.said

    def named_by_path(self, path: Path) -> tuple[str, str] | None:
        """Return smear and patient of a file that a line names by its path, whether the file is there or not."""
        exact = self._exact.get(path)
        if exact is None:
            return None
        self._used[exact.line] = path
        self._used_exactly.add(exact.line)
        return exact.said

    def match(self, fields: Mapping[Path, str], *, partly: bool = False) -> SmearMatch:
        """Return the smears and patients of all fields of a command, before anything is done to one of them.

        Parameters
        ----------
        fields : mapping of Path to str
            Id of each field by its file.
        partly : bool
            The table need not name every field, and others have their smears already: no warning of that.

        Returns
        -------
        SmearMatch

        Raises
        ------
        FieldError
            If the table names none of the fields, or `lookup` raises it for one.
        """
        shown = printable(str(self.path))
        # All of these first: a line that is the path of one field does not name another one by its end.
        by_path = {path: self.named_by_path(path.resolve()) for path in fields}
        found = {path: self.lookup(path, fields[path]) if said is None else said for path, said in by_path.items()}
        named = {path: said for path, said in found.items() if any(said)}
        if fields and not named:
            row, first = printable(self.entries[0].text), printable(next(iter(fields)).name)
            raise FieldError(
                f"{shown} names none of the {len(fields)} fields (its first row names {row!r}, the first field is "
                f"{first!r}); its paths are relative to its own folder, or names of files: correct them"
            )
        warnings = []
        unmatched = [printable(path.name) for path in fields if path not in named]
        if unmatched and not partly:
            warnings.append(
                f"{shown} gives no smear and no patient for {len(unmatched)} of {len(fields)} fields "
                f"({some_of(unmatched)})"
            )
        unused = [entry for entry in self.entries if entry.line not in self._used]
        if unused:
            listed = some_of([f"{printable(entry.text)} in line {entry.line}" for entry in unused])
            warnings.append(
                f"{len(unused)} of {len(self.entries)} rows of {shown} were used for no field given ({listed})"
            )
        if partly:
            return SmearMatch(found, tuple(warnings), len(unmatched))
        smears, patients = [smear for smear, _ in named.values()], [patient for _, patient in named.values()]
        warnings += id_warnings(smears, patients, f"fields that {shown} names")
        return SmearMatch(found, tuple(warnings), len(unmatched))

    def _matching(self, place: Path, field_id: str) -> list[_Entry]:
        """Lines that fit best: the longest end of the path, else the name without its ending, or the id."""
        parts = tuple(map(_folded, place.parts))
        ends = [
            entry
            for entry in self._by_end.get(parts[-1], [])
            if entry.parts == parts[-len(entry.parts) :] or _foreign(entry)
        ]
        if ends:
            longest = max(0 if _foreign(entry) else len(entry.parts) for entry in ends)
            return [entry for entry in ends if (0 if _foreign(entry) else len(entry.parts)) == longest]
        names = {_folded(field_id), *_stems(parts[-1])} - {""}
        return [entry for name in names for entry in self._by_end.get(name, []) if len(entry.parts) == 1]


@dataclass(frozen=True)
class SmearMatch:
    """The smears and patients that a table gives the fields of a command.

    Attributes
    ----------
    said : dict of Path to (str, str)
        Smear and patient of each field; empty where the table does not give them.
    warnings : tuple of str
        Mismatches, one line each.
    unmatched : int
        Fields for which the table gives neither smear nor patient.
    """

    said: dict[Path, tuple[str, str]]
    warnings: tuple[str, ...] = ()
    unmatched: int = 0


def _folded(text: str) -> str:
    """Return a name as it is compared: without case, and with composed accents."""
    return composed(text.casefold())


def _stems(name: str) -> Iterator[str]:
    """The name without its last ending, the last two, ...: ``a.ome.tif`` is also ``a.ome`` and ``a``."""
    while PurePosixPath(name).suffix:
        name = PurePosixPath(name).stem
        yield name


def _foreign(entry: _Entry) -> bool:
    """Whether a line holds the absolute path of a file on another machine: then its name alone may fit."""
    absolute = entry.text.startswith(("/", "\\")) or entry.text[1:2] == ":"
    return absolute and not Path(entry.text).exists()


def read_named_columns(
    table: Path, columns: Mapping[str, Sequence[str]], required: Sequence[str], needs: str
) -> list[tuple[int, dict[str, str]]]:
    """Read some columns of a CSV, which may go by several names.

    Separated by commas, semicolons or tabs, in UTF-8, with a header; empty lines and other columns are ignored.

    Parameters
    ----------
    table : Path
        The file.
    columns : mapping of str to sequence of str
        Possible names of each column in the file, lower case; the first that exists is used.
    required : sequence of str
        Columns that must be there.
    needs : str
        Required columns, for the error: ``"'path' and 'label'"``.

    Returns
    -------
    list of (line, row)
        Line in the file, and the text of every column of `columns`, stripped; empty where it is absent.

    Raises
    ------
    StoreError
        If it cannot be read or lacks a column.
    """
    shown = printable(str(table))
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            delimiter = max((",", ";", "\t"), key=header.count)
            names = [name.strip().lower() for name in next(csv.reader([header], delimiter=delimiter), [])]
            where = {key: next((names.index(n) for n in known if n in names), None) for key, known in columns.items()}
            if any(where[key] is None for key in required):
                raise StoreError(f"{shown} has the columns {names}, but needs {needs}; name them in its first line")

            def cell(row: list[str], key: str) -> str:
                index = where[key]
                return row[index].strip() if index is not None and index < len(row) else ""

            reader = csv.reader(file, delimiter=delimiter)
            return [(reader.line_num + 1, {key: cell(row, key) for key in columns}) for row in reader if any(row)]
    except OSError as error:
        raise StoreError(f"{shown} cannot be read ({error.strerror or error}); give a CSV file") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise StoreError(f"{shown} cannot be read as CSV in UTF-8 ({error}); save it again as such") from error


def load_smears(path: str | Path) -> SmearTable:
    """Read a table of smears.

    Parameters
    ----------
    path : path
        CSV in UTF-8, separated by commas, semicolons or tabs, with a header. One column names the field (``file``,
        ``path``, ``source`` or ``field_id``), and one or both of ``smear_id`` and ``patient_id`` say where it belongs.

    Returns
    -------
    SmearTable

    Raises
    ------
    FieldError
        If it cannot be read, lacks a column, or names a file twice with different smears or patients.
    """
    table = Path(path)
    shown = printable(str(table))
    needs = "'file' and one or both of 'smear_id' and 'patient_id'"
    try:
        rows = read_named_columns(table, _COLUMNS, ("file",), needs)
    except StoreError as error:
        raise FieldError(str(error)) from error
    entries = []
    exact: dict[Path, _Entry] = {}
    by_end: dict[str, list[_Entry]] = {}
    for line, row in rows:
        text = row["file"]
        parts = tuple(_folded(part) for part in text.replace("\\", "/").split("/") if part not in ("", "."))
        if not parts or "\0" in text:
            raise FieldError(f"{shown}, line {line}: no usable file; fill it in or remove the line")
        entry = _Entry(line, text, parts, printable(row["smear"]), printable(row["patient"]))
        place = (table.parent / text).resolve()
        same = exact.setdefault(place, entry)
        if same.said != entry.said:
            raise FieldError(
                f"{shown}: lines {same.line} and {line} both name {printable(text)!r} and differ; remove one of them"
            )
        if same is not entry:
            continue  # the same row twice
        entries.append(entry)
        by_end.setdefault(parts[-1], []).append(entry)
    if not any(entry.smear or entry.patient for entry in entries):
        raise FieldError(f"{shown} gives no smear and no patient; it needs {needs}, and lines that fill them in")
    return SmearTable(table, tuple(entries), exact, by_end)


def match_smears(path: str | Path | None, files: Sequence[Path]) -> SmearMatch:
    """Read a table of smears, if there is one, and return the smears and patients of a command's fields.

    Raises
    ------
    FieldError
        As of `load_smears` and `SmearTable.match`.
    """
    if path is None:
        return SmearMatch({})
    return load_smears(path).match({file: safe_name(field_name(file)) for file in files})
