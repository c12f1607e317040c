"""Evaluating a run or bundle: predictions, metrics and the report, in one call."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from hematokit.errors import EvaluationError
from hematokit.evaluation.evaluating import Evaluation, evaluate_images, evaluate_store
from hematokit.evaluation.files import PICTURE, REPORT, write_evaluation
from hematokit.evaluation.sources import open_training_store
from hematokit.models import find_model, load_model
from hematokit.progress import Progress, no_progress
from hematokit.reports.evaluation import render_picture, render_report
from hematokit.reports.text import command

__all__ = ["evaluate", "evaluation_folder"]


def evaluate(
    model_path: str | Path,
    *,
    store: str | Path | None = None,
    split: str = "test",
    images: str | Path | None = None,
    output: str | Path | None = None,
    device: str = "auto",
    runtime: str | None = None,
    batch_size: int = 64,
    seed: int = 0,
    bootstrap: int = 1000,
    progress: Progress = no_progress,
) -> Evaluation:
    """Evaluate a trained classifier and write what came out.

    Writes ``metrics.json``, ``predictions.parquet``, ``table2.csv``, ``report.html`` and ``report.png``; each file is
    the old one or the whole new one at any time.

    Parameters
    ----------
    model_path : path
        A run, a bundle, or an exported ONNX file.
    store : path, optional
        Store to evaluate on; by default the one the run was trained on. Classes are matched by code.
    split : str
        ``"train"``, ``"val"``, ``"test"``, or ``"all"`` for every cell.
    images : path, optional
        A folder of images instead of a store; folders named after a class give labels.
    output : path, optional
        Folder to write to; by default ``RUN/evaluation/<split>``, or a name made of the store or folder.
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"``, ...
    runtime : str, optional
        What computes the model, see `hematokit.load_model`; by default torch, and for an ONNX file ``"auto"``.
    batch_size : int
        Patches classified at a time.
    seed, bootstrap : int
        Seed and number of resamples of the intervals.
    progress : Progress
        Called with the number of cells that are done.

    Returns
    -------
    Evaluation
        Its ``metrics`` is the content of ``metrics.json``, its ``paths`` are those of the files.

    Raises
    ------
    EvaluationError
        If there is no split, nothing to evaluate in it, patch sizes differ, or the output cannot be written.
    ModelError, StoreError
        If the model or the store cannot be read.

    Examples
    --------
    >>> evaluation = evaluate("runs/coatnet")  # doctest: +SKIP
    >>> evaluation.metrics["macro_f1"], evaluation.paths["report"]  # doctest: +SKIP
    """
    if store is not None and images is not None:
        raise EvaluationError("a store and a folder of images were given; give one of --store and --images")
    if batch_size < 1:
        raise EvaluationError(f"a batch of {batch_size} cells is not possible; give --batch-size 1 or more")
    model_path = Path(model_path)
    bundle = find_model(model_path)
    # Where to write is decided before the work, not after it.
    folder = Path(output) if output is not None else evaluation_folder(bundle, store=store, split=split, images=images)
    model = load_model(bundle, device=device, runtime=runtime)
    options = {"batch_size": batch_size, "seed": seed, "bootstrap": bootstrap}
    if images is not None:
        evaluation = evaluate_images(model, images, progress=progress, **options)
    else:
        evaluation = evaluate_store(
            model, open_training_store(model, model_path, store, EvaluationError), split, progress=progress, **options
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
    return replace(evaluation, paths=write_evaluation(evaluation, folder, extra))


def evaluation_folder(
    bundle: Path, *, store: str | Path | None = None, split: str = "test", images: str | Path | None = None
) -> Path:
    """Where an evaluation of a run's bundle goes by default.

    Parameters
    ----------
    bundle : Path
        Bundle folder or ONNX file, as `hematokit.models.find_model` returns it.
    store, split, images
        As in `evaluate`.

    Raises
    ------
    EvaluationError
        If the bundle is part of no run: results have no place beside it.
    """
    if bundle.is_file():
        # Beside a run, too: an exported file may compute otherwise (int8), and is not to pass for the run.
        raise EvaluationError(f"{bundle} is one file, so results have no place; give a folder with --output")
    run = bundle.resolve().parent
    if not (run / "config.yaml").is_file():
        raise EvaluationError(f"bundle {bundle} lies in no run, so results have no place; give a folder with --output")
    if images is not None:
        name = f"images-{Path(images).resolve().name}"
    elif store is not None:
        name = f"{Path(store).resolve().stem}-{split}"
    else:
        name = split
    return run / "evaluation" / (re.sub(r"[^\w.+-]", "_", name).lstrip(".") or "evaluation")
