"""Intervals of counts of several classes at once, with cells grouped by field.

A differential is one draw from a multinomial distribution, and the cells of one field resemble each other more than
cells of different fields do. `simultaneous_intervals` holds for all classes together; `Clustering` measures how much
less the cells are worth for coming in fields.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.stats import chi2, norm
from scipy.stats import t as student_t

from hematokit.evaluation.intervals import LEVEL, Interval, effective_count_of_sums, wilson_interval

__all__ = ["Clustering", "cells_needed", "grouped_interval", "ratio_interval", "simultaneous_intervals"]

HALF_WIDTH: Final = 0.02
"""Half the width of the interval that `cells_needed` aims at."""


@dataclass(frozen=True, slots=True, eq=False)
class Clustering:
    """How much the cells of one field resemble each other, over all classes.

    Attributes
    ----------
    groups : int
        Fields with a counted cell.
    design_effect : float
        Variance of the shares between fields over their multinomial variance, averaged over the classes; at least 1.
    class_effects : ndarray (classes,), float
        The same for each class by itself, never below the average: few fields show little of a rare class's variance.
    degrees : int
        Degrees of freedom of that estimate, ``(groups - 1) (classes - 1)``.

    References
    ----------
    Rao JNK, Scott AJ (1981). The analysis of categorical data from complex sample surveys: chi-squared tests for
    goodness of fit and independence in two-way tables. JASA 76, 221-230.
    Thomas DR, Rao JNK (1987). Small-sample comparisons of level and power for simple goodness-of-fit statistics under
    cluster sampling. JASA 82, 630-636 (degrees of freedom).
    """

    groups: int
    design_effect: float
    class_effects: npt.NDArray[np.float64]
    degrees: int

    @classmethod
    def of(cls, counts: npt.NDArray[np.integer]) -> Clustering | None:
        """Measure it on counts (fields, classes); ``None`` with fewer than two fields or two classes that have cells.

        Where every field has one cell there is nothing to measure, and the design effect is 1.
        """
        table = counts[counts.sum(axis=1) > 0].astype(np.float64)
        groups, seen = len(table), table.sum(axis=0) > 0
        classes = int(seen.sum())
        if groups < 2 or classes < 2:
            return None
        sizes = table.sum(axis=1)
        total = float(sizes.sum())
        if groups == total:
            return cls(groups, 1.0, np.ones(len(seen)), 10**9)
        share = table.sum(axis=0) / total
        between = groups / (groups - 1) * ((table - np.outer(sizes, share)) ** 2).sum(axis=0) / total**2
        # The mean over classes of (1 - p) times each class's design effect, which is V / (p (1 - p) / n).
        average = max(1.0, total / (classes - 1) * float((between[seen] / share[seen]).sum()))
        own = np.zeros(len(seen))
        own[seen] = between[seen] / (share[seen] * (1 - share[seen]) / total)
        return cls(groups, average, np.maximum(own, average), (groups - 1) * (classes - 1))

    def worth(self, level: float = LEVEL) -> float:
        """Part of a number of cells that is left for estimating the design effect, in an interval of that level."""
        tail = 0.5 + level / 2
        return (float(norm.ppf(tail)) / float(student_t.ppf(tail, self.degrees))) ** 2


def simultaneous_intervals(
    counts: npt.NDArray[np.integer], clustering: Clustering | None = None
) -> list[Interval] | None:
    """Intervals that hold for all shares of a multinomial count together, with 95 %.

    Goodman's, which are score intervals with the Bonferroni level ``1 - 0.05 / k``.

    Parameters
    ----------
    counts : ndarray (k,), int
        Cells of each class.
    clustering : Clustering, optional
        Of the same classes; the intervals are then on the effective number of cells of each class.

    Returns
    -------
    list of k pairs, or None
        Lower and upper bound of each share, within 0 and 1; ``None`` where there is no cell or fewer than two classes.

    References
    ----------
    Goodman LA (1965). On simultaneous confidence intervals for multinomial proportions. Technometrics 7, 247-254.
    """
    total, classes = int(counts.sum()), len(counts)
    if not total or classes < 2:
        return None
    level = 1 - (1 - LEVEL) / classes
    quantile = float(chi2.ppf(level, 1))
    size = np.full(classes, float(total))
    if clustering is not None:
        size *= clustering.worth(level) / clustering.class_effects
    hits = counts / total * size
    # The score interval of each, at that size.
    root = np.sqrt(quantile * (quantile + 4 * hits * (size - hits) / size))
    low = (quantile + 2 * hits - root) / (2 * (size + quantile))
    high = (quantile + 2 * hits + root) / (2 * (size + quantile))
    share = counts / total
    # Rounding must not push a bound past a share of exactly 0 or 1.
    low, high = np.minimum(np.maximum(low, 0.0), share), np.maximum(np.minimum(high, 1.0), share)
    return list(zip(low.tolist(), high.tolist(), strict=True))


def grouped_interval(
    hits: npt.NDArray[np.integer], sizes: npt.NDArray[np.integer], clustering: Clustering | None
) -> Interval | None:
    """Wilson interval of one share on the effective number of cells, with cells grouped by field.

    The design effect is the share's own, but at least the average over all classes, whose degrees of freedom are
    taken: with few fields a single class says little of how fields differ, and all classes together say more.

    Parameters
    ----------
    hits, sizes : ndarray (fields,), int
        Cells of the class or group of classes, and of all that are counted, in each field.
    clustering : Clustering or None
        Of all classes. Where it could not be measured, the cells of a field are taken always to agree.

    Returns
    -------
    tuple of float, or None
        ``None`` with fewer than two fields that have cells.
    """
    total, found = int(sizes.sum()), int(hits.sum())
    if np.count_nonzero(sizes) < 2:
        return None
    own = Clustering.of(np.stack([hits, sizes - hits], axis=1))
    if clustering is None:
        count = effective_count_of_sums(hits.astype(np.float64), sizes.astype(np.float64))
    else:
        effect = max(clustering.design_effect, 1.0 if own is None else own.design_effect)
        count = total / effect * clustering.worth()
    return wilson_interval(found / total, count)


def ratio_interval(bounds: Interval | None) -> tuple[float, float | None] | None:
    """Interval of ``M / E`` from that of ``M / (M + E)``; an upper bound of ``None`` stands for infinity."""
    if bounds is None:
        return None
    low, high = bounds
    return low / (1 - low) if low < 1 else 0.0, high / (1 - high) if high < 1 else None


def cells_needed(share: float, *, classes: int = 1, design_effect: float = 1.0, half_width: float = HALF_WIDTH) -> int:
    """How many cells a 95 % interval of the share needs to be no wider than twice `half_width`.

    Parameters
    ----------
    share : float
        The share that is expected, 0 to 1.
    classes : int
        For how many classes the intervals are to hold together (Goodman); 1 for a single one (Wilson).
    design_effect : float
        By which cells of one field are worth less than independent ones.
    half_width : float
        0.02 for "plus or minus 2 %".

    Returns
    -------
    int
        The score interval has that width exactly at this number.
    """
    quantile = float(chi2.ppf(1 - (1 - LEVEL) / classes, 1))
    variance, square = share * (1 - share), half_width**2
    # The width of the score interval, set to 2 half_width and solved for n.
    excess = variance - 2 * square
    count = quantile * (excess + math.sqrt(excess**2 + square * (1 - 4 * square))) / (2 * square)
    return math.ceil(round(count * design_effect, 6))
