"""95 % intervals for figures measured on cells that may come in groups.

Cells of one patient, or two crops of one physical cell, are not independent: treating them as such makes every
interval too narrow. Proportions get a Wilson interval on the *effective* number of cells; what is no proportion is
bootstrapped by whole groups (`hematokit.evaluation.resampling`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import norm
from scipy.stats import t as student_t

__all__ = [
    "LEVEL",
    "Interval",
    "cluster_ids",
    "effective_count",
    "effective_count_of_sums",
    "f1_interval",
    "mean_interval",
    "wider_interval",
    "wilson_interval",
]

LEVEL: Final = 0.95
"""Confidence level of every interval here."""

Interval = tuple[float, float]

_Z: Final = float(norm.ppf(0.5 + LEVEL / 2))


def cluster_ids(groups: npt.ArrayLike | None, n: int) -> npt.NDArray[np.int64]:
    """Number the groups 0, 1, ...; a cell whose group is empty or missing is a group of its own.

    Parameters
    ----------
    groups : array_like (n,) or None
        Group of each cell (patient, or duplicate group); ``None``: every cell stands alone.
    n : int
        Number of cells.

    Returns
    -------
    ndarray (n,), int64
        Group numbers without gaps.

    Raises
    ------
    ValueError
        If there are not `n` groups.
    """
    if groups is None:
        return np.arange(n, dtype=np.int64)
    names = pd.Series(np.asarray(groups, dtype=object))
    if len(names) != n:
        raise ValueError(f"{n} groups expected, one a cell, got {len(names)}")
    alone = (names.isna() | (names == "")).to_numpy()
    codes = np.empty(n, dtype=np.int64)
    codes[~alone], uniques = pd.factorize(names[~alone])
    codes[alone] = len(uniques) + np.arange(int(alone.sum()))
    return codes


def effective_count(
    hit: npt.NDArray[np.bool_], inside: npt.NDArray[np.bool_], clusters: npt.NDArray[np.int64]
) -> float:
    """How many independent cells the proportion ``hit / inside`` is worth.

    The count divided by the design effect (the variance of the proportion between groups over its binomial
    variance, never below 1), and by the wider tail of Student's t where groups are few.

    Parameters
    ----------
    hit : ndarray (n,), bool
        Cells counted in the numerator; only those `inside` matter.
    inside : ndarray (n,), bool
        Cells counted in the denominator.
    clusters : ndarray (n,), int
        Group number of each cell.

    Returns
    -------
    float
        0 where there is no cell; the plain count where every group has one cell.

    References
    ----------
    Korn EL, Graubard BI (1998). Confidence intervals for proportions with small expected number of positive counts
    estimated from survey data. Survey Methodology 24, 193-201.
    """
    which = clusters[inside]
    if not len(which):
        return 0.0
    _, which = np.unique(which, return_inverse=True)
    sizes = np.bincount(which).astype(np.float64)
    hits = np.bincount(which, weights=hit[inside].astype(np.float64)).astype(np.float64)
    return effective_count_of_sums(hits, sizes)


def effective_count_of_sums(hits: npt.NDArray[np.float64], sizes: npt.NDArray[np.float64]) -> float:
    """`effective_count` from the sums of each group.

    Parameters
    ----------
    hits, sizes : ndarray (groups,), float
        Cells of each group in the numerator and in the denominator; groups without cells are passed over.

    Returns
    -------
    float
    """
    hits, sizes = hits[sizes > 0], sizes[sizes > 0]
    groups, total = len(sizes), float(sizes.sum())
    if not groups:
        return 0.0
    if groups == total:
        return total
    if groups == 1:
        return 1.0
    share = float(hits.sum()) / total
    if share in (0.0, 1.0):
        # No variance to measure: assume, to be safe, that the cells of a group always agree.
        count = total**2 / float((sizes**2).sum())
    else:
        between = groups / (groups - 1) * float(((hits - share * sizes) ** 2).sum()) / total**2
        count = total / max(1.0, between / (share * (1 - share) / total))
    return float(count) * (_Z / float(student_t.ppf(0.5 + LEVEL / 2, groups - 1))) ** 2


def wilson_interval(share: float, count: float) -> Interval | None:
    """Wilson score interval of a proportion; ``None`` where there is no cell.

    Written out, because the libraries take whole counts only and an effective count is not one.

    Parameters
    ----------
    share : float
        Observed proportion, 0 to 1.
    count : float
        Number of independent observations, or the effective number.

    Returns
    -------
    tuple of float, or None
        Lower and upper bound, within 0 and 1.

    References
    ----------
    Wilson EB (1927). Probable inference, the law of succession, and statistical inference. JASA 22, 209-212.
    """
    if count <= 0 or not np.isfinite(share):
        return None
    spread = _Z**2 / count
    centre = (share + spread / 2) / (1 + spread)
    half = _Z * float(np.sqrt(share * (1 - share) / count + spread / (4 * count))) / (1 + spread)
    # Rounding must not push the bound past a proportion of exactly 0 or 1.
    return min(max(0.0, centre - half), share), max(min(1.0, centre + half), share)


def f1_interval(share: float, count: float) -> Interval | None:
    """Interval of an F1 score, through the proportion that it is a function of.

    F1 = 2J / (1 + J), where J = TP / (TP + FP + FN) is a proportion of the cells that are in the class, are called
    so, or both; the Wilson bounds of J are mapped by the same function. Unlike a bootstrap it does not collapse to
    a point for a rare class that is always or never found.

    Parameters
    ----------
    share : float
        J, 0 to 1.
    count : float
        TP + FP + FN, or the effective number.

    Returns
    -------
    tuple of float, or None
        Lower and upper bound of F1; ``None`` where there is no cell.

    References
    ----------
    Lam KFY, Gopal V, Qian J (2023). Confidence intervals for the F1 score: a comparison of four methods
    (the "Wilson indirect" one). arXiv:2309.14621.
    """
    bounds = wilson_interval(share, count)
    return None if bounds is None else (2 * bounds[0] / (1 + bounds[0]), 2 * bounds[1] / (1 + bounds[1]))


def mean_interval(
    values: npt.ArrayLike, intervals: Sequence[Interval], weights: npt.ArrayLike | None = None
) -> Interval | None:
    """Interval of a weighted mean of independent figures, from the interval of each.

    Parameters
    ----------
    values : array_like (k,), float
        The figures.
    intervals : sequence of k pairs
        Their intervals.
    weights : array_like (k,), optional
        Weights that sum to 1; equal ones by default.

    Returns
    -------
    tuple of float, or None
        ``None`` where there is no figure.

    References
    ----------
    Zou GY, Donner A (2008). Construction of confidence limits about effect measures: a general approach (MOVER).
    Statistics in Medicine 27, 1693-1702.
    """
    figures = np.asarray(values, dtype=np.float64)
    if not len(figures):
        return None
    share = np.full(len(figures), 1 / len(figures)) if weights is None else np.asarray(weights, dtype=np.float64)
    bounds = np.asarray(intervals, dtype=np.float64)
    centre = float(share @ figures)
    below = float(np.sqrt(((share * (figures - bounds[:, 0])) ** 2).sum()))
    above = float(np.sqrt(((share * (bounds[:, 1] - figures)) ** 2).sum()))
    return centre - below, centre + above


def wider_interval(first: Interval | None, second: Interval | None) -> Interval | None:
    """Take the lower of the lower bounds and the higher of the upper; ``None`` only where both are."""
    if first is None or second is None:
        return second if first is None else first
    return min(first[0], second[0]), max(first[1], second[1])
