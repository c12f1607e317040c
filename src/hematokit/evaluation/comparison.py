"""Comparing classifiers on the same cells: side by side, and whether the difference could be chance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import binom

from hematokit.errors import EvaluationError
from hematokit.evaluation.intervals import (
    LEVEL,
    Interval,
    cluster_ids,
    cluster_weights,
    overall_from_confusions,
    percentile_interval,
    weighted_confusions,
    wider_interval,
)
from hematokit.evaluation.metrics import Scores, score

__all__ = ["Comparison", "PairTest", "compare_predictions", "holm", "mcnemar_mid_p"]

SIGNIFICANCE: Final = 1 - LEVEL
RESAMPLES: Final = 2000


@dataclass(frozen=True, slots=True)
class PairTest:
    """How two runs differ on the same cells.

    Attributes
    ----------
    first, second : str
        Names of the runs.
    only_first, only_second : int
        Cells that only this run has right.
    mcnemar_p, mcnemar_p_adjusted : float
        McNemar's mid-p for equal accuracy, and the same after Holm's correction over all pairs.
    macro_f1_difference : float
        Macro F1 of the first less that of the second.
    interval : tuple of float or None
        95 % interval of that difference.
    macro_f1_p, macro_f1_p_adjusted : float
        Paired randomisation test for equal macro F1, and the same after Holm's correction.
    """

    first: str
    second: str
    only_first: int
    only_second: int
    mcnemar_p: float
    mcnemar_p_adjusted: float
    macro_f1_difference: float
    interval: Interval | None
    macro_f1_p: float
    macro_f1_p_adjusted: float

    @property
    def significant(self) -> bool:
        """The macro F1 differ at the 5 % level after correction."""
        return self.macro_f1_p_adjusted < SIGNIFICANCE


@dataclass(frozen=True)
class Comparison:
    """Runs side by side.

    Attributes
    ----------
    scores : dict of str to Scores
        By name of the run, on the cells in common.
    pairs : tuple of PairTest
        Every two runs.
    cells, groups : int
        Cells in common, and independent groups of them.
    dropped : dict of str to int
        Cells of each run that not all the others have.
    best : str
        The run with the highest macro F1.
    """

    scores: dict[str, Scores]
    pairs: tuple[PairTest, ...]
    cells: int
    groups: int
    dropped: dict[str, int]
    best: str

    @property
    def codes(self) -> tuple[str, ...]:
        """Classes of all runs, in the order in which the runs name them."""
        return tuple(dict.fromkeys(code for entry in self.scores.values() for code in entry.codes))

    @property
    def verdict(self) -> str:
        """One or two sentences for a person: which run is best, and whether that could be chance."""
        value = self.scores[self.best].macro_f1
        against = []
        for pair in self.pairs:
            if self.best in (pair.first, pair.second):
                other, sign = (pair.second, 1) if pair.first == self.best else (pair.first, -1)
                against.append((other, sign * pair.macro_f1_difference, pair))

        def part(item: tuple[str, float, PairTest]) -> str:
            return f"{item[0]} ({item[1]:+.3f}, p = {item[2].macro_f1_p_adjusted:.2g})"

        clear = [part(item) for item in against if item[2].significant]
        level = [part(item) for item in against if not item[2].significant]
        sentences = [f"{self.best} has the highest macro F1 ({value:.3f})."]
        if clear:
            sentences.append(f"It beats {_listed(clear)} by more than chance explains.")
        if level:
            sentences.append(f"Its lead over {_listed(level)} is not significant: these cells do not tell them apart.")
        return " ".join(sentences)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``comparison.json``."""
        return {
            "best": self.best,
            "verdict": self.verdict,
            "cells": self.cells,
            "groups": self.groups,
            "dropped": self.dropped,
            "pairs": [
                {
                    "first": pair.first,
                    "second": pair.second,
                    "only_first_right": pair.only_first,
                    "only_second_right": pair.only_second,
                    "mcnemar_p": pair.mcnemar_p,
                    "mcnemar_p_adjusted": pair.mcnemar_p_adjusted,
                    "macro_f1_difference": pair.macro_f1_difference,
                    "macro_f1_difference_interval": list(pair.interval) if pair.interval else None,
                    "macro_f1_p": pair.macro_f1_p,
                    "macro_f1_p_adjusted": pair.macro_f1_p_adjusted,
                    "significant": pair.significant,
                }
                for pair in self.pairs
            ],
            "runs": {name: entry.to_dict() for name, entry in self.scores.items()},
        }


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def mcnemar_mid_p(only_first: int, only_second: int) -> float:
    """McNemar's test in its mid-p form.

    Parameters
    ----------
    only_first, only_second : int
        Cells that only the one, or only the other, has right.

    Returns
    -------
    float
        Two-sided p; 1 where the two never differ.

    References
    ----------
    Fagerland MW, Lydersen S, Laake P (2013). The McNemar test for binary matched-pairs data: mid-p and asymptotic
    are better than exact conditional. BMC Medical Research Methodology 13, 91.
    """
    fewer, total = min(only_first, only_second), only_first + only_second
    if not total:
        return 1.0
    return float(2 * binom.cdf(fewer - 1, total, 0.5) + binom.pmf(fewer, total, 0.5))


def holm(p_values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Correct p values for being several, by Holm's step-down method.

    Parameters
    ----------
    p_values : array_like (k,), float

    Returns
    -------
    ndarray (k,), float64
        Adjusted p values in the same order, at most 1.

    References
    ----------
    Holm S (1979). A simple sequentially rejective multiple test procedure. Scandinavian Journal of Statistics 6, 65-70.
    """
    values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(values)
    steps = values[order] * np.arange(len(values), 0, -1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def compare_predictions(
    predictions: Mapping[str, pd.DataFrame],
    *,
    common: bool = False,
    seed: int = 0,
    bootstrap: int = 1000,
    resamples: int = RESAMPLES,
) -> Comparison:
    """Compare the predictions of several runs, cell by cell.

    Equal accuracy is tested with McNemar's test. Equal macro F1 is tested by randomisation: if two runs were equally
    good, exchanging their predictions in any group of cells would change nothing but by chance. Both p values are
    corrected for the number of pairs. The interval of the difference is the wider of a bootstrap over groups and of
    the randomisation's own spread.

    Parameters
    ----------
    predictions : mapping of str to DataFrame
        Tables as `hematokit.evaluation.evaluating.Evaluation.predictions`, by name of the run; at least two.
    common : bool
        Compare on the cells that all runs share where they differ, instead of refusing.
    seed : int
        Of all resampling.
    bootstrap : int
        Resamples for the intervals of each run.
    resamples : int
        Bootstrap and randomisation draws for each pair.

    Returns
    -------
    Comparison

    Raises
    ------
    EvaluationError
        If the cells differ (and `common` is not set), none is shared, or labels disagree.

    References
    ----------
    Yeh A (2000). More accurate tests for the statistical significance of result differences. COLING, 947-953.
    """
    names = list(predictions)
    if len(names) < 2:
        raise EvaluationError("a comparison needs at least two runs; give two or more")
    tables, dropped = _aligned(predictions, common)
    first = tables[names[0]]
    truth_codes = first["label"].to_numpy(dtype=object)
    groups = first["group"].to_numpy(dtype=object)
    clusters = cluster_ids(groups, len(first))
    scores = {}
    for name, table in tables.items():
        codes = tuple(column[2:] for column in table.columns if column.startswith("p_"))
        values = table[[f"p_{code}" for code in codes]].to_numpy()
        scores[name] = score(truth_codes, values, codes, groups, seed, bootstrap)

    union = {code: index for index, code in enumerate(dict.fromkeys(c for s in scores.values() for c in s.codes))}
    truth = np.array([union[code] for code in truth_codes], dtype=np.int64)
    guesses = {
        name: np.array([union[code] for code in table["predicted"]], dtype=np.int64) for name, table in tables.items()
    }
    draws = _Draws(clusters, len(union), seed, resamples)
    pairs = [_test_pair((one, two), truth, guesses, draws) for one, two in combinations(names, 2)]
    by_accuracy, by_f1 = holm([pair.mcnemar_p for pair in pairs]), holm([pair.macro_f1_p for pair in pairs])
    corrected = tuple(
        replace(pair, mcnemar_p_adjusted=float(accuracy), macro_f1_p_adjusted=float(f1))
        for pair, accuracy, f1 in zip(pairs, by_accuracy, by_f1, strict=True)
    )
    best = max(names, key=lambda name: scores[name].macro_f1 or 0.0)
    return Comparison(scores, corrected, len(first), int(clusters.max()) + 1, dropped, best)


def _aligned(predictions: Mapping[str, pd.DataFrame], common: bool) -> tuple[dict[str, pd.DataFrame], dict[str, int]]:
    """Bring all tables to the same cells in the same order."""
    tables = {}
    for name, table in predictions.items():
        known = table[table["label"] != ""].set_index("cell_id")
        if not known.index.is_unique:
            raise EvaluationError(f"the predictions of {name} hold a cell twice; evaluate the run again")
        tables[name] = known
    shared = None
    for table in tables.values():
        shared = table.index if shared is None else shared[shared.isin(table.index)]
    assert shared is not None
    dropped = {name: len(table) - len(shared) for name, table in tables.items()}
    sizes = ", ".join(f"{name} {len(table)}" for name, table in tables.items())
    if not len(shared):
        raise EvaluationError(f"the runs were evaluated on different cells ({sizes}, none in common); give one store")
    if any(dropped.values()) and not common:
        raise EvaluationError(
            f"the runs were evaluated on different cells ({sizes}, {len(shared)} in common); evaluate them on the same "
            "split of one store, or compare the cells in common with --common"
        )
    tables = {name: table.loc[shared] for name, table in tables.items()}
    names = list(tables)
    for name in names[1:]:
        unlike = int((tables[name]["label"].to_numpy() != tables[names[0]]["label"].to_numpy()).sum())
        if unlike:
            raise EvaluationError(
                f"{names[0]} and {name} were evaluated with different labels for {unlike} of {len(shared)} cells; "
                "evaluate both again with: hematokit evaluate RUN (a one-vs-rest run compares only with its like)"
            )
    return tables, dropped


class _Draws(NamedTuple):
    """How two runs are compared: the group of each cell (n,), the number of classes, and the resampling."""

    clusters: npt.NDArray[np.int64]
    classes: int
    seed: int
    resamples: int


def _test_pair(
    names: tuple[str, str],
    truth: npt.NDArray[np.int64],
    guesses: Mapping[str, npt.NDArray[np.int64]],
    draws: _Draws,
) -> PairTest:
    """Test two runs by the index of each cell's true class (n,) and of the class that each run gives it (n,)."""
    clusters, classes, seed, resamples = draws
    first, second = guesses[names[0]], guesses[names[1]]
    right_first, right_second = first == truth, second == truth
    only_first = int((right_first & ~right_second).sum())
    only_second = int((right_second & ~right_first).sum())

    def macro_f1(guess: npt.NDArray[np.int64], weights: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        return overall_from_confusions(weighted_confusions(truth, guess, classes, weights))["macro_f1"]

    once = np.ones((1, len(truth)), dtype=np.float32)
    observed = float(macro_f1(first, once)[0] - macro_f1(second, once)[0])
    # Cells that both call the same are untouched by an exchange: they are counted once.
    unlike = first != second
    if not unlike.any():
        return PairTest(*names, 0, 0, 1.0, 1.0, 0.0, (0.0, 0.0), 1.0, 1.0)
    same = weighted_confusions(truth[~unlike], first[~unlike], classes, once[:, ~unlike])
    resampled: list[npt.NDArray[np.float64]] = []
    exchanged: list[npt.NDArray[np.float64]] = []
    for weights in cluster_weights(clusters, resamples, seed):
        of_cells = np.take(weights, clusters, axis=1)
        resampled.append(macro_f1(first, of_cells) - macro_f1(second, of_cells))
    generator = np.random.default_rng([seed, 1])
    groups = int(clusters.max()) + 1
    for start in range(0, resamples, 64):
        swap = generator.integers(0, 2, (min(64, resamples - start), groups), dtype=np.int8)[:, clusters[unlike]]
        keep = (1 - swap).astype(np.float32)
        change = swap.astype(np.float32)
        args = (truth[unlike], first[unlike], classes), (truth[unlike], second[unlike], classes)
        one = same + weighted_confusions(*args[0], keep) + weighted_confusions(*args[1], change)
        two = same + weighted_confusions(*args[0], change) + weighted_confusions(*args[1], keep)
        exchanged.append(overall_from_confusions(one)["macro_f1"] - overall_from_confusions(two)["macro_f1"])
    null = np.abs(np.concatenate(exchanged))
    # The observed labelling is one of the possible ones, so p is never 0.
    p_value = (1 + int((null >= abs(observed) - 1e-12).sum())) / (resamples + 1)
    spread = float(np.quantile(null, LEVEL))
    interval = wider_interval(percentile_interval(np.concatenate(resampled)), (observed - spread, observed + spread))
    mid_p = mcnemar_mid_p(only_first, only_second)
    return PairTest(*names, only_first, only_second, mid_p, mid_p, observed, interval, p_value, p_value)
