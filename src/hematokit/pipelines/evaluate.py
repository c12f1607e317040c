"""Evaluation of a trained classifier: predictions, metrics and the report."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Unpack

from hematokit.commands import CommandResult
from hematokit.errors import EvaluationError
from hematokit.evaluation.evaluating import Evaluation, evaluate_images, evaluate_store
from hematokit.evaluation.files import PICTURE, REPORT, write_evaluation
from hematokit.evaluation.metrics import LOW_SUPPORT, OVERALL_METRICS
from hematokit.evaluation.sources import open_training_store
from hematokit.models import find_model, load_model
from hematokit.overrides import EvaluateOverrides
from hematokit.pipelines.settings import EvaluateSettings
from hematokit.progress import Progress, no_progress
from hematokit.reports.evaluation import render_picture, render_report
from hematokit.reports.rendering import METRIC_NAMES
from hematokit.reports.text import command, figure, interval

__all__ = ["EvaluationResult", "evaluate", "evaluation_folder"]


@dataclass(frozen=True)
class EvaluationResult(Evaluation, CommandResult):
    """An evaluation with the files written; see `hematokit.evaluation.evaluating.Evaluation` for its attributes."""

    def to_dict(self) -> dict[str, Any]:
        """Return the content of ``metrics.json`` and the paths."""
        return {**self.metrics, "paths": {name: str(path) for name, path in self.paths.items()}}

    def lines(self) -> list[str]:
        """Return the main metrics with their intervals and the paths of the figures and the report."""
        scores = self.scores
        lines = [f"Warning: {note}" for note in self.notes]
        if scores is None:
            lines.append(f"{len(self.predictions):,} images classified; none has a label, so nothing to evaluate")
        else:
            lines.append(f"{scores.n:,} cells, {len(scores.codes)} classes; 95 % intervals in brackets")
            for name in OVERALL_METRICS:
                lines.append(
                    f"  {METRIC_NAMES[name]:<18} {figure(getattr(scores, name))}  [{interval(scores.intervals[name])}]"
                )
            without = [code for code, entry in scores.per_class.items() if not entry.support]
            if without:
                lines.append(f"No test cells: {', '.join(without)}; these classes are not evaluated")
            few = [code for code, entry in scores.per_class.items() if entry.low_support and entry.support]
            if few:
                lines.append(f"Fewer than {LOW_SUPPORT} test cells: {', '.join(few)}; take their figures with care")
        if self.left_out:
            parts = [f"{label or 'no label'} {count:,}" for label, count in self.left_out.items()]
            lines.append(f"Left out, of classes the model does not know: {', '.join(parts)}")
        if "picture" in self.paths:
            lines.append(f"Figure: {self.paths['picture']}")
        if "report" in self.paths:
            lines.append(f"Report: {self.paths['report']}")
        lines.append("For research use only")
        return lines


def evaluate(
    model: str | Path,
    output: str | Path | None = None,
    *,
    store: str | Path | None = None,
    images: str | Path | None = None,
    settings: EvaluateSettings | None = None,
    progress: Progress = no_progress,
    **overrides: Unpack[EvaluateOverrides],
) -> EvaluationResult:
    """Evaluate a trained classifier and write the results.

    Writes ``metrics.json``, ``predictions.parquet``, ``table2.csv``, ``report.html`` and ``report.png``; each file is
    replaced as a whole.

    Parameters
    ----------
    model : path
        A run, a bundle, or an exported ONNX file.
    output : path, optional
        Folder to write to; by default ``RUN/evaluation/<split>``, or a name made of the store or folder.
    store : path, optional
        Store to evaluate on; by default the one the model was trained on. Classes are matched by code.
    images : path, optional
        A folder of images instead of a store; folders named after a class give labels.
    settings : EvaluateSettings, optional
    progress : Progress
        Called with the number of cells classified.
    **overrides
        Fields of `EvaluateSettings`; they take precedence over `settings`.

    Returns
    -------
    EvaluationResult
        Its ``metrics`` is the content of ``metrics.json``, its ``paths`` are those of the files.

    Raises
    ------
    EvaluationError
        If there is no split, no cell to evaluate in it, patch sizes differ, or the output cannot be written.
    ModelError, StoreError
        If the model or the store cannot be read.

    Examples
    --------
    >>> evaluation = evaluate("runs/coatnet", split="test")
    >>> evaluation.metrics["n"], evaluation.paths["report"].name
    (21, 'report.html')
    """
    settings = EvaluateSettings.combine(settings, overrides)
    split, runtime = settings.split, settings.runtime
    if store is not None and images is not None:
        raise EvaluationError("a store and a folder of images were given; give one of --store and --images")
    model_path = Path(model)
    bundle = find_model(model_path)
    # The folder is determined before the work, so that a wrong one fails at once.
    folder = Path(output) if output is not None else evaluation_folder(bundle, store=store, split=split, images=images)
    classifier = load_model(bundle, device=settings.device, runtime=runtime)
    options = settings.model_dump(include={"batch_size", "seed", "bootstrap"})
    if images is not None:
        evaluation = evaluate_images(classifier, images, progress=progress, **options)
    else:
        evaluation = evaluate_store(
            classifier,
            open_training_store(classifier, model_path, store, EvaluationError),
            split,
            progress=progress,
            **options,
        )
    progress(len(evaluation.predictions), len(evaluation.predictions), "writing the report")
    words: list[object] = ["hematokit", "evaluate", model_path]
    words += ["--images", images] if images is not None else ["--split", split]
    words += ["--store", store] if store is not None else []
    words += ["--runtime", runtime] if runtime is not None else []
    reproduce = [command(*words)]
    if evaluation.training.settings is not None and (bundle.parent / "config.yaml").is_file():
        store_words = [evaluation.training.store] if evaluation.training.store else []
        again = ["hematokit", "train", *store_words, "--config", bundle.parent / "config.yaml", "--output", "NEW_RUN"]
        reproduce.insert(0, command(*again))
    extra = {REPORT: render_report(evaluation, model_path, reproduce).encode("utf-8")}
    picture = render_picture(evaluation, model_path)
    if picture is not None:
        extra[PICTURE] = picture
    values = {item.name: getattr(evaluation, item.name) for item in fields(evaluation)}
    return EvaluationResult(**values | {"paths": write_evaluation(evaluation, folder, extra)})


def evaluation_folder(
    bundle: Path, *, store: str | Path | None = None, split: str = "test", images: str | Path | None = None
) -> Path:
    """Return the folder that an evaluation of a run's bundle is written to by default.

    Parameters
    ----------
    bundle : Path
        Bundle folder or ONNX file, as `hematokit.models.find_model` returns it.
    store, split, images
        As in `evaluate`.

    Raises
    ------
    EvaluationError
        If the bundle is not part of a run, so that there is no folder for results.
    """
    if bundle.is_file():
        # Also beside a run: an exported file may give other results (int8), and must not be taken for the run.
        raise EvaluationError(
            f"{bundle} is a single file without a run folder for results; give a folder with --output"
        )
    run = bundle.resolve().parent
    if not (run / "config.yaml").is_file():
        raise EvaluationError(
            f"bundle {bundle} is not part of a run, so there is no folder for results; give one with --output"
        )
    if images is not None:
        name = f"images-{Path(images).resolve().name}"
    elif store is not None:
        name = f"{Path(store).resolve().stem}-{split}"
    else:
        name = split
    return run / "evaluation" / (re.sub(r"[^\w.+-]", "_", name).lstrip(".") or "evaluation")
