"""What is done with one field: open, detect, classify, write. The same here and on a cluster's workers.

A `FieldJob` holds names and numbers only, so it can be sent to another process; models and detectors are made where
the work is done, once a process.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pandas as pd
from pydantic import TypeAdapter

from hematokit.annotations.cells import low_confidence_cells, name_cells
from hematokit.annotations.writing import read_parquet, write_csv, write_geojson, write_parquet
from hematokit.detection.windows import examine_field, make_detector
from hematokit.errors import FieldError, HematokitError
from hematokit.files import one_line_write_errors, write_atomically, write_json
from hematokit.imaging.fieldfiles import Field, file_orientation, open_field
from hematokit.imaging.reading import printable
from hematokit.models.field_cells import classify_cells
from hematokit.plugins import MadeDetector
from hematokit.progress import Progress
from hematokit.store.corrections import CORRECTIONS_FILE, apply_corrections, move_corrections, read_corrections
from hematokit.taxonomy import MATEK_21, Taxonomy

if TYPE_CHECKING:
    from hematokit.models import Model

__all__ = ["FIELDS_FOLDER", "CannotWriteError", "FieldJob", "FieldOutcome", "FieldTask", "Overlay", "file_stamp"]

FIELDS_FOLDER: Final = "fields"
CELLS, CELLS_CSV, GEOJSON, OVERLAY, DONE = "cells.parquet", "cells.csv", "cells.geojson", "overlay.png", "field.json"

Overlay = Callable[[Field, pd.DataFrame, Taxonomy, float], bytes]
"""Draws a field's picture: ``(field, cells, taxonomy, unsure_below) -> PNG``. Given from above, as drawing is not this
room's business; a module's own function, so that it can be sent to workers."""

Note = Callable[[str], None]


def _silent(text: str) -> None:
    """Say nothing."""


def _counted(note: Note, task: FieldTask, what: str) -> Progress:
    """Turn the progress inside a field into a few words; a field of one piece needs none."""

    def report(done: int, total: int | None, message: str) -> None:
        if total is not None and total > 1:
            note(f"{task.field_id}: {done:,} of {total:,} {what}")

    return report


@dataclass(frozen=True)
class FieldTask:
    """One field to work on.

    Attributes
    ----------
    path : str
        Where it lies, absolute.
    source : str
        The path as the user gave it.
    field_id : str
        Also the name of its folder of results.
    smear_id, patient_id : str
        Empty where unknown.
    """

    path: str
    source: str
    field_id: str
    smear_id: str = ""
    patient_id: str = ""


@dataclass(frozen=True)
class FieldOutcome:
    """What became of a field.

    Attributes
    ----------
    field_id, source, smear_id, patient_id : str
    status : str
        ``"done"`` or ``"failed"``.
    message : str
        Why it failed; or remarks on how it was read.
    cells : int
        Cells found.
    unsure : int or None
        Of these, classified below the threshold; None without a model. Both as they were before any correction.
    flag : str
        Whether the field is worth reading: ``"ok"``, or what is wrong with it.
    reasons : str
        The same in words.
    focus, staining, thickness : float or None
        See `hematokit.detection.quality`.
    height, width : int or None
        Pixels.
    pixel_size_um : float or None
    pixel_size_source : str
        ``"metadata"``, ``"given"`` or empty.
    seconds : dict of str to float
        Time by stage: ``open``, ``detect``, ``classify``, ``files``.
    stamp : str
        Tells whether the file has changed since.
    corrections : str
        Tells which corrections the field's files for people show; empty where there were none.
    orientation : int or None
        What the file states and was applied, 1 to 8 as in EXIF; None in results of versions that applied none.
    """

    field_id: str
    source: str
    status: str
    message: str = ""
    smear_id: str = ""
    patient_id: str = ""
    cells: int = 0
    unsure: int | None = None
    flag: str = ""
    reasons: str = ""
    focus: float | None = None
    staining: float | None = None
    thickness: float | None = None
    height: int | None = None
    width: int | None = None
    pixel_size_um: float | None = None
    pixel_size_source: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    stamp: str = ""
    corrections: str = ""
    orientation: int | None = None


_OUTCOMES: Final = TypeAdapter(FieldOutcome)


@dataclass(frozen=True)
class FieldJob:
    """Everything that decides a field's results, but the field.

    Attributes
    ----------
    output : str
        Folder of results, absolute.
    detector, detector_options
        Name and options of the detector.
    model : str or None
        Run or bundle, absolute; None: cells are only detected.
    model_identity : str
        Which model that is, as `hematokit.models.bundle.bundle_identity` gives it; empty: whichever is there.
    runtime, device : str
        What computes the model.
    model_pixel_size_um : float or None
        Pixel size that the model was trained at, if its bundle does not say or says it wrong.
    pixel_size_um, force_pixel_size
        As `open_field` takes them.
    unsure_below : float
        Probability below which a cell counts as unsure.
    batch_size : int
        Patches classified at a time.
    draw : callable or None
        Makes ``overlay.png``.
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
    unsure_below: float = 0.5
    batch_size: int = 64
    draw: Overlay | None = None

    def folder(self, field_id: str) -> Path:
        """Where a field's files go."""
        return Path(self.output) / FIELDS_FOLDER / field_id

    def make_detector(self) -> MadeDetector:
        """The detector, made once a process; again where a file or folder that its options name has changed."""
        texts = [value for value in self.detector_options.values() if isinstance(value, str) and value]
        stamps = tuple(file_stamp(Path(text)) for text in texts)  # empty for text that names no file
        key = (self.detector, json.dumps(self.detector_options, sort_keys=True, default=str), *stamps)
        return _once(key, lambda: make_detector(self.detector, self.detector_options))

    def load_model(self) -> Model | None:
        """The classifier, loaded once a process; None if cells are only detected.

        Raises
        ------
        ModelError
            If it cannot be loaded, or is another one than `model_identity` says.
        """
        if self.model is None:
            return None
        from hematokit.models import cached_model

        return cached_model(self.model, self.device, self.runtime, identity=self.model_identity)

    def outcome(self, field_id: str) -> FieldOutcome | None:
        """What became of a field in an earlier call; None if nothing did, or its folder was removed or is damaged."""
        try:
            said = json.loads((self.folder(field_id) / DONE).read_text(encoding="utf-8"))
            outcome = _OUTCOMES.validate_python(said)
        except (OSError, ValueError):
            return None
        # The id becomes the name of a folder; entries that are not known are those of a later version.
        fits = outcome.field_id == field_id and set(said) <= set(FieldOutcome.__dataclass_fields__)
        return outcome if fits else None

    def finished(self, task: FieldTask) -> FieldOutcome | None:
        """The outcome of an earlier call, if the field is done and its file has not changed since.

        Raises
        ------
        FieldError
            If the earlier call was of a version that did not apply the orientation that the file states.
        """
        outcome = self.outcome(task.field_id)
        if outcome is None or outcome.status != "done" or outcome.stamp != file_stamp(Path(task.path)):
            return None
        if outcome.orientation is None and (stated := file_orientation(Path(task.path))) != 1:
            raise FieldError(
                f"{self.folder(task.field_id)} holds results of {printable(task.source)} from before its orientation "
                f"({stated}) was applied, with other coordinates; give another --output to work on it as it is shown"
            )
        return outcome

    def record(self, outcome: FieldOutcome) -> FieldOutcome:
        """Write ``field.json``."""
        folder = self.folder(outcome.field_id)
        with _writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / DONE, asdict(outcome))
        return outcome

    def assign(self, outcome: FieldOutcome, smear_id: str, patient_id: str) -> FieldOutcome:
        """Give a field that was worked on another smear and patient, in all its files; the cells stay as they are."""
        if (smear_id, patient_id) == (outcome.smear_id, outcome.patient_id):
            return outcome
        folder = self.folder(outcome.field_id)
        if outcome.status == "done":
            cells = read_parquet(folder / CELLS).assign(smear_id=smear_id, patient_id=patient_id)
            with _writing(folder):
                write_parquet(folder / CELLS, cells)
                write_csv(folder / CELLS_CSV, cells)
        # The table for people is written again with the corrections.
        return self.record(replace(outcome, smear_id=smear_id, patient_id=patient_id, corrections=""))

    def corrected(self, field_id: str) -> pd.DataFrame:
        """Read the cells of a field that is done, with what people corrected.

        Raises
        ------
        FieldError
            If a file is missing or damaged.
        """
        folder = self.folder(field_id)
        try:
            cells = read_parquet(folder / CELLS)
        except FieldError as error:
            raise FieldError(f"{error}: remove the folder {folder} and run the command again") from error
        return apply_corrections(cells, read_corrections(folder / CORRECTIONS_FILE), add=lambda entry: True)

    def show_corrections(self, outcome: FieldOutcome, image: Path, taxonomy: Taxonomy) -> FieldOutcome | None:
        """Write the files for people (CSV, GeoJSON, picture) again, if the field was corrected since they were.

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
            None if the picture could not be drawn again, because the image is gone or another one.
        """
        folder = self.folder(outcome.field_id)
        try:
            digest = hashlib.sha256((folder / CORRECTIONS_FILE).read_bytes()).hexdigest()[:32]
        except OSError:
            digest = ""
        if digest == outcome.corrections:
            return outcome
        cells = self.corrected(outcome.field_id)
        with _writing(folder):
            write_csv(folder / CELLS_CSV, cells)
            write_geojson(folder / GEOJSON, cells, taxonomy, pixel_size_um=outcome.pixel_size_um)
        if self.draw is not None:
            if outcome.stamp != file_stamp(image):
                return None
            try:
                with open_field(
                    image,
                    pixel_size_um=self.pixel_size_um,
                    force_pixel_size=self.force_pixel_size,
                    orient=outcome.orientation is not None,
                ) as it:
                    picture = self.draw(it, cells, taxonomy, self.unsure_below)
            except HematokitError:
                return None
            with _writing(folder):
                write_atomically(folder / OVERLAY, picture)
        return self.record(replace(outcome, corrections=digest))

    def run(self, task: FieldTask, note: Note = _silent) -> FieldOutcome:
        """Work on one field and write its files; ``field.json`` comes last and marks the field as done.

        A field that cannot be worked on becomes a failed outcome; what concerns all fields is raised.

        Parameters
        ----------
        task : FieldTask
        note : callable
            Told in a few words what is going on inside a large field; raising from it stops the work.

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
            message = f"{printable(task.source)} needs more memory than there is; give smaller fields"
            return replace(failed, message=message)
        except Exception as error:
            # One field's surprise must not end the work on a thousand others; it stands in the report.
            said = " ".join(str(error).split())[:300]
            return replace(failed, message=f"{printable(task.source)}: unexpected {type(error).__name__}: {said}")

    def _work(
        self, task: FieldTask, detector: MadeDetector, model: Model | None, stamp: str, note: Note
    ) -> FieldOutcome:
        seconds: dict[str, float] = {}
        clock = _Clock(seconds)
        with open_field(
            Path(task.path), pixel_size_um=self.pixel_size_um, force_pixel_size=self.force_pixel_size
        ) as opened:
            clock.lap("open")
            examined = examine_field(opened, detector, progress=_counted(note, task, "windows"))
            cells = name_cells(
                examined.cells, task.field_id, task.source, smear_id=task.smear_id, patient_id=task.patient_id
            )
            notes = [*opened.notes, *self._set_corrections_aside(task.field_id, cells)]
            clock.lap("detect")
            unsure = None
            if model is not None:
                cells = classify_cells(
                    opened,
                    cells,
                    model,
                    model_pixel_size_um=self.model_pixel_size_um,
                    batch_size=self.batch_size,
                    progress=_counted(note, task, "cells classified"),
                )
                unsure = int(low_confidence_cells(cells, self.unsure_below).sum())
                clock.lap("classify")
            self._write(task, opened, cells, model.taxonomy if model is not None else MATEK_21)
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
                unsure=unsure,
                flag=quality.flag,
                reasons="; ".join(quality.reasons),
                focus=_rounded(quality.focus),
                staining=_rounded(quality.staining),
                thickness=_rounded(quality.thickness),
                height=opened.height,
                width=opened.width,
                pixel_size_um=opened.pixel_size_um,
                pixel_size_source=opened.pixel_size_source,
                seconds=seconds,
                stamp=stamp,
                orientation=opened.orientation,
            )
        return self.record(outcome)

    def _set_corrections_aside(self, field_id: str, cells: pd.DataFrame) -> list[str]:
        """Rename the corrections of a field whose cells have changed: they do not apply to new cells with old ids."""
        folder = self.folder(field_id)
        places = ["cell_id", "y", "x"]
        try:
            before = read_parquet(folder / CELLS)
        except FieldError:
            return []
        journal = folder / CORRECTIONS_FILE
        if not journal.is_file() or before[places].to_numpy().tolist() == cells[places].to_numpy().tolist():
            return []
        with _writing(folder):
            # Named by its content, so that no other file that was set aside is overwritten.
            digest = hashlib.sha256(journal.read_bytes()).hexdigest()
            aside = folder / f"corrections-before-{digest[:8]}.jsonl"
            (folder / DONE).unlink(missing_ok=True)
            move_corrections(journal, aside)
        return [f"its cells differ from those before, so their corrections are in {aside.name} and no longer count"]

    def _write(self, task: FieldTask, opened: Field, cells: pd.DataFrame, taxonomy: Taxonomy) -> None:
        folder = self.folder(task.field_id)
        picture = None if self.draw is None else self.draw(opened, cells, taxonomy, self.unsure_below)
        with _writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / DONE).unlink(missing_ok=True)
            write_parquet(folder / CELLS, cells)
            write_csv(folder / CELLS_CSV, cells)
            write_geojson(folder / GEOJSON, cells, taxonomy, pixel_size_um=opened.pixel_size_um)
            if picture is not None:
                write_atomically(folder / OVERLAY, picture)


class CannotWriteError(FieldError):
    """Results cannot be written: no field after this one could be either."""


def _writing(folder: Path) -> AbstractContextManager[None]:
    advice = (
        "make room or give another --output: the fields that are done are kept, and the same command goes on after them"
    )
    return one_line_write_errors(folder, CannotWriteError, advice)


class _Clock:
    def __init__(self, seconds: dict[str, float]) -> None:
        self._seconds = seconds
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self._seconds[stage] = round(now - self._last, 4)
        self._last = now


def _rounded(value: float) -> float:
    return round(float(value), 4)


_MADE: dict[tuple[str, ...], MadeDetector] = {}
_MAKING = threading.Lock()


def _once(key: tuple[str, ...], make: Callable[[], MadeDetector]) -> MadeDetector:
    """Make a detector once a process; it may take seconds to load, and a worker has several threads."""
    with _MAKING:
        if key not in _MADE:
            # Only the last one is kept: a process that goes through many must not hold them all.
            _MADE.clear()
            _MADE[key] = make()
        return _MADE[key]


def file_stamp(path: Path) -> str:
    """Tell a file, or a folder of files, from what it may be changed into: names, sizes and times, hashed."""
    digest = hashlib.sha256()
    try:
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            about = file.stat()
            digest.update(f"{file.relative_to(path)}\t{about.st_size}\t{about.st_mtime_ns}\n".encode(errors="replace"))
    except OSError:
        return ""
    return digest.hexdigest()[:32]
