"""The files of an evaluation: what is written, and read again to compare runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pandas as pd
import pyarrow as pa

from hematokit.errors import EvaluationError
from hematokit.evaluation.evaluating import Evaluation
from hematokit.evaluation.metrics import CLASS_METRICS, Scores
from hematokit.files import one_line_write_errors, write_atomically
from hematokit.parquet import read_table, table_bytes
from hematokit.taxonomy import Taxonomy

__all__ = [
    "KEYS",
    "METRICS",
    "PICTURE",
    "PREDICTIONS",
    "REJECTS",
    "REPORT",
    "TABLE2",
    "read_predictions",
    "table2",
    "write_evaluation",
]

METRICS: Final = "metrics.json"
PREDICTIONS: Final = "predictions.parquet"
TABLE2: Final = "table2.csv"
REJECTS: Final = "rejects.csv"
REPORT: Final = "report.html"
PICTURE: Final = "report.png"

KEYS: Final = {
    METRICS: "metrics",
    PREDICTIONS: "predictions",
    TABLE2: "table2",
    REJECTS: "rejects",
    REPORT: "report",
    PICTURE: "picture",
}
"""What `Evaluation.paths` calls each file."""


def table2(scores: Scores, taxonomy: Taxonomy) -> pd.DataFrame:
    """Return the scores in the layout of the paper's Table 2: one row per class.

    Parameters
    ----------
    scores : Scores
    taxonomy : Taxonomy
        Names of the classes.

    Returns
    -------
    DataFrame
        ``code, name``, then each metric with its ``_low`` and ``_high`` bound, ``support``, ``low_support``; empty
        where a figure is undefined.
    """
    rows = []
    for code, entry in scores.per_class.items():
        row: dict[str, Any] = {"code": code, "name": taxonomy[code].name}
        for metric in CLASS_METRICS:
            bounds = entry.intervals[metric]
            row[metric] = getattr(entry, metric)
            row[f"{metric}_low"], row[f"{metric}_high"] = bounds if bounds else (None, None)
        row["support"], row["low_support"] = entry.support, entry.low_support
        rows.append(row)
    return pd.DataFrame(rows)


def write_evaluation(
    evaluation: Evaluation, folder: str | Path, extra: Mapping[str, bytes] | None = None
) -> dict[str, Path]:
    """Write the files of an evaluation, each of them whole or not at all.

    Files of an earlier evaluation in the folder are replaced, and those that this one does not have are removed.

    Parameters
    ----------
    evaluation : Evaluation
    folder : path
        Made if it does not exist.
    extra : mapping of str to bytes, optional
        More files by name (the report and its figure).

    Returns
    -------
    dict of str to Path
        Path of each file, by the names in `KEYS`.

    Raises
    ------
    EvaluationError
        If the folder cannot be written.
    """
    folder = Path(folder)
    contents: dict[str, bytes] = {
        PREDICTIONS: table_bytes(pa.Table.from_pandas(evaluation.predictions, preserve_index=False))
    }
    if len(evaluation.rejects):
        contents[REJECTS] = evaluation.rejects.to_csv(index=False).encode("utf-8")
    if evaluation.scores is not None:
        contents[TABLE2] = table2(evaluation.scores, evaluation.taxonomy).to_csv(index=False).encode("utf-8")
    contents.update(extra or {})
    if evaluation.scores is not None:
        # Last, so that metrics are never beside the predictions of an earlier evaluation.
        contents[METRICS] = json.dumps(evaluation.metrics, indent=2, allow_nan=False).encode("utf-8")
    with one_line_write_errors(folder, EvaluationError, "free space or give another --output"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / METRICS).unlink(missing_ok=True)
        for name in (TABLE2, REJECTS):
            if name not in contents:
                (folder / name).unlink(missing_ok=True)
        for name, content in contents.items():
            write_atomically(folder / name, content)
    return {KEYS.get(name, name): folder / name for name in contents}


def read_predictions(folder: str | Path) -> pd.DataFrame | None:
    """Read the predictions of an earlier evaluation; ``None`` where there are none.

    Raises
    ------
    EvaluationError
        If the file is damaged.
    """
    path = Path(folder) / PREDICTIONS
    if not path.is_file():
        return None
    advice = "remove it and evaluate the run again"
    table: pd.DataFrame = read_table(path, kind=EvaluationError, advice=advice).to_pandas()
    missing = {"cell_id", "label", "predicted", "group"} - set(table.columns)
    if missing:
        raise EvaluationError(f"{path} lacks the columns {sorted(missing)}; {advice}")
    return table
