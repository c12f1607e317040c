"""Reading tables of paths and labels."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from hematokit.errors import StoreError
from hematokit.imaging.reading import printable

__all__ = ["LabelRow", "read_label_rows"]

_COLUMNS = {
    "path": ("path", "file", "filename"),
    "label": ("label", "class"),
    "smear": ("smear_id", "smear"),
    "patient": ("patient_id", "patient"),
}


@dataclass(frozen=True, slots=True)
class LabelRow:
    """One line of a table of labels: where it stands, the path as written, and what is said of it."""

    line: int
    path: str
    label: str
    smear: str
    patient: str


def read_label_rows(table: Path) -> list[LabelRow]:
    """Read a CSV with the columns ``path`` and ``label``, and possibly ``smear_id`` and ``patient_id``.

    Separated by commas, semicolons or tabs, in UTF-8, with a header; other columns are ignored.

    Raises
    ------
    StoreError
        If it cannot be read, lacks a column, or has a line without a path.
    """
    shown = printable(str(table))
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            delimiter = max((",", ";", "\t"), key=header.count)
            names = [name.strip().lower() for name in next(csv.reader([header], delimiter=delimiter), [])]
            where = {key: next((names.index(n) for n in known if n in names), None) for key, known in _COLUMNS.items()}
            if where["path"] is None or where["label"] is None:
                raise StoreError(
                    f"{shown} has the columns {names}, but needs 'path' and 'label' "
                    "(and may have 'smear_id' and 'patient_id'); name them in its first line"
                )

            def cell(row: list[str], key: str) -> str:
                index = where[key]
                return row[index].strip() if index is not None and index < len(row) else ""

            reader = csv.reader(file, delimiter=delimiter)
            rows = [
                LabelRow(
                    reader.line_num + 1,
                    cell(row, "path"),
                    cell(row, "label"),
                    printable(cell(row, "smear")),
                    printable(cell(row, "patient")),
                )
                for row in reader
                if any(row)
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise StoreError(f"{shown} cannot be read as CSV in UTF-8 ({error}); save it again as such") from error
    nameless = next((row.line for row in rows if not row.path or "\0" in row.path), None)
    if nameless is not None:
        raise StoreError(f"{shown}, line {nameless}: no usable path; fill it in or remove the line")
    return rows
