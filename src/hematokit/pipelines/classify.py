"""Detecting and classifying the cells of fields, with the files and the report, in one call."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from hematokit._version import __version__
from hematokit.annotations.writing import csv_text, write_csv, write_parquet
from hematokit.differential.differential import Differential, count_differential
from hematokit.errors import FieldError
from hematokit.files import one_line_write_errors, write_atomically, write_json
from hematokit.imaging.reading import printable
from hematokit.models.field_cells import model_pixel_size, scale_warnings
from hematokit.pipelines.field_job import OVERLAY, FieldJob, FieldOutcome
from hematokit.progress import Progress, no_progress
from hematokit.reports.fields import cell_types_figure, render_field_report
from hematokit.reports.overlay import draw_overlay
from hematokit.reports.rendering import to_png
from hematokit.reports.text import command
from hematokit.results.folder import (
    ResultsFolder,
    outcome_table,
    read_predictions,
    run_fields,
    whole_folder,
    write_outcomes,
)
from hematokit.review.table import counted_taxonomy
from hematokit.store.smears import load_smears
from hematokit.taxonomy import MATEK_21

if TYPE_CHECKING:
    from hematokit.imaging.fieldfiles import Field
    from hematokit.taxonomy import Taxonomy

__all__ = ["FieldsResult", "classify", "detect"]

Paths = Sequence[str | Path]


@dataclass(frozen=True)
class FieldsResult:
    """What came out of detecting or classifying fields: all fields of the folder, of this call and of earlier ones.

    Attributes
    ----------
    output : Path
        Folder of results.
    fields : DataFrame
        One row a field: status, cells, whether it is worth reading, time. Cells are counted as people corrected them.
    differential : Differential or None
        The count; None if cells were only detected.
    paths : dict of str to Path
        Files for the whole run.
    seconds : float
    unmatched : int
        Fields that the table of smears does not name.
    smear_warnings : tuple of str
        What of the table of smears does not fit the fields, and which fields of earlier calls are not finished.
    worked : int
        Fields that were worked on in this call; the others were done before.
    model_pixel_size_um : float or None
        Pixel size that the model was trained at.
    """

    output: Path
    fields: pd.DataFrame
    differential: Differential | None
    paths: dict[str, Path]
    seconds: float
    unmatched: int = 0
    smear_warnings: tuple[str, ...] = ()
    worked: int = 0
    model_pixel_size_um: float | None = None

    @property
    def warnings(self) -> list[str]:
        """What is doubtful about how the fields were read."""
        scale = _scale_notes(self.fields, self.differential is not None, self.model_pixel_size_um)
        return [*scale, *self.smear_warnings]

    @property
    def failed(self) -> pd.DataFrame:
        """Rows of the fields that could not be worked on."""
        return self.fields[self.fields["status"] == "failed"]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        document: dict[str, Any] = {
            "output": str(self.output),
            "fields": len(self.fields),
            "fields_in_this_call": self.worked,
            "failed": [{"source": row.source, "message": row.message} for row in self.failed.itertuples(index=False)],
            "cells": int(self.fields["cells"].sum()),
            "flags": {str(flag): int(count) for flag, count in self._flags().items()},
            "warnings": self.warnings,
            "seconds": round(self.seconds, 3),
            "paths": {name: str(path) for name, path in self.paths.items()},
        }
        if self.differential is not None:
            document["differential"] = self.differential.to_dict()
        return document

    def _flags(self) -> pd.Series[int]:
        done = self.fields[self.fields["status"] == "done"]
        return done.loc[done["flag"] != "ok", "flag"].value_counts()

    def lines(self) -> list[str]:
        """The summary for a person, one statement per line."""
        done = len(self.fields) - len(self.failed)
        lines = [f"{int(self.fields['cells'].sum()):,} cells in {_fields(done)}, {self.seconds:.1f} s"]
        if self.worked < len(self.fields):
            lines.append(f"{_fields(self.worked)} worked on in this call, the others before")
        flags = self._flags()
        if len(flags):
            said = ", ".join(f"{count} {flag}" for flag, count in flags.items())
            lines.append(f"Warning: not every field is fit for reading ({said}); fields.csv says why")
        lines += [f"Warning: {note}" for note in self.warnings]
        for row in list(self.failed.itertuples(index=False))[:5]:
            lines.append(f"Failed: {row.message}")
        if len(self.failed) > 5:
            lines.append(f"Failed: {len(self.failed) - 5} more; fields.csv names them")
        lines += self.differential_lines()
        lines += [f"{name.capitalize()}: {path}" for name, path in self.paths.items() if name in _SHOWN]
        lines.append("For research use only")
        return lines

    def differential_lines(self) -> list[str]:
        """The count in a few lines; empty if cells were only detected."""
        return [] if self.differential is None else self.differential.lines()


def _scale_notes(fields: pd.DataFrame, classified: bool, model_pixel_size_um: float | None) -> list[str]:
    """Which pixel sizes are unknown, and what that means."""
    unknown = int((fields["pixel_size_um"].isna() & (fields["status"] == "done")).sum())
    if classified:
        return scale_warnings(model_pixel_size_um, unknown)
    if not unknown:
        return []
    return [
        f"the pixel size of {_fields(unknown)} is not known, so sizes were judged from the cells themselves; give it "
        "with --pixel-size"
    ]


def _fields(count: int) -> str:
    return "1 field" if count == 1 else f"{count:,} fields"


_AGAIN = "make room and run the command again"
_SHOWN = ("cells", "report", "differential")


def detect(
    paths: Paths,
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
        Told how many fields are done.

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
        draw=draw_field,
    )
    results, now, outcomes = _run(paths, job, smears, scheduler, progress)
    folder = results.path
    cells = _all_cells(results, outcomes)
    counts = cells["field_id"].value_counts()
    table = outcome_table([replace(outcome, cells=int(counts.get(outcome.field_id, 0))) for outcome in outcomes])
    images = results.images
    for outcome in outcomes:
        if outcome.status == "done":
            job.show_corrections(outcome, images[outcome.field_id], MATEK_21)
    with one_line_write_errors(folder, FieldError, _AGAIN):
        write_parquet(folder / "cells.parquet", cells)
        write_csv(folder / "cells.csv", cells)
        fields_file = write_outcomes(folder, table)
    written = {"cells": folder / "cells.csv", "parquet": folder / "cells.parquet", "fields": fields_file}
    _raise_if_all_failed(now)
    seconds = time.monotonic() - started
    return FieldsResult(
        Path(output), table, None, written, seconds, results.unmatched, results.warnings, len(results.worked)
    )


def classify(
    paths: Paths,
    model: str | Path,
    output: str | Path,
    *,
    detector: str = "nuclei",
    detector_options: Mapping[str, Any] | None = None,
    unsure_below: float = 0.5,
    exclude_border: bool = False,
    pixel_size_um: float | None = None,
    force_pixel_size: bool = False,
    model_pixel_size_um: float | None = None,
    smears: str | Path | None = None,
    runtime: str = "auto",
    device: str = "auto",
    batch_size: int = 64,
    scheduler: str = "local",
    progress: Progress = no_progress,
) -> FieldsResult:
    """Find and classify the cells of fields, write them, and count the differential.

    Writes for each field ``cells.parquet``, ``cells.csv``, ``cells.geojson`` and ``overlay.png``; for the whole run
    ``differential.json``, ``differential.csv``, ``cell_types.png``, ``fields.csv`` and ``report.html``. Called again,
    it goes on with what is not done.

    Parameters
    ----------
    paths : sequence of path
        Images, or folders of them.
    model : path
        Run, bundle, or exported ONNX file.
    output : path
        Folder of results; new, empty, or from an earlier call with the same model and settings.
    detector, detector_options
        Name and options of a registered detector.
    unsure_below : float
        Probability below which a cell counts as unsure.
    exclude_border : bool
        Leave cells that the border of their field cuts out of the count; their files hold them all the same.
    pixel_size_um : float, optional
        Micrometres per pixel of fields whose file does not say; of all fields with `force_pixel_size`.
    force_pixel_size : bool
    model_pixel_size_um : float, optional
        Pixel size the model was trained at, instead of what its bundle says; patches of fields with another one are
        resampled to it.
    smears : path, optional
        CSV that maps files to smear and patient.
    runtime, device : str
        What computes the model.
    batch_size : int
        Patches classified at a time.
    scheduler : str
        ``"local"``, or the address of a Dask scheduler.
    progress : Progress
        Told how many fields are done.

    Returns
    -------
    FieldsResult

    Raises
    ------
    FieldError
        If no field could be worked on, the folder holds something else, or nothing can be written.
    ImageError
        If a path does not exist.
    ModelError, PluginError
        If the model or the detector cannot be loaded.

    Examples
    --------
    >>> result = classify(["fields"], "runs/coatnet", "results")  # doctest: +SKIP
    >>> result.differential.table()  # doctest: +SKIP
    """
    started = time.monotonic()
    if not 0 <= unsure_below <= 1:
        raise FieldError(f"a threshold of {unsure_below} is no probability; give one from 0 to 1")
    job = FieldJob(
        str(Path(output).resolve()),
        detector,
        dict(detector_options or {}),
        model=str(Path(model).resolve()),
        runtime=runtime,
        device=device,
        model_pixel_size_um=model_pixel_size_um,
        pixel_size_um=pixel_size_um,
        force_pixel_size=force_pixel_size,
        unsure_below=unsure_below,
        batch_size=batch_size,
        draw=draw_field,
    )
    # Before the first field: a model that cannot be loaded is no field's fault.
    loaded = job.load_model()
    assert loaded is not None  # a model was named
    job = replace(job, model_identity=loaded.identity)
    scale = model_pixel_size(loaded, model_pixel_size_um)
    results, now, outcomes = _run(paths, job, smears, scheduler, progress)
    folder = results.path
    predictions = read_predictions(results, outcomes)
    done = [outcome for outcome in outcomes if outcome.status == "done"]
    taxonomy = counted_taxonomy(predictions, loaded.taxonomy)
    differential = count_differential(
        predictions,
        taxonomy,
        unsure_below=unsure_below,
        exclude_border=exclude_border,
        fields=[(outcome.field_id, outcome.smear_id, outcome.patient_id) for outcome in done],
    )
    table = outcome_table(_counted(outcomes, differential))
    progress(len(now), len(now), "writing the report")
    images = results.images
    shown = {entry.field_id: job.show_corrections(entry, images[entry.field_id], taxonomy) for entry in done}
    stale = [field_id for field_id, outcome in shown.items() if outcome is None]
    facts = {
        "Model": str(model),
        "Backbone": f"{loaded.config.backbone.name}:{loaded.config.backbone.variant}",
        "Computed by": f"{getattr(loaded, 'runtime', 'torch')} on {loaded.device}",
        "Detector": detector,
        "Unsure below": f"{unsure_below:g}",
        "Reviewed by people": f"{int(predictions['reviewed'].sum())} of {len(predictions)} cells",
        "hematokit": __version__,
        "Made": datetime.now(UTC).isoformat(timespec="minutes"),
    }
    overlays = {field_id: job.folder(field_id) / OVERLAY for field_id, outcome in shown.items() if outcome is not None}
    page = render_field_report(
        differential,
        table,
        facts=facts,
        overlays=overlays,
        folder=folder,
        notes=[*_scale_notes(table, True, scale), *results.warnings, *_stale_notes(stale)],
        reproduce=[_reproduce(results, model, output, exclude_border, smears)],
    )
    picture = to_png(cell_types_figure(differential))
    written = {
        "report": folder / "report.html",
        "differential": folder / "differential.csv",
        "differential_json": folder / "differential.json",
        "cell_types": folder / "cell_types.png",
    }
    with one_line_write_errors(folder, FieldError, _AGAIN):
        written["fields"] = write_outcomes(folder, table)
        write_json(written["differential_json"], differential.to_dict())
        write_atomically(written["differential"], csv_text(differential.rows()))
        write_atomically(written["cell_types"], picture)
        write_atomically(written["report"], page)
    _raise_if_all_failed(now)
    seconds = time.monotonic() - started
    return FieldsResult(
        Path(output),
        table,
        differential,
        written,
        seconds,
        results.unmatched,
        results.warnings,
        len(results.worked),
        scale,
    )


def draw_field(opened: Field, cells: pd.DataFrame, taxonomy: Taxonomy, unsure_below: float) -> bytes:
    """Draw a field's ``overlay.png``; given to the jobs, which know nothing of drawing."""
    return draw_overlay(opened, cells, taxonomy, unsure_below=unsure_below)


def _run(
    paths: Paths, job: FieldJob, smears: str | Path | None, scheduler: str, progress: Progress
) -> tuple[ResultsFolder, list[FieldOutcome], list[FieldOutcome]]:
    """Work on the fields; returns their outcomes, and those of all fields of the folder."""
    table = None if smears is None else load_smears(Path(smears))
    results = ResultsFolder.prepare(paths, job, smears=table)
    now = run_fields(results, scheduler=scheduler, progress=progress)
    outcomes = whole_folder(results, now)
    if all(outcome.status == "failed" for outcome in outcomes):
        write_outcomes(results.path, outcome_table(outcomes))
        _raise_if_all_failed(now)
    return results, now, outcomes


def _raise_if_all_failed(outcomes: Sequence[FieldOutcome]) -> None:
    """Say so if none of the fields of this call could be worked on; the files of the others are written."""
    if all(outcome.status == "failed" for outcome in outcomes):
        more = f" (and {len(outcomes) - 1} more fields failed)" if len(outcomes) > 1 else ""
        raise FieldError(f"{outcomes[0].message}{more}")


def _counted(outcomes: Sequence[FieldOutcome], differential: Differential) -> list[FieldOutcome]:
    """Outcomes with the cell counts of the differential: after corrections, and without border cells if so asked."""
    counts = {entry.field_id: entry for entry in differential.fields}
    return [
        replace(outcome, cells=entry.cells, unsure=entry.unsure)
        if (entry := counts.get(outcome.field_id)) is not None
        else outcome
        for outcome in outcomes
    ]


def _reproduce(
    results: ResultsFolder, model: str | Path, output: str | Path, exclude_border: bool, smears: str | Path | None
) -> str:
    """The command that makes the same again: the paths of all calls, and the settings that are not the defaults."""
    job, usual = results.job, FieldJob("")
    words: list[object] = ["hematokit", "classify", *results.inputs, "--model", model, "--output", output]
    for name, option in (
        ("detector", "--detector"),
        ("unsure_below", "--unsure-below"),
        ("pixel_size_um", "--pixel-size"),
        ("model_pixel_size_um", "--model-pixel-size"),
    ):
        if getattr(job, name) != getattr(usual, name):
            words += [option, getattr(job, name)]
    for name, value in job.detector_options.items():
        words += ["--set", f"detector.{name}={value}"]
    words += ["--force-pixel-size"] if job.force_pixel_size else []
    words += ["--exclude-border"] if exclude_border else []
    words += ["--smears", smears] if smears is not None else []
    return command(*words)


def _stale_notes(field_ids: Sequence[str]) -> list[str]:
    if not field_ids:
        return []
    return [
        f"the pictures of {_fields(len(field_ids))} are not shown: cells were corrected, and the images are no longer "
        f"where they were ({printable(field_ids[0])} is one)"
    ]


def _all_cells(results: ResultsFolder, outcomes: Sequence[FieldOutcome]) -> pd.DataFrame:
    done = [outcome.field_id for outcome in outcomes if outcome.status == "done"]
    parts = [results.job.corrected(field_id) for field_id in done]
    filled = [part for part in parts if len(part)]
    return pd.concat(filled, ignore_index=True) if filled else parts[0]
