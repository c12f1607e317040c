"""Which cells are misclassified or of low confidence, and what their leading classes are."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from hematokit.errors import ExplanationError
from hematokit.explanation.selection import leading_classes, uncertain_cells

CODES = ("BLA", "LYT", "MON")


def predictions(rows: list[tuple[str, float, float, float]]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["label", *(f"p_{code}" for code in CODES)])
    scores = table[[f"p_{code}" for code in CODES]].to_numpy()
    return table.assign(predicted=[CODES[place] for place in scores.argmax(1)], probability=scores.max(1))


def test_mistakes_come_first_the_surest_at_the_top_then_the_closest_contests() -> None:
    table = predictions(
        [
            ("BLA", 0.90, 0.05, 0.05),  # right and sure
            ("LYT", 0.60, 0.30, 0.10),  # wrong
            ("MON", 0.30, 0.45, 0.25),  # wrong and low-confidence
            ("MON", 0.95, 0.03, 0.02),  # wrong, and sure of it
            ("BLA", 0.48, 0.32, 0.20),  # low-confidence
            ("", 0.40, 0.21, 0.39),  # low-confidence, no label
            ("", 0.80, 0.10, 0.10),  # no label
            ("EBO", 0.70, 0.20, 0.10),  # a class that the model does not know
        ]
    )
    found = uncertain_cells(table, CODES, min_probability=0.5)
    assert found.index.tolist() == [3, 1, 2, 5, 4]
    assert found["reason"].tolist() == [
        "misclassified",
        "misclassified",
        "misclassified, low-confidence",
        "low-confidence",
        "low-confidence",
    ]
    assert found[["first", "second"]].to_numpy().tolist()[:3] == [["BLA", "LYT"], ["BLA", "LYT"], ["LYT", "BLA"]]
    assert found.loc[5, ["first", "second"]].tolist() == ["BLA", "MON"]
    assert found.loc[5, "p_second"] == pytest.approx(0.39)


def test_no_uncertain_cell_is_an_empty_table_with_its_columns() -> None:
    found = uncertain_cells(predictions([("BLA", 0.9, 0.05, 0.05)]), CODES)
    assert len(found) == 0
    assert {"first", "second", "reason"} <= set(found.columns)


def test_leading_classes_of_ties_and_of_one_class() -> None:
    assert leading_classes(np.array([[0.2, 0.4, 0.4], [0.5, 0.0, 0.5]])).tolist() == [[1, 2], [0, 2]]
    with pytest.raises(ExplanationError, match="only one"):
        leading_classes(np.ones((2, 1)))


def test_a_missing_probability_is_low_confidence_and_a_reviewed_cell_is_not() -> None:
    table = predictions([("", 0.40, 0.35, 0.25), ("", 0.40, 0.35, 0.25), ("", 0.40, 0.30, 0.30)])
    table["probability"] = [np.nan, 0.4, 0.4]
    found = uncertain_cells(table.assign(reviewed=[False, True, False]), CODES, min_probability=0.5)
    assert sorted(found.index) == [0, 2]
