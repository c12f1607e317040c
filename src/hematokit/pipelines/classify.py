"""Detection and classification of the cells of fields, with a differential and a report: ``hematokit classify``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Unpack

import pandas as pd

from hematokit._version import __version__
from hematokit.annotations.writing import csv_text, write_csv, write_parquet
from hematokit.commands import Inputs, as_paths
from hematokit.differential.differential import Differential, count_differential
from hematokit.errors import FieldError, printable
from hematokit.files import one_line_write_errors, write_atomically, write_json
from hematokit.models.field_cells import model_pixel_size
from hematokit.overrides import ClassifyOverrides
from hematokit.pipelines.field_run import (
    WRITE_ADVICE,
    FieldJob,
    FieldResults,
    count_fields,
    raise_if_all_failed,
    scale_notes,
    work_on_fields,
)
from hematokit.pipelines.settings import ClassifySettings
from hematokit.progress import Progress, no_progress
from hematokit.reports.fields import cell_types_figure, render_field_report
from hematokit.reports.rendering import to_png
from hematokit.reports.text import command
from hematokit.results.fields import OVERLAY, FieldOutcome
from hematokit.results.folder import outcome_table, write_outcomes
from hematokit.review.table import counted_taxonomy

__all__ = ["classify"]


def classify(
    inputs: Inputs,
    model: str | Path,
    output: str | Path,
    *,
    settings: ClassifySettings | None = None,
    progress: Progress = no_progress,
    **overrides: Unpack[ClassifyOverrides],
) -> FieldResults:
    """Detect and classify the cells of fields, write them, and count the differential.

    Writes for each field ``cells.parquet``, ``cells.csv``, ``cells.geojson`` and ``overlay.png``; for all fields
    ``cells.parquet``, ``cells.csv``, ``differential.json``, ``differential.csv``, ``cell_types.png``, ``fields.csv``
    and ``report.html``. Called again, it continues with the fields that are not done.

    Parameters
    ----------
    inputs : path, or sequence of path
        Images, or folders of them.
    model : path
        Run, bundle, or exported ONNX file.
    output : path
        Folder of results; new, empty, or from an earlier call with the same model and settings.
    settings : ClassifySettings, optional
    progress : Progress
        Called with the number of fields done.
    **overrides
        Fields of `ClassifySettings`; they take precedence over `settings`.

    Returns
    -------
    FieldResults

    Raises
    ------
    FieldError
        If no field could be processed, the folder contains something else, or nothing can be written.
    ImageError
        If a path does not exist.
    ModelError, PluginError
        If the model or the detector cannot be loaded.

    Examples
    --------
    >>> result = classify("fields", "runs/coatnet", "results")
    >>> result.fields["status"].tolist()
    ['done']
    >>> result.differential.table()["code"].tolist()
    ['BLA', 'NGS', 'LYT']
    """
    started = time.monotonic()
    settings = ClassifySettings.combine(settings, overrides)
    job = FieldJob.of(output, settings, model)
    # Loaded before the first field, so that a model that cannot be loaded does not fail every field.
    loaded = job.load_model()
    assert loaded is not None  # a model was named
    scale = model_pixel_size(loaded, settings.model_pixel_size_um)

    # Open, detect, cut, classify and write each field (`FieldJob.run`).
    job, results, now, outcomes = work_on_fields(as_paths(inputs), job, settings, progress)

    # Count the cells of all fields of the folder, with corrections.
    predictions = results.read_predictions(outcomes)
    done = [outcome for outcome in outcomes if outcome.status == "done"]
    taxonomy = counted_taxonomy(predictions, loaded.taxonomy)
    differential = count_differential(
        predictions,
        taxonomy,
        min_probability=settings.min_probability,
        exclude_border=settings.exclude_border,
        fields=[(outcome.field_id, outcome.smear_id, outcome.patient_id) for outcome in done],
    )
    table = outcome_table(_with_counts(outcomes, differential))

    # Write the report and the tables.
    progress(len(now), len(now), "writing the report")
    images = results.images
    shown = {entry.field_id: job.show_corrections(entry, images[entry.field_id], taxonomy) for entry in done}
    not_drawn = [field_id for field_id, outcome in shown.items() if outcome is None]
    cells = results.read_cells(outcomes)
    page = render_field_report(
        differential,
        table,
        facts={
            "Model": str(model),
            "Backbone": f"{loaded.config.backbone.name}:{loaded.config.backbone.variant}",
            "Computed by": f"{loaded.runtime} on {loaded.device}",
            "Detector": settings.detector,
            "Minimum probability": f"{settings.min_probability:g}",
            "Reviewed": f"{int(predictions['reviewed'].sum())} of {len(predictions)} cells",
            "hematokit": __version__,
            "Made": datetime.now(UTC).isoformat(timespec="minutes"),
        },
        overlays={key: job.fields.folder(key) / OVERLAY for key, outcome in shown.items() if outcome is not None},
        folder=results.path,
        notes=[*scale_notes(table, True, scale), *results.warnings, *_not_drawn_notes(not_drawn)],
        reproduce=[_reproduce(results.inputs, settings, model, output)],
    )
    written = _write(results.path, table, cells, differential, page)
    raise_if_all_failed(now)
    return FieldResults(
        Path(output),
        table,
        differential,
        written,
        time.monotonic() - started,
        results.unmatched,
        results.warnings,
        len(results.worked),
        scale,
    )


def _write(
    folder: Path, table: pd.DataFrame, cells: pd.DataFrame, differential: Differential, page: str
) -> dict[str, Path]:
    """Write the files that cover all fields, and return their paths by name."""
    written = {
        "report": folder / "report.html",
        "cells": folder / "cells.csv",
        "parquet": folder / "cells.parquet",
        "differential": folder / "differential.csv",
        "differential_json": folder / "differential.json",
        "cell_types": folder / "cell_types.png",
    }
    figure = to_png(cell_types_figure(differential))
    with one_line_write_errors(folder, FieldError, WRITE_ADVICE):
        write_parquet(written["parquet"], cells)
        write_csv(written["cells"], cells)
        written["fields"] = write_outcomes(folder, table)
        write_json(written["differential_json"], differential.to_dict())
        write_atomically(written["differential"], csv_text(differential.rows()))
        write_atomically(written["cell_types"], figure)
        write_atomically(written["report"], page)
    return written


def _with_counts(outcomes: Sequence[FieldOutcome], differential: Differential) -> list[FieldOutcome]:
    """Return outcomes with the cell counts of the differential: after corrections, without excluded cells."""
    counts = {entry.field_id: entry for entry in differential.fields}
    return [
        replace(outcome, cells=entry.cells, low_confidence=entry.low_confidence)
        if (entry := counts.get(outcome.field_id)) is not None
        else outcome
        for outcome in outcomes
    ]


def _reproduce(inputs: Sequence[str], settings: ClassifySettings, model: str | Path, output: str | Path) -> str:
    """Return the command that repeats the work: the inputs of all calls, and the settings that decide results."""
    # Where and how fast it is computed is not repeated.
    options = settings.command_words(exclude={"scheduler", "runtime", "device", "batch_size"})
    return command("hematokit", "classify", *inputs, "--model", model, "--output", output, *options)


def _not_drawn_notes(field_ids: Sequence[str]) -> list[str]:
    if not field_ids:
        return []
    return [
        f"the overlays of {count_fields(len(field_ids))} are not shown: cells were corrected, and the images are no "
        f"longer where they were ({printable(field_ids[0])} is one)"
    ]
