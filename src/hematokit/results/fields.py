"""The fields of a results folder: one folder per field, with the files of its cells.

``field.json`` is written last and marks a field as done or failed. Corrections are lines of the field's journal:
``cells.parquet`` is never changed by them; CSV, GeoJSON and overlay are written again.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Final

import pandas as pd
from pydantic import TypeAdapter

from hematokit.annotations.writing import read_parquet, write_csv, write_geojson, write_parquet
from hematokit.errors import FieldError, printable
from hematokit.files import one_line_write_errors, write_atomically, write_json
from hematokit.imaging.fieldfiles import file_orientation
from hematokit.store.corrections import CORRECTIONS_FILE, apply_corrections, move_corrections, read_corrections
from hematokit.taxonomy import Taxonomy

__all__ = [
    "CELLS",
    "DONE",
    "FIELDS_FOLDER",
    "OVERLAY",
    "CannotWriteError",
    "FieldFolders",
    "FieldOutcome",
    "FieldTask",
    "file_stamp",
]

FIELDS_FOLDER: Final = "fields"
CELLS, CELLS_CSV, GEOJSON, OVERLAY, DONE = "cells.parquet", "cells.csv", "cells.geojson", "overlay.png", "field.json"


@dataclass(frozen=True)
class FieldTask:
    """One field to process.

    Attributes
    ----------
    path : str
        Absolute path.
    source : str
        The path as the user gave it.
    field_id : str
        Id, and name of the folder of its results.
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
    """Outcome of processing one field.

    Attributes
    ----------
    field_id, source, smear_id, patient_id : str
    status : str
        ``"done"`` or ``"failed"``.
    message : str
        Reason of the failure, or remarks on how the field was read.
    cells : int
        Number of detected cells, before corrections.
    low_confidence : int or None
        Number of cells below the probability threshold, before corrections; None without a model.
    flag : str
        Quality control flag: ``"ok"``, or the name of the problem.
    reasons : str
        Explanation of the flag.
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
        `file_stamp` of the image when it was processed.
    corrections : str
        Hash of the corrections shown in CSV, GeoJSON and overlay; empty if there were none.
    orientation : int or None
        Orientation stated by the file and applied, 1 to 8 as in EXIF; None in results of versions that applied none.
    """

    field_id: str
    source: str
    status: str
    message: str = ""
    smear_id: str = ""
    patient_id: str = ""
    cells: int = 0
    low_confidence: int | None = None
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
class FieldFolders:
    """The folders of the fields in a results folder.

    Attributes
    ----------
    output : Path
        The results folder, absolute.
    """

    output: Path

    def folder(self, field_id: str) -> Path:
        """Return the folder of a field's files."""
        return self.output / FIELDS_FOLDER / field_id

    def outcome(self, field_id: str) -> FieldOutcome | None:
        """Return the outcome of a field in an earlier call; None if there is none, or it cannot be read."""
        try:
            said = json.loads((self.folder(field_id) / DONE).read_text(encoding="utf-8"))
            if "unsure" in said:  # the name in version 0.1
                said["low_confidence"] = said.pop("unsure")
            outcome = _OUTCOMES.validate_python(said)
        except (OSError, ValueError, TypeError):
            return None
        # The id becomes the name of a folder. Unknown entries come from a later version.
        fits = outcome.field_id == field_id and set(said) <= set(FieldOutcome.__dataclass_fields__)
        return outcome if fits else None

    def finished(self, task: FieldTask) -> FieldOutcome | None:
        """Return the outcome of an earlier call if the field is done and its image has not changed since.

        Raises
        ------
        FieldError
            If the results are from a version that did not apply the orientation stated in the file.
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
        """Change smear and patient of a processed field in all its files, and return the new outcome."""
        if (smear_id, patient_id) == (outcome.smear_id, outcome.patient_id):
            return outcome
        folder = self.folder(outcome.field_id)
        if outcome.status == "done":
            cells = read_parquet(folder / CELLS).assign(smear_id=smear_id, patient_id=patient_id)
            with _writing(folder):
                write_parquet(folder / CELLS, cells)
                write_csv(folder / CELLS_CSV, cells)
        # Without a hash of corrections, `FieldJob.show_corrections` writes the CSV again with them.
        return self.record(replace(outcome, smear_id=smear_id, patient_id=patient_id, corrections=""))

    def corrected(self, field_id: str) -> pd.DataFrame:
        """Return the cells of a field that is done, with corrections applied.

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

    def set_corrections_aside(self, field_id: str, cells: pd.DataFrame) -> list[str]:
        """Rename the corrections of a field whose cells have changed, and return messages about it.

        Ids of cells are reused, so old corrections would be applied to other cells.
        """
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

    def write(
        self,
        field_id: str,
        cells: pd.DataFrame,
        taxonomy: Taxonomy,
        *,
        pixel_size_um: float | None,
        overlay: bytes,
    ) -> None:
        """Write the files of a field, except ``field.json``; until `record`, the field does not count as done.

        Parameters
        ----------
        field_id : str
        cells : DataFrame
            Its cells table.
        taxonomy : Taxonomy
            Classes, for the colours of GeoJSON.
        pixel_size_um : float or None
            Micrometres per pixel.
        overlay : bytes
            ``overlay.png``.

        Raises
        ------
        CannotWriteError
            If a file cannot be written.
        """
        folder = self.folder(field_id)
        with _writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / DONE).unlink(missing_ok=True)
            write_parquet(folder / CELLS, cells)
            write_csv(folder / CELLS_CSV, cells)
            write_geojson(folder / GEOJSON, cells, taxonomy, pixel_size_um=pixel_size_um)
            write_atomically(folder / OVERLAY, overlay)

    def corrections_digest(self, field_id: str) -> str:
        """Return a hash of the field's corrections; empty where there are none."""
        try:
            return hashlib.sha256((self.folder(field_id) / CORRECTIONS_FILE).read_bytes()).hexdigest()[:32]
        except OSError:
            return ""

    def write_corrected(self, outcome: FieldOutcome, cells: pd.DataFrame, taxonomy: Taxonomy) -> None:
        """Write ``cells.csv`` and ``cells.geojson`` of corrected cells."""
        folder = self.folder(outcome.field_id)
        with _writing(folder):
            write_csv(folder / CELLS_CSV, cells)
            write_geojson(folder / GEOJSON, cells, taxonomy, pixel_size_um=outcome.pixel_size_um)

    def write_overlay(self, field_id: str, overlay: bytes) -> None:
        """Write ``overlay.png``."""
        folder = self.folder(field_id)
        with _writing(folder):
            write_atomically(folder / OVERLAY, overlay)


class CannotWriteError(FieldError):
    """Results cannot be written, so the run stops: later fields would fail too."""


def _writing(folder: Path) -> AbstractContextManager[None]:
    advice = (
        "free disk space and run the same command again, which resumes after the fields that are done, or give another "
        "--output"
    )
    return one_line_write_errors(folder, CannotWriteError, advice)


def file_stamp(path: Path) -> str:
    """Return a hash of names, sizes and times of a file, or of the files of a folder; empty if they cannot be read."""
    digest = hashlib.sha256()
    try:
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            about = file.stat()
            digest.update(f"{file.relative_to(path)}\t{about.st_size}\t{about.st_mtime_ns}\n".encode(errors="replace"))
    except OSError:
        return ""
    return digest.hexdigest()[:32]
