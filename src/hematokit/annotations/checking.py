"""From marks as files state them to cells that can be used, and a reason for each that cannot.

From names of classes, as annotation tools write them, to codes of a taxonomy.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from hematokit.annotations.cells import DETECTION_COLUMNS, empty_detections
from hematokit.annotations.files import KnownCellFiles
from hematokit.annotations.formats import Mark, MarkFile
from hematokit.errors import FieldError, ImageError
from hematokit.imaging.geometry import Box, contour_area, patch_box
from hematokit.imaging.reading import printable
from hematokit.taxonomy import MATEK_21, Taxonomy
from hematokit.yaml_text import Scalar, parse_yaml

if TYPE_CHECKING:
    from hematokit.imaging.fieldfiles import Field

__all__ = ["ClassNames", "KnownCells", "check_marks", "load_class_map", "read_known_cells"]


class ClassNames:
    """Knows which code a name means.

    A name means what the map says; else the code it equals, or the code of the class it names, in capitals or not
    (``bla`` and ``Blast`` are BLA).

    Parameters
    ----------
    taxonomy : Taxonomy
        The classes there are.
    mapping : mapping of str to str, optional
        Code by name, from `load_class_map`; an empty code means a cell of no known class.
    """

    def __init__(self, taxonomy: Taxonomy, mapping: Mapping[str, str] | None = None) -> None:
        self._codes = {entry.name.casefold(): entry.code for entry in taxonomy}
        self._codes |= {entry.code.casefold(): entry.code for entry in taxonomy}
        self._codes |= {name.casefold(): code for name, code in (mapping or {}).items()}
        self._codes[""] = ""

    def code(self, name: str) -> str | None:
        """Return the code that `name` means, empty for no class, or None if it is unknown."""
        return self._codes.get(name.strip().casefold())


def load_class_map(values: Sequence[str], taxonomy: Taxonomy) -> dict[str, str]:
    """Read what stood after each ``--class-map``: ``NAME=CODE``, or a YAML file of such lines with a colon.

    Parameters
    ----------
    values : sequence of str
    taxonomy : Taxonomy
        The codes there are; an empty code is allowed, too.

    Raises
    ------
    FieldError
        If a value is neither, or a code does not exist.

    Examples
    --------
    >>> from hematokit.taxonomy import MATEK_21
    >>> load_class_map(["blast cell=BLA", "WBC="], MATEK_21)
    {'blast cell': 'BLA', 'WBC': ''}
    """
    found: dict[str, str] = {}
    for value in values:
        name, equals, code = value.partition("=")
        if equals:
            found[name.strip()] = code.strip()
        else:
            found.update(_read_map(Path(value)))
    known = {code.casefold(): code for code in taxonomy.codes} | {"": ""}
    for name, code in found.items():
        if isinstance(code, Scalar) and code.is_null and code.casefold() not in known:
            code = ""
        if code.casefold() not in known:
            raise FieldError(
                f"--class-map: {printable(code)!r}, given for {printable(name)!r}, is no class of taxonomy "
                f"{taxonomy.name!r} (its codes: {', '.join(taxonomy.codes)}); correct it"
            )
        found[name] = known[code.casefold()]
    return found


def _read_map(path: Path) -> dict[str, str]:
    shown = printable(str(path))
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise FieldError(
            f"--class-map {shown} is neither NAME=CODE nor a file that can be read ({error.strerror})"
        ) from error
    except UnicodeDecodeError as error:
        raise FieldError(f"--class-map {shown} is not text in UTF-8; save it again as such") from error
    data = parse_yaml(text, f"--class-map {shown}", FieldError)
    if not isinstance(data, dict) or any(isinstance(code, dict | list) for code in data.values()):
        raise FieldError(f"--class-map {shown} holds no 'name: CODE' lines; write one for each class")
    return {str(name).strip(): code if isinstance(code, Scalar) else str(code).strip() for name, code in data.items()}


_TEXTS: Final = ("label", "label_source", "smear_id", "patient_id")
_ROUNDING: Final = 1e-6  # pixels; parts of an image, as YOLO states them, do not give whole pixels back exactly
_SLACK: Final = 1.0  # pixels by which a stated centre may leave its box: boxes are rounded


@dataclass(frozen=True)
class KnownCells:
    """The known cells of a field.

    Attributes
    ----------
    cells : DataFrame
        Columns `hematokit.annotations.cells.DETECTION_COLUMNS`, then ``label``, ``label_source``, ``smear_id`` and
        ``patient_id``; sorted by centre. A known cell has score 1.
    rejects : list of tuple of str
        Reason and message of each mark that cannot be used.
    left_out : dict of str to int
        Marks of classes that were not asked for, by name.
    cut : int
        Boxes that left the field by a part, of which only the part inside was taken.
    """

    cells: pd.DataFrame
    rejects: list[tuple[str, str]] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    cut: int = 0


def read_known_cells(
    path: str | Path,
    field: Field,
    *,
    taxonomy: Taxonomy | None = None,
    classes: ClassNames | None = None,
    only: Collection[str] | None = None,
    class_names: Sequence[str] | None = None,
    point_side: int = 250,
) -> KnownCells:
    """Read the known cells of one field.

    Parameters
    ----------
    path : str or Path
        A ``.csv`` (or ``.tsv``), ``.geojson`` (or ``.json``), ``.xml`` (Pascal VOC) or ``.txt`` (YOLO) file, or a
        folder with such a file of the field's name.
    field : Field
        The opened field.
    taxonomy : Taxonomy, optional
        Classes that names are looked up in, `MATEK_21` by default.
    classes : ClassNames, optional
        Instead of `taxonomy`, with a map of other names.
    only : collection of str, optional
        Names or codes of the classes to take; the others are counted and left out.
    class_names : sequence of str, optional
        Names of the classes of a YOLO file; by default, those in a ``classes.txt`` or ``data.yaml`` beside it.
    point_side : int
        Side in pixels of the box of a cell that is known by its centre only.

    Returns
    -------
    KnownCells

    Raises
    ------
    FieldError
        If `path` does not exist or is of an unknown kind.
    ImageError
        With a reason, if it has nothing on this field or cannot be read.
    """
    files = KnownCellFiles(Path(path), [field.path], class_names)
    marks = files.of_field(field.path, field.height, field.width)
    return check_marks(marks, field.height, field.width, classes or ClassNames(taxonomy or MATEK_21), only, point_side)


def check_marks(
    file: MarkFile,
    height: int,
    width: int,
    classes: ClassNames,
    only: Collection[str] | None = None,
    point_side: int = 250,
) -> KnownCells:
    """Make cells of the marks of one field.

    Parameters are those of `read_known_cells`; `height` and `width` are the field's, in pixels.

    Raises
    ------
    ImageError
        ``"size-differs"`` if the marks were made on an image of another size.
    """
    if file.size is not None and file.size != (height, width):
        raise ImageError(
            "size-differs",
            f"{file.shown} is for an image of {file.size[1]}x{file.size[0]} px, but the field has {width}x{height} px; "
            "give the image that was annotated",
        )
    wanted = None if only is None else {name.strip().casefold() for name in only}
    rows: list[dict[str, Any]] = []
    rejects: list[tuple[str, str]] = []
    left_out: Counter[str] = Counter()
    seen: dict[tuple[float, ...], str] = {}
    cut = 0
    for mark in file.marks:
        code = classes.code(mark.name)
        if wanted is not None and not {mark.name.casefold(), (code or "").casefold()} & wanted:
            left_out[mark.name or "no class"] += 1
            continue
        try:
            row, was_cut = _cell(mark, code, height, width, point_side)
            key = (row["y"], row["x"], row["y0"], row["x0"], row["height"], row["width"])
            if key in seen:
                raise ImageError("repeated-cell", f"the same place as {seen[key]}; remove one of them")
            seen[key] = mark.where
        except ImageError as error:
            rejects.append((error.reason, f"{file.shown}, {mark.where}: {error}"))
            continue
        row["label_source"] = (mark.label_source or file.kind) if row["label"] else ""
        rows.append(row)
        cut += was_cut
    return KnownCells(_frame(rows), rejects, dict(left_out), cut)


def _cell(mark: Mark, code: str | None, height: int, width: int, point_side: int) -> tuple[dict[str, Any], bool]:
    if mark.problem is not None:
        raise ImageError(mark.problem[0], f"{mark.problem[1]}; correct it")
    if code is None:
        raise ImageError(
            "unknown-class",
            f"class {mark.name!r} is not in the taxonomy; say what it means with --class-map '{mark.name}=CODE', or "
            "leave such cells out with --only",
        )
    extent = f"the field has {width}x{height} px"
    if mark.box is None:
        assert mark.y is not None  # a mark has a place or a problem
        assert mark.x is not None
        y, x, was_cut = mark.y, mark.x, False
        _check_centre(y, x, height, width, extent)
        box = patch_box(y, x, point_side).clipped(height, width)
        assert box is not None  # the centre is inside
    else:
        y0, x0, y1, x1 = mark.box
        shown = f"its box (y {y0:g} to {y1:g}, x {x0:g} to {x1:g})"
        if y1 < y0 or x1 < x0:
            raise ImageError("reversed-box", f"{shown} ends before it begins; exchange the ends")
        if y1 == y0 or x1 == x0:
            raise ImageError("empty-box", f"{shown} is empty; correct it")
        y = (y0 + y1) / 2 if mark.y is None else mark.y
        x = (x0 + x1) / 2 if mark.x is None else mark.x
        if not (y0 - _SLACK <= y <= y1 + _SLACK and x0 - _SLACK <= x <= x1 + _SLACK):
            raise ImageError("centre-not-in-box", f"its centre (y {y:g}, x {x:g}) is not in {shown}; correct one")
        if y1 <= 0 or x1 <= 0 or y0 >= height or x0 >= width:
            raise ImageError("outside-field", f"{shown} is outside, {extent}; correct it")
        _check_centre(y, x, height, width, extent)
        top, bottom = _whole_pixels(y0, y1, height)
        left, right = _whole_pixels(x0, x1, width)
        box = Box(top, left, bottom - top, right - left)
        # Half a pixel is rounding, as of YOLO's parts of an image.
        was_cut = y0 < -0.5 or x0 < -0.5 or y1 > height + 0.5 or x1 > width + 0.5
    contour = mark.contour
    row = {
        "y": y,
        "x": x,
        "y0": box.y0,
        "x0": box.x0,
        "height": box.height,
        "width": box.width,
        "score": 1.0,
        "area": np.nan if contour is None else contour_area(contour),
        "touches_border": box.y0 == 0 or box.x0 == 0 or box.y1 == height or box.x1 == width,
        "contour": contour,
        "label": code,
        "smear_id": mark.smear_id,
        "patient_id": mark.patient_id,
    }
    if mark.box is None:
        row["touches_border"] = False  # of a point it is not known
    return row, was_cut


def _whole_pixels(start: float, stop: float, length: int) -> tuple[int, int]:
    """The pixels inside a field that an interval touches, but for what rounding alone makes it touch."""
    first = min(max(math.floor(start + _ROUNDING), 0), length - 1)
    return first, max(min(math.ceil(stop - _ROUNDING), length), first + 1)


def _check_centre(y: float, x: float, height: int, width: int, extent: str) -> None:
    if not (0 <= y <= height and 0 <= x <= width):
        raise ImageError("outside-field", f"its centre (y {y:g}, x {x:g}) is outside, {extent}; correct it")


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    empty = empty_detections()
    columns: dict[str, Any] = {
        name: pd.Series([row[name] for row in rows], dtype=empty[name].dtype) for name in DETECTION_COLUMNS
    }
    columns |= {name: pd.Series([row[name] for row in rows], dtype=object) for name in _TEXTS}
    return pd.DataFrame(columns).sort_values(["y", "x"], kind="stable", ignore_index=True)
