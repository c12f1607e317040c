"""Detection of the cells of a field of any size, and matching of detections to annotated cells.

A field that fits into one window is passed to the detector as a whole. A larger field is read in windows with a margin
around each; a detection belongs to the window whose core contains its centre. Two windows may detect the same cell with
slightly different centres, so detections slightly outside the core are kept too. Of two detections of one cell, the one
with the higher score is kept.

A detection matches an annotated cell if its centre is inside the bounding box of that cell.
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
from hematokit.detection.quality import FieldQuality, WindowMeasure, assess_field, measure_window
from hematokit.errors import naming
from hematokit.imaging.geometry import Window, windows
from hematokit.plugins import MadeDetector, load_plugins
from hematokit.progress import Progress, no_progress

if TYPE_CHECKING:
    from hematokit.imaging.fieldfiles import Field

__all__ = ["Examination", "Matches", "WINDOW_SIDE", "detect_cells", "examine_field", "make_detector", "match_cells"]

WINDOW_SIDE: Final = 4096
"""Largest side in pixels of a window, without its margin."""

_COARSE_UM: Final = 0.2
"""Micrometres per pixel above which windows are half as wide."""

_MARGIN: Final = 384
"""Margin in pixels around a window: wider than the largest cell (a megakaryocyte of 100 um at 0.3 um per pixel)."""

_SEAM: Final = 12
"""Largest distance in pixels between the centres of the same cell detected in two windows."""


@dataclass(frozen=True)
class Examination:
    """Detections and quality of a field.

    Attributes
    ----------
    cells : DataFrame
        Columns `hematokit.annotations.cells.DETECTION_COLUMNS`, in pixels of the whole field.
    quality : FieldQuality
        Quality control of the field.
    """

    cells: pd.DataFrame
    quality: FieldQuality


def make_detector(name: str = "nuclei", options: Mapping[str, object] | None = None) -> MadeDetector:
    """Make a registered detector.

    Parameters
    ----------
    name : str
        Name as listed by ``hematokit plugins``.
    options : mapping, optional
        Options of the detector; missing ones have their default.

    Raises
    ------
    PluginError
        If there is no detector of that name, an option is invalid, or the detector cannot be made.
    """
    return load_plugins().detectors.make(name, options)


def detect_cells(
    field: Field, detector: MadeDetector, *, window_side: int | None = None, progress: Progress = no_progress
) -> pd.DataFrame:
    """Return the detections of a field, like `examine_field` without the quality."""
    return examine_field(field, detector, window_side=window_side, progress=progress).cells


def examine_field(
    field: Field, detector: MadeDetector, *, window_side: int | None = None, progress: Progress = no_progress
) -> Examination:
    """Detect the cells of a field and measure its quality.

    Parameters
    ----------
    field : Field
        The opened field.
    detector : MadeDetector
        From `make_detector`.
    window_side : int, optional
        Largest side in pixels of a window; by default `WINDOW_SIDE`, or half of it if pixels are large.
    progress : Progress
        Called with the number of completed windows.

    Returns
    -------
    Examination

    Raises
    ------
    ImageError
        If the file is damaged.
    PluginError
        If the detector fails, or its result does not follow the contract.
    """
    parts: list[pd.DataFrame] = []
    measures: list[WindowMeasure] = []
    pieces = list(windows(field.height, field.width, window_side or _usual_side(field), _MARGIN))
    for number, window in enumerate(pieces):
        pixels = field.read(window.outer)
        detections = _run(detector, pixels, field.pixel_size_um)
        checked = check_detections(detections, window.outer.height, window.outer.width, detector.name)
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
    """Return the side of a window, halved where pixels are large and a window would have many thousand cells."""
    coarse = field.pixel_size_um is not None and field.pixel_size_um > _COARSE_UM
    return WINDOW_SIDE // 2 if coarse else WINDOW_SIDE


def _run(detector: MadeDetector, pixels: npt.NDArray[np.uint8], pixel_size_um: float | None) -> pd.DataFrame:
    with naming(detector.title):
        return detector.value.detect(pixels, pixel_size_um)


def _placed(detections: pd.DataFrame, window: Window, field: Field, number: int) -> pd.DataFrame:
    """Return a window's detections in the field's coordinates, without those of neighbouring windows."""
    top, left = window.outer.y0, window.outer.x0
    cells = detections.assign(
        y=detections["y"] + top, x=detections["x"] + left, y0=detections["y0"] + top, x0=detections["x0"] + left
    )
    core = window.core
    low_y, low_x, high_y, high_x = core.y0 - _SEAM, core.x0 - _SEAM, core.y1 + _SEAM, core.x1 + _SEAM
    # Both ends inclusive, because a centre may be exactly on the last edge of the field.
    mine = cells["y"].between(low_y, high_y) & cells["x"].between(low_x, high_x)
    cells = cells[mine].reset_index(drop=True)
    at_edge = (
        (cells["y0"] <= 1)
        | (cells["x0"] <= 1)
        | (cells["y0"] + cells["height"] >= field.height - 1)
        | (cells["x0"] + cells["width"] >= field.width - 1)
    )
    if window.outer.height < field.height or window.outer.width < field.width:
        # A cell at the border of the window is not cut unless that is also the border of the field.
        cells["touches_border"] = cells["touches_border"] & at_edge
    shift = np.array([top, left], np.float32)
    moved = [None if outline is None else np.asarray(outline) + shift for outline in cells["contour"]]
    cells["contour"] = pd.Series(moved, index=cells.index, dtype=object)
    cells["window"] = number
    return cells


def _without_repeats(cells: pd.DataFrame) -> pd.DataFrame:
    """Return detections without repeats: of two nearby ones from different windows, the one with the higher score.

    This is non-maximum suppression by the distance of centres; only detections near a seam can be repeated.
    """
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
    """Detections matched to annotated cells.

    Attributes
    ----------
    detected, annotated : ndarray (k,), int
        Rows of the matched detections, and of the annotated cells that they match; every row occurs at most once.
    detections, cells : int
        Numbers of all detections and of all annotated cells.
    """

    detected: npt.NDArray[np.int64]
    annotated: npt.NDArray[np.int64]
    detections: int
    cells: int

    @property
    def recall(self) -> float:
        """Share of the annotated cells that are matched; NaN without annotated cells."""
        return len(self.annotated) / self.cells if self.cells else float("nan")

    @property
    def precision(self) -> float:
        """Share of the detections that are matched; NaN without detections."""
        return len(self.detected) / self.detections if self.detections else float("nan")


def match_cells(detections: pd.DataFrame, cells: pd.DataFrame) -> Matches:
    """Match the detections and annotated cells of one field one to one, with as many matches as possible.

    Parameters
    ----------
    detections : DataFrame
        Detections with the columns ``y`` and ``x``, in pixels.
    cells : DataFrame
        Annotated cells with the columns ``y0``, ``x0``, ``height`` and ``width``, in pixels.

    Returns
    -------
    Matches
        A maximum matching: of two centres in one box, one matches and the other is a false positive.

    References
    ----------
    Hopcroft JE, Karp RM (1973). An n^5/2 algorithm for maximum matchings in bipartite graphs. SIAM J. Comput. 2,
    225-231 (the algorithm of `scipy.sparse.csgraph.maximum_bipartite_matching`).
    """
    y, x = (detections[name].to_numpy(np.float64)[:, None] for name in ("y", "x"))
    y0, x0, height, width = (cells[name].to_numpy(np.float64) for name in ("y0", "x0", "height", "width"))
    # Boxes of neighbouring cells overlap. A greedy assignment could give a cell the only centre of its neighbour; a
    # maximum matching does not depend on the order of the rows.
    inside = (y >= y0) & (y < y0 + height) & (x >= x0) & (x < x0 + width)
    partner = np.asarray(maximum_bipartite_matching(csr_matrix(inside), perm_type="column"))
    detected = np.flatnonzero(partner >= 0)
    return Matches(detected.astype(np.int64), partner[detected].astype(np.int64), len(detections), len(cells))
