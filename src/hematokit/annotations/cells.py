"""The cells table of a field: its columns, its detections, and the class that each cell counts as.

Every file of cells contains this table, in different formats (`hematokit.annotations.writing`).
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from hematokit.errors import PluginError
from hematokit.imaging.geometry import Box
from hematokit.plugins.specs import DETECTION_COLUMNS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = [
    "DETECTION_COLUMNS",
    "TABLE_COLUMNS",
    "MIN_PROBABILITY",
    "below_threshold",
    "called_classes",
    "cell_box",
    "check_detections",
    "class_scores",
    "detections_table",
    "empty_detections",
    "name_cells",
    "order_columns",
    "text_column",
    "low_confidence_cells",
]

TABLE_COLUMNS: Final = (
    "cell_id",
    "field_id",
    "source",
    *DETECTION_COLUMNS,
    "label",
    "label_source",
    "smear_id",
    "patient_id",
    "group",
    "split",
)
"""Columns of a field's cells table before classification, in order. Classification adds ``predicted``,
``probability``, ``p_<CODE>`` for every class of the model, and ``reviewed``."""

MIN_PROBABILITY: Final = 0.5
"""Default probability below which a cell is low-confidence."""

_NUMBERS: Final = ("y", "x", "y0", "x0", "height", "width", "score")


_DTYPES: Final = dict.fromkeys(("y0", "x0", "height", "width"), np.int64) | {
    "touches_border": np.bool_,
    "contour": np.object_,
}
"""Data types of the columns of detections that are not float64."""


def detections_table(columns: Mapping[str, Any]) -> pd.DataFrame:
    """Return detections as a table.

    Parameters
    ----------
    columns : mapping of str to array_like (n,)
        Values of all `DETECTION_COLUMNS`; other columns are ignored.

    Returns
    -------
    DataFrame
        Columns `DETECTION_COLUMNS`, in this order, with their data types.
    """
    return pd.DataFrame(
        {name: pd.Series(columns[name], dtype=_DTYPES.get(name, np.float64)) for name in DETECTION_COLUMNS}
    )


def empty_detections() -> pd.DataFrame:
    """Return an empty table of detections."""
    return detections_table({name: [] for name in DETECTION_COLUMNS})


def check_detections(detections: pd.DataFrame, height: int, width: int, name: str) -> pd.DataFrame:
    """Check the result of a detector; return it with the columns, data types and order of the contract.

    Boxes are clipped to the image. ``touches_border`` is computed if it is missing; a missing ``area`` becomes NaN.

    Parameters
    ----------
    detections : DataFrame
        Result of a detector for an image of that size.
    height, width : int
        Size of the image in pixels.
    name : str
        Name of the detector in errors.

    Returns
    -------
    DataFrame
        Columns `DETECTION_COLUMNS`, sorted by centre.

    Raises
    ------
    PluginError
        If a column is missing, a value is not a finite number, or a box is outside the image.
    """
    if not isinstance(detections, pd.DataFrame):
        raise PluginError(f"detector {name!r} returned {type(detections).__name__}, not a DataFrame; tell its author")
    missing = [column for column in _NUMBERS if column not in detections.columns]
    if missing:
        raise PluginError(f"detector {name!r} returned no column {missing[0]!r}; tell its author")
    if detections.empty:
        return empty_detections()
    try:
        numbers = {column: detections[column].to_numpy(np.float64) for column in _NUMBERS}
    except (TypeError, ValueError) as error:
        raise PluginError(
            f"detector {name!r} returned a value that is not a number ({error}); tell its author"
        ) from error
    if not all(np.isfinite(values).all() for values in numbers.values()):
        raise PluginError(f"detector {name!r} returned numbers that are not finite; tell its author")
    y1 = np.clip(numbers["y0"] + numbers["height"], 0, height)
    x1 = np.clip(numbers["x0"] + numbers["width"], 0, width)
    y0, x0 = np.clip(numbers["y0"], 0, height), np.clip(numbers["x0"], 0, width)
    if ((y1 - y0 < 1) | (x1 - x0 < 1)).any():
        raise PluginError(f"detector {name!r} returned a box outside the image; tell its author")
    contours = list(detections["contour"]) if "contour" in detections.columns else [None] * len(detections)
    if "touches_border" in detections.columns:
        touches = detections["touches_border"].to_numpy(bool)
    else:
        touches = (y0 <= 0) | (x0 <= 0) | (y1 >= height) | (x1 >= width)
    area = detections["area"].to_numpy(np.float64) if "area" in detections.columns else np.full(len(detections), np.nan)
    checked = detections_table(
        {
            "y": np.clip(numbers["y"], 0, height),
            "x": np.clip(numbers["x"], 0, width),
            "y0": np.floor(y0).astype(np.int64),
            "x0": np.floor(x0).astype(np.int64),
            "height": np.ceil(y1).astype(np.int64) - np.floor(y0).astype(np.int64),
            "width": np.ceil(x1).astype(np.int64) - np.floor(x0).astype(np.int64),
            "score": np.clip(numbers["score"], 0.0, 1.0),
            "area": area,
            "touches_border": touches,
            "contour": contours,
        }
    )
    return checked.sort_values(["y", "x"], kind="stable", ignore_index=True)


def name_cells(
    detections: pd.DataFrame, field_id: str, source: str, *, smear_id: str = "", patient_id: str = ""
) -> pd.DataFrame:
    """Return the cells table of a field from its detections.

    Parameters
    ----------
    detections : DataFrame
        Columns `DETECTION_COLUMNS`; ``label`` and ``label_source`` are kept if present.
    field_id, source : str
        Id of the field, and its path as given.
    smear_id, patient_id : str
        Empty where unknown.

    Returns
    -------
    DataFrame
        Columns `TABLE_COLUMNS`. The id of a cell consists of the id of the field and the integer pixel of its centre,
        so that repeated detection gives the same ids.
    """
    cells = detections.reset_index(drop=True)
    constants = {
        "field_id": field_id,
        "source": source,
        "smear_id": smear_id,
        "patient_id": patient_id,
        "group": patient_id,
        "split": "",
    }
    cells = cells.assign(cell_id=_ids(cells, field_id), **constants)
    for column in ("label", "label_source"):
        if column not in cells.columns:
            cells[column] = ""
    return order_columns(cells)


def _ids(cells: pd.DataFrame, field_id: str) -> list[str]:
    seen: Counter[str] = Counter()
    ids = []
    for y, x in zip(cells["y"].tolist(), cells["x"].tolist(), strict=True):
        plain = f"{field_id}-{int(y):05d}-{int(x):05d}"
        seen[plain] += 1
        ids.append(plain if seen[plain] == 1 else f"{plain}-{seen[plain]}")
    return ids


def order_columns(cells: pd.DataFrame) -> pd.DataFrame:
    """Return a cells table with its columns in the order used in files; other columns come last."""
    first: Iterable[str] = (*TABLE_COLUMNS, "predicted", "probability")
    known = [name for name in first if name in cells.columns]
    scores = [name for name in cells.columns if name.startswith("p_")]
    last = ["reviewed"] if "reviewed" in cells.columns else []
    others = [name for name in cells.columns if name not in {*known, *scores, *last}]
    return cells[known + scores + last + others]


def cell_box(row: Any) -> Box:
    """Return the bounding box of a row of a cells table, a tuple from `DataFrame.itertuples`."""
    return Box(int(row.y0), int(row.x0), int(row.height), int(row.width))


def called_classes(cells: pd.DataFrame) -> npt.NDArray[np.object_]:
    """Return the class code that each cell counts as: the label of a reviewed cell, otherwise the prediction.

    Parameters
    ----------
    cells : DataFrame
        A cells table; ``label``, ``predicted`` and ``reviewed`` are used where present.

    Returns
    -------
    ndarray (n,), object
        Empty without label and prediction. A cell without a prediction counts as its label.
    """
    label = text_column(cells, "label")
    predicted = text_column(cells, "predicted")
    reviewed = _reviewed(cells) & (label != "")
    return np.where(reviewed | (predicted == ""), label, predicted).astype(object)


def low_confidence_cells(cells: pd.DataFrame, min_probability: float) -> npt.NDArray[np.bool_]:
    """Return a mask of the low-confidence cells: probability below the threshold or missing, and not reviewed.

    Parameters
    ----------
    cells : DataFrame
        A cells table; ``probability``, ``reviewed``, ``label`` and ``predicted`` are used where present.
    min_probability : float
        Threshold, 0 to 1.

    Returns
    -------
    ndarray (n,), bool
        False for a cell with a label but no prediction.
    """
    if "probability" not in cells.columns:
        return np.zeros(len(cells), np.bool_)
    probability = cells["probability"].to_numpy(np.float64, na_value=np.nan)
    annotated = (text_column(cells, "label") != "") & (text_column(cells, "predicted") == "")
    low_confidence: npt.NDArray[np.bool_] = (
        below_threshold(probability, min_probability) & ~_reviewed(cells) & ~annotated
    )
    return low_confidence


def below_threshold(probability: npt.ArrayLike, min_probability: float) -> npt.NDArray[np.bool_]:
    """Return a mask of the probabilities (n,) that are below the threshold or NaN."""
    # Comparisons with NaN are false, hence the negation.
    below: npt.NDArray[np.bool_] = ~(np.asarray(probability, np.float64) >= min_probability)
    return below


def class_scores(cells: pd.DataFrame) -> list[tuple[str, float]]:
    """Return the classes of one cell and their probabilities, most likely class first.

    Parameters
    ----------
    cells : DataFrame
        One row of a cells table.

    Returns
    -------
    list of (str, float)
        Empty if the cell is not classified.
    """
    names = [name for name in cells.columns if name.startswith("p_")]
    values = cells[names].iloc[0].to_numpy(np.float64, na_value=np.nan) if names else np.zeros(0)
    scores = [(name.removeprefix("p_"), float(value)) for name, value in zip(names, values, strict=True)]
    return sorted((pair for pair in scores if np.isfinite(pair[1])), key=lambda pair: -pair[1])


def text_column(cells: pd.DataFrame, column: str) -> npt.NDArray[np.object_]:
    """Return a text column (n,); missing values, and those of a missing column, are empty texts."""
    if column not in cells.columns:
        return np.full(len(cells), "", object)
    texts = cells[column].astype(object)
    return np.asarray(texts.where(texts.notna(), "").to_numpy(object))


def _reviewed(cells: pd.DataFrame) -> npt.NDArray[np.bool_]:
    if "reviewed" not in cells.columns:
        return np.zeros(len(cells), np.bool_)
    return np.asarray(cells["reviewed"].to_numpy(object) == np.True_, np.bool_)
