"""Detection of the cells of fields: what ``hematokit detect`` does."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hematokit.annotations.writing import write_csv, write_parquet
from hematokit.errors import FieldError
from hematokit.files import one_line_write_errors
from hematokit.pipelines.field_run import WRITE_ADVICE, FieldJob, FieldsResult, raise_if_all_failed, work_on_fields
from hematokit.progress import Progress, no_progress
from hematokit.results.folder import outcome_table, write_outcomes
from hematokit.taxonomy import MATEK_21

__all__ = ["detect"]


def detect(
    paths: Sequence[str | Path],
    output: str | Path,
    *,
    detector: str = "nuclei",
    detector_options: Mapping[str, Any] | None = None,
    pixel_size_um: float | None = None,
    force_pixel_size: bool = False,
    smears: str | Path | None = None,
    scheduler: str = "local",
    progress: Progress = no_progress,
) -> FieldsResult:
    """Find the cells of fields and write them.

    Writes ``cells.parquet`` and ``cells.csv`` for all fields, ``fields.csv``, and for each field a folder with its
    cells as Parquet, CSV and GeoJSON and a picture. Called again, it goes on with what is not done.

    Parameters
    ----------
    paths : sequence of path
        Images, or folders of them.
    output : path
        Folder of results; new, empty, or from an earlier call with the same settings.
    detector, detector_options
        Name and options of a registered detector.
    pixel_size_um : float, optional
        Micrometres per pixel of fields whose file does not say; of all fields with `force_pixel_size`.
    force_pixel_size : bool
    smears : path, optional
        CSV that maps files to smear and patient.
    scheduler : str
        ``"local"``, or the address of a Dask scheduler.
    progress : Progress
        Called with the number of fields done.

    Returns
    -------
    FieldsResult

    Raises
    ------
    FieldError
        If no field could be worked on, the folder holds something else, or nothing can be written.
    ImageError
        If a path does not exist.
    PluginError
        If the detector does not exist or its options do not fit.
    """
    started = time.monotonic()
    job = FieldJob(
        str(Path(output).resolve()),
        detector,
        dict(detector_options or {}),
        pixel_size_um=pixel_size_um,
        force_pixel_size=force_pixel_size,
    )
    job, results, now, outcomes = work_on_fields(paths, job, smears, scheduler, progress)
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
    return FieldsResult(
        Path(output),
        table,
        None,
        written,
        time.monotonic() - started,
        results.unmatched,
        results.warnings,
        len(results.worked),
    )
