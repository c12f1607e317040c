"""Similarities of maps against scipy, scikit-image and what they must be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from skimage.metrics import structural_similarity as reference_ssim

from hematokit.explanation.checks.similarity import (
    bootstrapped_mean,
    has_signs,
    normalised,
    other_cells,
    rank_correlation,
    structural_similarity,
)


def maps(count: int = 4, side: int = 20, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, side, side))


@given(st.integers(0, 10_000))
def test_rank_correlation_is_spearmans(seed: int) -> None:
    first, second = maps(2, 12, seed).round(1), maps(2, 12, seed + 1).round(1)  # rounding makes ties
    second += 0.5 * first
    expected = [spearmanr(a.ravel(), b.ravel()).statistic for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(rank_correlation(first, second), expected, atol=1e-12)


def test_rank_correlation_knows_no_scale() -> None:
    first = maps()
    np.testing.assert_allclose(rank_correlation(first, np.exp(3 * first)), 1.0)
    np.testing.assert_allclose(rank_correlation(first, -first), -1.0)


def test_maps_of_one_value_and_maps_that_are_no_numbers() -> None:
    first = maps(3)
    second = first.copy()
    first[0] = second[0] = 0.0
    second[1] = 7.0
    second[2, 3, 3] = np.nan
    assert rank_correlation(first, second).tolist() == [1.0, 0.0, 0.0]
    similar = structural_similarity(first, second)
    assert similar[0] == pytest.approx(1.0)
    assert similar[1] < 0.3
    assert similar[2] == 0.0


def test_ssim_is_that_of_scikit_image_on_scaled_maps() -> None:
    first, second = np.abs(maps()), np.abs(maps(seed=1))
    left, right = normalised(first), normalised(second)
    assert left.min() == 0
    assert left.max() == 1
    expected = [
        reference_ssim(a, b, data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
        for a, b in zip(left, right, strict=True)
    ]
    np.testing.assert_allclose(structural_similarity(first, second), expected)
    np.testing.assert_allclose(structural_similarity(first, 5 * first), 1.0)


def test_signed_maps_keep_their_zero() -> None:
    values = maps()
    assert has_signs(values)
    assert not has_signs(np.abs(values))
    scaled = normalised(values, signed=True)
    assert (np.sign(scaled) == np.sign(values)).all()
    assert np.abs(scaled).max() <= 1
    assert structural_similarity(values, -values, signed=True).max() < 0


def test_one_bright_pixel_does_not_darken_the_others() -> None:
    values = np.abs(maps(1, 30))
    spoiled = values.copy()
    spoiled[0, 4, 4] = 1e6
    assert structural_similarity(values, spoiled)[0] > 0.95


def test_small_or_unpaired_maps_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 11"):
        structural_similarity(maps(side=8), maps(side=8))
    with pytest.raises(ValueError, match="in pairs"):
        rank_correlation(maps(2), maps(3))


@given(st.integers(2, 40), st.integers(1, 6), st.integers(0, 99))
def test_other_cells_are_others(n: int, times: int, seed: int) -> None:
    rows = other_cells(n, seed, times)
    assert rows.shape == (min(times, n - 1), n)
    for row in rows:
        assert sorted(row) == list(range(n))
        assert (row != np.arange(n)).all()
    assert all(len(set(column)) == len(column) for column in rows.T)


def test_interval_of_a_mean_holds_the_true_mean_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(3)
    inside = 0
    for trial in range(200):
        found = bootstrapped_mean(random.normal(0.4, 0.2, 40), seed=trial, resamples=400)
        inside += found.low <= 0.4 <= found.high
    assert 0.88 <= inside / 200 <= 0.99


def test_cells_of_one_group_count_together_and_missing_ones_not_at_all() -> None:
    values = np.repeat([0.1, 0.9, 0.3, 0.6, 0.5, 0.2], 20)
    alone = bootstrapped_mean(values)
    together = bootstrapped_mean(values, np.repeat(list("abcdef"), 20))
    assert together.mean == pytest.approx(alone.mean)
    assert together.high - together.low > 2 * (alone.high - alone.low)
    assert bootstrapped_mean([0.5, np.nan, 0.7]).n == 2
    nothing = bootstrapped_mean([np.nan, np.nan])
    assert nothing.n == 0
    assert np.isnan(nothing.mean)
    assert np.isnan(bootstrapped_mean([0.5]).low)
