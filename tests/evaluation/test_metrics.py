"""Scores, checked against formulas written out here."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hematokit.evaluation.metrics import CLASS_METRICS, OVERALL_METRICS, score, validation_scores
from hematokit.taxonomy import MATEK_21

CODES = ("BLA", "PMO", "MYB", "LYT")


def sample(n: int = 300, classes: int = 4, seed: int = 0, signal: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = random.choice(classes, n, p=random.dirichlet(np.full(classes, 8)))
    logits = random.normal(size=(n, classes))
    logits[np.arange(n), labels] += signal
    probabilities = np.exp(logits)
    return labels, probabilities / probabilities.sum(axis=1, keepdims=True)


def average_precision(positive: np.ndarray, scores: np.ndarray) -> float:
    """The definition: sum over thresholds of precision times the gain in recall."""
    total, before = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        called = scores >= threshold
        recall = (called & positive).sum() / positive.sum()
        total += (recall - before) * (called & positive).sum() / called.sum()
        before = recall
    return total


def test_every_figure_against_its_definition() -> None:
    labels, probabilities = sample()
    probabilities = probabilities.round(2)  # ties, which average precision must treat as one step
    scores = score(labels, probabilities, CODES, bootstrap=50)
    guess = probabilities.argmax(axis=1)
    f1s, recalls = [], []
    for index, code in enumerate(CODES):
        entry = scores.per_class[code]
        true, called = labels == index, guess == index
        hits = (true & called).sum()
        assert entry.support == true.sum()
        assert entry.precision == pytest.approx(hits / called.sum())
        assert entry.recall == pytest.approx(hits / true.sum())
        assert entry.f1 == pytest.approx(2 * hits / (true.sum() + called.sum()))
        assert entry.ovr_accuracy == pytest.approx((true == called).mean())
        assert entry.average_precision == pytest.approx(average_precision(true, probabilities[:, index]), abs=1e-6)
        f1s.append(entry.f1)
        recalls.append(entry.recall)
    assert scores.accuracy == pytest.approx((guess == labels).mean())
    assert scores.balanced_accuracy == pytest.approx(np.mean(recalls))
    assert scores.macro_f1 == pytest.approx(np.mean(f1s))
    assert scores.weighted_f1 == pytest.approx(np.dot(f1s, np.bincount(labels)) / len(labels))
    for row in range(4):
        for column in range(4):
            assert scores.confusion[row, column] == ((labels == row) & (guess == column)).sum()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(2, 60), classes=st.integers(2, 6), grouped=st.booleans())
def test_any_sample_gives_figures_within_intervals_within_bounds(
    seed: int, n: int, classes: int, grouped: bool
) -> None:
    labels, probabilities = sample(n, classes, seed)
    groups = [f"g{index // 3}" for index in range(n)] if grouped else None
    codes = [f"C{index}" for index in range(classes)]
    scores = score(labels, probabilities, codes, groups, bootstrap=30)
    json.dumps(scores.to_dict(), allow_nan=False)
    for entry in scores.per_class.values():
        for name in CLASS_METRICS:
            value, bounds = getattr(entry, name), entry.intervals[name]
            assert (value is None) == (name != "ovr_accuracy" and entry.support == 0) or name == "precision"
            if bounds is not None:
                assert value is not None
                assert -1e-6 <= bounds[0] <= bounds[1] <= 1 + 1e-6
                if name != "average_precision":
                    assert bounds[0] - 1e-9 <= value <= bounds[1] + 1e-9
    for name in OVERALL_METRICS:
        bounds = scores.intervals[name]
        assert bounds is not None
        assert bounds[0] <= getattr(scores, name) <= bounds[1]


def test_what_cannot_be_measured_is_null_not_zero() -> None:
    # LYT: no test cell, yet called once. MYB: a test cell, never called.
    labels = np.array([0, 0, 1, 2])
    probabilities = np.eye(4)[[0, 3, 1, 0]]
    scores = score(labels, probabilities, CODES)
    absent, missed = scores.per_class["LYT"], scores.per_class["MYB"]
    assert (absent.precision, absent.recall, absent.f1, absent.average_precision) == (None, None, None, None)
    assert absent.ovr_accuracy == pytest.approx(0.75)
    assert absent.support == 0
    assert missed.precision is None
    assert (missed.recall, missed.f1) == (0.0, 0.0)
    # Macro figures are means over the three classes that are there.
    assert scores.balanced_accuracy == pytest.approx((0.5 + 1 + 0) / 3)
    assert scores.macro_f1 == pytest.approx((0.5 + 1 + 0) / 3)


def test_no_cell_at_all_gives_nulls() -> None:
    scores = score(np.zeros(0, int), np.zeros((0, 4)), CODES)
    assert scores.n == 0
    assert [getattr(scores, name) for name in OVERALL_METRICS] == [None] * 4
    assert all(entry.ovr_accuracy is None for entry in scores.per_class.values())


def test_rare_classes_are_flagged_and_their_intervals_are_wide() -> None:
    labels = np.repeat([0, 1], [100, 2])
    scores = score(labels, np.eye(2)[labels], ("BLA", "ABE"))
    assert not scores.per_class["BLA"].low_support
    rare = scores.per_class["ABE"]
    assert rare.low_support
    # Always found, and still next to nothing is known: two of two.
    assert rare.recall == 1.0
    assert rare.intervals["recall"] is not None
    assert rare.intervals["recall"][0] < 0.4
    assert rare.intervals["f1"] is not None
    assert rare.intervals["f1"][0] < 0.55
    # Ranking two cells perfectly in every resample is no evidence of how others rank.
    assert rare.intervals["average_precision"] is None


def test_codes_or_indices_and_a_seed_make_the_same_scores() -> None:
    labels, probabilities = sample()
    by_index = score(labels, probabilities, CODES, seed=3, bootstrap=100)
    by_code = score(np.array(CODES, dtype=object)[labels], probabilities, CODES, seed=3, bootstrap=100)
    assert by_index.to_dict() == by_code.to_dict()
    other = score(labels, probabilities, CODES, seed=4, bootstrap=100)
    assert (
        other.per_class["BLA"].intervals["average_precision"] != by_code.per_class["BLA"].intervals["average_precision"]
    )


def test_groups_widen_intervals() -> None:
    labels, probabilities = sample(100)
    copies = 6
    labels, probabilities = np.repeat(labels, copies), np.repeat(probabilities, copies, axis=0)
    groups = np.repeat([f"patient {index}" for index in range(100)], copies)
    naive = score(labels, probabilities, CODES)
    grouped = score(labels, probabilities, CODES, groups)
    assert grouped.groups == 100
    assert grouped.accuracy == naive.accuracy
    for name in OVERALL_METRICS:
        wide, narrow = grouped.intervals[name], naive.intervals[name]
        assert wide is not None
        assert narrow is not None
        # Six copies of one cell are worth one cell: the interval is about sqrt(6) times as wide.
        assert 1.8 < (wide[1] - wide[0]) / (narrow[1] - narrow[0]) < 3.2


def test_empty_and_missing_groups_are_groups_of_one() -> None:
    labels, probabilities = sample(60)
    alone = score(labels, probabilities, CODES, ["" if index % 2 else None for index in range(60)], bootstrap=100)
    assert alone.to_dict() == score(labels, probabilities, CODES, bootstrap=100).to_dict()


def test_metrics_json_layout_is_the_contract() -> None:
    labels, probabilities = sample()
    data = score(labels, probabilities, CODES).to_dict()
    assert {"accuracy", "balanced_accuracy", "macro_f1", "weighted_f1", "n", "per_class", "intervals"} <= data.keys()
    for code in CODES:
        assert {*CLASS_METRICS, "support", "intervals"} <= data["per_class"][code].keys()
        low, high = data["per_class"][code]["intervals"]["f1"]
        assert low < data["per_class"][code]["f1"] < high
    low, high = data["intervals"]["macro_f1"]
    assert low < data["macro_f1"] < high


def test_neighbours_in_maturation_are_told_from_other_mistakes() -> None:
    # BLA called PMO (neighbours, either way round) twice, BLA called LYT once.
    labels, guesses = np.array([0, 1, 0, 3]), np.array([1, 0, 3, 3])
    scores = score(labels, np.eye(4)[guesses], CODES)
    near = scores.neighbour_confusions(MATEK_21.subset(CODES))
    assert near == {"errors": 3, "between_neighbours": 2, "share": pytest.approx(2 / 3)}
    perfect = score(labels, np.eye(4)[labels], CODES)
    assert perfect.neighbour_confusions(MATEK_21)["share"] is None


@pytest.mark.parametrize(
    ("labels", "probabilities", "codes", "message"),
    [
        ([0, 4], np.eye(4)[[0, 1]], CODES, "labels run"),
        (["BLA", "XXX"], np.eye(4)[[0, 1]], CODES, "XXX"),
        ([0, 1], np.eye(3)[[0, 1]], CODES, "expected"),
        ([0, 1], np.full((2, 4), np.nan), CODES, "not finite"),
        ([0], np.ones((1, 1)), ("BLA",), "two classes"),
    ],
)
def test_callers_mistakes_raise(
    labels: list[object], probabilities: np.ndarray, codes: tuple[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        score(labels, probabilities, codes)


def test_validation_scores_agree_with_the_full_ones() -> None:
    labels, probabilities = sample(120, 4, seed=5)
    labels[labels == 3] = 0  # a class without cells
    quick = validation_scores(labels, np.log(probabilities))
    full = score(labels, probabilities, CODES, bootstrap=0)
    assert quick == {name: pytest.approx(getattr(full, name)) for name in ("accuracy", "balanced_accuracy", "macro_f1")}
    assert all(np.isnan(value) for value in validation_scores(np.zeros(0, int), np.zeros((0, 3))).values())
