"""Temperature and calibration error."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from scipy.special import softmax

from hematokit.evaluation.calibration import calibrate, expected_calibration_error, fit_temperature, reliability_bins


def honest_logits(n: int = 4000, classes: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose softmax is the true chance of each label: their temperature is 1."""
    random = np.random.default_rng(seed)
    logits = 2 * random.normal(size=(n, classes))
    chances = softmax(logits, axis=1).cumsum(axis=1)
    return logits, (random.random((n, 1)) > chances).sum(axis=1).clip(max=classes - 1)


@pytest.mark.parametrize("factor", [0.4, 1.0, 3.0])
def test_the_temperature_undoes_a_known_overconfidence(factor: float) -> None:
    logits, labels = honest_logits()
    assert fit_temperature(factor * logits, labels) == pytest.approx(factor, rel=0.06)


def test_it_lowers_the_loss_and_the_calibration_error_and_changes_no_prediction() -> None:
    logits, labels = honest_logits()
    fit = calibrate(3 * logits, labels)
    assert fit.loss_after < fit.loss_before
    before, after = softmax(3 * logits, axis=1), softmax(3 * logits / fit.temperature, axis=1)
    assert expected_calibration_error(after, labels) < 0.5 * expected_calibration_error(before, labels)
    assert (before.argmax(axis=1) == after.argmax(axis=1)).all()


@pytest.mark.parametrize("scale", [0.5, 3.0, 30.0])
def test_cells_that_are_all_right_do_not_make_it_certain(scale: float) -> None:
    labels = np.arange(60) % 3
    logits = scale * np.eye(3)[labels]
    confidence = softmax(logits / fit_temperature(logits, labels), axis=1).max(axis=1)
    # 60 of 60 right: as sure as that allows, whatever the network's own scale.
    assert confidence == pytest.approx(1 - 1 / 62 * 2 / 3, abs=1e-3)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_any_float_type_and_huge_logits_are_handled(dtype: type) -> None:
    logits, labels = honest_logits(400)
    assert fit_temperature((3 * logits + 1000).astype(dtype), labels) > 1


@pytest.mark.parametrize(
    ("logits", "labels", "reason"),
    [
        (np.zeros((0, 3)), np.zeros(0, int), "only 0"),
        (np.eye(3)[[0, 1, 2]], np.arange(3), "only 3"),
        (1e-4 * np.eye(3)[np.arange(60) % 3], np.arange(60) % 3, "hardly differ"),
        (-8 * np.eye(3)[np.arange(60) % 3], np.arange(60) % 3, "guessing"),
        (np.full((60, 3), np.nan), np.arange(60) % 3, "not finite"),
        (np.ones((60, 3)), np.arange(60) % 3, "equal"),
        (np.ones((60, 1)), np.zeros(60, int), "one class"),
    ],
)
def test_where_nothing_can_be_fitted_the_temperature_is_one_with_a_reason(
    logits: np.ndarray, labels: np.ndarray, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert fit_temperature(logits, labels) == 1.0
    assert reason in caplog.text


def test_labels_that_do_not_fit_are_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match="3 columns"):
        calibrate(np.zeros((30, 3)), np.full(30, 3))
    with pytest.raises(ValueError, match="expected"):
        calibrate(np.zeros((30, 3)), np.zeros(29, int))


def test_calibration_error_against_a_formula_written_out() -> None:
    logits, labels = honest_logits(500)
    probabilities = softmax(2 * logits, axis=1)
    top, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    expected = 0.0
    for low in np.arange(15) / 15:
        inside = (top > low) & (top <= low + 1 / 15)
        if inside.any():
            expected += inside.mean() * abs(top[inside].mean() - right[inside].mean())
    assert expected_calibration_error(probabilities, labels) == pytest.approx(expected, abs=1e-6)
    assert np.isnan(expected_calibration_error(np.zeros((0, 3)), np.zeros(0, int)))


def test_a_probability_rounded_above_one_is_still_a_probability() -> None:
    certain = np.array([[1.0000002, 0.0], [0.0, 1.0000002]], dtype=np.float32)
    assert expected_calibration_error(certain, np.array([0, 1])) == pytest.approx(0.0, abs=1e-6)


def test_reliability_bins_hold_every_cell_once() -> None:
    logits, labels = honest_logits(500)
    probabilities = softmax(logits, axis=1)
    bins = reliability_bins(probabilities, labels)
    assert sum(entry.n for entry in bins) == 500
    assert all(entry.low < entry.confidence <= entry.high for entry in bins)
    accuracy = (probabilities.argmax(axis=1) == labels).mean()
    assert sum(entry.n * entry.accuracy for entry in bins) / 500 == pytest.approx(accuracy)
