"""The main steps on drawn cells: crops, store, split, training, evaluation, and a classified field."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Unpack

from hematokit.annotations.writing import read_parquet
from hematokit.commands import CommandResult
from hematokit.detection.windows import match_cells
from hematokit.errors import TrainingError
from hematokit.files import replace_file
from hematokit.overrides import DemoOverrides
from hematokit.pipelines.classify import classify
from hematokit.pipelines.evaluate import evaluate
from hematokit.pipelines.field_run import FieldResults
from hematokit.pipelines.settings import DemoSettings
from hematokit.pipelines.train import train
from hematokit.progress import Progress, no_log, no_progress
from hematokit.store import import_crops, open_store, set_pixel_size, split_store
from hematokit.synthetic import PIXEL_SIZE_UM, SAMPLE_COUNTS, synthesize_field, write_sample
from hematokit.training.runs import RunFolder

__all__ = ["DemoResult", "FieldDemo", "run_demo", "train_demo"]

_SAMPLE: Final = "sample"
_STORE: Final = "sample.zarr"
_EPOCHS: Final = 9
_PER_SAMPLE: Final = 3
"""Factor on the number of cells in the sample: with its own 504 training cells, 41 % of a new field were correct."""
_SMEARS: Final = 120
_NEW_SMEAR: Final = 10_000


@dataclass(frozen=True)
class FieldDemo:
    """Detections and classes in the drawn field, compared with the ground truth.

    Attributes
    ----------
    result : FieldResults
        Files, and the differential.
    overlay : Path
        The field with its cells in the colours of their classes.
    drawn, found : int
        Nucleated cells drawn, and those of them that were detected.
    detections : int
        All detections.
    right : int
        Detected cells with the class that they were drawn as.
    """

    result: FieldResults
    overlay: Path
    drawn: int
    found: int
    detections: int
    right: int


@dataclass(frozen=True)
class DemoResult(CommandResult):
    """The files of the demonstration and its main figures."""

    sample: Path
    store: Path
    run: Path
    report: Path
    picture: Path
    metrics: dict[str, Any]
    seconds: float
    field: FieldDemo

    def to_dict(self) -> dict[str, Any]:
        """Return the paths and figures."""
        return {
            **{name: str(getattr(self, name)) for name in ("sample", "store", "run", "report", "picture")},
            "seconds": round(self.seconds, 1),
            "accuracy": self.metrics["accuracy"],
            "macro_f1": self.metrics["macro_f1"],
            "field": self.field.result.to_dict(),
            "overlay": str(self.field.overlay),
            "cells_drawn": self.field.drawn,
            "cells_found": self.field.found,
            "cells_right": self.field.right,
        }

    def lines(self) -> list[str]:
        """Return the main figures, the differential of the field, and the paths."""
        metrics, field = self.metrics, self.field
        return [
            f"Accuracy {metrics['accuracy']:.3f}, macro F1 {metrics['macro_f1']:.3f} on {metrics['n']} unseen cells",
            f"Report:  {self.report}",
            f"Figure:  {self.picture}",
            f"Field:   {field.found} of {field.drawn} drawn cells detected, {field.detections - field.found} other "
            f"detections; {field.right} classified correctly",
            *(f"  {line}" for line in field.result.differential_lines()),
            f"Overlay: {field.overlay}",
            f"Differential: {field.result.paths['report']}",
            f"Took {self.seconds:.0f} s. The cells are drawn: the figures show that the program works, no more.",
        ]


def run_demo(
    output: str | Path,
    *,
    settings: DemoSettings | None = None,
    progress: Progress = no_progress,
    log: Callable[[str], None] = no_log,
    **overrides: Unpack[DemoOverrides],
) -> DemoResult:
    """Draw the sample, import, split, train a small CoAtNet, evaluate, classify a field.

    Called again, it continues where it stopped.

    Parameters
    ----------
    output : path
        Folder for all files.
    settings : DemoSettings, optional
    progress : Progress
        Called with the progress of each step.
    log : callable
        Called with one line per step.
    **overrides
        Fields of `DemoSettings`; they take precedence over `settings`.

    Returns
    -------
    DemoResult

    Raises
    ------
    TrainingError
        If `output` holds something else.
    KeyboardInterrupt
        If the training was stopped; it can be resumed.
    """
    begun = time.monotonic()
    settings = DemoSettings.combine(settings, overrides)
    seed, device = settings.seed, settings.device
    folder = Path(output)
    run = train_demo(folder, seed=seed, epochs=settings.epochs, device=device, progress=progress, step=log, log=log)
    log("Evaluating on cells it has not seen")
    evaluation = evaluate(run, split="test", device=device, progress=progress)
    log("Classifying a drawn field of 2452x2056 px")
    field = _classify_field(folder, run, seed, device, progress)
    return DemoResult(
        folder / _SAMPLE,
        folder / _STORE,
        run,
        Path(evaluation.paths["report"]),
        Path(evaluation.paths["picture"]),
        evaluation.metrics,
        time.monotonic() - begun,
        field,
    )


def train_demo(
    output: str | Path,
    *,
    seed: int = 0,
    epochs: int = _EPOCHS,
    device: str = "auto",
    progress: Progress = no_progress,
    step: Callable[[str], None] = no_log,
    log: Callable[[str], None] = no_log,
) -> Path:
    """Draw the sample, import, split, and train a small CoAtNet: the first steps of `run_demo`.

    Called again, it continues where it stopped.

    Parameters
    ----------
    output, seed, epochs, device, progress
        As `run_demo`.
    step : callable
        Called with one line as each step begins.
    log : callable
        Called with the messages of the training.

    Returns
    -------
    Path
        The run.

    Raises
    ------
    TrainingError
        If `output` holds something else.
    KeyboardInterrupt
        If the training was stopped; it can be resumed.
    """
    folder = Path(output)
    sample, store, run = folder / _SAMPLE, folder / _STORE, folder / "run"
    mark = sample / "sample.csv"
    if folder.exists() and any(folder.iterdir()) and not sample.is_dir():
        raise TrainingError(f"folder {folder} exists and contains something else; give another --output")
    if not mark.is_file():
        step("Drawing synthetic bone-marrow cells of 21 classes")
        counts = {code: _PER_SAMPLE * count for code, count in SAMPLE_COUNTS.items()}
        write_sample(sample, counts=counts, seed=seed, smears=_PER_SAMPLE * _SMEARS, progress=progress)
    step("Importing them into a patch store")
    import_crops(mark, store, pixel_size_um=PIXEL_SIZE_UM, progress=progress)
    # A sample of an earlier version does not state its pixel size.
    set_pixel_size(store, PIXEL_SIZE_UM)
    opened = open_store(store)
    if opened.split_info is None:
        split_store(store, seed=seed)
    step("Training a small CoAtNet")
    settings = {
        "backbone": "coatnet",
        "variant": "femto",
        # Small enough for two cores; at 64 px, chromatin and granules are hard to tell.
        "image_size": 96,
        "epochs": epochs,
        "batch_size": 32,
        "lr": 2e-3,
        "seed": seed,
        "device": device,
        "target_per_class": 60,
    }
    started = RunFolder(run).config_file.is_file()
    if started:
        trained = train(output=run, resume=True, progress=progress, log=log, device=device)
    else:
        trained = train(store, run, progress=progress, log=log, settings=settings)
    if not trained.finished:
        raise KeyboardInterrupt
    return run


def _classify_field(folder: Path, run: Path, seed: int, device: str, progress: Progress) -> FieldDemo:
    """Draw a field of a new smear, classify it, and count the correct cells."""
    from PIL import Image

    # The number of its smear is not among those of the sample, so stain and light are new to the network.
    drawn = synthesize_field(cells=120, seed=seed, smear=_NEW_SMEAR)
    file = folder / "field.png"
    if not file.is_file():
        dots_per_inch = 25_400 / PIXEL_SIZE_UM
        replace_file(file, lambda out: Image.fromarray(drawn.pixels).save(out, "PNG", dpi=(dots_per_inch,) * 2))
    result = classify([file], run, folder / "field-results", device=device, progress=progress)
    results = folder / "field-results" / "fields" / "field"
    cells = read_parquet(results / "cells.parquet")
    truth = drawn.table()
    matches = match_cells(cells, truth)
    right = cells["predicted"].to_numpy()[matches.detected] == truth["label"].to_numpy()[matches.annotated]
    return FieldDemo(result, results / "overlay.png", len(truth), len(matches.annotated), len(cells), int(right.sum()))
