"""Reading tables of paths and labels."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hematokit.errors import ImageError, StoreError
from hematokit.imaging.fieldfiles.pixelsize import check_given
from hematokit.imaging.reading import printable

__all__ = ["LabelRow", "read_label_rows", "read_named_columns"]

_COLUMNS = {
    "path": ("path", "file", "filename"),
    "label": ("label", "class"),
    "smear": ("smear_id", "smear"),
    "patient": ("patient_id", "patient"),
    "pixel_size": ("pixel_size_um",),
}


@dataclass(frozen=True, slots=True)
class LabelRow:
    """One line of a table of labels: where it stands, the path as written, and what is said of it."""

    line: int
    path: str
    label: str
    smear: str
    patient: str
    pixel_size_um: float | None = None


def read_label_rows(table: Path) -> list[LabelRow]:
    """Read a CSV with the columns ``path`` and ``label``, and possibly ``smear_id``, ``patient_id`` and
    ``pixel_size_um``.

    Separated by commas, semicolons or tabs, in UTF-8, with a header; other columns are ignored.

    Raises
    ------
    StoreError
        If it cannot be read, lacks a column, or has a line without a path or with a pixel size that is none.
    """
    needs = "'path' and 'label' (and may have 'smear_id', 'patient_id' and 'pixel_size_um')"
    rows = [
        LabelRow(
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
        What each column may be called in the file, lower case; the first that is there counts.
    required : sequence of str
        Columns that must be there.
    needs : str
        What the file needs, for the error: ``"'path' and 'label'"``.

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
