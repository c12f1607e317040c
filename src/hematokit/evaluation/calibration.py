"""Calibration of probabilities, and the measurement of calibration errors.

A network's softmax is usually too sure of itself. Dividing the logits by one number, the temperature, fitted on the
validation split, mends most of that and changes no predicted class (Guo et al. 2017, "On calibration of modern neural
networks", section 4.2).
"""

from __future__ import annotations

import logging
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp
from torchmetrics.functional.classification import multiclass_calibration_error

__all__ = [
    "ReliabilityBin",
    "TemperatureFit",
    "calibrate",
    "expected_calibration_error",
    "fit_temperature",
    "reliability_bins",
]

_log = logging.getLogger(__name__)

MINIMUM_CELLS: Final = 20
"""Fewer validation cells than this say next to nothing about calibration."""

# Beyond these the likelihood has no inner optimum on the data given: it would run to 0 or infinity.
_LOWEST, _HIGHEST = 0.02, 50.0


class TemperatureFit(NamedTuple):
    """What `calibrate` found.

    Attributes
    ----------
    temperature : float
        Divide logits by it; 1.0 leaves them as they are.
    reason : str
        Why no temperature was fitted; empty where one was.
    loss_before, loss_after : float
        Mean negative log-likelihood of the smoothed labels (nats per cell) at temperature 1 and at `temperature`; NaN
        where not computed.
    """

    temperature: float
    reason: str
    loss_before: float
    loss_after: float


def calibrate(logits: npt.ArrayLike, labels: npt.ArrayLike) -> TemperatureFit:
    """Fit one temperature by maximum likelihood, or return the reason why that is not possible.

    The negative log-likelihood is convex in the inverse temperature, so a bounded search in one dimension finds
    its only minimum. Labels are smoothed by 1 / (n + 2), as Platt proposed: where a few validation cells are all
    right, the plain likelihood would ask for certainty (temperature 0), which so few cells do not warrant. Where there
    is no minimum inside the bounds (worse than guessing), or too little to go on, the temperature stays 1.

    Parameters
    ----------
    logits : array_like (n, C), float
        Logits of validation cells, never of training cells.
    labels : array_like (n,), int
        Index of each cell's true class in the columns of `logits`.

    Returns
    -------
    TemperatureFit

    Raises
    ------
    ValueError
        If the shapes do not fit together or a label is no column of `logits`: a caller's mistake.

    References
    ----------
    Guo C, Pleiss G, Sun Y, Weinberger KQ (2017). On calibration of modern neural networks. ICML. arXiv:1706.04599.
    Platt J (1999). Probabilistic outputs for support vector machines. Advances in Large Margin Classifiers, 61-74.
    """
    scores = np.asarray(logits, dtype=np.float64)
    truth = np.asarray(labels)
    if scores.ndim != 2 or truth.shape != scores.shape[:1]:
        raise ValueError(f"logits (n, C) and labels (n,) expected, got {scores.shape} and {truth.shape}")
    n, classes = scores.shape
    truth = truth.astype(np.int64)
    if n and (truth.min() < 0 or truth.max() >= classes):
        raise ValueError(f"labels run from {truth.min()} to {truth.max()}, but logits have {classes} columns")

    def unfitted(reason: str, loss: float = float("nan")) -> TemperatureFit:
        return TemperatureFit(1.0, reason, loss, loss)

    if classes < 2:
        return unfitted("there is only one class")
    if n < MINIMUM_CELLS:
        return unfitted(f"only {n} validation cells, {MINIMUM_CELLS} are needed")
    if not np.isfinite(scores).all():
        bad = int((~np.isfinite(scores).all(axis=1)).sum())
        return unfitted(f"{bad} of {n} validation cells have logits that are not finite")

    # Only differences between logits matter; centring keeps the products small.
    scores = scores - scores.max(axis=1, keepdims=True)
    smoothing = 1 / (n + 2)
    of_truth = (1 - smoothing) * scores[np.arange(n), truth] + smoothing * scores.mean(axis=1)

    def loss_at(log_temperature: float) -> float:
        beta = float(np.exp(-log_temperature))
        return float(np.mean(logsumexp(beta * scores, axis=1) - beta * of_truth))

    before = loss_at(0.0)
    if not np.any(scores):
        return unfitted("all logits of each cell are equal", before)
    low, high = float(np.log(_LOWEST)), float(np.log(_HIGHEST))
    found = float(minimize_scalar(loss_at, bounds=(low, high), method="bounded", options={"xatol": 1e-6}).x)
    if found > high - 1e-3:
        return unfitted("the logits say no more about the validation cells than guessing", before)
    if found < low + 1e-3:
        return unfitted("the logits hardly differ between classes", before)
    after = loss_at(found)
    return TemperatureFit(float(np.exp(found)), "", before, after)


def fit_temperature(logits: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Fit the temperature of a classifier on validation cells; 1.0 where that is not possible (the reason is logged).

    Parameters
    ----------
    logits : array_like (n, C), float
        Logits of validation cells.
    labels : array_like (n,), int
        Index of each cell's true class.

    Returns
    -------
    float
        Temperature > 0: calibrated probabilities are ``softmax(logits / temperature)``.

    Raises
    ------
    ValueError
        If the shapes do not fit together or a label is no column of `logits`.

    See Also
    --------
    calibrate : the same with the reason and the losses.
    """
    fit = calibrate(logits, labels)
    if fit.reason:
        _log.warning("probabilities are not calibrated (temperature 1): %s", fit.reason)
    return fit.temperature


def _checked(
    probabilities: npt.ArrayLike, labels: npt.ArrayLike
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    # Clipped, because torchmetrics takes a probability of 1.0000001 for a logit and applies a softmax.
    values = np.clip(np.asarray(probabilities, dtype=np.float64), 0.0, 1.0)
    truth = np.asarray(labels, dtype=np.int64)
    if values.ndim != 2 or truth.shape != values.shape[:1]:
        raise ValueError(f"probabilities (n, C) and labels (n,) expected, got {values.shape} and {truth.shape}")
    return values, truth


def expected_calibration_error(probabilities: npt.ArrayLike, labels: npt.ArrayLike, bins: int = 15) -> float:
    """Mean distance between confidence and accuracy over equal-width bins of the top probability.

    Parameters
    ----------
    probabilities : array_like (n, C), float
        Class probabilities, each row summing to 1.
    labels : array_like (n,), int
        Index of each cell's true class.
    bins : int
        Number of bins of width 1 / `bins`.

    Returns
    -------
    float
        0 (perfect) to 1; NaN where there is no cell.

    Raises
    ------
    ValueError
        If the shapes do not fit together.

    References
    ----------
    Guo et al. (2017), equation 3; the estimate is biased upwards when cells are few.
    """
    values, truth = _checked(probabilities, labels)
    if not len(values):
        return float("nan")
    if values.shape[1] < 2:
        return 0.0
    error = multiclass_calibration_error(
        torch.from_numpy(values), torch.from_numpy(truth), num_classes=values.shape[1], n_bins=bins, norm="l1"
    )
    return float(error)


class ReliabilityBin(NamedTuple):
    """One bar of a reliability diagram: cells with a top probability in ``(low, high]``."""

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float


def reliability_bins(probabilities: npt.ArrayLike, labels: npt.ArrayLike, bins: int = 10) -> list[ReliabilityBin]:
    """Group cells by their top probability and compare it with how often the top class is right.

    Parameters
    ----------
    probabilities : array_like (n, C), float
        Class probabilities.
    labels : array_like (n,), int
        Index of each cell's true class.
    bins : int
        Number of equal-width bins.

    Returns
    -------
    list of ReliabilityBin
        Only bins that hold cells, lowest first.

    Raises
    ------
    ValueError
        If the shapes do not fit together.
    """
    values, truth = _checked(probabilities, labels)
    if not len(values):
        return []
    top = values.max(axis=1)
    right = values.argmax(axis=1) == truth
    place = np.clip(np.ceil(top * bins).astype(np.int64) - 1, 0, bins - 1)
    result = []
    for index in range(bins):
        inside = place == index
        count = int(inside.sum())
        if count:
            result.append(
                ReliabilityBin(
                    index / bins, (index + 1) / bins, count, float(top[inside].mean()), float(right[inside].mean())
                )
            )
    return result
