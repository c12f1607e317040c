"""Detection and classification of fields, one after the other or on a cluster; shared by `detect` and `classify`.

A `FieldJob` holds names and numbers only, so it can be sent to another process; models and detectors are made where
the work is done, once in a process.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from hematokit.annotations.cells import low_confidence_cells, name_cells
from hematokit.commands import CommandResult
from hematokit.detection.windows import examine_field, make_detector
from hematokit.errors import FieldError, HematokitError, printable
from hematokit.imaging.fieldfiles import open_field
from hematokit.models.field_cells import classify_cells, scale_warnings
from hematokit.pipelines.distributed import run_on_cluster
from hematokit.pipelines.settings import DetectSettings
from hematokit.plugins import MadeDetector
from hematokit.progress import Progress, no_log, no_progress
from hematokit.reports.overlay import draw_overlay
from hematokit.results.fields import CannotWriteError, FieldFolders, FieldOutcome, FieldTask, file_stamp
from hematokit.results.folder import ResultsFolder, outcome_table, write_outcomes
from hematokit.results.reading import open_results
from hematokit.store.smears import load_smears
from hematokit.taxonomy import MATEK_21, Taxonomy

if TYPE_CHECKING:
    from anndata import AnnData

    from hematokit.differential.differential import Differential
    from hematokit.models import Model

__all__ = [
    "WRITE_ADVICE",
    "FieldJob",
    "FieldResults",
    "count_fields",
    "prepare_run",
    "raise_if_all_failed",
    "run_fields",
    "scale_notes",
    "work_on_fields",
]

WRITE_ADVICE = "free disk space and run the command again"
_SHOWN = ("cells", "report", "differential")

Note = Callable[[str], None]


@dataclass(frozen=True)
class FieldJob:
    """Everything that determines the results of a field, except the field itself.

    Attributes
    ----------
    output : str
        Folder of results, absolute.
    detector, detector_options
        Name and options of the detector.
    model : str or None
        Run or bundle, absolute; None: cells are only detected.
    model_identity : str
        Content hash of the model, from `hematokit.models.bundle.bundle_identity`; empty for any.
    runtime, device : str
        Runtime and device of the model.
    model_pixel_size_um : float or None
        Pixel size of the model's training images, if its bundle does not state it or states a wrong one.
    pixel_size_um, force_pixel_size
        As `open_field` takes them.
    min_probability : float
        Probability below which a cell counts as low-confidence.
    batch_size : int
        Patches classified at a time.
    """

    output: str
    detector: str = "nuclei"
    detector_options: dict[str, Any] = field(default_factory=dict)
    model: str | None = None
    model_identity: str = ""
    runtime: str = "auto"
    device: str = "auto"
    model_pixel_size_um: float | None = None
    pixel_size_um: float | None = None
    force_pixel_size: bool = False
    min_probability: float = 0.5
    batch_size: int = 64

    @classmethod
    def of(cls, output: str | Path, settings: DetectSettings, model: str | Path | None = None) -> FieldJob:
        """Return the job of a command's settings."""
        used = settings.model_dump(include=set(cls.__dataclass_fields__))
        return cls(str(Path(output).resolve()), model=None if model is None else str(Path(model).resolve()), **used)

    @property
    def fields(self) -> FieldFolders:
        """The folders of the fields."""
        return FieldFolders(Path(self.output))

    def settings(self) -> dict[str, Any]:
        """Return the settings that determine results: hash of the model, identity of the detector, pixel sizes."""
        settings: dict[str, Any] = {
            "detector": self.make_detector().identity(),
            "pixel_size_um": self.pixel_size_um,
            "force_pixel_size": self.force_pixel_size,
            "model": None,
        }
        model = self.load_model()
        if model is not None:
            settings["model"] = {"sha256": model.identity, "pixel_size_um": self.model_pixel_size_um}
            settings["min_probability"] = self.min_probability
        return settings

    def make_detector(self) -> MadeDetector:
        """Return the detector, made once per process, and again if a file named in its options has changed."""
        texts = [value for value in self.detector_options.values() if isinstance(value, str) and value]
        stamps = tuple(file_stamp(Path(text)) for text in texts)  # empty for text that names no file
        key = (self.detector, json.dumps(self.detector_options, sort_keys=True, default=str), *stamps)
        return _once(key, lambda: make_detector(self.detector, self.detector_options))

    def load_model(self) -> Model | None:
        """Return the classifier, loaded once per process; None if cells are only detected.

        Raises
        ------
        ModelError
            If it cannot be loaded, or its hash is not `model_identity`.
        """
        if self.model is None:
            return None
        from hematokit.models import cached_model

        return cached_model(self.model, self.device, self.runtime, identity=self.model_identity)

    def show_corrections(self, outcome: FieldOutcome, image: Path, taxonomy: Taxonomy) -> FieldOutcome | None:
        """Write CSV, GeoJSON and overlay again if the field was corrected after they were written.

        Parameters
        ----------
        outcome : FieldOutcome
            Of a field that is done.
        image : Path
            Where its image was.
        taxonomy : Taxonomy
            The classes to draw.

        Returns
        -------
        FieldOutcome or None
            None if the overlay could not be drawn again, because the image is gone or has changed.
        """
        digest = self.fields.corrections_digest(outcome.field_id)
        if digest == outcome.corrections:
            return outcome
        cells = self.fields.corrected(outcome.field_id)
        self.fields.write_corrected(outcome, cells, taxonomy)
        if outcome.stamp != file_stamp(image):
            return None
        try:
            with open_field(
                image,
                pixel_size_um=self.pixel_size_um,
                force_pixel_size=self.force_pixel_size,
                orient=outcome.orientation is not None,
            ) as opened:
                overlay = draw_overlay(opened, cells, taxonomy, min_probability=self.min_probability)
        except HematokitError:
            return None
        self.fields.write_overlay(outcome.field_id, overlay)
        return self.fields.record(replace(outcome, corrections=digest))

    def run(self, task: FieldTask, note: Note = no_log) -> FieldOutcome:
        """Process one field and write its files; ``field.json`` is written last and marks the field as done.

        A field that cannot be processed gives a failed outcome; errors that concern all fields are raised.

        Parameters
        ----------
        task : FieldTask
        note : callable
            Called with a line on the progress inside a large field; raising from it stops the work.

        Raises
        ------
        FieldError
            If nothing can be written.
        ModelError, PluginError
            If the model cannot be loaded or the detector cannot be made.
        """
        detector, model = self.make_detector(), self.load_model()
        stamp = file_stamp(Path(task.path))
        failed = FieldOutcome(
            task.field_id, task.source, "failed", smear_id=task.smear_id, patient_id=task.patient_id, stamp=stamp
        )
        try:
            return self._work(task, detector, model, stamp, note)
        except CannotWriteError:
            raise
        except HematokitError as error:
            return replace(failed, message=str(error))
        except MemoryError:
            message = f"{printable(task.source)} needs more memory than is available; give smaller fields"
            return replace(failed, message=message)
        except Exception as error:
            # An unexpected error in one field must not end the work on the others; the report states it.
            said = " ".join(str(error).split())[:300]
            return replace(failed, message=f"{printable(task.source)}: unexpected {type(error).__name__}: {said}")

    def run_once(self, task: FieldTask) -> FieldOutcome:
        """Process a field unless it is done: a worker may have died after it wrote the field."""
        return self.fields.finished(task) or self.run(task)

    def _work(
        self, task: FieldTask, detector: MadeDetector, model: Model | None, stamp: str, note: Note
    ) -> FieldOutcome:
        """Open the field, detect its cells, classify them, draw them and write the files."""
        clock = _Clock()
        with open_field(
            Path(task.path), pixel_size_um=self.pixel_size_um, force_pixel_size=self.force_pixel_size
        ) as opened:
            clock.lap("open")
            examined = examine_field(opened, detector, progress=_progress_note(note, task, "windows"))
            cells = name_cells(
                examined.cells, task.field_id, task.source, smear_id=task.smear_id, patient_id=task.patient_id
            )
            notes = [*opened.notes, *self.fields.set_corrections_aside(task.field_id, cells)]
            clock.lap("detect")
            low_confidence, taxonomy = None, MATEK_21
            if model is not None:
                cells = classify_cells(
                    opened,
                    cells,
                    model,
                    model_pixel_size_um=self.model_pixel_size_um,
                    batch_size=self.batch_size,
                    progress=_progress_note(note, task, "cells classified"),
                )
                low_confidence, taxonomy = int(low_confidence_cells(cells, self.min_probability).sum()), model.taxonomy
                clock.lap("classify")
            overlay = draw_overlay(opened, cells, taxonomy, min_probability=self.min_probability)
            self.fields.write(task.field_id, cells, taxonomy, pixel_size_um=opened.pixel_size_um, overlay=overlay)
            clock.lap("files")
            quality = examined.quality
            outcome = FieldOutcome(
                task.field_id,
                task.source,
                "done",
                message="; ".join(notes),
                smear_id=task.smear_id,
                patient_id=task.patient_id,
                cells=len(cells),
                low_confidence=low_confidence,
                flag=quality.flag,
                reasons="; ".join(quality.reasons),
                focus=round(float(quality.focus), 4),
                staining=round(float(quality.staining), 4),
                thickness=round(float(quality.thickness), 4),
                height=opened.height,
                width=opened.width,
                pixel_size_um=opened.pixel_size_um,
                pixel_size_source=opened.pixel_size_source,
                seconds=clock.seconds,
                stamp=stamp,
                orientation=opened.orientation,
            )
        return self.fields.record(outcome)


class _Clock:
    """Seconds of each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = round(now - self._last, 4)
        self._last = now


def _progress_note(note: Note, task: FieldTask, unit: str) -> Progress:
    """Return a progress function that reports counts within one field as text; a field of one window needs none."""

    def report(done: int, total: int | None, message: str) -> None:
        if total is not None and total > 1:
            note(f"{task.field_id}: {done:,} of {total:,} {unit}")

    return report


_MADE: dict[tuple[str, ...], MadeDetector] = {}
_MAKING = threading.Lock()


def _once(key: tuple[str, ...], make: Callable[[], MadeDetector]) -> MadeDetector:
    """Return the detector of a key, made once per process: loading may take seconds, and a worker has threads."""
    with _MAKING:
        if key not in _MADE:
            # Only the last one is kept, to limit the memory of a process that uses many.
            _MADE.clear()
            _MADE[key] = make()
        return _MADE[key]


def prepare_run(
    paths: Sequence[str | Path], job: FieldJob, *, smears: str | Path | None = None
) -> tuple[FieldJob, ResultsFolder]:
    """Load the model, make the detector, list the fields and prepare the results folder.

    Parameters
    ----------
    paths : sequence of path
        Images, or folders of them.
    job : FieldJob
    smears : path, optional
        CSV that maps files to smear and patient.

    Returns
    -------
    FieldJob
        The job, with the identity of the model: all fields are classified by this model, here or on a worker, even
        if its files are replaced meanwhile.
    ResultsFolder

    Raises
    ------
    FieldError
        If the folder holds something else, or results of other settings.
    ImageError
        If a path does not exist or there is no field.
    ModelError, PluginError
        If the model or the detector cannot be loaded.
    """
    model = job.load_model()
    if model is not None:
        job = replace(job, model_identity=model.identity)
    table = None if smears is None else load_smears(Path(smears))
    place = None if job.model is None else Path(job.model)
    return job, ResultsFolder.prepare(paths, Path(job.output), job.settings(), model=place, smears=table)


def run_fields(
    job: FieldJob, results: ResultsFolder, *, scheduler: str = "local", progress: Progress = no_progress
) -> list[FieldOutcome]:
    """Process every field that is not done yet.

    Parameters
    ----------
    job : FieldJob
    results : ResultsFolder
        From `prepare_run`.
    scheduler : str
        ``"local"``: one after the other, here. ``"tcp://HOST:PORT"``: on the workers of a Dask cluster that see the
        same files; fields of a worker that dies are given to another.
    progress : Progress
        Called with the number of fields that are done; raising from it stops the work, and what is done is kept.

    Returns
    -------
    list of FieldOutcome
        One for each field, in the order of the tasks.

    Raises
    ------
    FieldError
        If results cannot be written, or the cluster cannot be reached.
    ModelError, PluginError
        If the model cannot be loaded or the detector cannot be made.
    """
    outcomes: dict[str, FieldOutcome] = {}
    todo = []
    for task in results.tasks:
        done = job.fields.finished(task)
        if done is None:
            todo.append(task)
        else:
            outcomes[task.field_id] = job.fields.assign(done, task.smear_id, task.patient_id)
    total, failed = len(results.tasks), 0
    progress(len(outcomes), total, f"{len(outcomes)} done before" if outcomes else "")

    def note(text: str) -> None:
        progress(len(outcomes), total, text)

    worked = _one_by_one(job, todo, note) if scheduler == "local" else run_on_cluster(job.run_once, todo, scheduler)
    for outcome in worked:
        outcomes[outcome.field_id] = outcome
        results.worked.add(outcome.field_id)
        if outcome.status == "failed":
            failed += 1
            # A later call with other paths then reports it, and results of an earlier image are not counted.
            job.fields.record(outcome)
        progress(len(outcomes), total, f"{failed} failed" if failed else "")
    return [outcomes[task.field_id] for task in results.tasks]


def _one_by_one(job: FieldJob, tasks: Sequence[FieldTask], note: Note) -> Iterator[FieldOutcome]:
    # This reference keeps the model in memory even if the process loads other models.
    held = job.load_model() if tasks else None
    for task in tasks:
        yield job.run(task, note)
    del held


def work_on_fields(
    paths: Sequence[str | Path], job: FieldJob, settings: DetectSettings, progress: Progress
) -> tuple[FieldJob, ResultsFolder, list[FieldOutcome], list[FieldOutcome]]:
    """Process the fields of one call.

    Returns
    -------
    FieldJob, ResultsFolder
        As of `prepare_run`.
    list of FieldOutcome
        Of the fields of this call.
    list of FieldOutcome
        Of all fields of the folder.

    Raises
    ------
    FieldError
        If all of them failed, beside what `prepare_run` and `run_fields` raise.
    """
    job, results = prepare_run(paths, job, smears=settings.smears)
    now = run_fields(job, results, scheduler=settings.scheduler, progress=progress)
    outcomes = results.all_outcomes(now)
    if all(outcome.status == "failed" for outcome in outcomes):
        write_outcomes(results.path, outcome_table(outcomes))
        raise_if_all_failed(now)
    return job, results, now, outcomes


def raise_if_all_failed(outcomes: Sequence[FieldOutcome]) -> None:
    """Raise an error if no field of this call could be processed; the files of earlier calls are written first."""
    if all(outcome.status == "failed" for outcome in outcomes):
        more = f" (and {len(outcomes) - 1} more fields failed)" if len(outcomes) > 1 else ""
        raise FieldError(f"{outcomes[0].message}{more}")


@dataclass(frozen=True)
class FieldResults(CommandResult):
    """Result of detecting or classifying fields: all fields of the folder, of this call and of earlier ones.

    Attributes
    ----------
    output : Path
        Folder of results.
    fields : DataFrame
        One row per field: status, number of cells, quality control, time. Corrections are applied.
    differential : Differential or None
        The count; None if cells were only detected.
    paths : dict of str to Path
        Files for the whole run.
    seconds : float
    unmatched : int
        Fields that the table of smears does not name.
    smear_warnings : tuple of str
        Mismatches between the table of smears and the fields, and unfinished fields of earlier calls.
    worked : int
        Fields processed in this call; the others were done before.
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
        """Warnings about pixel sizes, smears and patients."""
        scale = scale_notes(self.fields, self.differential is not None, self.model_pixel_size_um)
        return [*scale, *self.smear_warnings]

    @cached_property
    def cells(self) -> pd.DataFrame:
        """All cells of all fields of the folder, with corrections; see `hematokit.open_results`."""
        return open_results(self.output).cells

    def to_anndata(self) -> AnnData:
        """Return `cells` as AnnData, without contours; needs ``hematokit[anndata]``."""
        return open_results(self.output).to_anndata()

    def _repr_html_(self) -> str:
        """Return the differential, or the table of fields, as HTML."""
        if self.differential is not None:
            return self.differential._repr_html_()
        table: str = self.fields.to_html(index=False)
        return table

    @property
    def failed(self) -> pd.DataFrame:
        """Rows of the fields that failed."""
        return self.fields[self.fields["status"] == "failed"]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-serialisable values."""
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
        """Return the main figures and the paths, one line each."""
        done = len(self.fields) - len(self.failed)
        lines = [f"{int(self.fields['cells'].sum()):,} cells in {count_fields(done)}, {self.seconds:.1f} s"]
        if self.worked < len(self.fields):
            lines.append(f"{count_fields(self.worked)} processed in this call, the others before")
        flags = self._flags()
        if len(flags):
            said = ", ".join(f"{count} {flag}" for flag, count in flags.items())
            lines.append(f"Warning: not every field passed quality control ({said}); see fields.csv")
        lines += [f"Warning: {note}" for note in self.warnings]
        for row in list(self.failed.itertuples(index=False))[:5]:
            lines.append(f"Failed: {row.message}")
        if len(self.failed) > 5:
            lines.append(f"Failed: {len(self.failed) - 5} more; see fields.csv")
        lines += self.differential_lines()
        lines += [f"{name.capitalize()}: {path}" for name, path in self.paths.items() if name in _SHOWN]
        lines.append("For research use only")
        return lines

    def differential_lines(self) -> list[str]:
        """Return the differential in a few lines; empty if cells were only detected."""
        return [] if self.differential is None else self.differential.lines()


def scale_notes(fields: pd.DataFrame, classified: bool, model_pixel_size_um: float | None) -> list[str]:
    """Return warnings about unknown pixel sizes."""
    unknown = int((fields["pixel_size_um"].isna() & (fields["status"] == "done")).sum())
    if classified:
        return scale_warnings(model_pixel_size_um, unknown)
    if not unknown:
        return []
    return [
        f"the pixel size of {count_fields(unknown)} is not known, so it was estimated from the cells; give "
        "it with --pixel-size"
    ]


def count_fields(count: int) -> str:
    return "1 field" if count == 1 else f"{count:,} fields"
