"""Which marks belong to which field: one file for one field, a folder of files, or one table for many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from hematokit.annotations.formats import MarkFile, read_geojson, read_text, read_voc, read_yolo
from hematokit.annotations.tables import CellTable, read_table
from hematokit.errors import FieldError, ImageError
from hematokit.imaging.fieldfiles import field_name
from hematokit.imaging.reading import printable
from hematokit.yaml_text import Scalar, parse_yaml

__all__ = ["KnownCellFiles", "read_class_names"]

_TABLES: Final = (".csv", ".tsv")
_GEOJSON: Final = (".geojson", ".json")
_SUFFIXES: Final = (*_TABLES, *_GEOJSON, ".xml", ".txt")
_NAME_FILES: Final = ("classes.txt", "obj.names", "data.yaml", "dataset.yaml")


class KnownCellFiles:
    """Finds and reads the marks of each of some fields.

    Parameters
    ----------
    path : Path
        A table, GeoJSON, VOC or YOLO file, or a folder of such files, each called as its field (``a.xml`` for
        ``a.png``); subfolders are searched too.
    fields : sequence of Path
        The fields that marks will be asked for.
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
        self._table: CellTable | None = None
        self._by_name: dict[str, list[Path]] = {}
        if path.is_dir():
            self._list_folder(fields)
        elif not path.is_file():
            raise FieldError(f"--cells {self._shown} does not exist; give a .csv, .geojson, .xml or .txt, or a folder")
        elif path.suffix.lower() not in _SUFFIXES:
            raise FieldError(f"--cells {self._shown} is no .csv, .geojson, .xml (VOC) or .txt (YOLO) file")
        else:
            if path.suffix.lower() in _TABLES:
                self._table = read_table(path)
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
            # Some tools put their ending behind the image's: a.png.geojson.
            if field_name(Path(file.stem)) != file.stem:
                self._by_name.setdefault(field_name(Path(file.stem)), []).append(file)
        if not any(field_name(field) in self._by_name for field in fields):
            raise FieldError(
                f"--cells {self._shown} holds no .csv, .geojson, .xml or .txt file called as one of the fields "
                f"({printable(field_name(fields[0]))}, ...); give the folder of the annotations"
            )

    def of_field(self, path: Path, height: int, width: int) -> MarkFile:
        """Return the marks of a field.

        Parameters
        ----------
        path : Path
            The field's file.
        height, width : int
            Its size in pixels.

        Raises
        ------
        ImageError
            ``"no-cells"`` if nothing is said of the field, ``"ambiguous-cells"`` if several files or paths may mean
            it, ``"unreadable-cells"``.
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

    def _of_table(self, table: CellTable, path: Path) -> MarkFile:
        marks = table.of_field(path, alone=self._same_name[field_name(path)] <= 1)
        if marks is None:
            raise ImageError(
                "no-cells",
                f"{self._shown} has no row of field {printable(field_name(path))}; add its cells, or leave it out",
            )
        return marks

    def _read(self, file: Path, height: int, width: int) -> MarkFile:
        suffix = file.suffix.lower()
        if suffix in _TABLES:
            try:
                table = read_table(file)
            except FieldError as error:
                raise ImageError("unreadable-cells", str(error)) from error
            # In a file of the field's own name, whatever the rows say, they are its cells.
            return table.all_marks()
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
    """Read names of YOLO classes: one a line, or the list ``names`` of a ``data.yaml``.

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
