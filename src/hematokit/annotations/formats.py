"""Annotation files of one field: Pascal VOC (XML), YOLO (text) and GeoJSON as written by QuPath.

The annotations are returned as stated in the file; `hematokit.annotations.checking` converts them to cells.

References
----------
Pascal VOC: http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/devkit_doc.html. YOLO:
https://docs.ultralytics.com/datasets/detect/. GeoJSON: RFC 7946, https://www.rfc-editor.org/rfc/rfc7946.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from hematokit.errors import ImageError, printable

__all__ = [
    "Annotation",
    "FieldAnnotations",
    "finite_number",
    "read_geojson",
    "read_text",
    "read_voc",
    "read_yolo",
    "unusable",
]

_MAX_BYTES: Final = 512 * 1024 * 1024


@dataclass(slots=True)
class Annotation:
    """One cell as stated in a file.

    Attributes
    ----------
    where : str
        Position in the file, for messages: ``"line 3"``, ``"object 2"``.
    name : str
        Name of its class as written in the file; empty if there is none.
    y, x : float or None
        Centre in pixels, if the file has one.
    box : tuple of float, or None
        ``(y0, x0, y1, x1)`` in pixels, half-open; None if the file has only a centre.
    contour : ndarray (n, 2), or None
        Outline as ``(y, x)`` in pixels.
    problem : tuple of str, or None
        Reason and message, if the annotation cannot be used whatever the field.
    label_source, smear_id, patient_id : str
        Values of the table's columns; empty for other formats.
    """

    where: str
    name: str = ""
    y: float | None = None
    x: float | None = None
    box: tuple[float, float, float, float] | None = None
    contour: npt.NDArray[np.float32] | None = None
    problem: tuple[str, str] | None = None
    label_source: str = ""
    smear_id: str = ""
    patient_id: str = ""


@dataclass(frozen=True, slots=True)
class FieldAnnotations:
    """The annotations of one field.

    Attributes
    ----------
    shown : str
        Printable name of their file.
    kind : str
        ``"csv"``, ``"geojson"``, ``"voc"`` or ``"yolo"``; the cells' ``label_source``.
    annotations : list of Annotation
    size : tuple of int, or None
        Height and width of the annotated image in pixels, if the file has them.
    """

    shown: str
    kind: str
    annotations: list[Annotation]
    size: tuple[int, int] | None = None


def finite_number(text: object) -> float:
    """Convert a text to a finite number.

    Raises
    ------
    ValueError
        If it is not a finite number; the message quotes the text.
    """
    try:
        value = float(text)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise ValueError(f"{printable(str(text))!r} is not a number") from None
    if not math.isfinite(value):
        raise ValueError(f"{printable(str(text))!r} is not a finite number")
    return value


def unusable(shown: str, problem: str) -> ImageError:
    """Return the error for an annotation file that cannot be used."""
    return ImageError("unreadable-cells", f"{shown} {problem}")


def read_text(path: Path) -> str:
    """Read a text file in UTF-8, with or without a byte-order mark.

    Raises
    ------
    ImageError
        ``"unreadable-cells"``.
    """
    shown = printable(str(path))
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise unusable(shown, f"is larger than {_MAX_BYTES:,} bytes; give a smaller file")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise unusable(shown, "is not UTF-8 text; save it as UTF-8") from error
    except OSError as error:
        raise unusable(
            shown, f"cannot be read ({error.strerror or error}); check the file and its permissions"
        ) from error


def read_voc(path: Path) -> FieldAnnotations:
    """Read a Pascal VOC file: ``annotation/object`` with ``name`` and ``bndbox``.

    Coordinates are pixel corners, as written by labelImg and most tools, so a box is ``xmax - xmin`` wide. (The
    original data set has inclusive pixel indices from 1, so the first corners of its boxes are off by one pixel here.)

    Raises
    ------
    ImageError
        ``"unreadable-cells"`` if the file cannot be read, is not XML, or is not Pascal VOC.
    """
    from xml.etree.ElementTree import ParseError

    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import fromstring

    shown = printable(str(path))
    text = read_text(path)
    try:
        # Bytes, because the parser refuses text with a declaration of another encoding.
        root = fromstring(text.encode())
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
        raise unusable(shown, f"is not XML ({printable(str(error))}); export the annotations again") from error
    if root.tag != "annotation":
        raise unusable(shown, f"is not Pascal VOC (it begins with <{printable(str(root.tag))}>, not <annotation>)")
    annotations = []
    for number, item in enumerate(root.findall("object"), start=1):
        annotation = Annotation(f"object {number}", printable((item.findtext("name") or "").strip()))
        try:
            y0, x0, y1, x1 = (_coordinate(item, name) for name in ("ymin", "xmin", "ymax", "xmax"))
            annotation.box = (y0, x0, y1, x1)
        except ValueError as error:
            annotation.problem = ("bad-number", f"{error}")
        annotations.append(annotation)
    return FieldAnnotations(shown, "voc", annotations, _voc_size(root))


def _coordinate(item: Any, name: str) -> float:
    text = item.findtext(f"bndbox/{name}")
    if text is None:
        raise ValueError(f"it has no <{name}>")
    return finite_number(text.strip())


def _voc_size(root: Any) -> tuple[int, int] | None:
    try:
        height, width = (int(root.findtext(f"size/{name}")) for name in ("height", "width"))
    except (TypeError, ValueError):
        return None
    return (height, width) if height > 0 and width > 0 else None  # some tools write 0 for unknown


def read_yolo(path: Path, height: int, width: int, names: Sequence[str] | None = None) -> FieldAnnotations:
    """Read a YOLO file: lines ``class cx cy w h`` (box) or ``class x1 y1 x2 y2 x3 y3 ...`` (polygon).

    Coordinates are fractions of the width and height of the image.

    Parameters
    ----------
    path : Path
        The file.
    height, width : int
        Size of the field in pixels.
    names : sequence of str, optional
        Names of the classes by number; by default, the number is the name.

    Raises
    ------
    ImageError
        ``"unreadable-cells"`` if the file cannot be read.
    """
    annotations = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        items = line.split()
        if not items:
            continue
        annotation = Annotation(f"line {number}", _yolo_name(items[0], names))
        try:
            values = [finite_number(item) for item in items[1:]]
            if len(values) in (4, 5):  # the fifth is a confidence
                cx, cy, w, h = values[:4]
                annotation.box = (
                    (cy - h / 2) * height,
                    (cx - w / 2) * width,
                    (cy + h / 2) * height,
                    (cx + w / 2) * width,
                )
            elif len(values) >= 6 and len(values) % 2 == 0:
                points = np.array(values).reshape(-1, 2)[:, ::-1] * (height, width)
                _outline(annotation, points)
            else:
                raise ValueError(f"it has {len(items)} values, not 'class cx cy w h'")
        except ValueError as error:
            annotation.problem = ("bad-number", str(error))
        annotations.append(annotation)
    return FieldAnnotations(printable(str(path)), "yolo", annotations)


def _yolo_name(text: str, names: Sequence[str] | None) -> str:
    if names is not None and text.isdecimal():
        # "class 7", because a number without a name must not match a taxonomy's class of code "7".
        return printable(str(names[int(text)])) if int(text) < len(names) else f"class {text}"
    return printable(text)


def _outline(annotation: Annotation, points: npt.NDArray[np.float64]) -> None:
    y0, x0 = points.min(axis=0).tolist()
    y1, x1 = points.max(axis=0).tolist()
    annotation.box = (y0, x0, y1, x1)
    annotation.contour = points.astype(np.float32)


def read_geojson(path: Path) -> FieldAnnotations:
    """Read GeoJSON as exported by QuPath: polygons or points in pixels (x first), with a classification.

    Raises
    ------
    ImageError
        ``"unreadable-cells"`` if the file cannot be read or is not GeoJSON.
    """
    shown = printable(str(path))
    text = read_text(path)
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise unusable(shown, f"is not JSON ({printable(str(error))}); export the annotations again") from error
    if isinstance(document, dict):
        features = document.get("features", [document] if document.get("type") == "Feature" else None)
    else:
        features = document
    if not isinstance(features, list):
        raise unusable(shown, "is not GeoJSON (it has no list 'features'); export the annotations again")
    annotations: list[Annotation] = []
    for number, feature in enumerate(features, start=1):
        annotations += _feature_annotations(feature, f"feature {number}")
    return FieldAnnotations(shown, "geojson", annotations)


def _feature_annotations(feature: Any, where: str) -> Iterator[Annotation]:
    annotation = Annotation(where)
    try:
        if not isinstance(feature, dict) or not isinstance(feature.get("geometry"), dict):
            raise ImageError("no-geometry", "it has no geometry")
        annotation.name = _feature_class(feature.get("properties"))
        geometry = feature["geometry"]
        kind, coordinates = geometry.get("type"), geometry.get("coordinates")
        if kind in ("Point", "MultiPoint"):
            points = _points([coordinates] if kind == "Point" else coordinates)
            for place, (y, x) in enumerate(points.tolist(), start=1):
                suffix = f", point {place}" if kind == "MultiPoint" else ""
                yield Annotation(where + suffix, annotation.name, y, x)
            return
        if kind == "Polygon":
            rings = [_points(coordinates[0])]
        elif kind == "MultiPolygon":
            rings = [_points(polygon[0]) for polygon in coordinates]
        else:
            raise ImageError("no-geometry", f"a geometry of type {printable(str(kind))} is not a cell")
        _outline(annotation, np.concatenate(rings))
        # QuPath's cell objects have the outlines of both cell and nucleus; `contour` is that of the nucleus.
        # https://qupath.readthedocs.io/en/stable/docs/advanced/exporting_annotations.html
        nucleus = feature.get("nucleusGeometry")
        if isinstance(nucleus, dict) and nucleus.get("type") == "Polygon":
            annotation.contour = _open_ring(_points(nucleus["coordinates"][0]))
        else:
            annotation.contour = _open_ring(max(rings, key=len))
    except ImageError as error:
        annotation.problem = (error.reason, str(error))
    except (TypeError, ValueError, IndexError, KeyError, OverflowError) as error:
        detail = str(error) if isinstance(error, ValueError) else "its coordinates are not a list of points"
        annotation.problem = ("bad-number", printable(" ".join(detail.split())))
    yield annotation


def _points(coordinates: Any) -> npt.NDArray[np.float64]:
    """Return positions ``[x, y, ...]`` as an array (n, 2) of ``(y, x)``."""
    points = np.array([(finite_number(position[1]), finite_number(position[0])) for position in coordinates])
    if not len(points):
        raise ValueError("it has no points")
    return points


def _open_ring(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float32] | None:
    closed = len(points) > 1 and bool((points[0] == points[-1]).all())
    ring = points[:-1] if closed else points
    return ring.astype(np.float32) if len(ring) >= 3 else None


def _feature_class(properties: Any) -> str:
    classification = properties.get("classification") if isinstance(properties, dict) else None
    if isinstance(classification, dict):
        name, names = classification.get("name"), classification.get("names")
        # Newer versions of QuPath write a list for derived classes; its last name is the most specific.
        classification = names[-1] if name in (None, "") and isinstance(names, list) and names else name
    valid = isinstance(classification, str | int) and not isinstance(classification, bool)
    return printable(str(classification).strip()) if valid else ""
