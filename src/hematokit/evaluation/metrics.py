"""Scores of a classifier on labelled cells, each with a 95 % interval where one can be given.

Definitions, and why these, are in ``docs/explanation/metrics.md``. In short: what cannot be measured (the recall of
a class without test cells, say) is ``None``, never 0, and macro figures are means over the classes that have at
least one test cell.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torchmetrics.functional.classification import (
    binary_precision_recall_curve,
    multiclass_average_precision,
    multiclass_confusion_matrix,
)

from hematokit.evaluation.calibration import ReliabilityBin, expected_calibration_error, reliability_bins
from hematokit.evaluation.intervals import (
    Interval,
    cluster_ids,
    effective_count,
    f1_interval,
    mean_interval,
    overall_from_confusions,
    percentile_interval,
    resample,
    wider_interval,
    wilson_interval,
)
from hematokit.taxonomy import Taxonomy

__all__ = [
    "CLASS_METRICS",
    "LOW_SUPPORT",
    "OVERALL_METRICS",
    "ClassScores",
    "Scores",
    "score",
    "validation_scores",
    "precision_recall_curve",
]

LOW_SUPPORT: Final = 30
"""Classes with fewer test cells than this are flagged: take their figures with care."""

OVERALL_METRICS: Final = ("accuracy", "balanced_accuracy", "macro_f1", "weighted_f1")
CLASS_METRICS: Final = ("precision", "recall", "f1", "ovr_accuracy", "average_precision")


@dataclass(frozen=True, slots=True)
class ClassScores:
    """Scores of one class against the rest.

    Attributes
    ----------
    precision, recall, f1, ovr_accuracy, average_precision : float or None
        ``None`` where undefined: all but `ovr_accuracy` without a test cell of the class, and `precision` also where
        the class is never predicted.
    support : int
        Test cells of the class.
    intervals : dict
        95 % interval of each metric, or ``None``.
    """

    precision: float | None
    recall: float | None
    f1: float | None
    ovr_accuracy: float | None
    average_precision: float | None
    support: int
    intervals: dict[str, Interval | None]

    @property
    def low_support(self) -> bool:
        """Fewer than `LOW_SUPPORT` test cells."""
        return self.support < LOW_SUPPORT


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of a classifier on labelled cells.

    Attributes
    ----------
    codes : tuple of str
        Classes, in the order of the probabilities' columns.
    n, groups : int
        Cells, and independent groups of cells.
    accuracy, balanced_accuracy, macro_f1, weighted_f1 : float or None
        ``None`` where there is no cell.
    expected_calibration_error : float or None
        See `hematokit.evaluation.calibration.expected_calibration_error`.
    intervals : dict
        95 % interval of each overall metric, or ``None``.
    per_class : dict of str to ClassScores
        By class code.
    confusion : ndarray (C, C), int64
        Rows are true classes, columns predicted ones.
    reliability : tuple of ReliabilityBin
        For the reliability diagram.
    """

    codes: tuple[str, ...]
    n: int
    groups: int
    accuracy: float | None
    balanced_accuracy: float | None
    macro_f1: float | None
    weighted_f1: float | None
    expected_calibration_error: float | None
    intervals: dict[str, Interval | None]
    per_class: dict[str, ClassScores]
    confusion: npt.NDArray[np.int64]
    reliability: tuple[ReliabilityBin, ...]

    def neighbour_confusions(self, taxonomy: Taxonomy) -> dict[str, float | int | None]:
        """Count the mistakes between classes one maturation step apart.

        Parameters
        ----------
        taxonomy : Taxonomy
            Holds `codes`, and which class matures into which.

        Returns
        -------
        dict
            ``errors``, ``between_neighbours``, and their ``share`` (``None`` where there is no error).
        """
        near = sum(
            int(self.confusion[row, column])
            for row, code in enumerate(self.codes)
            for column, other in enumerate(self.codes)
            if other in taxonomy.neighbours(code)
        )
        errors = int(self.confusion.sum() - np.trace(self.confusion))
        return {"errors": errors, "between_neighbours": near, "share": near / errors if errors else None}

    def to_dict(self) -> dict[str, Any]:
        """Plain data in the layout of ``metrics.json``: numbers, lists and ``None`` only."""
        per_class = {}
        for code, entry in self.per_class.items():
            figures: dict[str, Any] = {name: getattr(entry, name) for name in CLASS_METRICS}
            figures["support"] = entry.support
            figures["low_support"] = entry.low_support
            figures["intervals"] = {name: _as_list(bounds) for name, bounds in entry.intervals.items()}
            per_class[code] = figures
        return {
            **{name: getattr(self, name) for name in OVERALL_METRICS},
            "n": self.n,
            "n_groups": self.groups,
            "intervals": {name: _as_list(bounds) for name, bounds in self.intervals.items()},
            "per_class": per_class,
            "expected_calibration_error": self.expected_calibration_error,
            "confusion_matrix": {"codes": list(self.codes), "counts": self.confusion.tolist()},
        }


def _as_list(bounds: Interval | None) -> list[float] | None:
    return None if bounds is None else [bounds[0], bounds[1]]


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _mean(values: npt.NDArray[np.floating]) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _indices(labels: npt.ArrayLike, codes: tuple[str, ...]) -> npt.NDArray[np.int64]:
    values = np.asarray(labels)
    if values.dtype.kind in "iu":
        truth = values.astype(np.int64)
        if len(truth) and (truth.min() < 0 or truth.max() >= len(codes)):
            raise ValueError(f"labels run from {truth.min()} to {truth.max()}, but there are {len(codes)} classes")
        return truth
    place = {code: index for index, code in enumerate(codes)}
    unknown = sorted({str(value) for value in values} - set(codes))
    if unknown:
        raise ValueError(f"labels {unknown} are none of the classes {list(codes)}")
    return np.array([place[str(value)] for value in values], dtype=np.int64)


def score(
    labels: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    codes: Sequence[str],
    groups: npt.ArrayLike | None = None,
    seed: int = 0,
    bootstrap: int = 1000,
) -> Scores:
    """Score class probabilities against true classes.

    Proportions (accuracy, precision, recall, one-vs-rest accuracy) get Wilson intervals, F1 of a class one derived
    from Wilson's, all on the number of cells that the groups are worth. Average precision gets a percentile interval
    from a bootstrap over whole groups, macro and weighted figures the wider of that and of the classes' intervals
    put together.

    Parameters
    ----------
    labels : array_like (n,)
        True class of each cell: its code, or its index in `codes`.
    probabilities : array_like (n, C), float
        Class probabilities; the greatest is the prediction.
    codes : sequence of str
        The C class codes.
    groups : array_like (n,), optional
        Group of each cell; cells of one group are not independent. Empty or missing: a separate group.
    seed : int
        Of the bootstrap.
    bootstrap : int
        Number of resamples; 0 leaves out the intervals that need them.

    Returns
    -------
    Scores

    Raises
    ------
    ValueError
        If shapes do not fit together, a label is unknown or a probability is not finite: a caller's mistake.

    See Also
    --------
    validation_scores : the quick variant without intervals.
    """
    codes = tuple(codes)
    values = np.asarray(probabilities, dtype=np.float64)
    truth = _indices(labels, codes)
    if values.shape != (len(truth), len(codes)):
        raise ValueError(f"probabilities ({len(truth)}, {len(codes)}) expected, got {values.shape}")
    if len(codes) < 2:
        raise ValueError("at least two classes are needed to score a classifier")
    if not np.isfinite(values).all():
        raise ValueError("some probabilities are not finite")
    # Clipped, because torchmetrics takes a probability of 1.0000001 for a logit and applies a softmax.
    values = np.clip(values, 0.0, 1.0)
    predicted = values.argmax(axis=1)
    n, classes = values.shape
    clusters = cluster_ids(groups, n)
    right = predicted == truth

    target, guess = torch.from_numpy(truth), torch.from_numpy(predicted)
    confusion = multiclass_confusion_matrix(guess, target, num_classes=classes).numpy().astype(np.int64)
    support, called = confusion.sum(axis=1), confusion.sum(axis=0)
    present = support > 0
    hits = np.diagonal(confusion)
    # In double precision from torchmetrics' counts; its own ratios are single. Where the divisor is 0 they are unused.
    precision, recall = hits / np.maximum(called, 1), hits / np.maximum(support, 1)
    f1 = 2 * hits / np.maximum(support + called, 1)
    average_precision = _average_precision(values, target)

    draws = resample(truth, values, clusters, seed, bootstrap)
    per_class = {}
    for index, code in enumerate(codes):
        of_class, called_so = truth == index, predicted == index
        either = of_class | called_so
        intervals: dict[str, Interval | None] = dict.fromkeys(CLASS_METRICS)
        figures: dict[str, float | None] = dict.fromkeys(CLASS_METRICS)
        if n:
            alike = of_class == called_so
            share = float(alike.mean())
            figures["ovr_accuracy"] = share
            everything = np.ones(n, dtype=bool)
            intervals["ovr_accuracy"] = wilson_interval(share, effective_count(alike, everything, clusters))
        if present[index]:
            hit = of_class & called_so
            figures["recall"] = float(recall[index])
            intervals["recall"] = wilson_interval(float(hit[of_class].mean()), effective_count(hit, of_class, clusters))
            figures["f1"] = float(f1[index])
            intervals["f1"] = f1_interval(float(hit[either].mean()), effective_count(hit, either, clusters))
            figures["average_precision"] = _known(average_precision[index])
            intervals["average_precision"] = percentile_interval(draws["average_precision"][:, index])
            if called[index]:
                figures["precision"] = float(precision[index])
                intervals["precision"] = wilson_interval(
                    float(hit[called_so].mean()), effective_count(hit, called_so, clusters)
                )
        per_class[code] = ClassScores(**figures, support=int(support[index]), intervals=intervals)

    spread = {
        name: [bounds for entry in per_class.values() if (bounds := entry.intervals[name])] for name in ("recall", "f1")
    }
    # The bootstrap knows how classes depend on each other but nothing of how a class of one or two cells could have
    # gone otherwise; the mean of Wilson's intervals knows the second and not the first. The wider one holds both.
    overall = {
        "accuracy": wilson_interval(_mean(right), effective_count(right, np.ones(n, dtype=bool), clusters)),
        "balanced_accuracy": wider_interval(
            percentile_interval(draws["balanced_accuracy"]), mean_interval(recall[present], spread["recall"])
        ),
        "macro_f1": wider_interval(percentile_interval(draws["macro_f1"]), mean_interval(f1[present], spread["f1"])),
        "weighted_f1": wider_interval(
            percentile_interval(draws["weighted_f1"]),
            mean_interval(f1[present], spread["f1"], support[present] / max(n, 1)),
        ),
    }
    return Scores(
        codes=codes,
        n=n,
        groups=int(clusters.max()) + 1 if n else 0,
        accuracy=_known(_mean(right)),
        balanced_accuracy=_known(_mean(recall[present])),
        macro_f1=_known(_mean(f1[present])),
        weighted_f1=float(f1 @ support / n) if n else None,
        expected_calibration_error=_known(expected_calibration_error(values, truth)),
        intervals=overall,
        per_class=per_class,
        confusion=confusion,
        reliability=tuple(reliability_bins(values, truth)),
    )


def precision_recall_curve(
    positive: npt.NDArray[np.bool_], scores: npt.NDArray[np.floating]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the precision-recall curve of one class against the rest, from the highest threshold on.

    Parameters
    ----------
    positive : ndarray (n,) of bool
        Which cells are of the class.
    scores : ndarray (n,), float
        Their probability of it.

    Returns
    -------
    precision, recall : ndarray (k,), float64
        Recall rises strictly. Of the thresholds with one recall the first counts: the steps then enclose the average
        precision, exactly.
    """
    precision, recall, _ = binary_precision_recall_curve(
        torch.from_numpy(np.clip(np.asarray(scores, dtype=np.float64), 0.0, 1.0)),
        torch.from_numpy(positive.astype(np.int64)),
    )
    # torchmetrics appends the point (1, 0), which no threshold reaches.
    heights, places = precision.numpy()[:-1][::-1], recall.numpy()[:-1][::-1]
    rises = np.flatnonzero(np.diff(places, prepend=0.0) > 0)
    return heights[rises], places[rises]


def _average_precision(values: npt.NDArray[np.float64], target: torch.Tensor) -> npt.NDArray[np.float64]:
    if not len(values):
        return np.full(values.shape[1], np.nan)
    with warnings.catch_warnings():
        # A class without test cells: here that is null, and no news.
        warnings.simplefilter("ignore")
        result = multiclass_average_precision(
            torch.from_numpy(values), target, num_classes=values.shape[1], average="none", thresholds=None
        )
    return np.asarray(result.double().numpy())


def validation_scores(labels: npt.NDArray[np.integer], logits: npt.NDArray[np.floating]) -> dict[str, float]:
    """Accuracy, balanced accuracy and macro F1 without intervals, for use after each epoch.

    Macro figures are means over the classes that have at least one cell here, as in `score`.

    Parameters
    ----------
    labels : ndarray (n,), int
        Index of each cell's true class.
    logits : ndarray (n, C), float
        Logits or probabilities; the greatest wins.

    Returns
    -------
    dict
        ``accuracy``, ``balanced_accuracy``, ``macro_f1``; NaN where there is no cell.

    Raises
    ------
    ValueError
        If the shapes do not fit together.
    """
    truth, values = np.asarray(labels), np.asarray(logits)
    if values.ndim != 2 or truth.shape != values.shape[:1]:
        raise ValueError(f"labels (n,) and logits (n, C) expected, got {truth.shape} and {values.shape}")
    if not len(truth):
        return {"accuracy": float("nan"), "balanced_accuracy": float("nan"), "macro_f1": float("nan")}
    classes = max(values.shape[1], 2)
    predicted = torch.from_numpy(values.argmax(axis=1).astype(np.int64))
    target = torch.from_numpy(truth.astype(np.int64))
    confusion = multiclass_confusion_matrix(predicted, target, num_classes=classes).numpy()
    figures = overall_from_confusions(confusion[None].astype(np.float64))
    return {name: float(figures[name][0]) for name in ("accuracy", "balanced_accuracy", "macro_f1")}
