"""95 % intervals for figures measured on cells that may come in groups.

Cells of one patient, or two crops of one physical cell, are not independent: treating them as such makes every
interval too narrow. Proportions get a Wilson interval on the *effective* number of cells; what is no proportion is
bootstrapped by whole groups.

It is the Bayesian bootstrap (Rubin 1981): each resample weighs every group by a draw from the exponential
distribution, where the ordinary one weighs it by how often it was drawn. With the ordinary one a class of one or two
cells is missing from many resamples, and a macro average over the classes that are left comes out too high.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
    "cluster_weights",
    "effective_count",
    "effective_count_of_sums",
    "f1_interval",
    "mean_interval",
    "overall_from_confusions",
    "percentile_interval",
    "resample",
    "weighted_confusions",
    "wider_interval",
    "wilson_interval",
]

LEVEL: Final = 0.95
"""Confidence level of every interval here."""

Interval = tuple[float, float]

_Z: Final = float(norm.ppf(0.5 + LEVEL / 2))

# With fewer independent groups with a positive cell, resampling does not estimate the variation of the ranking.
_FEWEST_POSITIVE_GROUPS: Final = 5


def cluster_ids(groups: npt.ArrayLike | None, n: int) -> npt.NDArray[np.int64]:
    """Number the groups 0, 1, ...; a cell whose group is empty or missing forms a separate group.

    Parameters
    ----------
    groups : array_like (n,) or None
        Group of each cell (patient, or duplicate group); ``None``: each cell is a separate group.
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
    """Return the effective number of independent cells of the proportion ``hit / inside``.

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


# --- the bootstrap over groups of cells


def cluster_weights(
    clusters: npt.NDArray[np.int64], resamples: int, seed: int, chunk: int = 64
) -> Iterator[npt.NDArray[np.float32]]:
    """Draw the weights of whole groups for each resample.

    Parameters
    ----------
    clusters : ndarray (n,), int
        Group number of each cell, without gaps.
    resamples : int
        Number of resamples in all.
    seed : int
        The same seed gives the same resamples.
    chunk : int
        Resamples per array yielded, which bounds memory.

    Yields
    ------
    ndarray (at most chunk, groups), float32
        Weights with mean 1 over many draws.

    References
    ----------
    Rubin DB (1981). The Bayesian bootstrap. Annals of Statistics 9, 130-134.
    """
    groups = int(clusters.max()) + 1 if len(clusters) else 0
    generator = np.random.default_rng(seed)
    for start in range(0, resamples, chunk):
        yield generator.standard_exponential((min(chunk, resamples - start), groups), dtype=np.float32)


def percentile_interval(draws: npt.NDArray[np.floating]) -> Interval | None:
    """Return the percentile interval of bootstrap draws; ``None`` if there are no finite draws.

    That is where there are none, or all have one value (a perfect or a hopeless score in every resample): an
    interval of no width would feign certainty.
    """
    known = draws[np.isfinite(draws)]
    if len(known) < 2:
        return None
    low, high = (float(bound) for bound in np.quantile(known, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2]))
    return None if high - low < 1e-9 else (low, high)


def weighted_confusions(
    truth: npt.NDArray[np.int64],
    predicted: npt.NDArray[np.int64],
    classes: int,
    cell_weights: npt.NDArray[np.float32],
) -> npt.NDArray[np.float64]:
    """Confusion matrices ``(B, C, C)`` of cells weighed by each row of `cell_weights` ``(B, n)``."""
    place = truth * classes + predicted
    return np.stack(
        [np.bincount(place, weights=row, minlength=classes * classes).reshape(classes, classes) for row in cell_weights]
    )


def resample(
    truth: npt.NDArray[np.int64],
    probabilities: npt.NDArray[np.float64],
    clusters: npt.NDArray[np.int64],
    seed: int,
    resamples: int,
) -> dict[str, npt.NDArray[np.float64]]:
    """Bootstrap the overall metrics and the average precision of each class.

    Parameters
    ----------
    truth : ndarray (n,), int
        Index of each cell's true class.
    probabilities : ndarray (n, C), float
        Class probabilities.
    clusters : ndarray (n,), int
        Group number of each cell, without gaps.
    seed, resamples : int
        Of the bootstrap.

    Returns
    -------
    dict
        ``(resamples,)`` draws of each overall metric and, under ``average_precision``, ``(resamples, C)``. All are
        NaN where there are fewer than two groups; average precision also for a class found in fewer than five.
    """
    classes = probabilities.shape[1]
    groups = int(clusters.max()) + 1 if len(clusters) else 0
    if groups < 2:
        resamples = 0
    predicted = probabilities.argmax(axis=1)
    confusions = np.empty((resamples, classes, classes))
    average_precision = np.full((resamples, classes), np.nan)
    rankings = {
        index: _Ranking.of(probabilities[:, index], truth == index)
        for index in range(classes)
        if len(np.unique(clusters[truth == index])) >= _FEWEST_POSITIVE_GROUPS
    }
    done = 0
    for weights in cluster_weights(clusters, resamples, seed):
        rows = slice(done, done + len(weights))
        confusions[rows] = weighted_confusions(truth, predicted, classes, np.take(weights, clusters, axis=1))
        for index, ranking in rankings.items():
            average_precision[rows, index] = ranking.average_precision(weights, clusters)
        done = rows.stop
    return {**overall_from_confusions(confusions), "average_precision": average_precision}


def overall_from_confusions(confusions: npt.NDArray[np.floating]) -> dict[str, npt.NDArray[np.float64]]:
    """Overall metrics of many confusion matrices at once.

    Parameters
    ----------
    confusions : ndarray (B, C, C), float
        Rows are true classes; entries may be weights.

    Returns
    -------
    dict of str to ndarray (B,)
        The `OVERALL_METRICS`; NaN where a matrix is empty.
    """
    support, called = confusions.sum(axis=2), confusions.sum(axis=1)
    hits = np.diagonal(confusions, axis1=1, axis2=2)
    present = support > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = np.where(present, hits / support, 0.0)
        f1 = np.where(present, 2 * hits / (support + called), 0.0)
        classes, total = present.sum(axis=1), support.sum(axis=1)
        return {
            "accuracy": hits.sum(axis=1) / total,
            "balanced_accuracy": recall.sum(axis=1) / classes,
            "macro_f1": f1.sum(axis=1) / classes,
            "weighted_f1": (f1 * support).sum(axis=1) / total,
        }


@dataclass(frozen=True, slots=True)
class _Ranking:
    """Cells in falling order of one class's probability, cut where a positive cell's tie group ends.

    Average precision is a sum over positive cells, so cells between two of them need only be counted: one
    segmented sum per resample instead of a precision at every cell.
    """

    order: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    positive: npt.NDArray[np.int64]
    positive_starts: npt.NDArray[np.int64]

    @classmethod
    def of(cls, scores: npt.NDArray[np.float64], positive: npt.NDArray[np.bool_]) -> _Ranking:
        order = np.argsort(-scores, kind="stable")
        ranked, hits = scores[order], positive[order]
        # Cells with equal probability cross the threshold together: a tie group counts as one step.
        last_of_tie = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
        tie_of_hit = np.searchsorted(last_of_tie, np.flatnonzero(hits))
        ties, positive_starts = np.unique(tie_of_hit, return_index=True)
        ends = last_of_tie[ties]
        return cls(order[: ends[-1] + 1], np.append(0, ends[:-1] + 1), order[hits], positive_starts)

    def average_precision(
        self, weights: npt.NDArray[np.float32], clusters: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float64]:
        """Average precision for each row of group weights ``(B, groups)``."""
        everything = np.take(weights, clusters[self.order], axis=1)
        seen = np.cumsum(np.add.reduceat(everything, self.starts, axis=1), axis=1, dtype=np.float64)
        hits = np.add.reduceat(np.take(weights, clusters[self.positive], axis=1), self.positive_starts, axis=1)
        found = np.cumsum(hits, axis=1, dtype=np.float64)
        return np.asarray((found / seen * hits).sum(axis=1) / found[:, -1])
