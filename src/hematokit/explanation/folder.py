"""Folders of explanations: maps as Zarr arrays, the cells they belong to, and how far the work has come.

::

    explain.json               what the maps were made with, and how many cells are done
    cells.parquet              one row a cell; row i belongs to index i of every array
    classes.png                one cell a class and its maps
    attributions.zarr/<method> float32 (N, S, S), in pixels of the network's input
    attributions.zarr/.logits  float32 (N, C)
    uncertain.parquet, uncertain.zarr  the same for uncertain cells, maps (M, 2, S, S) of their two leading classes

A batch counts once ``explain.json`` says so, so a stopped call continues with the next one. Maps of another model,
other settings or other cells are never mixed in. `collect_maps` and `collect_uncertain` fill a folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from hematokit._version import __version__
from hematokit.errors import ExplanationError
from hematokit.explanation.running import ChooseTargets, ExplainedBatch, explain_in_batches
from hematokit.explanation.selection import uncertain_cells
from hematokit.files import TEMPORARY_PREFIX, one_line_read_errors, one_line_write_errors, write_json
from hematokit.models.model import prediction_frame
from hematokit.parquet import write_table
from hematokit.plugins import MadeExplainer, is_other_version, load_plugins
from hematokit.progress import Progress, no_progress

if TYPE_CHECKING:
    from hematokit.explanation.selection import ChosenCells
    from hematokit.models import Classifier

__all__ = [
    "CELLS_FILE",
    "CLASSES_FIGURE",
    "ExplanationFolder",
    "MapArrays",
    "STATE_FILE",
    "collect_maps",
    "collect_uncertain",
    "explained_cells",
    "writing",
]

STATE_FILE: Final = "explain.json"
CELLS_FILE: Final = "cells.parquet"
CLASSES_FIGURE: Final = "classes.png"
UNCERTAIN_FILE: Final = "uncertain.parquet"
UNCERTAIN_ARRAYS: Final = "uncertain"
_KIND: Final = "hematokit explanations"
_SCHEMA_VERSION: Final = 1
_LOGITS: Final = ".logits"


class ExplanationFolder:
    """A folder of explanations, opened for one call.

    Parameters
    ----------
    path : Path
        New, empty, or of an earlier call with the same `identity`.
    identity : mapping
        All that decides the maps; JSON-able.

    Raises
    ------
    ExplanationError
        If the folder holds something else, maps made otherwise, or cannot be written.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path = path
        # Through JSON, as the file's was: tuples are lists there.
        self._identity = json.loads(json.dumps(identity, default=str))
        self._done = self._check()
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
            for left in path.glob(f"**/{TEMPORARY_PREFIX}*"):
                left.unlink(missing_ok=True)
            self._save()

    def _check(self) -> dict[str, int]:
        """Return how much is done, if the folder is new, empty, or holds maps of the same identity."""
        folder = self.path
        if folder.exists() and not folder.is_dir():
            raise ExplanationError(f"{folder} is a file; give a folder with --output")
        if not folder.exists() or not any(folder.iterdir()):
            return {}
        try:
            with one_line_read_errors(folder / STATE_FILE, ExplanationError):
                said = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
            kind, version, made, done = said["kind"], said["schema_version"], dict(said["made_with"]), said["done"]
            done = {str(name): int(count) for name, count in done.items()}
        except FileNotFoundError as error:
            raise ExplanationError(
                f"folder {folder} exists and holds something else; give another --output, or an empty folder"
            ) from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ExplanationError(
                f"{folder / STATE_FILE} is damaged; give another --output, or remove the folder"
            ) from error
        if kind != _KIND or version != _SCHEMA_VERSION:
            raise ExplanationError(f"folder {folder} holds results of another kind or version; give another --output")
        made = _update(made)
        differing = [key for key in {**made, **self._identity} if made.get(key) != self._identity.get(key)]
        if differing and not any(done.values()):
            # Nothing was explained yet, for example as a layer was misspelt: the corrected call may use the folder.
            return {}
        methods = made.get("methods")
        for name, now in self._identity.get("methods", {}).items():
            before = methods.get(name) if isinstance(methods, dict) else None
            if is_other_version(before, now):
                raise ExplanationError(
                    f"folder {folder} holds maps of {name} version {before['version']}, and this is version "
                    f"{now['version']}, which gives other maps; give another --output, or remove the folder"
                )
        if differing:
            raise ExplanationError(
                f"folder {folder} holds explanations made with other {' and '.join(sorted(differing))}; give another "
                "--output, or remove the folder"
            )
        return done

    def done(self, name: str) -> int:
        """Return how many cells of the arrays `name` are done."""
        return self._done.get(name, 0)

    def mark(self, name: str, count: int) -> None:
        """Record that the first `count` cells of the arrays `name` are done; other rows of them are not there."""
        kind = name.split()[0]
        self._done = {key: value for key, value in self._done.items() if key.split()[0] != kind} | {name: count}
        with writing(self.path):
            self._save()

    def _save(self) -> None:
        document = {
            "kind": _KIND,
            "schema_version": _SCHEMA_VERSION,
            "hematokit_version": __version__,
            "made_with": self._identity,
            "done": self._done,
            "research_use_only": True,
        }
        write_json(self.path / STATE_FILE, document)

    def arrays(
        self, name: str, shape: tuple[int, ...], methods: Sequence[str], classes: int, *, content: str = ""
    ) -> MapArrays:
        """Open, or make, the arrays ``<name>.zarr``.

        Parameters
        ----------
        name : str
            ``"attributions"`` or ``"uncertain"``.
        shape : tuple of int
            Of one method's array, cells first.
        methods : sequence of str
        classes : int
            Number of logits.
        content : str
            What the rows are, where the folder's identity does not say; arrays with other rows start again.
        """
        return MapArrays(self, name, shape, methods, classes, content)

    def write_cells(self, cells: pd.DataFrame, name: str = CELLS_FILE) -> Path:
        """Replace the table of cells."""
        path = self.path / name
        with writing(self.path):
            write_table(path, pa.Table.from_pandas(cells, preserve_index=False))
        return path


def _update(made: dict[str, Any]) -> dict[str, Any]:
    """Return what an earlier version recorded of explainers and detector as this version records it."""
    plugins = load_plugins()
    methods = made.get("methods")
    if isinstance(methods, dict):
        made = made | {
            "methods": {name: plugins.explainers.update_identity(name, said) for name, said in methods.items()}
        }
    detector = made.get("detector")
    if isinstance(detector, dict):
        made = made | {"detector": plugins.detectors.update_identity(str(detector.get("name")), detector)}
    return made


class MapArrays:
    """Maps of one folder by method, aligned with a table of cells.

    Made by `ExplanationFolder.arrays`.

    Attributes
    ----------
    path : Path
        The Zarr group.
    methods : tuple of str
    """

    def __init__(
        self,
        folder: ExplanationFolder,
        name: str,
        shape: tuple[int, ...],
        methods: Sequence[str],
        classes: int,
        content: str = "",
    ) -> None:
        import zarr

        self._folder = folder
        self._key = f"{name} {content}".strip()
        self.path = folder.path / f"{name}.zarr"
        self.methods = tuple(methods)
        shapes = dict.fromkeys(methods, shape) | {_LOGITS: (shape[0], classes)}
        fresh = folder.done(self._key) == 0
        with writing(folder.path):
            try:
                group = zarr.open_group(self.path, mode="w" if fresh else "r+", zarr_format=3)
                if fresh:
                    # One cell a chunk: a batch is written without touching those before it.
                    self._arrays = {
                        key: group.create_array(
                            key, shape=size, chunks=(1, *size[1:]), dtype="float32", fill_value=float("nan")
                        )
                        for key, size in shapes.items()
                    }
                    group.attrs["units"] = "pixels of the network's input, unnormalised"
                else:
                    self._arrays = {key: group[key] for key in shapes}
                    if any(tuple(self._arrays[key].shape) != size for key, size in shapes.items()):
                        raise KeyError("shape")
            except (KeyError, ValueError, TypeError) as error:
                raise ExplanationError(
                    f"{self.path} is damaged; remove the folder {folder.path} and run the command again"
                ) from error

    @property
    def done(self) -> int:
        """Number of cells that are done."""
        return self._folder.done(self._key)

    def write(self, start: int, maps: Mapping[str, npt.NDArray[np.float32]], logits: npt.NDArray[np.float32]) -> None:
        """Write a batch that begins at row `start`, and count it as done."""
        rows = slice(start, start + len(logits))
        with writing(self._folder.path):
            for method in self.methods:
                self._arrays[method][rows] = maps[method]
            self._arrays[_LOGITS][rows] = logits
        self._folder.mark(self._key, rows.stop)

    def logits(self) -> npt.NDArray[np.float32]:
        """Return the logits (n, C) of the cells that are done."""
        return self._read(_LOGITS, slice(0, self.done))

    def maps(self, method: str, rows: slice | int) -> npt.NDArray[np.float32]:
        """Return maps of one method."""
        return self._read(method, rows)

    def _read(self, key: str, rows: slice | int) -> npt.NDArray[np.float32]:
        try:
            return np.asarray(self._arrays[key][rows], np.float32)
        except OSError as error:
            raise ExplanationError(f"{self.path} cannot be read ({error.strerror or error}); correct that") from error
        except (ValueError, RuntimeError) as error:
            raise ExplanationError(
                f"{self.path} is damaged ({' '.join(str(error).split())[:120]}); remove the folder and run again"
            ) from error


def writing(folder: Path) -> AbstractContextManager[None]:
    """Turn a full disk or missing permission into one line that states what is kept."""
    advice = (
        "free disk space or give another --output: finished cells are kept, and the same command resumes after them"
    )
    return one_line_write_errors(folder, ExplanationError, advice)


def collect_maps(
    folder: ExplanationFolder,
    classifier: Classifier,
    chosen: ChosenCells,
    choose: ChooseTargets,
    explainers: Mapping[str, MadeExplainer],
    *,
    batch_size: int = 16,
    each: Callable[[ExplainedBatch], None] | None = None,
    progress: Progress = no_progress,
) -> tuple[MapArrays, pd.DataFrame]:
    """Explain the cells that are not done yet.

    The table of cells is written at the end, and also when the work is interrupted: rows that are not explained have
    no prediction there.

    Parameters
    ----------
    folder : ExplanationFolder
        Where maps go.
    classifier : Classifier
    chosen : ChosenCells
    choose : callable
        From `hematokit.explanation.selection.target_chooser`.
    explainers : mapping of str to MadeExplainer
    batch_size : int
    each : callable, optional
        Called with each batch before it counts as done; it may draw figures of its cells.
    progress : Progress

    Returns
    -------
    arrays : MapArrays
    cells : DataFrame
        As `explained_cells` gives it.
    """
    side = classifier.input_spec.size
    count, classes = len(chosen), len(classifier.codes)
    arrays = folder.arrays("attributions", (count, side, side), list(explainers), classes)
    try:
        for batch in explain_in_batches(
            classifier,
            chosen.read,
            count,
            choose,
            explainers,
            start=arrays.done,
            batch_size=batch_size,
            progress=progress,
        ):
            if each is not None:
                each(batch)
            arrays.write(int(batch.positions[0]), batch.maps, batch.logits)
    finally:
        cells = explained_cells(classifier, chosen, choose, arrays)
        folder.write_cells(cells)
    return arrays, cells


def explained_cells(
    classifier: Classifier, chosen: ChosenCells, choose: ChooseTargets, arrays: MapArrays
) -> pd.DataFrame:
    """Return the cells with their predictions.

    Returns
    -------
    DataFrame
        The chosen cells, aligned with the arrays, with ``predicted``, ``probability``, ``p_<CODE>`` a class,
        ``target`` (the class explained) and ``explained`` (whether the maps are there).
    """
    logits = arrays.logits()
    predictions = prediction_frame(logits, classifier.codes, classifier.temperature)
    positions = np.arange(len(logits), dtype=np.int64)
    targets = [classifier.codes[place] for place in choose(positions, logits).tolist()] if len(logits) else []
    predictions = predictions.assign(target=pd.Series(targets, dtype=object))
    others = chosen.cells.drop(columns=[name for name in predictions.columns if name in chosen.cells.columns])
    cells = pd.concat([others.reset_index(drop=True), predictions], axis=1)
    for name in ("predicted", "target"):
        cells[name] = cells[name].fillna("").astype(object)
    cells["explained"] = np.arange(len(cells)) < len(logits)
    return cells


def collect_uncertain(
    folder: ExplanationFolder,
    classifier: Classifier,
    chosen: ChosenCells,
    cells: pd.DataFrame,
    explainers: Mapping[str, MadeExplainer],
    *,
    min_probability: float = 0.5,
    batch_size: int = 16,
    progress: Progress = no_progress,
) -> tuple[MapArrays | None, pd.DataFrame]:
    """Explain the uncertain cells for their two leading classes.

    Parameters
    ----------
    folder, classifier, chosen, explainers, batch_size, progress
        As for `collect_maps`.
    cells : DataFrame
        From `collect_maps`, aligned with `chosen`.
    min_probability : float
        See `hematokit.explanation.selection.uncertain_cells`.

    Returns
    -------
    arrays : MapArrays or None
        Maps (M, 2, S, S) by method; None if no cell is uncertain.
    uncertain : DataFrame
        One row each, aligned with the arrays; ``row`` is the cell's row in `cells`.
    """
    uncertain = uncertain_cells(cells, classifier.codes, min_probability=min_probability)
    rows = uncertain.index.to_numpy(np.int64)
    uncertain = uncertain.assign(row=rows).reset_index(drop=True)
    if not len(uncertain):
        return None, uncertain
    places = {code: place for place, code in enumerate(classifier.codes)}
    pairs = np.array(
        [[places[a], places[b]] for a, b in zip(uncertain["first"], uncertain["second"], strict=True)], int
    )

    def choose(positions: npt.NDArray[np.int64], _logits: Any) -> npt.NDArray[np.int64]:
        return np.asarray(pairs[positions], np.int64)

    side = classifier.input_spec.size
    content = hashlib.sha256(np.column_stack([rows, pairs]).tobytes()).hexdigest()[:16]
    shape = (len(uncertain), 2, side, side)
    arrays = folder.arrays(UNCERTAIN_ARRAYS, shape, list(explainers), len(classifier.codes), content=content)
    for batch in explain_in_batches(
        classifier,
        lambda positions: chosen.read(rows[positions]),
        len(uncertain),
        choose,
        explainers,
        start=arrays.done,
        batch_size=batch_size,
        progress=progress,
    ):
        arrays.write(int(batch.positions[0]), batch.maps, batch.logits)
    folder.write_cells(uncertain, UNCERTAIN_FILE)
    return arrays, uncertain
