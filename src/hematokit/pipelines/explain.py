"""Explanation of cells of a store or of images, with maps, tables and figures: ``hematokit explain``."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Unpack

import numpy as np
import numpy.typing as npt
import pandas as pd

from hematokit.commands import CommandResult, Inputs, as_paths
from hematokit.errors import ExplanationError, printable
from hematokit.evaluation.sources import scale_mismatch
from hematokit.explanation.field_map import maps_to_patch
from hematokit.explanation.folder import (
    CELLS_FILE,
    CLASSES_FIGURE,
    ExplanationFolder,
    MapArrays,
    collect_maps,
    collect_uncertain,
    writing,
)
from hematokit.explanation.running import ExplainedBatch, make_explainers
from hematokit.explanation.selection import (
    ChosenCells,
    cells_of_images,
    cells_of_store,
    open_cells_store,
    read_cell_ids,
    target_chooser,
)
from hematokit.files import write_atomically
from hematokit.imaging.fieldfiles.listing import safe_name
from hematokit.models import find_bundle, load_model
from hematokit.models.model import prediction_frame
from hematokit.overrides import ExplainOverrides
from hematokit.pipelines.settings import ExplainSettings
from hematokit.plugins import MadeExplainer
from hematokit.plugins.specs import complete_explainer
from hematokit.progress import Progress, no_progress
from hematokit.reports.attributions import (
    AttributedCell,
    UncertainCell,
    cell_picture,
    class_figure,
    uncertain_figure,
)
from hematokit.reports.rendering import to_png

if TYPE_CHECKING:
    from hematokit.models import Classifier

__all__ = ["ExplanationResult", "ExplanationRun", "explain"]

_PICTURES: Final = "cells"
_SHEETS: Final = "uncertain"
_PER_SHEET: Final = 6

Options = Mapping[str, Mapping[str, object]]


@dataclass(frozen=True)
class ExplanationResult(CommandResult):
    """The result of explaining cells.

    Attributes
    ----------
    output : Path
        Folder of results.
    cells : DataFrame
        One row per cell, aligned with the arrays: identity, ``predicted``, ``probability``, ``p_<CODE>``, ``target``.
    methods : tuple of str
    paths : dict of str to Path
        ``attributions`` (the Zarr group), ``cells``, ``figures``, ``figure``, and ``uncertain`` if requested.
    seconds : float
    done_before : int
        Cells done in an earlier call.
    uncertain : DataFrame or None
        The misclassified and low-confidence cells, if requested.
    notes : tuple of str
        Remarks for the reader.
    """

    output: Path
    cells: pd.DataFrame
    methods: tuple[str, ...]
    paths: dict[str, Path]
    seconds: float
    done_before: int = 0
    uncertain: pd.DataFrame | None = None
    notes: tuple[str, ...] = field(default=())

    def maps(self, method: str) -> npt.NDArray[np.float32]:
        """Return all maps of a method, float32 (N, S, S), in pixels of the network's input."""
        import zarr

        return np.asarray(zarr.open_group(self.paths["attributions"], mode="r")[method])

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        known = self.cells[self.cells["label"] != ""] if "label" in self.cells.columns else self.cells.iloc[:0]
        return {
            "output": str(self.output),
            "cells": len(self.cells),
            "done_before": self.done_before,
            "methods": list(self.methods),
            "targets": {str(code): int(count) for code, count in self.cells["target"].value_counts().items()},
            "misclassified": int((known["label"] != known["predicted"]).sum()),
            "uncertain": None if self.uncertain is None else len(self.uncertain),
            "seconds": round(self.seconds, 3),
            "notes": list(self.notes),
            "paths": {name: str(path) for name, path in self.paths.items()},
            "research_use_only": True,
        }

    def lines(self) -> list[str]:
        """Return the main figures and the paths, one line each."""
        again = f" ({self.done_before:,} of them before)" if self.done_before else ""
        lines = [f"{len(self.cells):,} cells explained by {', '.join(self.methods)}{again}, {self.seconds:.1f} s"]
        lines += [f"Warning: {note}" for note in self.notes]
        if self.uncertain is not None:
            lines.append(f"Uncertain (misclassified or low-confidence): {len(self.uncertain):,} cells")
        lines += [f"{name.capitalize()}: {path}" for name, path in self.paths.items()]
        lines.append("For research use only")
        return lines


def explain(
    model: str | Path,
    output: str | Path,
    *,
    store: str | Path | None = None,
    images: Inputs | None = None,
    settings: ExplainSettings | None = None,
    progress: Progress = no_progress,
    **overrides: Unpack[ExplainOverrides],
) -> ExplanationResult:
    """Explain cells of a store, or images.

    Writes ``attributions.zarr`` (one float32 array per method, in pixels of the network's input), ``cells.parquet``
    (aligned by row), a figure of each cell, and ``classes.png`` (Fig. 8 of the HematoNet paper: one cell per class,
    below it its maps). Called again after an interruption, it continues with the cells that are not done.

    Parameters
    ----------
    model : path
        Run or bundle.
    output : path
        Folder of results; new, empty, or from an earlier call with the same model, cells and settings.
    store : path, optional
        By default the store that the model was trained on.
    images : path, or sequence of path, optional
        Image files or folders of them instead; a folder named after a class gives its label.
    settings : ExplainSettings, optional
        With ``cells``, exactly these cells of the store are explained; otherwise ``per_class`` of each class of
        ``split``.
    progress : Progress
        Called with the number of cells done; raising from it stops the work, and what is done is kept.
    **overrides
        Fields of `ExplainSettings`; they take precedence over `settings`.

    Returns
    -------
    ExplanationResult

    Raises
    ------
    ExplanationError
        If a cell or class does not exist, or the folder holds something else.
    ImageError, ModelError, PluginError, StoreError
        If an image, the model, a method or the store cannot be used.

    Examples
    --------
    >>> result = explain("runs/coatnet", "why", methods="grad-cam", per_class=2)
    >>> result.maps("grad-cam").shape
    (6, 64, 64)
    """
    started = time.monotonic()
    settings = ExplainSettings.combine(settings, overrides)
    cells = None if settings.cells is None else read_cell_ids(settings.cells)
    if images is not None and (store is not None or cells is not None):
        raise ExplanationError("images were given and a store or its cells too; give one of --images and --store")
    bundle = find_bundle(model)
    explainers = make_explainers(settings.methods, settings.options, seed=settings.seed)
    classifier = load_model(bundle, device=settings.device, runtime="torch")

    codes, opened = classifier.codes, None
    if images is not None:
        chosen = cells_of_images(as_paths(images), codes, classifier.patch_size)
    else:
        opened = open_cells_store(classifier, Path(model), store)
        chosen = cells_of_store(
            opened,
            codes,
            cell_ids=cells,
            split=settings.split,
            per_class=settings.per_class or None,
            seed=settings.seed,
        )

    run = ExplanationRun(
        output,
        classifier,
        chosen,
        explainers,
        target=settings.target,
        batch_size=settings.batch_size,
        progress=progress,
    )
    run.explain_cells(figures=settings.figures)
    run.draw_classes()
    if settings.uncertain:
        run.explain_uncertain(settings.min_probability)
    mismatch = scale_mismatch(classifier, chosen.cells, opened)
    return run.result(started, [mismatch] if mismatch else [])


class ExplanationRun:
    """The steps that `explain` and `hematokit.explain_field` have in common, after the cells are chosen.

    Parameters
    ----------
    output : path
    classifier : Classifier
        From a bundle.
    chosen : ChosenCells
    explainers : mapping of str to MadeExplainer
    target, batch_size, progress
        As for `explain`.
    identity : mapping, optional
        What else must be equal for maps to be equal.

    Attributes
    ----------
    folder : ExplanationFolder
    paths : dict of str to Path
        Outputs by name, as far as they are written.
    cells : DataFrame
        After `explain_cells`: the cells with their predictions.
    arrays : MapArrays
        After `explain_cells`: their maps, aligned with `cells`.

    Raises
    ------
    ExplanationError
        If the target is no class, or the folder holds something else.
    """

    cells: pd.DataFrame
    arrays: MapArrays

    def __init__(
        self,
        output: str | Path,
        classifier: Classifier,
        chosen: ChosenCells,
        explainers: Mapping[str, MadeExplainer],
        *,
        target: str,
        batch_size: int,
        progress: Progress,
        identity: Mapping[str, object] | None = None,
    ) -> None:
        self._choose = target_chooser(target, chosen.cells, classifier.codes)
        self.folder = ExplanationFolder(
            Path(output),
            {
                "model": classifier.identity,
                "cells": chosen.content,
                "target": target,
                "methods": {name: _unnamed(made.identity()) for name, made in explainers.items()},
                **(identity or {}),
            },
        )
        self.paths: dict[str, Path] = {}
        self._classifier, self._chosen, self._explainers = classifier, chosen, explainers
        self._batch_size, self._progress = batch_size, progress
        self._done_before = self.folder.done("attributions")
        self._uncertain: pd.DataFrame | None = None

    def explain_cells(self, *, figures: bool) -> None:
        """Explain the cells that are not done yet; with `figures`, draw each beside its maps."""
        self.arrays, self.cells = collect_maps(
            self.folder,
            self._classifier,
            self._chosen,
            self._choose,
            self._explainers,
            batch_size=self._batch_size,
            each=self._draw_batch if figures else None,
            progress=self._progress,
        )
        self.paths |= {"attributions": self.arrays.path, "cells": self.folder.path / CELLS_FILE}
        if figures:
            self.paths["figures"] = self.folder.path / _PICTURES

    def _draw_batch(self, batch: ExplainedBatch) -> None:
        codes, folder = self._classifier.codes, self.folder.path / _PICTURES
        predictions = prediction_frame(batch.logits, codes, self._classifier.temperature)
        maps = {name: self._in_patch(found) for name, found in batch.maps.items()}
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for place, row in enumerate(batch.positions.tolist()):
                cell = AttributedCell(
                    **_values(self._chosen.cells, row, "cell_id", "label"),
                    **_values(predictions, place, "predicted", "probability"),
                    target=codes[int(batch.targets[place])],
                    patch=batch.patches[place],
                    maps={name: maps[name][place] for name in maps},
                )
                # The row makes the name unique; the id makes it readable.
                write_atomically(folder / f"{row:05d}-{safe_name(str(cell.cell_id))}.png", cell_picture(cell))

    def draw_classes(self) -> None:
        """Draw the first cell chosen of each class; cells whose label the model does not know count as predicted."""
        self._progress(len(self._chosen), len(self._chosen), "drawing")
        codes = self._classifier.codes
        shown_as = self.cells["label"].where(self.cells["label"].isin(list(codes)), self.cells["predicted"])
        shown = {}
        for code in codes:
            for row in np.flatnonzero((shown_as == code).to_numpy())[:1].tolist():
                shown[code] = AttributedCell(
                    **_values(self.cells, row, "cell_id", "label", "predicted", "probability", "target"),
                    patch=self._chosen.read(np.array([row]))[0],
                    maps=self._maps_of(self.arrays, row),
                )
        if shown:
            figure = to_png(class_figure(shown, self.arrays.methods), dpi=200)
            self.paths["figure"] = self.folder.path / CLASSES_FIGURE
            with writing(self.folder.path):
                write_atomically(self.paths["figure"], figure)

    def explain_uncertain(self, min_probability: float) -> None:
        """Explain the uncertain cells for their two most probable classes, and draw them on sheets."""
        arrays, self._uncertain = collect_uncertain(
            self.folder,
            self._classifier,
            self._chosen,
            self.cells,
            self._explainers,
            min_probability=min_probability,
            batch_size=self._batch_size,
            progress=self._progress,
        )
        if arrays is None:
            return
        folder = self.paths["uncertain"] = self.folder.path / _SHEETS
        columns = ["cell_id", "label", "reason", "first", "second", "p_first", "p_second"]
        rows = self._uncertain["row"].to_numpy(np.int64)
        starts = range(0, len(rows), _PER_SHEET)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for sheet, start in enumerate(starts, start=1):
                places = range(start, min(start + _PER_SHEET, len(rows)))
                shown = [
                    UncertainCell(
                        **_values(self._uncertain, place, *columns),
                        patch=patch,
                        maps=self._maps_of(arrays, place),
                    )
                    for place, patch in zip(places, self._chosen.read(rows[list(places)]), strict=True)
                ]
                content = to_png(uncertain_figure(shown, arrays.methods))
                write_atomically(folder / f"sheet-{sheet:03d}.png", content)
            for left in sorted(folder.glob("sheet-*.png"))[len(starts) :]:
                left.unlink()

    def result(self, started: float, notes: Sequence[str]) -> ExplanationResult:
        """Return the result, with `notes` before those on the maps; `started` is ``time.monotonic()`` at the start."""
        notes = (*notes, *_notes_on(self._classifier, self._explainers, self.arrays, len(self._chosen)))
        return ExplanationResult(
            self.folder.path,
            self.cells,
            tuple(self._explainers),
            self.paths,
            time.monotonic() - started,
            self._done_before,
            self._uncertain,
            notes,
        )

    def _maps_of(self, arrays: MapArrays, row: int) -> dict[str, npt.NDArray[np.float32]]:
        return {name: self._in_patch(arrays.maps(name, row)) for name in arrays.methods}

    def _in_patch(self, maps: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return maps_to_patch(maps, self._classifier.patch_size, self._classifier.input_spec)


def _values(table: pd.DataFrame, row: int, *columns: str) -> dict[str, Any]:
    return {column: table[column].iloc[row] for column in columns}


def _unnamed(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return the identity of an explainer without its name, which a folder of maps records as the key."""
    return {key: value for key, value in identity.items() if key != "name"}


def _notes_on(
    classifier: Classifier, explainers: Mapping[str, MadeExplainer], arrays: MapArrays, count: int
) -> list[str]:
    """Return remarks on these maps for the reader, one line each.

    They are the notes of the explainers and the number of empty maps, which are a finding and not an error.
    """
    notes = []
    for name, named in explainers.items():
        notes += [f"{name}: {printable(str(note))}" for note in complete_explainer(named.value).notes(classifier)]
        empty = sum(not np.any(arrays.maps(name, row) > 0) for row in range(count))
        if empty:
            notes.append(f"{name} gives an empty map for {empty:,} of {count:,} cells")
    return notes
