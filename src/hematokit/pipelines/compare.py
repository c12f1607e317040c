"""Comparison of models on the same cells, with tests: ``hematokit compare``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import pandas as pd

from hematokit.commands import CommandResult, as_paths
from hematokit.errors import EvaluationError, HematokitError
from hematokit.evaluation.comparison import Comparison, compare_predictions
from hematokit.evaluation.evaluating import data_identity
from hematokit.evaluation.files import METRICS, PREDICTIONS, read_predictions
from hematokit.evaluation.metrics import CLASS_METRICS
from hematokit.files import one_line_write_errors, write_atomically
from hematokit.models import ModelConfig, find_bundle
from hematokit.models.bundle import read_config
from hematokit.overrides import CompareOverrides
from hematokit.pipelines.evaluate import evaluate, evaluation_folder
from hematokit.pipelines.settings import CompareSettings
from hematokit.progress import Progress, no_progress
from hematokit.reports.evaluation import render_comparison
from hematokit.reports.text import command, figure, interval, p_value
from hematokit.store import open_store
from hematokit.taxonomy import CellClass

__all__ = ["CompareResult", "compare"]


@dataclass(frozen=True)
class CompareResult(CommandResult):
    """Result of a comparison of models.

    Attributes
    ----------
    comparison : Comparison
        Scores and tests.
    table : DataFrame
        Classes as rows, each metric of each run as a column.
    paths : dict of str to Path
        ``json``, ``csv`` and ``report``.
    """

    comparison: Comparison
    table: pd.DataFrame
    paths: dict[str, Path]

    @property
    def metrics(self) -> dict[str, Any]:
        """The content of ``comparison.json``."""
        return self.comparison.to_dict()

    def to_dict(self) -> dict[str, Any]:
        """Return the content of ``comparison.json`` and the paths."""
        return {**self.metrics, "paths": {name: str(path) for name, path in self.paths.items()}}

    def lines(self) -> list[str]:
        """Return the overall metrics, the tests of the differences, the verdict and the path of the report."""

        def equals(value: float) -> str:
            shown = p_value(value)
            return shown if shown.startswith("<") else f"= {shown}"

        comparison = self.comparison
        lines = [f"{len(comparison.scores)} models on {comparison.cells:,} cells; 95 % intervals in brackets"]
        for name, scores in comparison.scores.items():
            macro = f"macro F1 {figure(scores.macro_f1)} [{interval(scores.intervals['macro_f1'])}]"
            lines.append(
                f"{name}: {macro}, accuracy {figure(scores.accuracy)} [{interval(scores.intervals['accuracy'])}]"
            )
        for name, count in comparison.dropped.items():
            if count:
                lines.append(f"Not in common with the others, and left out: {count:,} cells of {name}")
        for pair in comparison.pairs:
            bounds = f" [{pair.interval[0]:+.3f}, {pair.interval[1]:+.3f}]" if pair.interval else ""
            lines.append(
                f"{pair.first} - {pair.second}: macro F1 {pair.macro_f1_difference:+.3f}{bounds}, "
                f"p {equals(pair.macro_f1_p_adjusted)}; accuracy (McNemar) p {equals(pair.mcnemar_p_adjusted)}"
            )
        return [*lines, comparison.verdict, f"Report: {self.paths['report']}"]


def compare(
    models: Sequence[str | Path],
    output: str | Path = "comparison",
    *,
    settings: CompareSettings | None = None,
    progress: Progress = no_progress,
    **overrides: Unpack[CompareOverrides],
) -> CompareResult:
    """Compare models on the same cells.

    A model without predictions for the split, or with predictions of an older bundle or of a store that has changed
    since, is evaluated first. Writes ``comparison.json``, ``comparison.csv`` and ``comparison.html``.

    Parameters
    ----------
    models : sequence of path
        Two or more run folders.
    output : path
        Folder to write to; created if it does not exist.
    settings : CompareSettings, optional
    progress : Progress
        Called with the number of cells classified.
    **overrides
        Fields of `CompareSettings`; they take precedence over `settings`.

    Returns
    -------
    CompareResult

    Raises
    ------
    EvaluationError
        If the models have no cells or labels in common, or the output cannot be written.
    ModelError, StoreError
        If a model or its store cannot be read.
    """
    settings = CompareSettings.combine(settings, overrides)
    split, common = settings.split, settings.common
    paths = [Path(run) for run in as_paths(models)]
    if len(paths) < 2:
        raise EvaluationError("a comparison needs two or more models; give more")
    resolved = [find_bundle(path).resolve() for path in paths]
    if len(set(resolved)) < len(resolved):
        raise EvaluationError("a model was given twice; give each once")
    names = _names([bundle.parent if bundle.name == "bundle" else bundle for bundle in resolved])
    tables: dict[str, pd.DataFrame] = {}
    classes: dict[str, CellClass] = {}
    for name, path, bundle in zip(names, paths, resolved, strict=True):
        config = read_config(bundle)
        tables[name] = _predictions(path, bundle, config, split, settings, progress)
        for entry in config.taxonomy:
            classes.setdefault(entry.code, entry)
    progress(0, None, "testing the differences")
    comparison = compare_predictions(tables, common=common, seed=settings.seed)
    table = _comparison_table(comparison)
    words = ["hematokit", "compare", *paths, "--split", split, "--output", output, *(["--common"] if common else [])]
    page = render_comparison(
        comparison,
        classes=classes,
        supports=dict(zip(table["code"], table["support"], strict=True)),
        split=split,
        runs=dict(zip(names, map(str, paths), strict=True)),
        reproduce=command(*words),
    )
    return CompareResult(comparison, table, _write(Path(output), comparison, table, page))


def _comparison_table(comparison: Comparison) -> pd.DataFrame:
    """Return one table of all models: classes as rows, metrics of each model as columns.

    Parameters
    ----------
    comparison : Comparison

    Returns
    -------
    DataFrame
        One row per class: ``code``, ``support``, then ``<run>:<metric>``, ``..._low`` and ``..._high`` for each run
        and metric; a run that does not know a class has empty cells there.
    """
    rows = []
    for code in comparison.codes:
        known = [scores.per_class[code] for scores in comparison.scores.values() if code in scores.per_class]
        row: dict[str, Any] = {"code": code, "support": known[0].support}
        for name, scores in comparison.scores.items():
            entry = scores.per_class.get(code)
            for metric in CLASS_METRICS:
                bounds = entry.intervals[metric] if entry else None
                row[f"{name}:{metric}"] = getattr(entry, metric) if entry else None
                row[f"{name}:{metric}_low"], row[f"{name}:{metric}_high"] = bounds or (None, None)
        rows.append(row)
    return pd.DataFrame(rows)


def _names(folders: Sequence[Path]) -> list[str]:
    """Return short names of runs: the last parts of their paths, as many as make all names differ."""
    depth = 1
    while True:
        names = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
        depth += 1


def _predictions(
    run: Path, bundle: Path, config: ModelConfig, split: str, settings: CompareSettings, progress: Progress
) -> pd.DataFrame:
    folder = evaluation_folder(bundle, split=split)
    if (folder / PREDICTIONS).is_file() and _is_current(folder, config):
        table = read_predictions(folder)
        if table is not None:
            return table
    return evaluate(
        run, split=split, device=settings.device, batch_size=settings.batch_size, progress=progress
    ).predictions


def _is_current(folder: Path, config: ModelConfig) -> bool:
    """Return whether predictions are of the current bundle and of the current cells, labels and split of its store."""
    try:
        evaluated = json.loads((folder / METRICS).read_text(encoding="utf-8"))["evaluated"]
        if evaluated["model_created"] != config.created:
            return False
    except (OSError, ValueError, KeyError, TypeError):
        return False
    if not config.training.store:
        return True
    try:
        now = data_identity(open_store(config.training.store))
    except HematokitError:
        # The store cannot be read, so the model could not be evaluated again.
        return True
    return all(evaluated.get(key, value) == value for key, value in now.items())


def _write(folder: Path, comparison: Comparison, table: pd.DataFrame, page: str) -> dict[str, Path]:
    contents = {
        "csv": ("comparison.csv", table.to_csv(index=False)),
        "report": ("comparison.html", page),
        "json": ("comparison.json", json.dumps(comparison.to_dict(), indent=2, allow_nan=False)),
    }
    with one_line_write_errors(folder, EvaluationError, "free space or give another --output"):
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.values():
            write_atomically(folder / name, content)
    return {key: folder / name for key, (name, _) in contents.items()}
