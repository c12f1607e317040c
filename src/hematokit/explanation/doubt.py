"""Cells in doubt: misclassified, or unsure; what speaks for the first class, what for the second."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from hematokit.errors import ExplanationError
from hematokit.fields.tallies import unsure_cells

__all__ = ["DOUBT_COLUMNS", "doubtful_cells", "leading_classes"]

DOUBT_COLUMNS: Final = ("first", "second", "p_first", "p_second", "reason")


def leading_classes(probabilities: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
    """Positions (n, 2) of the two largest probabilities (n, C), the larger first; ties go to the earlier class."""
    if probabilities.shape[1] < 2:
        raise ExplanationError("doubt is between two classes, and the model has only one")
    order = np.argsort(-probabilities, axis=1, kind="stable")
    return np.asarray(order[:, :2], np.int64)


def doubtful_cells(predictions: pd.DataFrame, codes: Sequence[str], *, unsure_below: float = 0.5) -> pd.DataFrame:
    """Pick the cells that a person should look at, the most doubtful first.

    Parameters
    ----------
    predictions : DataFrame
        ``label`` (empty where unknown), ``predicted``, ``probability`` and one ``p_<CODE>`` a class.
    codes : sequence of str
        The model's classes.
    unsure_below : float
        Probability of the predicted class below which a cell is unsure.

    Returns
    -------
    DataFrame
        Rows of `predictions`, keeping their index, with ``first`` and ``second`` (codes of the two leading classes),
        ``p_first``, ``p_second`` and ``reason`` (``"misclassified"``, ``"unsure"`` or both). Misclassified cells come
        first, the surest of them at the top; then unsure ones, the closest contest at the top. A label that the model
        does not know makes no mistake.
    """
    known = predictions["label"].isin(list(codes))
    wrong = known & (predictions["label"] != predictions["predicted"])
    unsure = pd.Series(unsure_cells(predictions, unsure_below), index=predictions.index)
    columns = [f"p_{code}" for code in codes]
    chosen = predictions[wrong | unsure]
    probabilities = chosen[columns].to_numpy(np.float64)
    leading = leading_classes(probabilities) if len(chosen) else np.zeros((0, 2), np.int64)
    rows = np.arange(len(chosen))
    first, second = probabilities[rows, leading[:, 0]], probabilities[rows, leading[:, 1]]
    said = [
        ", ".join(word for word, holds in (("misclassified", w), ("unsure", u)) if holds)
        for w, u in zip(wrong[chosen.index], unsure[chosen.index], strict=True)
    ]
    chosen = chosen.assign(
        first=[codes[place] for place in leading[:, 0]],
        second=[codes[place] for place in leading[:, 1]],
        p_first=first,
        p_second=second,
        reason=said,
    )
    is_wrong = wrong[chosen.index].to_numpy()
    order = np.lexsort((np.where(is_wrong, -first, first - second), ~is_wrong))
    return chosen.iloc[order]
