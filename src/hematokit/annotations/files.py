"""Annotations of each of some fields: one file, a folder with a file for each field, or one table for all of them."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

from hematokit.annotations.formats import (
    Annotation,
    FieldAnnotations,
    finite_number,
    read_geojson,
    read_text,
    read_voc,
    read_yolo,
)
from hematokit.errors import FieldError, ImageError, printable
from hematokit.imaging.fieldfiles import field_name
from hematokit.imaging.fieldfiles.listing import safe_name
from hematokit.yaml_text import Scalar, parse_yaml

__all__ = ["AnnotationFiles", "read_class_names"]

_TABLES: Final = (".csv", ".tsv")
_GEOJSON: Final = (".geojson", ".json")
_SUFFIXES: Final = (*_TABLES, *_GEOJSON, ".xml", ".txt")
_NAME_FILES: Final = ("classes.txt", "obj.names", "data.yaml", "dataset.yaml")
_FIELD: Final = ("field_id", "field")
_SOURCE: Final = ("source", "path", "file", "filename", "image")
_LABEL: Final = ("label", "class", "class_name")
_CORNERS: Final = ("ymin", "xmin", "ymax", "xmax")
_BOX: Final = ("y0", "x0", "height", "width")


class AnnotationFiles:
    """Reader of the annotations of each of some fields.

    Parameters
    ----------
    path : Path
        A table, GeoJSON, VOC or YOLO file, or a folder of such files, each named as its field (``a.xml`` for
        ``a.png``); subfolders are searched too.
    fields : sequence of Path
        All fields whose annotations are to be read.
    class_names : sequence of str, optional
        Names of the classes of YOLO files.

    Raises
    ------
    FieldError
        If the path does not exist, is of no known kind, is one field's but several fields are given, or is a folder
        without such files.
    """

    def __init__(self, path: Path, fields: Sequence[Path], class_names: Sequence[str] | None = None) -> None:
        self.path = path
        self._shown = printable(str(path))
        self._class_names = class_names
        self._same_name = Counter(field_name(field) for field in fields)
        self._table: _AnnotationTable | None = None
        self._by_name: dict[str, list[Path]] = {}
        if path.is_dir():
            self._list_folder(fields)
        elif not path.is_file():
            raise FieldError(f"--cells {self._shown} does not exist; give a .csv, .geojson, .xml or .txt, or a folder")
        elif path.suffix.lower() not in _SUFFIXES:
            raise FieldError(f"--cells {self._shown} is no .csv, .geojson, .xml (VOC) or .txt (YOLO) file")
        else:
            if path.suffix.lower() in _TABLES:
                self._table = _read_annotation_table(path)
            if len(fields) > 1 and not (self._table is not None and self._table.names_fields):
                what = "has no column field_id or source" if self._table is not None else "is the file of one field"
                raise FieldError(
                    f"--cells {self._shown} {what}, but {len(fields)} fields are given; give a folder with a file for "
                    "each, or one table with such a column"
                )

    def _list_folder(self, fields: Sequence[Path]) -> None:
        files = (file for file in self.path.rglob("*") if file.suffix.lower() in _SUFFIXES and file.is_file())
        for file in sorted(files):
            self._by_name.setdefault(file.stem, []).append(file)
            # Some tools append their suffix to the image's name: a.png.geojson.
            if field_name(Path(file.stem)) != file.stem:
                self._by_name.setdefault(field_name(Path(file.stem)), []).append(file)
        if not any(field_name(field) in self._by_name for field in fields):
            raise FieldError(
                f"--cells {self._shown} holds no .csv, .geojson, .xml or .txt file called as one of the fields "
                f"({printable(field_name(fields[0]))}, ...); give the folder of the annotations"
            )

    def of_field(self, path: Path, height: int, width: int) -> FieldAnnotations:
        """Return the annotations of a field.

        Parameters
        ----------
        path : Path
            The field's file.
        height, width : int
            Its size in pixels.

        Raises
        ------
        ImageError
            ``"no-cells"`` if there is nothing for the field, ``"ambiguous-cells"`` if several files or paths may
            mean it, ``"unreadable-cells"``.
        """
        name = field_name(path)
        if self._table is not None:
            return self._of_table(self._table, path)
        if not self._by_name:
            return self._read(self.path, height, width)
        files = self._by_name.get(name, [])
        if not files:
            raise ImageError(
                "no-cells",
                f"{self._shown} has no file {printable(name)}.csv, .geojson, .xml or .txt; add one (without cells, if "
                "there are none), or leave the field out",
            )
        if len(files) > 1 or self._same_name[name] > 1:
            raise ImageError(
                "ambiguous-cells",
                f"{len(files)} files of {self._shown} and {self._same_name[name]} fields are called {printable(name)}; "
                "tile them one by one, with the file of each",
            )
        return self._read(files[0], height, width)

    def _of_table(self, table: _AnnotationTable, path: Path) -> FieldAnnotations:
        annotations = table.of_field(path, alone=self._same_name[field_name(path)] <= 1)
        if annotations is None:
            raise ImageError(
                "no-cells",
                f"{self._shown} has no row of field {printable(field_name(path))}; add its cells, or leave it out",
            )
        return annotations

    def _read(self, file: Path, height: int, width: int) -> FieldAnnotations:
        suffix = file.suffix.lower()
        if suffix in _TABLES:
            try:
                table = _read_annotation_table(file)
            except FieldError as error:
                raise ImageError("unreadable-cells", str(error)) from error
            # All rows of a file with the field's name are its cells, whatever field they name.
            return table.all_annotations()
        if suffix in _GEOJSON:
            return read_geojson(file)
        if suffix == ".xml":
            return read_voc(file)
        names = self._class_names if self._class_names is not None else _names_beside(file)
        return read_yolo(file, height, width, names)


def _names_beside(file: Path) -> list[str] | None:
    for folder in (file.parent, file.parent.parent):
        for name in _NAME_FILES:
            candidate = folder / name
            if candidate != file and candidate.is_file():
                return read_class_names(candidate)
    return None


def read_class_names(path: Path) -> list[str]:
    """Read the names of YOLO classes: one a line, or the list ``names`` of a ``data.yaml``.

    Raises
    ------
    FieldError
        If the file cannot be read.
    """
    shown = printable(str(path))
    try:
        text = read_text(path)
    except ImageError as error:
        raise FieldError(str(error)) from error
    if path.suffix.lower() not in (".yaml", ".yml"):
        return [line.strip() for line in text.splitlines() if line.strip()]
    data = parse_yaml(text, shown, FieldError)
    names = data.get("names") if isinstance(data, dict) else None
    try:
        if isinstance(names, dict):
            numbered = {int(number): name for number, name in names.items()}
            names = [numbered.get(number, f"class {number}") for number in range(max(numbered) + 1)]
    except ValueError:
        names = None
    if not isinstance(names, list):
        raise FieldError(f"{shown} holds no class names; write one a line, or 'names: [...]' in YAML")
    for number, name in enumerate(names):
        if isinstance(name, dict | list) or str(name) == "":
            line = f", line {name.line}" if isinstance(name, Scalar) else ""
            raise FieldError(f"{shown}{line}: class {number} has no name; write one, in quotes if it has a '#'")
    return [str(name) for name in names]


@dataclass(frozen=True)
class _AnnotationTable:
    """A table of annotations, grouped by the field that its rows name.

    Attributes
    ----------
    shown : str
        The file, fit to be printed.
    names_fields : bool
        Whether it has a column with the field of each cell.
    rows : dict
        Annotations, and the size of the image where the row states it, by ``(field_id, source)`` as written.
    """

    shown: str
    names_fields: bool
    rows: dict[tuple[str, str], list[tuple[Annotation, tuple[int, int] | None]]] = field(default_factory=dict)

    def of_field(self, path: Path, alone: bool) -> FieldAnnotations | None:
        """Return the annotations of a field, or None if no row names it.

        A row names a field by ``field_id`` (the file's stem) or by a path whose end is the field's file, or whose
        file has the same stem.

        Parameters
        ----------
        path : Path
            The field's file.
        alone : bool
            Whether no other field has this name; else only rows that name the path count.

        Raises
        ------
        ImageError
            ``"ambiguous-cells"`` if rows with different paths may mean it.
        """
        if not self.names_fields:
            return self.all_annotations()
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
        return self._annotations(keys)

    def all_annotations(self) -> FieldAnnotations:
        """Return all rows as the annotations of one field."""
        return self._annotations(list(self.rows))

    def _annotations(self, keys: list[tuple[str, str]]) -> FieldAnnotations:
        rows = [row for key in keys for row in self.rows[key]]
        size = next((size for _, size in rows if size is not None), None)
        return FieldAnnotations(self.shown, "csv", [annotation for annotation, _ in rows], size)


def _names_path(source: str, path: Path) -> bool:
    """Return whether one path ends with the other, compared by parts; a bare file name does not count."""
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


def _read_annotation_table(path: Path) -> _AnnotationTable:
    """Read a CSV of cells, separated by commas, semicolons or tabs, with a header.

    Bounding boxes are ``xmin, ymin, xmax, ymax``, or ``y0, x0, height, width`` with or without a centre ``y, x``; a
    centre may be given alone. Other columns: ``label`` (or ``class``), ``label_source``,
    ``smear_id``, ``patient_id``, and ``field_id`` or ``source`` (or ``path``, ``filename``, ``image``) for tables of
    several fields.

    Raises
    ------
    FieldError
        If it cannot be read, or has columns neither of a box nor of a centre.
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
    table = _AnnotationTable(shown, bool(have.intersection((*_FIELD, *_SOURCE))))
    for number, line in records:
        row = dict.fromkeys(columns, "") | {name: word.strip() for name, word in zip(columns, line, strict=False)}
        key = (_first(row, _FIELD), _first(row, _SOURCE))
        table.rows.setdefault(key, []).append((_annotation(row, f"line {number}", delimiter), _size(row)))
    return table


def _first(row: Mapping[str, str], names: tuple[str, ...]) -> str:
    return next((row[name] for name in names if row.get(name)), "")


def _annotation(row: Mapping[str, str], where: str, delimiter: str) -> Annotation:
    annotation = Annotation(where, printable(_first(row, _LABEL)))
    annotation.label_source, annotation.smear_id, annotation.patient_id = (
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
            annotation.box = (y0, x0, y1, x1)
            return annotation  # in such tables, 'height' and 'width' are the image's
        if any(row.get(name) for name in _BOX):
            y0, x0, height, width = (number(name) for name in _BOX)
            annotation.box = (y0, x0, y0 + height, x0 + width)
        if annotation.box is None or (row.get("y") and row.get("x")):
            annotation.y, annotation.x = number("y"), number("x")
    except ValueError as error:
        annotation.problem = ("bad-number", str(error))
    return annotation


def _size(row: Mapping[str, str]) -> tuple[int, int] | None:
    """Return the size of the image, which tables of corners state in ``height`` and ``width``."""
    if not all(name in row for name in (*_CORNERS, "height", "width")):
        return None
    try:
        height, width = int(row["height"]), int(row["width"])
    except ValueError:
        return None
    return (height, width) if height > 0 and width > 0 else None
