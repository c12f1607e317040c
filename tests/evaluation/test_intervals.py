"""Intervals: against scipy, and whether they hold what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from hematokit.evaluation.intervals import (
    cluster_ids,
    effective_count,
    f1_interval,
    mean_interval,
    wider_interval,
    wilson_interval,
)
from hematokit.evaluation.metrics import score


@given(n=st.integers(1, 5000), share=st.floats(0, 1))
def test_wilson_agrees_with_scipy_on_whole_counts(n: int, share: float) -> None:
    hits = round(share * n)
    expected = binomtest(hits, n).proportion_ci(0.95, method="wilson")
    assert wilson_interval(hits / n, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_no_cell_has_no_interval() -> None:
    assert wilson_interval(0.5, 0) is None
    assert f1_interval(float("nan"), 3) is None
    assert mean_interval([], []) is None


def test_f1_interval_is_wilsons_seen_through_f1() -> None:
    # TP 8, FP 1, FN 3: J = 8 / 12, F1 = 16 / 20
    low, high = f1_interval(8 / 12, 12) or (0, 0)
    bounds = binomtest(8, 12).proportion_ci(0.95, method="wilson")
    assert (low, high) == pytest.approx((2 * bounds.low / (1 + bounds.low), 2 * bounds.high / (1 + bounds.high)))
    assert low < 0.8 < high


def test_effective_count_of_copies_is_the_number_of_originals() -> None:
    random = np.random.default_rng(0)
    hit = np.repeat(random.random(400) < 0.7, 5)
    clusters = np.repeat(np.arange(400), 5)
    inside = np.ones(2000, dtype=bool)
    assert effective_count(hit, inside, clusters) == pytest.approx(400, rel=0.02)
    assert effective_count(hit, inside, np.arange(2000)) == 2000
    # Groups that do not matter cost next to nothing.
    assert effective_count(hit, inside, random.permutation(clusters)) > 1500
    # All right: no variance to see, so the cells of a group are taken to agree.
    assert effective_count(inside, inside, clusters) == pytest.approx(400, rel=0.02)
    assert effective_count(hit, inside, np.zeros(2000, dtype=int)) == 1.0
    assert effective_count(hit, ~inside, clusters) == 0.0


def test_cluster_ids_number_groups_without_gaps() -> None:
    ids = cluster_ids(["a", "", "b", "a", None, float("nan")], 6)
    assert ids[0] == ids[3]
    assert sorted(set(ids)) == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="expected"):
        cluster_ids(["a"], 2)


def test_the_wider_interval_takes_each_side() -> None:
    assert wider_interval((0.2, 0.5), (0.3, 0.6)) == (0.2, 0.6)
    assert wider_interval(None, (0.3, 0.6)) == (0.3, 0.6)
    assert wider_interval(None, None) is None


def test_macro_intervals_cover_the_truth_with_rare_classes() -> None:
    """Test sets drawn again and again from one classifier: about 95 % of the intervals hold its true figure."""
    random = np.random.default_rng(0)
    support = np.array([60, 40, 20, 8, 3, 1])
    chances = 0.75 * np.eye(6) + 0.25 * random.dirichlet(np.ones(6), size=6)
    labels = np.repeat(np.arange(6), support)
    confusion = support[:, None] * chances
    truth = float(np.mean(2 * np.diag(confusion) / (confusion.sum(axis=0) + support)))
    recall = float(np.diag(chances).mean())
    held_f1 = held_recall = 0
    for seed in range(100):
        guesses = np.array([random.choice(6, p=chances[label]) for label in labels])
        scores = score(labels, np.eye(6)[guesses], list("ABCDEF"), seed=seed, bootstrap=100)
        low, high = scores.intervals["macro_f1"] or (0, 0)
        held_f1 += low <= truth <= high
        low, high = scores.intervals["balanced_accuracy"] or (0, 0)
        held_recall += low <= recall <= high
    assert held_f1 >= 88
    assert held_recall >= 88
