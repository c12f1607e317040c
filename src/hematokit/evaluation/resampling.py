"""The bootstrap over groups of cells: weights, and metrics computed for many resamples at once.

It is the Bayesian bootstrap (Rubin 1981): each resample weighs every group by a draw from the exponential
distribution, where the ordinary one weighs it by how often it was drawn. With the ordinary one a class of one or two
cells is missing from many resamples, and a macro average over the classes that are left comes out too high.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from hematokit.evaluation.intervals import LEVEL, Interval

__all__ = ["cluster_weights", "overall_from_confusions", "percentile_interval", "resample", "weighted_confusions"]

# Below this many independent groups with a positive cell, resampling them says nothing of how others would rank.
_FEWEST_POSITIVE_GROUPS: Final = 5


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
    """Percentile interval of bootstrap draws; ``None`` where they say nothing.

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
