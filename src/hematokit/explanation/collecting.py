"""Explaining chosen cells into a folder: what is done is kept, what is not is done."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from hematokit.errors import ExplanationError
from hematokit.explanation.doubt import doubtful_cells
from hematokit.explanation.running import ChooseTargets, ExplainedBatch, NamedExplainer, explain_in_batches
from hematokit.explanation.storing import ExplanationFolder, MapArrays
from hematokit.models.predictions import prediction_frame
from hematokit.progress import Progress, no_progress

if TYPE_CHECKING:
    from hematokit.explanation.selection import ChosenCells
    from hematokit.models import Classifier

__all__ = ["collect_doubt", "collect_maps", "explained_cells"]

DOUBT_FILE = "doubt.parquet"


def collect_maps(
    folder: ExplanationFolder,
    classifier: Classifier,
    chosen: ChosenCells,
    choose: ChooseTargets,
    explainers: Mapping[str, NamedExplainer],
    *,
    batch_size: int = 16,
    each: Callable[[ExplainedBatch], None] | None = None,
    progress: Progress = no_progress,
) -> tuple[MapArrays, pd.DataFrame]:
    """Explain the cells that are not done yet.

    The table of cells is written at the end, and also when the work is interrupted: rows that are not explained have
    no prediction there.

    Parameters
    ----------
    folder : ExplanationFolder
        Where maps go.
    classifier : Classifier
    chosen : ChosenCells
    choose : callable
        From `hematokit.explanation.selection.target_chooser`.
    explainers : mapping of str to NamedExplainer
    batch_size : int
    each : callable, optional
        Called with each batch before it counts as done; draws pictures, say.
    progress : Progress

    Returns
    -------
    arrays : MapArrays
    cells : DataFrame
        As `explained_cells` gives it.
    """
    side = classifier.input_spec.size
    count, classes = len(chosen), len(classifier.codes)
    arrays = folder.arrays("attributions", (count, side, side), list(explainers), classes)
    try:
        for batch in explain_in_batches(
            classifier,
            chosen.read,
            count,
            choose,
            explainers,
            start=arrays.done,
            batch_size=batch_size,
            progress=progress,
        ):
            if each is not None:
                each(batch)
            arrays.write(int(batch.positions[0]), batch.maps, batch.logits)
    finally:
        cells = explained_cells(classifier, chosen, choose, arrays)
        folder.write_cells(cells)
    return arrays, cells


def explained_cells(
    classifier: Classifier, chosen: ChosenCells, choose: ChooseTargets, arrays: MapArrays
) -> pd.DataFrame:
    """The cells with what the model says of them.

    Returns
    -------
    DataFrame
        The chosen cells, aligned with the arrays, with ``predicted``, ``probability``, ``p_<CODE>`` a class,
        ``target`` (the class explained) and ``explained`` (whether the maps are there).
    """
    logits = arrays.logits()
    predictions = prediction_frame(logits, classifier.codes, classifier.temperature)
    positions = np.arange(len(logits), dtype=np.int64)
    targets = [classifier.codes[place] for place in choose(positions, logits).tolist()] if len(logits) else []
    predictions = predictions.assign(target=pd.Series(targets, dtype=object))
    others = chosen.cells.drop(columns=[name for name in predictions.columns if name in chosen.cells.columns])
    cells = pd.concat([others.reset_index(drop=True), predictions], axis=1)
    for name in ("predicted", "target"):
        cells[name] = cells[name].fillna("").astype(object)
    cells["explained"] = np.arange(len(cells)) < len(logits)
    return cells


def collect_doubt(
    folder: ExplanationFolder,
    classifier: Classifier,
    chosen: ChosenCells,
    cells: pd.DataFrame,
    explainers: Mapping[str, NamedExplainer],
    *,
    unsure_below: float = 0.5,
    batch_size: int = 16,
    progress: Progress = no_progress,
) -> tuple[MapArrays | None, pd.DataFrame]:
    """Explain the cells in doubt for their two leading classes.

    Parameters
    ----------
    folder, classifier, chosen, explainers, batch_size, progress
        As for `collect_maps`.
    cells : DataFrame
        From `collect_maps`, aligned with `chosen`.
    unsure_below : float
        See `hematokit.explanation.doubt.doubtful_cells`.

    Returns
    -------
    arrays : MapArrays or None
        Maps (M, 2, S, S) by method; None if no cell is in doubt.
    doubtful : DataFrame
        One row each, aligned with the arrays; ``row`` is the cell's row in `cells`.
    """
    doubtful = doubtful_cells(cells, classifier.codes, unsure_below=unsure_below)
    rows = doubtful.index.to_numpy(np.int64)
    doubtful = doubtful.assign(row=rows).reset_index(drop=True)
    if not len(doubtful):
        return None, doubtful
    places = {code: place for place, code in enumerate(classifier.codes)}
    pairs = np.array([[places[a], places[b]] for a, b in zip(doubtful["first"], doubtful["second"], strict=True)], int)

    def choose(positions: npt.NDArray[np.int64], _logits: Any) -> npt.NDArray[np.int64]:
        return np.asarray(pairs[positions], np.int64)

    side = classifier.input_spec.size
    content = hashlib.sha256(np.column_stack([rows, pairs]).tobytes()).hexdigest()[:16]
    shape = (len(doubtful), 2, side, side)
    arrays = folder.arrays("doubt", shape, list(explainers), len(classifier.codes), content=content)
    for batch in explain_in_batches(
        classifier,
        lambda positions: chosen.read(rows[positions]),
        len(doubtful),
        choose,
        explainers,
        start=arrays.done,
        batch_size=batch_size,
        progress=progress,
    ):
        arrays.write(int(batch.positions[0]), batch.maps, batch.logits)
    folder.write_cells(doubtful, DOUBT_FILE)
    return arrays, doubtful


def check_threshold(unsure_below: float) -> None:
    """Refuse what is no probability."""
    if not 0 <= unsure_below <= 1:
        raise ExplanationError(f"a threshold of {unsure_below} is no probability; give one from 0 to 1")
