"""Detection of the cells of fields: ``hematokit detect``."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Unpack

from hematokit.annotations.writing import write_csv, write_parquet
from hematokit.commands import Inputs, as_paths
from hematokit.errors import FieldError
from hematokit.files import one_line_write_errors
from hematokit.overrides import DetectOverrides
from hematokit.pipelines.field_run import WRITE_ADVICE, FieldJob, FieldResults, raise_if_all_failed, work_on_fields
from hematokit.pipelines.settings import DetectSettings
from hematokit.progress import Progress, no_progress
from hematokit.results.folder import outcome_table, write_outcomes
from hematokit.taxonomy import MATEK_21

__all__ = ["detect"]


def detect(
    inputs: Inputs,
    output: str | Path,
    *,
    settings: DetectSettings | None = None,
    progress: Progress = no_progress,
    **overrides: Unpack[DetectOverrides],
) -> FieldResults:
    """Detect the cells of fields and write them.

    Writes ``cells.parquet`` and ``cells.csv`` for all fields, ``fields.csv``, and for each field a folder with its
    cells as Parquet, CSV and GeoJSON and an overlay. Called again, it continues with the fields that are not done.

    Parameters
    ----------
    inputs : path, or sequence of path
        Images, or folders of them.
    output : path
        Folder of results; new, empty, or from an earlier call with the same settings.
    settings : DetectSettings, optional
    progress : Progress
        Called with the number of fields done.
    **overrides
        Fields of `DetectSettings`; they take precedence over `settings`.

    Returns
    -------
    FieldResults

    Raises
    ------
    FieldError
        If no field could be processed, the folder contains something else, or nothing can be written.
    ImageError
        If a path does not exist.
    PluginError
        If the detector does not exist or its options do not fit.
    """
    started = time.monotonic()
    settings = DetectSettings.combine(settings, overrides)
    job = FieldJob.of(output, settings)
    job, results, now, outcomes = work_on_fields(as_paths(inputs), job, settings, progress)
    cells = results.read_cells(outcomes)
    counts = cells["field_id"].value_counts()
    table = outcome_table([replace(outcome, cells=int(counts.get(outcome.field_id, 0))) for outcome in outcomes])
    images = results.images
    for outcome in outcomes:
        if outcome.status == "done":
            job.show_corrections(outcome, images[outcome.field_id], MATEK_21)
    folder = results.path
    with one_line_write_errors(folder, FieldError, WRITE_ADVICE):
        write_parquet(folder / "cells.parquet", cells)
        write_csv(folder / "cells.csv", cells)
        fields_file = write_outcomes(folder, table)
    written = {"cells": folder / "cells.csv", "parquet": folder / "cells.parquet", "fields": fields_file}
    raise_if_all_failed(now)
    return FieldResults(
        Path(output),
        table,
        None,
        written,
        time.monotonic() - started,
        results.unmatched,
        results.warnings,
        len(results.worked),
    )
