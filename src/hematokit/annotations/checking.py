"""Annotated cells of a field, with class codes, from annotations as stated in files.

Annotations that cannot be used are returned with a reason.
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

from hematokit.annotations.cells import DETECTION_COLUMNS, detections_table
from hematokit.annotations.files import AnnotationFiles
from hematokit.annotations.formats import Annotation, FieldAnnotations
from hematokit.errors import FieldError, ImageError, printable
from hematokit.imaging.geometry import Box, contour_area, patch_box
from hematokit.taxonomy import MATEK_21, Taxonomy
from hematokit.yaml_text import Scalar, parse_yaml

if TYPE_CHECKING:
    from hematokit.imaging.fieldfiles import Field

__all__ = ["ClassNames", "AnnotatedCells", "check_annotations", "load_class_map", "read_annotations"]


_TEXTS: Final = ("label", "label_source", "smear_id", "patient_id")
_ROUNDING: Final = 1e-6  # px; fractions of an image, as in YOLO files, do not give exact integers
_SLACK: Final = 1.0  # px by which a centre may be outside its box, because boxes are rounded


@dataclass(frozen=True)
class AnnotatedCells:
    """The annotated cells of a field.

    Attributes
    ----------
    cells : DataFrame
        Columns `hematokit.annotations.cells.DETECTION_COLUMNS`, then ``label``, ``label_source``, ``smear_id`` and
        ``patient_id``; sorted by centre. Scores are 1.
    rejects : list of tuple of str
        Reason and message for each annotation that cannot be used.
    left_out : dict of str to int
        Number of annotations of each class that is not in `only`, by name.
    cut : int
        Number of boxes clipped to the field.
    """

    cells: pd.DataFrame
    rejects: list[tuple[str, str]] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    cut: int = 0


def read_annotations(
    path: str | Path,
    field: Field,
    *,
    taxonomy: Taxonomy | None = None,
    classes: ClassNames | None = None,
    only: Collection[str] | None = None,
    class_names: Sequence[str] | None = None,
    point_side: int = 250,
) -> AnnotatedCells:
    """Read the annotated cells of one field.

    Parameters
    ----------
    path : str or Path
        A ``.csv`` (or ``.tsv``), ``.geojson`` (or ``.json``), ``.xml`` (Pascal VOC) or ``.txt`` (YOLO) file, or a
        folder with such a file of the field's name.
    field : Field
        The opened field.
    taxonomy : Taxonomy, optional
        The classes, `MATEK_21` by default.
    classes : ClassNames, optional
        Classes with a map of other names; replaces `taxonomy`.
    only : collection of str, optional
        Names or codes of the classes to read; annotations of other classes are counted and left out.
    class_names : sequence of str, optional
        Names of the classes of a YOLO file; by default from a ``classes.txt`` or ``data.yaml`` next to it.
    point_side : int
        Side in pixels of the box of a cell for which only a centre is given.

    Returns
    -------
    AnnotatedCells

    Raises
    ------
    FieldError
        If `path` does not exist or its format is unknown.
    ImageError
        With a reason, if it has no annotations of this field or cannot be read.
    """
    files = AnnotationFiles(Path(path), [field.path], class_names)
    annotations = files.of_field(field.path, field.height, field.width)
    return check_annotations(
        annotations, field.height, field.width, classes or ClassNames(taxonomy or MATEK_21), only, point_side
    )


def check_annotations(
    file: FieldAnnotations,
    height: int,
    width: int,
    classes: ClassNames,
    only: Collection[str] | None = None,
    point_side: int = 250,
) -> AnnotatedCells:
    """Return the cells of the annotations of one field.

    Parameters
    ----------
    file : FieldAnnotations
        The annotations as stated in the file.
    height, width : int
        Size of the field in pixels.
    classes, only, point_side
        As for `read_annotations`.

    Returns
    -------
    AnnotatedCells

    Raises
    ------
    ImageError
        ``"size-differs"`` if the annotations were made on an image of another size.
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
    for annotation in file.annotations:
        code = classes.code(annotation.name)
        if wanted is not None and not {annotation.name.casefold(), (code or "").casefold()} & wanted:
            left_out[annotation.name or "no class"] += 1
            continue
        try:
            row, was_cut = _cell(annotation, code, height, width, point_side)
            key = (row["y"], row["x"], row["y0"], row["x0"], row["height"], row["width"])
            if key in seen:
                raise ImageError("repeated-cell", f"the same place as {seen[key]}; remove one of them")
            seen[key] = annotation.where
        except ImageError as error:
            rejects.append((error.reason, f"{file.shown}, {annotation.where}: {error}"))
            continue
        row["label_source"] = (annotation.label_source or file.kind) if row["label"] else ""
        rows.append(row)
        cut += was_cut
    return AnnotatedCells(_frame(rows), rejects, dict(left_out), cut)


def _cell(
    annotation: Annotation, code: str | None, height: int, width: int, point_side: int
) -> tuple[dict[str, Any], bool]:
    if annotation.problem is not None:
        raise ImageError(annotation.problem[0], f"{annotation.problem[1]}; correct it")
    if code is None:
        raise ImageError(
            "unknown-class",
            f"class {annotation.name!r} is not in the taxonomy; map it with "
            f"--class-map '{annotation.name}=CODE', or leave such cells out with --only",
        )
    extent = f"the field has {width}x{height} px"
    if annotation.box is None:
        assert annotation.y is not None  # an annotation has a position or a problem
        assert annotation.x is not None
        y, x, was_cut = annotation.y, annotation.x, False
        _check_centre(y, x, height, width, extent)
        box = patch_box(y, x, point_side).clipped(height, width)
        assert box is not None  # the centre is inside
    else:
        y0, x0, y1, x1 = annotation.box
        shown = f"its box (y {y0:g} to {y1:g}, x {x0:g} to {x1:g})"
        if y1 < y0 or x1 < x0:
            raise ImageError("reversed-box", f"{shown} ends before it begins; swap its corners")
        if y1 == y0 or x1 == x0:
            raise ImageError("empty-box", f"{shown} is empty; correct it")
        y = (y0 + y1) / 2 if annotation.y is None else annotation.y
        x = (x0 + x1) / 2 if annotation.x is None else annotation.x
        if not (y0 - _SLACK <= y <= y1 + _SLACK and x0 - _SLACK <= x <= x1 + _SLACK):
            raise ImageError("centre-not-in-box", f"its centre (y {y:g}, x {x:g}) is not in {shown}; correct one")
        if y1 <= 0 or x1 <= 0 or y0 >= height or x0 >= width:
            raise ImageError("outside-field", f"{shown} is outside, {extent}; correct it")
        _check_centre(y, x, height, width, extent)
        top, bottom = _whole_pixels(y0, y1, height)
        left, right = _whole_pixels(x0, x1, width)
        box = Box(top, left, bottom - top, right - left)
        # Up to half a pixel outside is rounding, for example of the fractions in YOLO files.
        was_cut = y0 < -0.5 or x0 < -0.5 or y1 > height + 0.5 or x1 > width + 0.5
    contour = annotation.contour
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
        "smear_id": annotation.smear_id,
        "patient_id": annotation.patient_id,
    }
    if annotation.box is None:
        row["touches_border"] = False  # unknown for a point
    return row, was_cut


def _whole_pixels(start: float, stop: float, length: int) -> tuple[int, int]:
    """Return the pixels that an interval touches as a half-open interval inside the field, at least one pixel long.

    The ends are rounded outward, except for deviations from an integer by less than `_ROUNDING`.
    """
    first = min(max(math.floor(start + _ROUNDING), 0), length - 1)
    return first, max(min(math.ceil(stop - _ROUNDING), length), first + 1)


def _check_centre(y: float, x: float, height: int, width: int, extent: str) -> None:
    if not (0 <= y <= height and 0 <= x <= width):
        raise ImageError("outside-field", f"its centre (y {y:g}, x {x:g}) is outside, {extent}; correct it")


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    cells = detections_table({name: [row[name] for row in rows] for name in DETECTION_COLUMNS})
    cells = cells.assign(**{name: pd.Series([row[name] for row in rows], dtype=object) for name in _TEXTS})
    return cells.sort_values(["y", "x"], kind="stable", ignore_index=True)


class ClassNames:
    """Class codes by the names that annotation tools write.

    A name is looked up in the map, then among the codes, then among the names of the taxonomy's classes. Case is
    ignored: ``bla`` and ``Blast`` are both BLA.

    Parameters
    ----------
    taxonomy : Taxonomy
        The classes.
    mapping : mapping of str to str, optional
        Code by name, from `load_class_map`; an empty code means a cell without a class.
    """

    def __init__(self, taxonomy: Taxonomy, mapping: Mapping[str, str] | None = None) -> None:
        self._codes = {entry.name.casefold(): entry.code for entry in taxonomy}
        self._codes |= {entry.code.casefold(): entry.code for entry in taxonomy}
        self._codes |= {name.casefold(): code for name, code in (mapping or {}).items()}
        self._codes[""] = ""

    def code(self, name: str) -> str | None:
        """Return the code of a name: empty for cells without a class, None if the name is unknown."""
        return self._codes.get(name.strip().casefold())


def load_class_map(values: Sequence[str], taxonomy: Taxonomy) -> dict[str, str]:
    """Read the values of ``--class-map``: each is ``NAME=CODE``, or a YAML file with ``NAME: CODE`` lines.

    Parameters
    ----------
    values : sequence of str
        Values of the option.
    taxonomy : Taxonomy
        Taxonomy of the allowed codes; an empty code is also allowed.

    Returns
    -------
    dict of str to str
        Code by name.

    Raises
    ------
    FieldError
        If a value is neither of the two, or a code does not exist.

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
                f"--class-map: {printable(code)!r}, given for {printable(name)!r}, is not a class of taxonomy "
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
        raise FieldError(f"--class-map {shown} is not UTF-8 text; save it as UTF-8") from error
    data = parse_yaml(text, f"--class-map {shown}", FieldError)
    if not isinstance(data, dict) or any(isinstance(code, dict | list) for code in data.values()):
        raise FieldError(f"--class-map {shown} has no 'name: CODE' lines; write one for each class")
    return {str(name).strip(): code if isinstance(code, Scalar) else str(code).strip() for name, code in data.items()}
