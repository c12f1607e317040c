"""Tables of cells: the cells table of this project, or any CSV with boxes or centres, of one field or of many."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

from hematokit.annotations.formats import Mark, MarkFile, finite_number, read_text
from hematokit.errors import FieldError, ImageError
from hematokit.imaging.fieldfiles import field_name
from hematokit.imaging.fieldfiles.opening import safe_name
from hematokit.imaging.reading import printable

__all__ = ["CellTable", "read_table"]

_FIELD: Final = ("field_id", "field")
_SOURCE: Final = ("source", "path", "file", "filename", "image")
_LABEL: Final = ("label", "class", "class_name")
_CORNERS: Final = ("ymin", "xmin", "ymax", "xmax")
_BOX: Final = ("y0", "x0", "height", "width")


@dataclass(frozen=True)
class CellTable:
    """A table of cells, its rows sorted by the field that they name.

    Attributes
    ----------
    shown : str
        The file, fit to be printed.
    names_fields : bool
        It has a column that says which field a cell is of.
    rows : dict
        Marks, and the size of the image where the row states it, by ``(field_id, source)`` as written.
    """

    shown: str
    names_fields: bool
    rows: dict[tuple[str, str], list[tuple[Mark, tuple[int, int] | None]]] = field(default_factory=dict)

    def of_field(self, path: Path, alone: bool) -> MarkFile | None:
        """Return the marks of a field, or None if no row names it.

        A row names a field by ``field_id`` (the file's stem) or by a path whose end is the field's file, or whose
        file has the same stem.

        Parameters
        ----------
        path : Path
            The field's file.
        alone : bool
            No other field of this name is being tiled; else only rows that name the path count.

        Raises
        ------
        ImageError
            ``"ambiguous-cells"`` if rows with different paths may mean it.
        """
        if not self.names_fields:
            return self.all_marks()
        keys = [key for key in self.rows if _names_path(key[1], path)]
        if not keys and alone:
            keys = [key for key in self.rows if _names_field(key, field_name(path))]
        if not keys:
            return None
        sources = sorted({source for _, source in keys})
        if len(sources) > 1:
            raise ImageError(
                "ambiguous-cells",
                f"{self.shown} has rows of {printable(sources[0])} and of {printable(sources[1])}, and both may mean "
                f"{printable(str(path))}; give the fields by the paths that the table has",
            )
        return self._marks(keys)

    def all_marks(self) -> MarkFile:
        """Return all rows as the marks of one field."""
        return self._marks(list(self.rows))

    def _marks(self, keys: list[tuple[str, str]]) -> MarkFile:
        rows = [row for key in keys for row in self.rows[key]]
        size = next((size for _, size in rows if size is not None), None)
        return MarkFile(self.shown, "csv", [mark for mark, _ in rows], size)


def _names_path(source: str, path: Path) -> bool:
    """Whether one path is the end of the other, by whole parts, and more than a file name where both have more."""
    one = PurePosixPath(source.replace("\\", "/")).parts
    two = PurePosixPath(path.as_posix()).parts
    if not one or len(one) == 1:
        return False
    shorter = min(len(one), len(two))
    return one[-shorter:] == two[-shorter:]


def _names_field(key: tuple[str, str], name: str) -> bool:
    field_id, source = key
    if field_id:
        return field_id in (name, safe_name(name))
    return bool(source) and field_name(Path(source.replace("\\", "/"))) == name


def read_table(path: Path) -> CellTable:
    """Read a CSV of cells, separated by commas, semicolons or tabs, with a header.

    Places are ``xmin, ymin, xmax, ymax``, or ``y0, x0, height, width``, or the centre ``y, x`` alone; beside
    ``y0, x0, height, width`` a centre may stand. Other columns: ``label`` (or ``class``), ``label_source``,
    ``smear_id``, ``patient_id``, and ``field_id`` or ``source`` (or ``path``, ``filename``, ``image``) for tables of
    several fields.

    Raises
    ------
    FieldError
        If it cannot be read, or lacks the columns of a place.
    """
    shown = printable(str(path))
    try:
        text = read_text(path)
        header = text.partition("\n")[0]
        delimiter = max((",", ";", "\t"), key=header.count)
        lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        columns = [name.strip().lower() for name in next(lines, [])]
        records = [(lines.line_num, line) for line in lines if any(word.strip() for word in line)]
    except ImageError as error:
        raise FieldError(str(error)) from error
    except csv.Error as error:
        raise FieldError(f"{shown} cannot be read as CSV ({error}); save it again as such") from error
    have = set(columns)
    if not (have.issuperset(_CORNERS) or have.issuperset(_BOX) or have.issuperset(("y", "x"))):
        raise FieldError(
            f"{shown} has the columns {printable(', '.join(columns)) or 'none'}, but needs xmin, ymin, xmax, ymax, or "
            "y0, x0, height, width, or y, x; name them in its first line"
        )
    table = CellTable(shown, bool(have.intersection((*_FIELD, *_SOURCE))))
    for number, line in records:
        row = dict.fromkeys(columns, "") | {name: word.strip() for name, word in zip(columns, line, strict=False)}
        key = (_first(row, _FIELD), _first(row, _SOURCE))
        table.rows.setdefault(key, []).append((_mark(row, f"line {number}", delimiter), _size(row)))
    return table


def _first(row: Mapping[str, str], names: tuple[str, ...]) -> str:
    return next((row[name] for name in names if row.get(name)), "")


def _mark(row: Mapping[str, str], where: str, delimiter: str) -> Mark:
    mark = Mark(where, printable(_first(row, _LABEL)))
    mark.label_source, mark.smear_id, mark.patient_id = (
        printable(row.get(name, "")) for name in ("label_source", "smear_id", "patient_id")
    )

    def number(name: str) -> float:
        word = row.get(name, "")
        try:
            # Where commas do not separate, they may be decimal commas.
            return finite_number(word if delimiter == "," else word.replace(",", "."))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None

    try:
        if all(name in row for name in _CORNERS):
            y0, x0, y1, x1 = (number(name) for name in _CORNERS)
            mark.box = (y0, x0, y1, x1)
            return mark  # such tables have the image's size in 'height' and 'width', if anything
        if any(row.get(name) for name in _BOX):
            y0, x0, height, width = (number(name) for name in _BOX)
            mark.box = (y0, x0, y0 + height, x0 + width)
        if mark.box is None or (row.get("y") and row.get("x")):
            mark.y, mark.x = number("y"), number("x")
    except ValueError as error:
        mark.problem = ("bad-number", str(error))
    return mark


def _size(row: Mapping[str, str]) -> tuple[int, int] | None:
    """Size of the image, which tables of corners have in ``height`` and ``width``."""
    if not all(name in row for name in (*_CORNERS, "height", "width")):
        return None
    try:
        height, width = int(row["height"]), int(row["width"])
    except ValueError:
        return None
    return (height, width) if height > 0 and width > 0 else None
