"""Annotations of one or several fields: one file, a folder with a file per field, or one table for all fields."""

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
    """Reader of the annotations of one or several fields.

    Parameters
    ----------
    path : Path
        A table, GeoJSON, VOC or YOLO file, or a folder of such files, each with the name of its field (``a.xml`` for
        ``a.png``); subfolders are searched too.
    fields : sequence of Path
        All fields whose annotations will be read.
    class_names : sequence of str, optional
        Names of the classes of YOLO files.

    Raises
    ------
    FieldError
        If the path does not exist, has an unknown type, is a file of one field but several fields are given, or is a
        folder without files of these fields.
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
            raise FieldError(
                f"--cells {self._shown} has an unknown type; give a .csv, .geojson, .xml (VOC) or .txt (YOLO) file"
            )
        else:
            if path.suffix.lower() in _TABLES:
                self._table = _read_annotation_table(path)
            if len(fields) > 1 and not (self._table is not None and self._table.names_fields):
                problem = "has no column field_id or source" if self._table is not None else "is the file of one field"
                raise FieldError(
                    f"--cells {self._shown} {problem}, but {len(fields)} fields are given; give a folder with a file "
                    "for each, or one table with such a column"
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
                f"--cells {self._shown} has no .csv, .geojson, .xml or .txt file with the name of a field "
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
            ``"no-cells"`` if there is no file or row for the field, ``"ambiguous-cells"`` if several files or paths
            match it, ``"unreadable-cells"`` if the file cannot be read.
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
                f"{self._shown} has no file {printable(name)}.csv, .geojson, .xml or .txt; add one (empty if the field "
                "has no cells), or exclude the field",
            )
        if len(files) > 1 or self._same_name[name] > 1:
            raise ImageError(
                "ambiguous-cells",
                f"{len(files)} files of {self._shown} and {self._same_name[name]} fields are named {printable(name)}; "
                "tile them one at a time, each with its file",
            )
        return self._read(files[0], height, width)

    def _of_table(self, table: _AnnotationTable, path: Path) -> FieldAnnotations:
        annotations = table.of_field(path, alone=self._same_name[field_name(path)] <= 1)
        if annotations is None:
            raise ImageError(
                "no-cells",
                f"{self._shown} has no row of field {printable(field_name(path))}; add its cells, or exclude the field",
            )
        return annotations

    def _read(self, file: Path, height: int, width: int) -> FieldAnnotations:
        suffix = file.suffix.lower()
        if suffix in _TABLES:
            try:
                table = _read_annotation_table(file)
            except FieldError as error:
                raise ImageError("unreadable-cells", str(error)) from error
            # The file has the name of the field, so all its rows are used, whatever their field columns are.
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
    """Read the names of YOLO classes: one per line, or the list ``names`` of a ``data.yaml``.

    Raises
    ------
    FieldError
        If the file cannot be read or has no names.
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
        raise FieldError(f"{shown} has no class names; write one per line, or 'names: [...]' in YAML")
    for number, name in enumerate(names):
        if isinstance(name, dict | list) or str(name) == "":
            line = f", line {name.line}" if isinstance(name, Scalar) else ""
            raise FieldError(f"{shown}{line}: class {number} has no name; add one, in quotes if it contains a '#'")
    return [str(name) for name in names]


@dataclass(frozen=True)
class _AnnotationTable:
    """A table of annotations, grouped by the field of its rows.

    Attributes
    ----------
    shown : str
        Printable name of the file.
    names_fields : bool
        Whether it has a column with the field of each cell.
    rows : dict
        Annotations, and the size of the image if the row has it, by ``(field_id, source)`` as written.
    """

    shown: str
    names_fields: bool
    rows: dict[tuple[str, str], list[tuple[Annotation, tuple[int, int] | None]]] = field(default_factory=dict)

    def of_field(self, path: Path, alone: bool) -> FieldAnnotations | None:
        """Return the annotations of a field, or None if no row refers to it.

        A row refers to a field by ``field_id`` (the stem of its file), by a path that ends like the path of the field,
        or by a path whose file has the same stem.

        Parameters
        ----------
        path : Path
            The field's file.
        alone : bool
            Whether no other field has this name; otherwise only rows with a matching path are used.

        Raises
        ------
        ImageError
            ``"ambiguous-cells"`` if rows with different paths match the field.
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
                f"{self.shown} has rows of {printable(sources[0])} and of {printable(sources[1])}, which both match "
                f"{printable(str(path))}; give the fields with the paths in the table",
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
    """Return whether one path ends with the other, compared by components; a bare file name does not match."""
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
    """Read a CSV file of cells with a header, separated by commas, semicolons or tabs.

    Bounding boxes are ``xmin, ymin, xmax, ymax``, or ``y0, x0, height, width`` with an optional centre ``y, x``; a
    centre may also be given alone. Other columns: ``label`` (or ``class``), ``label_source``, ``smear_id``,
    ``patient_id``, and ``field_id`` or ``source`` (or ``path``, ``filename``, ``image``) for tables of several fields.

    Raises
    ------
    FieldError
        If the file cannot be read, or has the columns of neither a box nor a centre.
    """
    shown = printable(str(path))
    try:
        text = read_text(path)
        header = text.partition("\n")[0]
        delimiter = max((",", ";", "\t"), key=header.count)
        lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        columns = [name.strip().lower() for name in next(lines, [])]
        records = [(lines.line_num, line) for line in lines if any(text.strip() for text in line)]
    except ImageError as error:
        raise FieldError(str(error)) from error
    except csv.Error as error:
        raise FieldError(f"{shown} cannot be read as CSV ({error}); save it as CSV") from error
    have = set(columns)
    if not (have.issuperset(_CORNERS) or have.issuperset(_BOX) or have.issuperset(("y", "x"))):
        raise FieldError(
            f"{shown} has the columns {printable(', '.join(columns)) or 'none'}, but needs xmin, ymin, xmax, ymax, or "
            "y0, x0, height, width, or y, x; name them in its first line"
        )
    table = _AnnotationTable(shown, bool(have.intersection((*_FIELD, *_SOURCE))))
    for number, line in records:
        row = dict.fromkeys(columns, "") | {name: text.strip() for name, text in zip(columns, line, strict=False)}
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
        value = row.get(name, "")
        try:
            # If the delimiter is not a comma, commas are decimal commas.
            return finite_number(value if delimiter == "," else value.replace(",", "."))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None

    try:
        if all(name in row for name in _CORNERS):
            y0, x0, y1, x1 = (number(name) for name in _CORNERS)
            annotation.box = (y0, x0, y1, x1)
            return annotation  # in such tables, 'height' and 'width' are those of the image
        if any(row.get(name) for name in _BOX):
            y0, x0, height, width = (number(name) for name in _BOX)
            annotation.box = (y0, x0, y0 + height, x0 + width)
        if annotation.box is None or (row.get("y") and row.get("x")):
            annotation.y, annotation.x = number("y"), number("x")
    except ValueError as error:
        annotation.problem = ("bad-number", str(error))
    return annotation


def _size(row: Mapping[str, str]) -> tuple[int, int] | None:
    """Return the size of the image from ``height`` and ``width``, in tables with the corners of boxes."""
    if not all(name in row for name in (*_CORNERS, "height", "width")):
        return None
    try:
        height, width = int(row["height"]), int(row["width"])
    except ValueError:
        return None
    return (height, width) if height > 0 and width > 0 else None
