"""The cells table as Parquet, as CSV for spreadsheets and as GeoJSON for QuPath.

Many programs reject polygons that cross themselves, so GeoJSON has the bounding box of a cell with such a contour.
"""

from __future__ import annotations

import io
import json
import math
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from hematokit.annotations.cells import called_classes, cell_box
from hematokit.errors import FieldError, printable
from hematokit.files import replace_file
from hematokit.imaging.geometry import box_ring, to_geojson_ring, to_micrometres
from hematokit.parquet import read_table, write_table
from hematokit.taxonomy import Taxonomy

__all__ = ["are_simple", "csv_text", "read_parquet", "write_csv", "write_geojson", "write_parquet"]

_CHUNK: Final = 1000
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n")
_SIGNED: Final = {"who": "reviewed by", "when": "reviewed at"}
"""Columns with the reviewer and the time, and their names in QuPath."""
_DECIMALS: Final = {"y": 2, "x": 2, "area": 2, "score": 4, "probability": 6}
_UNITS: Final = 100.0
"""Steps per pixel at which corners are compared; `to_geojson_ring` rounds to the same steps."""


def write_parquet(path: str | Path, cells: pd.DataFrame) -> None:
    """Replace a Parquet file by the cells table.

    Parameters
    ----------
    path : path
        The file.
    cells : DataFrame
        The table; ``contour`` is written as a list of points ``[y, x]``, float32, or null.

    Raises
    ------
    OSError
        If it cannot be written; the old file is then kept.
    """
    import pyarrow as pa

    plain = cells.drop(columns="contour", errors="ignore")
    table = pa.Table.from_pandas(plain, preserve_index=False).replace_schema_metadata(None)
    if "contour" in cells.columns:
        table = table.add_column(list(cells.columns).index("contour"), "contour", _contour_array(cells["contour"]))
    write_table(Path(path), table)


def _contour_array(contours: pd.Series[Any]) -> Any:
    import pyarrow as pa

    points = [None if _missing(contour) else np.asarray(contour, np.float32) for contour in contours]
    lengths = np.array([0 if part is None else len(part) for part in points], np.int64)
    filled = [part.reshape(-1, 2) for part in points if part is not None]
    flat = np.concatenate(filled) if filled else np.zeros((0, 2), np.float32)
    pairs = pa.ListArray.from_arrays(np.arange(0, 2 * len(flat) + 1, 2, dtype=np.int32), pa.array(flat.ravel()))
    ends = np.append(0, np.cumsum(lengths)).astype(np.int32)
    absent = np.append([part is None for part in points], False).astype(bool)
    return pa.ListArray.from_arrays(pa.array(ends, mask=absent), pairs)


def _missing(contour: object) -> bool:
    return contour is None or isinstance(contour, float) or len(contour) == 0  # type: ignore[arg-type]


def read_parquet(path: str | Path) -> pd.DataFrame:
    """Read a cells table written by `write_parquet`.

    Returns
    -------
    DataFrame
        The values of ``contour`` are float32 arrays (n, 2) of ``(y, x)``, or None.

    Raises
    ------
    FieldError
        If the file is missing or is not a cells table.
    """
    shown = printable(str(path))
    table = read_table(Path(path), kind=FieldError, advice="make it again")
    names = table.column_names
    if "cell_id" not in names:
        raise FieldError(f"{shown} is not a cells table (it has no column 'cell_id'); give a cells.parquet")
    if "contour" not in names:
        plain: pd.DataFrame = table.to_pandas()
        return plain
    column = table.column("contour").combine_chunks()
    cells: pd.DataFrame = table.drop_columns("contour").to_pandas()
    cells.insert(names.index("contour"), "contour", pd.Series(_contours(column), index=cells.index, dtype=object))
    return cells


def _contours(column: Any) -> list[npt.NDArray[np.float32] | None]:
    import pyarrow as pa

    if pa.types.is_null(column.type):
        return [None] * len(column)
    valid = column.is_valid().to_pylist()
    lengths = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    flat = column.flatten().flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(-1, 2)
    parts = np.split(flat, np.cumsum(lengths)[:-1]) if len(lengths) else []
    return [part.copy() if present else None for part, present in zip(parts, valid, strict=True)]


def csv_text(table: pd.DataFrame) -> str:
    """Return a table as CSV that is safe to open in a spreadsheet.

    An apostrophe is put before texts that begin like a formula (``=``, ``+``, ``-``, ``@``), so that a spreadsheet does
    not execute the name of a file: https://owasp.org/www-community/attacks/CSV_Injection.
    """
    buffer = io.StringIO()
    for part in _csv_parts(table):
        buffer.write(part)
    return buffer.getvalue()


def write_csv(path: str | Path, cells: pd.DataFrame) -> None:
    """Replace a CSV file by the cells table.

    Parameters
    ----------
    path : path
        The file; UTF-8, comma-separated.
    cells : DataFrame
        The table; ``contour`` is written as well-known text, ``POLYGON ((x y, ...))``, x first. Texts are made safe
        for spreadsheets as in `csv_text`.

    Raises
    ------
    OSError
        If it cannot be written; the old file is then kept.
    """

    def write(file: BinaryIO) -> None:
        for part in _csv_parts(cells):
            file.write(part.encode("utf-8"))

    replace_file(Path(path), write)


def _csv_parts(table: pd.DataFrame) -> Iterator[str]:
    for start in range(0, max(1, len(table)), _CHUNK):
        part = table.iloc[start : start + _CHUNK].copy()
        for name in part.columns:
            if name == "contour":
                part[name] = pd.Series(list(map(_well_known_text, part[name])), index=part.index, dtype=object)
            elif pd.api.types.is_float_dtype(part[name].dtype):
                decimals = 6 if name.startswith("p_") else _DECIMALS.get(name)
                if decimals is not None:
                    # Rounded as float64: a rounded float32 would be written with digits beyond its precision.
                    part[name] = part[name].astype(np.float64).round(decimals)
            elif not pd.api.types.is_bool_dtype(part[name].dtype) and not pd.api.types.is_numeric_dtype(
                part[name].dtype
            ):
                part[name] = pd.Series([_safe_text(value) for value in part[name]], index=part.index, dtype=object)
        yield part.to_csv(index=False, header=start == 0, lineterminator="\n")


def _safe_text(value: object) -> object:
    if not isinstance(value, str):
        return value
    text = value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return f"'{text}" if text.startswith(_FORMULA) else text


def _well_known_text(contour: object) -> str:
    if _missing(contour):
        return ""
    points = np.round(np.asarray(contour, np.float64), 2).tolist()
    return "POLYGON ((" + ", ".join(f"{x:.10g} {y:.10g}" for y, x in [*points, points[0]]) + "))"


def write_geojson(
    path: str | Path, cells: pd.DataFrame, taxonomy: Taxonomy, *, pixel_size_um: float | None = None
) -> None:
    """Replace a GeoJSON file by the cells, in the form imported by QuPath (0.4 or newer).

    Each cell is a feature of type ``detection`` with the contour of its nucleus, or its bounding box if the contour is
    missing or crosses itself. The classification has the class code as its name and the taxonomy's colour; cells
    without a class have no classification. Probabilities, score and area are measurements. Metadata are the name of the
    class, and the reviewer and time from the columns ``who`` and ``when``. Ids are derived from cell ids, so that
    repeated imports do not duplicate cells. Coordinates are full-resolution pixels, x first, as in QuPath.

    Parameters
    ----------
    path : path
        The file.
    cells : DataFrame
        The table, classified or not.
    taxonomy : Taxonomy
        Taxonomy with the colours and names of the classes.
    pixel_size_um : float, optional
        If given, the area is also written in square micrometres.

    Raises
    ------
    OSError
        If it cannot be written; the old file is then kept.
    """

    def write(file: BinaryIO) -> None:
        file.write(b'{"type":"FeatureCollection","features":[')
        separator = b"\n"
        for start in range(0, len(cells), _CHUNK):
            for feature in _features(cells.iloc[start : start + _CHUNK], taxonomy, pixel_size_um):
                file.write(separator + json.dumps(feature, separators=(",", ":"), allow_nan=False).encode())
                separator = b",\n"
        file.write(b"\n]}\n")

    replace_file(Path(path), write)


def _features(cells: pd.DataFrame, taxonomy: Taxonomy, pixel_size_um: float | None) -> Iterator[dict[str, Any]]:
    classes = {entry.code: ({"name": entry.code, "color": _rgb(entry.colour)}, entry.name) for entry in taxonomy}
    measured = _measurements(cells, pixel_size_um)
    called = called_classes(cells)
    ids = cells["cell_id"].tolist()
    signed = {shown: _texts(cells, name) for name, shown in _SIGNED.items()}
    for number, ring in enumerate(_rings(cells)):
        properties: dict[str, Any] = {"objectType": "detection", "name": printable(str(ids[number]))}
        code, name = str(called[number]), ""
        if code:
            classification, name = classes.get(code, ({"name": printable(code), "color": [127, 127, 127]}, ""))
            properties["classification"] = classification
        # Measurements in QuPath are numbers only; texts are metadata.
        metadata = {"class name": name} | {shown: texts[number] for shown, texts in signed.items()}
        metadata = {shown: text for shown, text in metadata.items() if text}
        if metadata:
            properties["metadata"] = metadata
        measurements = {name: values[number] for name, values in measured.items() if math.isfinite(values[number])}
        if measurements:
            properties["measurements"] = measurements
        yield {
            "type": "Feature",
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"hematokit:{ids[number]}")),
            "geometry": {"type": "Polygon", "coordinates": [ring]},
            "properties": properties,
        }


def _texts(cells: pd.DataFrame, name: str) -> list[str]:
    if name not in cells.columns:
        return [""] * len(cells)
    return [printable(value) if isinstance(value, str) else "" for value in cells[name]]


def _rgb(colour: str) -> list[int]:
    return [int(colour[place : place + 2], 16) for place in (1, 3, 5)]


def _measurements(cells: pd.DataFrame, pixel_size_um: float | None) -> dict[str, list[float]]:
    names = {"probability": "Probability", "score": "Detection score", "area": "Nucleus area px^2"}
    names |= {name: name for name in cells.columns if name.startswith("p_")}
    columns = {
        shown: np.round(cells[name].to_numpy(np.float64, na_value=np.nan), _DECIMALS.get(name, 6))
        for name, shown in names.items()
        if name in cells.columns
    }
    if pixel_size_um is not None and "area" in cells.columns:
        side = to_micrometres(1.0, pixel_size_um)
        columns["Nucleus area µm^2"] = np.round(cells["area"].to_numpy(np.float64, na_value=np.nan) * side**2, 3)
    return {name: values.tolist() for name, values in columns.items()}


def _rings(cells: pd.DataFrame) -> list[list[list[float]]]:
    contours = list(cells["contour"]) if "contour" in cells.columns else [None] * len(cells)
    rings = [_ring(contour) for contour in contours]
    simple = are_simple([ring or [] for ring in rings])
    return [
        ring if ring is not None and fine else to_geojson_ring(box_ring(cell_box(row)))
        for ring, fine, row in zip(rings, simple.tolist(), cells.itertuples(index=False), strict=True)
    ]


def _ring(contour: object) -> list[list[float]] | None:
    if _missing(contour):
        return None
    points = np.asarray(contour, np.float64)
    if len(points) < 3 or not np.isfinite(points).all():
        return None
    return to_geojson_ring(points)


def are_simple(rings: Sequence[npt.ArrayLike]) -> npt.NDArray[np.bool_]:
    """Return a mask of the rings that enclose an area and neither cross nor touch themselves.

    These are the simple rings of the OGC's simple-features standard (as in PostGIS and Shapely). Segments are compared
    in a sweep from left to right over many rings at once, so that tens of thousands of contours take seconds.

    Parameters
    ----------
    rings : sequence of array_like (n, 2)
        Corners in order, closed or not; rounded to a hundredth of a pixel. Consecutive equal corners count once.

    Returns
    -------
    ndarray (len(rings),), bool
        False also for rings with fewer than three different corners or with coordinates that are not finite.
    """
    good = np.zeros(len(rings), np.bool_)
    kept: list[npt.NDArray[np.int64]] = []
    owners: list[int] = []
    for number, ring in enumerate(rings):
        points = np.asarray(ring, np.float64)
        if points.ndim != 2 or points.shape[1:] != (2,) or not np.isfinite(points).all():
            continue
        corners = np.rint(points * _UNITS).astype(np.int64)
        before = np.concatenate((corners[-1:], corners[:-1]))
        corners = corners[(corners != before).any(axis=1)]
        if len(corners) >= 3:
            kept.append(corners)
            owners.append(number)
    for start in range(0, len(kept), 1000):
        part = kept[start : start + 1000]
        good[owners[start : start + 1000]] = ~_crossing(part)
    return good


def _crossing(rings: list[npt.NDArray[np.int64]]) -> npt.NDArray[np.bool_]:
    """Return a mask of the rings (n, 2), without consecutive equal corners, that cross or touch themselves."""
    sizes = np.array([len(ring) for ring in rings])
    owner = np.repeat(np.arange(len(rings)), sizes)
    first = np.concatenate(rings)
    starts = np.append(0, np.cumsum(sizes)[:-1])
    following = np.arange(1, len(owner) + 1)
    following[starts + sizes - 1] = starts
    last = first[following]
    bad = np.zeros(len(rings), np.bool_)

    # Neighbouring segments share a corner. They overlap if they are parallel and of opposite directions.
    step = last - first
    turn = step[following]
    folded = (_cross(step, turn) == 0) & ((step * turn).sum(axis=1) < 0)
    bad[owner[folded]] = True

    # Shift each ring to its own part of the x axis, so that segments of different rings are never compared. With
    # segments sorted by their first x, the candidates of a segment are the following ones that begin before it ends.
    low, high = np.minimum(first, last), np.maximum(first, last)
    left = np.minimum.reduceat(low[:, 0], starts)
    right = np.maximum.reduceat(high[:, 0], starts)
    shift = np.append(0, np.cumsum(right - left + 1)[:-1]) - left
    begin, end = low[:, 0] + shift[owner], high[:, 0] + shift[owner]
    order = np.argsort(begin, kind="stable")
    candidates = np.searchsorted(begin[order], end[order], side="right") - np.arange(len(order)) - 1
    one = np.repeat(np.arange(len(order)), candidates)
    other = one + 1 + np.arange(len(one)) - np.repeat(np.cumsum(candidates) - candidates, candidates)
    one, other = order[one], order[other]

    place = np.arange(len(owner)) - starts[owner]
    apart = np.abs(place[one] - place[other])
    neighbours = (apart == 1) | (apart == sizes[owner[one]] - 1)
    overlap = (low[one, 1] <= high[other, 1]) & (low[other, 1] <= high[one, 1])
    which = overlap & ~neighbours
    one, other = one[which], other[which]
    a, b, c, d = first[one], last[one], first[other], last[other]
    # Two segments whose boxes overlap intersect if the ends of each are on different sides of, or on, the line through
    # the other. Integer coordinates make the signs exact.
    # Cormen, Leiserson, Rivest, Stein, Introduction to Algorithms, section "Line-segment properties".
    across = np.sign(_cross(b - a, c - a)) * np.sign(_cross(b - a, d - a)) <= 0
    across &= np.sign(_cross(d - c, a - c)) * np.sign(_cross(d - c, b - c)) <= 0
    bad[owner[one[across]]] = True
    return bad


def _cross(u: npt.NDArray[np.int64], v: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]
