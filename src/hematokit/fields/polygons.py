"""Which outlines are simple polygons: programs that read polygons refuse those that cross themselves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["are_simple"]

_UNITS: float = 100.0
"""Units of a pixel on which corners are compared: what `to_geojson_ring` rounds to."""


def are_simple(rings: Sequence[npt.ArrayLike]) -> npt.NDArray[np.bool_]:
    """Tell which rings neither cross nor touch themselves and enclose an area.

    All segments of all rings are compared in one sweep from left to right, so that tens of thousands of outlines take
    seconds.

    Parameters
    ----------
    rings : sequence of array_like (n, 2)
        Corners in order, closed or not; compared as rounded to a hundredth of a pixel. Corners repeated in a row count
        once.

    Returns
    -------
    ndarray (len(rings),), bool
        False also for rings of fewer than three different corners or with coordinates that are not finite.
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
    """Which rings (n, 2), without repeated corners, cross or touch themselves."""
    sizes = np.array([len(ring) for ring in rings])
    owner = np.repeat(np.arange(len(rings)), sizes)
    first = np.concatenate(rings)
    starts = np.append(0, np.cumsum(sizes)[:-1])
    following = np.arange(1, len(owner) + 1)
    following[starts + sizes - 1] = starts
    last = first[following]
    bad = np.zeros(len(rings), np.bool_)

    # Neighbours share a corner, so they may only not fold back onto each other.
    step = last - first
    turn = step[following]
    folded = (_cross(step, turn) == 0) & ((step * turn).sum(axis=1) < 0)
    bad[owner[folded]] = True

    # Each ring gets a stretch of the x axis of its own; then a segment's rivals are those that start before it ends.
    low, high = np.minimum(first, last), np.maximum(first, last)
    left = np.minimum.reduceat(low[:, 0], starts)
    right = np.maximum.reduceat(high[:, 0], starts)
    shift = np.append(0, np.cumsum(right - left + 1)[:-1]) - left
    begin, end = low[:, 0] + shift[owner], high[:, 0] + shift[owner]
    order = np.argsort(begin, kind="stable")
    rivals = np.searchsorted(begin[order], end[order], side="right") - np.arange(len(order)) - 1
    one = np.repeat(np.arange(len(order)), rivals)
    other = one + 1 + np.arange(len(one)) - np.repeat(np.cumsum(rivals) - rivals, rivals)
    one, other = order[one], order[other]

    place = np.arange(len(owner)) - starts[owner]
    apart = np.abs(place[one] - place[other])
    neighbours = (apart == 1) | (apart == sizes[owner[one]] - 1)
    overlap = (low[one, 1] <= high[other, 1]) & (low[other, 1] <= high[one, 1])
    which = overlap & ~neighbours
    one, other = one[which], other[which]
    a, b, c, d = first[one], last[one], first[other], last[other]
    # Boxes overlap, and each segment's ends lie on different sides of, or on, the other's line.
    across = np.sign(_cross(b - a, c - a)) * np.sign(_cross(b - a, d - a)) <= 0
    across &= np.sign(_cross(d - c, a - c)) * np.sign(_cross(d - c, b - c)) <= 0
    bad[owner[one[across]]] = True
    return bad


def _cross(u: npt.NDArray[np.int64], v: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]
