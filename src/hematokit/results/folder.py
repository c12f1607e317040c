"""The results folder of a whole-field run, and its resumption.

A results folder contains ``run.json`` (settings of the results, and the id of each image) and one folder per field. A
field is done if it has a ``field.json`` and its image has not changed; another call processes the rest. Results of
different models, detectors or settings are never mixed: that raises an error.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pandas as pd

from hematokit._version import __version__
from hematokit.errors import FieldError, some_of
from hematokit.files import TEMPORARY_PREFIX, one_line_read_errors, one_line_write_errors, write_atomically, write_json
from hematokit.imaging.fieldfiles import field_name, list_fields
from hematokit.imaging.fieldfiles.listing import name_fields
from hematokit.parquet import read_table
from hematokit.plugins import is_other_version, load_plugins
from hematokit.results.fields import CELLS, FIELDS_FOLDER, FieldFolders, FieldOutcome, FieldTask, file_stamp
from hematokit.store.corrections import CORRECTIONS_FILE, apply_corrections, read_corrections
from hematokit.store.smears import SmearMatch, SmearTable

__all__ = ["RUN_FILE", "ResultsFolder", "outcome_table", "path_from", "write_outcomes"]

RUN_FILE: Final = "run.json"
FIELDS_TABLE: Final = "fields.csv"
_REVIEWED: Final = ("label", "label_source", "reviewed")
_INTERNAL: Final = ("stamp", "corrections", "orientation")
_KIND: Final = "hematokit field results"
_SCHEMA_VERSION: Final = 1
_OPTIONS: Final = {
    "pixel_size_um": "--pixel-size",
    "force_pixel_size": "--force-pixel-size",
    "min_probability": "--min-probability",
}


@dataclass(frozen=True)
class ResultsFolder:
    """A results folder, prepared for one call.

    Attributes
    ----------
    path : Path
        Absolute.
    tasks : list of FieldTask
        Every field of this call, in the order of their paths.
    unmatched : int
        Fields that the table of smears does not name.
    warnings : tuple of str
        Mismatches between the table of smears and the fields, and unfinished fields of earlier calls.
    earlier : list of FieldTask
        Fields of earlier calls that are not part of this one: done or failed, and still in the folder.
    inputs : tuple of str
        Paths of all calls, as they were given.
    worked : set of str
        Ids of the fields that `run_fields` has processed.
    """

    path: Path
    tasks: list[FieldTask]
    unmatched: int = 0
    warnings: tuple[str, ...] = ()
    earlier: list[FieldTask] = field(default_factory=list)
    inputs: tuple[str, ...] = ()
    worked: set[str] = field(default_factory=set)

    @property
    def fields(self) -> FieldFolders:
        """The folders of the fields."""
        return FieldFolders(self.path)

    @property
    def images(self) -> dict[str, Path]:
        """Last known path of the image of each field of the folder, by id."""
        return {task.field_id: Path(task.path) for task in [*self.earlier, *self.tasks]}

    @classmethod
    def prepare(
        cls,
        paths: Sequence[str | Path],
        output: Path,
        settings: Mapping[str, Any],
        *,
        model: Path | None = None,
        smears: SmearTable | None = None,
    ) -> ResultsFolder:
        """List the fields, assign their ids, and create the folder or check that its results have the same settings.

        Parameters
        ----------
        paths : sequence of path
            Files and folders.
        output : Path
            The results folder, absolute: new, empty, or from an earlier call.
        settings : mapping
            Settings that determine results, JSON-serialisable: detector, hash of the model, pixel sizes, threshold.
        model : Path, optional
            Path of the model.
        smears : SmearTable, optional
            Smear and patient of each file.

        Raises
        ------
        FieldError
            If the folder contains something else or results of other settings, or the table of smears names no field
            or names one twice.
        ImageError
            If a path does not exist or there is no field.
        """
        folder, own = output, FieldFolders(output)
        # Results may be inside the folder of fields; their images are not fields.
        inside = folder.resolve()
        listed = [path for path in list_fields([Path(path) for path in paths]) if inside not in path.resolve().parents]
        if not listed:
            raise FieldError(f"{paths[0]} contains results but no fields; give the folder of the fields")
        before = _check_folder(folder, settings)
        keys = {str(path.resolve()): path for path in listed}
        known = _follow_moves(before, inside, keys, own)
        ids = name_fields({key: field_name(path) for key, path in keys.items()}, known)
        # Fields that a table of smears does not name, or leaves empty, keep their smear and patient.
        recorded = {id_: outcome for id_ in {**known, **ids}.values() if (outcome := own.outcome(id_)) is not None}
        units = {id_: (outcome.smear_id, outcome.patient_id) for id_, outcome in recorded.items()}
        others = {key: id_ for key, id_ in known.items() if key not in keys and id_ in recorded}
        if smears is not None:
            named = {id_: said for key, id_ in others.items() if (said := smears.named_by_path(Path(key))) is not None}
        else:
            named = {}
        match = SmearMatch({}) if smears is None else smears.match({path: ids[key] for key, path in keys.items()})
        named |= {ids[key]: match.said[path] for key, path in keys.items() if path in match.said}
        for id_, (smear, patient) in named.items():
            before_smear, before_patient = units.get(id_, ("", ""))
            units[id_] = (smear or before_smear, patient or before_patient)
        tasks = [FieldTask(key, str(path), ids[key], *units.get(ids[key], ("", ""))) for key, path in keys.items()]
        earlier = [FieldTask(key, recorded[id_].source, id_, *units[id_]) for key, id_ in others.items()]
        unfinished = sorted(
            id_ for key, id_ in known.items() if key not in keys and id_ not in recorded and own.folder(id_).is_dir()
        )
        warnings = list(match.warnings)
        if unfinished:
            warnings.append(
                f"not finished in an earlier call, so not counted: {some_of(unfinished)}; give their images again, "
                "or remove their folders"
            )
        inputs = tuple(dict.fromkeys([*before.get("inputs", ()), *map(str, paths)]))
        document = {
            "kind": _KIND,
            "schema_version": _SCHEMA_VERSION,
            "hematokit_version": __version__,
            "job": dict(settings),
            "fields": {**known, **ids},
            "inputs": list(inputs),
            # Where the folder was then: it may be moved together with the images.
            "output": str(inside),
            # Its path at the time; its identity is in "job".
            "model": None if model is None else str(model.resolve()),
            "research_use_only": True,
        }
        with one_line_write_errors(folder, FieldError, "give another --output"):
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / RUN_FILE, document)
            for task in tasks:
                # Users take a field out of the results by removing its folder.
                own.folder(task.field_id).mkdir(parents=True, exist_ok=True)
            for left in folder.glob(f"{TEMPORARY_PREFIX}*"):
                left.unlink(missing_ok=True)
            for left in folder.glob(f"{FIELDS_FOLDER}/*/{TEMPORARY_PREFIX}*"):
                left.unlink(missing_ok=True)
        return cls(folder, tasks, match.unmatched, tuple(warnings), earlier, inputs)

    def all_outcomes(self, outcomes: Sequence[FieldOutcome]) -> list[FieldOutcome]:
        """Return the outcomes of all fields of the folder: those of earlier calls, and those of this one.

        Parameters
        ----------
        outcomes : sequence of FieldOutcome
            Of this call.

        Raises
        ------
        FieldError
            If the files of an earlier field cannot be read or written.
        """
        earlier = [(task, outcome) for task in self.earlier if (outcome := self.fields.outcome(task.field_id))]
        return [*(self.fields.assign(done, task.smear_id, task.patient_id) for task, done in earlier), *outcomes]

    def read_cells(self, outcomes: Sequence[FieldOutcome]) -> pd.DataFrame:
        """Return all cells of the fields that are done, with corrections applied."""
        parts = [self.fields.corrected(outcome.field_id) for outcome in outcomes if outcome.status == "done"]
        filled = [part for part in parts if len(part)]
        return pd.concat(filled, ignore_index=True) if filled else parts[0]

    def read_predictions(self, outcomes: Sequence[FieldOutcome]) -> pd.DataFrame:
        """Return the columns of all cells that the differential needs.

        Only these are read, to limit the memory of a run of thousands of fields.

        Parameters
        ----------
        outcomes : sequence of FieldOutcome
            Fields that failed have no cells.

        Returns
        -------
        DataFrame
            ``cell_id``, ``field_id``, ``smear_id``, ``patient_id``, ``touches_border``, ``predicted``, ``probability``;
            and ``label``, ``label_source`` and ``reviewed``, with corrections applied.
        """
        columns = ["cell_id", "field_id", "touches_border", "predicted", "probability", *_REVIEWED]
        parts = []
        for outcome in outcomes:
            if outcome.status != "done":
                continue
            path = self.fields.folder(outcome.field_id) / CELLS
            advice = f"remove the folder {path.parent} and run the command again"
            part: pd.DataFrame = read_table(path, kind=FieldError, advice=advice, columns=columns).to_pandas()
            corrections = read_corrections(path.parent / CORRECTIONS_FILE)
            part = apply_corrections(part, corrections, add=lambda entry: True)[columns]
            parts.append(part.assign(smear_id=outcome.smear_id, patient_id=outcome.patient_id))
        filled = [part for part in parts if len(part)]
        if filled:
            together: pd.DataFrame = pd.concat(filled, ignore_index=True)
            return together
        empty = {name: pd.Series(dtype=object) for name in [*columns, "smear_id", "patient_id"]}
        return pd.DataFrame(empty).astype({"probability": float, "touches_border": bool, "reviewed": bool})


def _check_folder(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of ``run.json`` after comparing its settings; empty for a new folder."""
    if folder.exists() and not folder.is_dir():
        raise FieldError(f"{folder} is a file; give a folder with --output")
    if not folder.exists() or all(path.name.startswith(TEMPORARY_PREFIX) for path in folder.iterdir()):
        return {}
    try:
        with one_line_read_errors(folder / RUN_FILE, FieldError):
            said = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
        kind, job, fields = said["kind"], dict(said["job"]), dict(said["fields"])
        # Ids become names of folders.
        if any(Path(str(field_id)).name != field_id or "\0" in field_id for field_id in fields.values()):
            raise ValueError("id")
        if "unsure_below" in job:  # the name in version 0.1
            job["min_probability"] = job.pop("unsure_below")
        said |= {"job": job, "fields": fields, "inputs": list(map(str, said.get("inputs", ())))}
    except FileNotFoundError as error:
        raise FieldError(
            f"folder {folder} exists and holds something else; give another --output, or an empty folder"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FieldError(f"{folder / RUN_FILE} is damaged; give another --output, or remove the folder") from error
    if kind != _KIND or said.get("schema_version") != _SCHEMA_VERSION:
        raise FieldError(f"folder {folder} holds results of another version; give another --output")
    # Through JSON, as the file's were: tuples are lists there.
    wanted = json.loads(json.dumps(dict(settings), default=str))
    before, now = job.get("detector"), wanted["detector"]
    if isinstance(before, dict) and before.get("name") == now["name"]:
        before = job["detector"] = load_plugins().detectors.update_identity(now["name"], before)
        if is_other_version(before, now):
            raise FieldError(
                f"folder {folder} holds results of detector {now['name']!r} version {before['version']}, and this "
                f"is version {now['version']}, which detects other cells; give another --output, or remove the folder"
            )
    differing = [key for key, value in wanted.items() if job.get(key) != value]
    differing += [key for key in job if key not in wanted]
    if differing:
        what = _OPTIONS.get(differing[0], differing[0].replace("_", " "))
        if what == "model":
            before, now = (dict(settings.get("model") or {}).get("sha256") for settings in (job, wanted))
            what = "--model-pixel-size" if before == now else what
        raise FieldError(
            f"folder {folder} holds results made with another {what}; give another --output, or remove the folder"
        )
    return dict(said)


def _follow_moves(before: dict[str, Any], inside: Path, keys: Mapping[str, Path], own: FieldFolders) -> dict[str, str]:
    """Return the ids given before, by the paths that their images have now.

    An image that was moved together with the folder of results has the same path relative to it. One that was moved
    alone is recognised by its name, size and time, if nothing is at its old path, or the same file is.
    """
    known = {str(key): str(field_id) for key, field_id in before.get("fields", {}).items()}
    moved = {key: str(path_from(before, inside, key)) for key in known}
    known = {new if (new := moved[key]) in keys and new not in known else key: known[key] for key in known}
    by_name: dict[str, list[str]] = {}
    for key in known:
        if key not in keys:
            by_name.setdefault(Path(key).name, []).append(key)
    places: dict[str, str] = {}
    for key, path in keys.items():
        if key in known or path.name not in by_name:
            continue
        stamp = file_stamp(path)
        same = [old for old in by_name[path.name] if _is_moved(old, path, stamp, own.outcome(known[old]))]
        if len(same) == 1:
            places[same[0]] = key
            by_name[path.name].remove(same[0])
    return {places.get(key, key): field_id for key, field_id in known.items()}


def path_from(run: Mapping[str, Any], folder: Path, recorded: str) -> Path:
    """Return a path recorded in ``run.json``, adjusted to the present, resolved `folder` of results."""
    then = run.get("output")
    if not isinstance(then, str) or then == str(folder):
        return Path(recorded)
    return Path(os.path.normpath(folder / os.path.relpath(recorded, then)))


def _is_moved(old: str, path: Path, stamp: str, done: FieldOutcome | None) -> bool:
    if done is None or done.stamp != stamp:
        return False
    return not Path(old).exists() or path.samefile(old)


def outcome_table(outcomes: Sequence[FieldOutcome]) -> pd.DataFrame:
    """Return outcomes as a table, one row per field; ``seconds`` is the total time, and each stage has a column."""
    rows = []
    for outcome in outcomes:
        row = {name: getattr(outcome, name) for name in outcome.__dataclass_fields__ if name not in _INTERNAL}
        stages = row.pop("seconds")
        row["seconds"] = round(sum(stages.values()), 3) if stages else None
        rows.append(row | {f"seconds_{stage}": value for stage, value in stages.items()})
    return pd.DataFrame(rows)


def write_outcomes(folder: Path, table: pd.DataFrame) -> Path:
    """Write ``fields.csv``."""
    from hematokit.annotations.writing import csv_text

    path = folder / FIELDS_TABLE
    write_atomically(path, csv_text(table))
    return path
