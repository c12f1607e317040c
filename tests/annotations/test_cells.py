"""The cells table."""

from __future__ import annotations

import numpy as np
import pandas as pd

from hematokit.annotations.cells import class_scores


def test_scores_are_sorted_and_absent_ones_left_out() -> None:
    row = pd.DataFrame({"cell_id": ["a"], "p_BLA": [0.2], "p_LYT": [0.7], "p_NGS": [np.nan]})
    assert class_scores(row) == [("LYT", 0.7), ("BLA", 0.2)]
    assert class_scores(row[["cell_id"]]) == []
