"""Holding detections against known cells: a detection finds a cell if its centre lies in the cell's box."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching

__all__ = ["Matches", "match_cells"]


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
