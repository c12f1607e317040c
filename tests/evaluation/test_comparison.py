"""Comparing the predictions of runs on the same cells."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom, binomtest

from hematokit.errors import EvaluationError
from hematokit.evaluation.comparison import compare_predictions, holm, mcnemar_mid_p

CODES = ["BLA", "LYT", "NGS"]


def predictions(truth: np.ndarray, right: float, seed: int, groups: list[str] | None = None) -> pd.DataFrame:
    """Predictions of which about the share `right` is right."""
    random = np.random.default_rng(seed)
    wrong = (truth + random.integers(1, 3, len(truth))) % 3
    guess = np.where(random.random(len(truth)) < right, truth, wrong)
    names = np.array(CODES, dtype=object)
    probabilities = 0.1 + 0.7 * np.eye(3)[guess]
    table = pd.DataFrame({"cell_id": [f"c{index}" for index in range(len(truth))], "label": names[truth]})
    table["predicted"] = names[guess]
    for index, code in enumerate(CODES):
        table[f"p_{code}"] = probabilities[:, index]
    return table.assign(group=groups if groups is not None else "")


TRUTH = np.random.default_rng(0).integers(0, 3, 400)


def test_a_clear_winner_is_named_as_such() -> None:
    result = compare_predictions(
        {"weak": predictions(TRUTH, 0.5, 1), "strong": predictions(TRUTH, 0.9, 2)}, bootstrap=0, resamples=400
    )
    assert result.best == "strong"
    (pair,) = result.pairs
    assert pair.significant
    assert pair.macro_f1_difference < -0.3
    assert pair.interval is not None
    assert pair.interval[1] < 0
    assert "strong has the highest macro F1" in result.verdict
    assert "more than chance" in result.verdict
    assert "not significant" not in result.verdict


def test_equals_are_not_told_apart() -> None:
    tables = {name: predictions(TRUTH, 0.8, seed) for seed, name in enumerate(("one", "two", "three"))}
    result = compare_predictions(tables, bootstrap=0, resamples=400)
    assert len(result.pairs) == 3
    assert not any(pair.significant for pair in result.pairs)
    assert "not significant" in result.verdict
    assert all(pair.macro_f1_p_adjusted >= pair.macro_f1_p for pair in result.pairs)


def test_a_run_against_its_double_differs_by_nothing() -> None:
    table = predictions(TRUTH, 0.8, 1)
    (pair,) = compare_predictions({"one": table, "two": table.copy()}, bootstrap=0).pairs
    assert (pair.only_first, pair.only_second, pair.mcnemar_p, pair.macro_f1_p) == (0, 0, 1.0, 1.0)


def test_one_lucky_cell_of_a_rare_class_is_not_significant() -> None:
    # Only in the one cell of NGS do they differ: a third of macro F1, and no evidence at all.
    truth = np.array([0] * 40 + [1] * 40 + [2])
    names = np.array(CODES, dtype=object)
    lucky = predictions(truth, 1.0, 0)
    unlucky = lucky.copy()
    unlucky.loc[80, "predicted"] = names[0]
    unlucky.loc[80, ["p_BLA", "p_NGS"]] = [0.8, 0.1]
    (pair,) = compare_predictions({"lucky": lucky, "unlucky": unlucky}, bootstrap=0).pairs
    assert pair.macro_f1_difference > 0.3
    assert not pair.significant


def test_copies_of_one_cell_count_once() -> None:
    base = np.random.default_rng(1).integers(0, 3, 60)
    one, two = predictions(base, 0.72, 1), predictions(base, 0.82, 3)
    alone = compare_predictions({"one": one, "two": two}, bootstrap=0).pairs[0]
    copies = [
        pd.concat([table.assign(cell_id=[f"{cell}-{copy}" for cell in table["cell_id"]]) for copy in range(10)])
        for table in (one, two)
    ]
    group = [f"g{index % 60}" for index in range(600)]
    grouped = compare_predictions(
        {"one": copies[0].assign(group=group), "two": copies[1].assign(group=group)}, bootstrap=0
    )
    naive = compare_predictions({"one": copies[0], "two": copies[1]}, bootstrap=0)
    assert grouped.groups == 60
    assert grouped.pairs[0].macro_f1_p == pytest.approx(alone.macro_f1_p, abs=0.05)
    assert naive.pairs[0].macro_f1_p < 0.5 * alone.macro_f1_p


def test_the_same_seed_gives_the_same_result() -> None:
    tables = {"one": predictions(TRUTH, 0.7, 1), "two": predictions(TRUTH, 0.75, 2)}
    first, second = (compare_predictions(tables, seed=5, bootstrap=50, resamples=100).to_dict() for _ in range(2))
    assert first == second


def test_rows_in_another_order_change_nothing() -> None:
    one, two = predictions(TRUTH, 0.7, 1), predictions(TRUTH, 0.75, 2)
    straight = compare_predictions({"one": one, "two": two}, bootstrap=0, resamples=100)
    shuffled = compare_predictions({"one": one, "two": two.sample(frac=1, random_state=0)}, bootstrap=0, resamples=100)
    assert straight.to_dict() == shuffled.to_dict()


def test_different_cells_are_refused_or_compared_where_shared() -> None:
    one, two = predictions(TRUTH, 0.7, 1), predictions(TRUTH, 0.75, 2)
    with pytest.raises(EvaluationError, match=r"different cells \(one 400, two 300, 300 in common\).*--common"):
        compare_predictions({"one": one, "two": two[:300]})
    result = compare_predictions({"one": one, "two": two[:300]}, common=True, bootstrap=0, resamples=50)
    assert result.cells == 300
    assert result.dropped == {"one": 100, "two": 0}
    with pytest.raises(EvaluationError, match="none in common"):
        compare_predictions({"one": one[:10], "two": two[10:20]}, common=True)


def test_disagreeing_labels_are_refused() -> None:
    one, two = predictions(TRUTH, 0.7, 1), predictions(TRUTH, 0.75, 2)
    two.loc[3, "label"] = "BLA" if two.loc[3, "label"] != "BLA" else "LYT"
    with pytest.raises(EvaluationError, match="different labels for 1 of 400"):
        compare_predictions({"one": one, "two": two})


def test_runs_of_different_classes_compare_on_the_cells_both_know() -> None:
    one, two = predictions(TRUTH, 0.8, 1), predictions(TRUTH, 0.8, 2)
    two = two[two["label"] != "NGS"].copy()
    two["predicted"] = two["predicted"].replace("NGS", "BLA")
    two = two.drop(columns="p_NGS")
    result = compare_predictions({"one": one, "two": two}, common=True, bootstrap=0, resamples=50)
    assert result.codes == ("BLA", "LYT", "NGS")
    assert "NGS" not in result.scores["two"].per_class
    assert result.scores["one"].per_class["NGS"].support == 0


def test_one_run_is_no_comparison() -> None:
    with pytest.raises(EvaluationError, match="at least two"):
        compare_predictions({"one": predictions(TRUTH, 0.7, 1)})


@pytest.mark.parametrize(("first", "second"), [(0, 0), (3, 3), (1, 9), (40, 60)])
def test_mcnemar_mid_p_is_the_exact_p_less_half_its_own_term(first: int, second: int) -> None:
    value = mcnemar_mid_p(first, second)
    assert value == mcnemar_mid_p(second, first)
    if first == second:
        assert value == pytest.approx(1.0)
    else:
        exact = binomtest(first, first + second).pvalue
        assert value == pytest.approx(exact - binom.pmf(first, first + second, 0.5))


def test_holm_against_a_worked_example() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
