"""Holding detections against known cells: a detection finds a cell if its centre lies in the cell's box.

Finding the cells of a field, whatever its size: one detector, run window by window.

A field that fits one window is given to the detector whole. A larger one is cut into windows with a margin around
each; a cell belongs to the window whose core holds its centre. The same cell seen from two windows may have centres
that differ by a pixel, so cells a little outside the core are kept too, and of two at one place the better stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching
from scipy.spatial import KDTree

from hematokit.annotations.cells import check_detections, empty_detections
from hematokit.detection.quality import Suitability, WindowMeasure, assess_field, measure_window
from hematokit.errors import naming
from hematokit.imaging.geometry import Window, windows
from hematokit.plugins import MadeDetector, load_plugins
from hematokit.progress import Progress, no_progress

if TYPE_CHECKING:
    from hematokit.imaging.fieldfiles import Field

__all__ = ["Examination", "Matches", "WINDOW_SIDE", "detect_cells", "examine_field", "make_detector", "match_cells"]

WINDOW_SIDE: Final = 4096
"""Largest side in pixels of what a detector is given at once, margins not counted."""

_COARSE_UM: Final = 0.2
"""Micrometres per pixel above which windows are half as wide."""

_MARGIN: Final = 384
"""Pixels around a window: more than the widest cell (a megakaryocyte of 100 um at 0.3 um per pixel)."""

_SEAM: Final = 12
"""How far, in pixels, the centres of one cell seen from two windows may lie apart."""


@dataclass(frozen=True)
class Examination:
    """What detection says of a field.

    Attributes
    ----------
    cells : DataFrame
        Columns `hematokit.annotations.cells.DETECTION_COLUMNS`, in pixels of the whole field.
    suitability : Suitability
        Whether the field is worth reading.
    """

    cells: pd.DataFrame
    suitability: Suitability


def make_detector(name: str = "nuclei", options: Mapping[str, object] | None = None) -> MadeDetector:
    """Make a registered detector.

    Parameters
    ----------
    name : str
        As ``hematokit plugins`` lists it.
    options : mapping, optional
        Its options, checked and completed.

    Raises
    ------
    PluginError
        If there is none of that name, an option does not fit, or it cannot be made.
    """
    return load_plugins().detectors.make(name, options)


def detect_cells(
    field: Field, detector: MadeDetector, *, window_side: int | None = None, progress: Progress = no_progress
) -> pd.DataFrame:
    """Find the cells of a field.

    As `examine_field`, without the judgement on the field.
    """
    return examine_field(field, detector, window_side=window_side, progress=progress).cells


def examine_field(
    field: Field, detector: MadeDetector, *, window_side: int | None = None, progress: Progress = no_progress
) -> Examination:
    """Find the cells of a field and judge whether it is worth reading.

    Parameters
    ----------
    field : Field
        The opened field.
    detector : MadeDetector
        From `make_detector`.
    window_side : int, optional
        Largest side in pixels of a window; by default `WINDOW_SIDE`, or half of it where pixels are large.
    progress : Progress
        Told the number of windows done.

    Returns
    -------
    Examination

    Raises
    ------
    ImageError
        If the file is damaged.
    PluginError
        If the detector fails, or returns what is no table of cells.
    """
    parts: list[pd.DataFrame] = []
    measures: list[WindowMeasure] = []
    pieces = list(windows(field.height, field.width, window_side or _usual_side(field), _MARGIN))
    for number, window in enumerate(pieces):
        pixels = field.read(window.outer)
        found = _run(detector, pixels, field.pixel_size_um)
        checked = check_detections(found, window.outer.height, window.outer.width, detector.name)
        parts.append(_placed(checked, window, field, number))
        rows, columns = window.core.y0 - window.outer.y0, window.core.x0 - window.outer.x0
        core = pixels[rows : rows + window.core.height, columns : columns + window.core.width]
        measures.append(measure_window(core, field.pixel_size_um))
        progress(number + 1, len(pieces), "")
    filled = [part for part in parts if len(part)]
    if not filled:
        cells = empty_detections()
    else:
        cells = pd.concat(filled, ignore_index=True) if len(filled) > 1 else filled[0]
        if len(pieces) > 1:
            cells = _without_repeats(cells)
        cells = cells.drop(columns="window").sort_values(["y", "x"], kind="stable", ignore_index=True)
    return Examination(cells, assess_field(measures, cells))


def _usual_side(field: Field) -> int:
    """Where a pixel is large, a window holds thousands of cells, and detectors cannot work on a reduced picture."""
    coarse = field.pixel_size_um is not None and field.pixel_size_um > _COARSE_UM
    return WINDOW_SIDE // 2 if coarse else WINDOW_SIDE


def _run(detector: MadeDetector, pixels: npt.NDArray[np.uint8], pixel_size_um: float | None) -> pd.DataFrame:
    with naming(detector.title):
        return detector.value.detect(pixels, pixel_size_um)


def _placed(found: pd.DataFrame, window: Window, field: Field, number: int) -> pd.DataFrame:
    """Move a window's detections to the field's coordinates; drop those that belong to a neighbour."""
    top, left = window.outer.y0, window.outer.x0
    cells = found.assign(y=found["y"] + top, x=found["x"] + left, y0=found["y0"] + top, x0=found["x0"] + left)
    core = window.core
    low_y, low_x, high_y, high_x = core.y0 - _SEAM, core.x0 - _SEAM, core.y1 + _SEAM, core.x1 + _SEAM
    # Not half-open at the field's own end: a centre may lie exactly on the last edge.
    mine = cells["y"].between(low_y, high_y) & cells["x"].between(low_x, high_x)
    cells = cells[mine].reset_index(drop=True)
    at_edge = (
        (cells["y0"] <= 1)
        | (cells["x0"] <= 1)
        | (cells["y0"] + cells["height"] >= field.height - 1)
        | (cells["x0"] + cells["width"] >= field.width - 1)
    )
    if window.outer.height < field.height or window.outer.width < field.width:
        # A border that only the window has cuts no cell.
        cells["touches_border"] = cells["touches_border"] & at_edge
    shift = np.array([top, left], np.float32)
    moved = [None if outline is None else np.asarray(outline) + shift for outline in cells["contour"]]
    cells["contour"] = pd.Series(moved, index=cells.index, dtype=object)
    cells["window"] = number
    return cells


def _without_repeats(cells: pd.DataFrame) -> pd.DataFrame:
    """Of cells that two windows found at one place, keep the one with the higher score."""
    points = cells[["y", "x"]].to_numpy(np.float64)
    pairs = KDTree(points).query_pairs(_SEAM, output_type="ndarray")
    if not len(pairs):
        return cells
    window, score = cells["window"].to_numpy(), cells["score"].to_numpy()
    dropped: set[int] = set()
    for first, second in sorted(map(tuple, pairs.tolist())):
        if window[first] == window[second] or first in dropped or second in dropped:
            continue
        dropped.add(second if score[second] <= score[first] else first)
    return cells.drop(index=sorted(dropped)).reset_index(drop=True)


@dataclass(frozen=True)
class Matches:
    """Which detection found which cell.

    Attributes
    ----------
    found : ndarray (k,), int
        Rows of the detections that found a cell.
    truth : ndarray (k,), int
        The rows of the cells they found; no row stands twice in either.
    detections, cells : int
        How many there were.
    """

    found: npt.NDArray[np.int64]
    truth: npt.NDArray[np.int64]
    detections: int
    cells: int

    @property
    def recall(self) -> float:
        """Share of the cells that were found; not a number where there is none."""
        return len(self.truth) / self.cells if self.cells else float("nan")

    @property
    def precision(self) -> float:
        """Share of the detections that found a cell; not a number where there is none."""
        return len(self.found) / self.detections if self.detections else float("nan")


def match_cells(detections: pd.DataFrame, cells: pd.DataFrame) -> Matches:
    """Match detections and known cells of one field, each at most once, so that as many as possible match.

    Parameters
    ----------
    detections : DataFrame
        With the columns ``y`` and ``x``, in pixels.
    cells : DataFrame
        With the columns ``y0``, ``x0``, ``height`` and ``width``.

    Returns
    -------
    Matches
        Of a maximum matching: where two centres lie in one box, one of them counts and the other is a false positive.
    """
    y, x = (detections[name].to_numpy(np.float64)[:, None] for name in ("y", "x"))
    y0, x0, height, width = (cells[name].to_numpy(np.float64) for name in ("y0", "x0", "height", "width"))
    inside = (y >= y0) & (y < y0 + height) & (x >= x0) & (x < x0 + width)
    partner = np.asarray(maximum_bipartite_matching(csr_matrix(inside), perm_type="column"))
    found = np.flatnonzero(partner >= 0)
    return Matches(found.astype(np.int64), partner[found].astype(np.int64), len(detections), len(cells))
