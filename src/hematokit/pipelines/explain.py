"""Explaining cells, with the maps, the tables and the pictures, in one call."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from hematokit.errors import ExplanationError
from hematokit.evaluation.predictor import open_training_store, scale_mismatch
from hematokit.explanation.folder import (
    ExplanationFolder,
    MapArrays,
    check_threshold,
    collect_doubt,
    collect_maps,
    writing,
)
from hematokit.explanation.running import make_explainers
from hematokit.explanation.selection import PREDICTED, ChosenCells, cells_of_images, cells_of_store, target_chooser
from hematokit.files import write_atomically
from hematokit.imaging.reading import printable
from hematokit.models import find_bundle, load_model
from hematokit.plugins import MadeExplainer
from hematokit.progress import Progress, no_progress
from hematokit.reports.attributions import CellDrawer, draw_classes, draw_doubt

if TYPE_CHECKING:
    from hematokit.models import Classifier
    from hematokit.store import PatchStore

__all__ = ["DEFAULT_METHODS", "ExplanationResult", "explain"]

DEFAULT_METHODS: Final = ("grad-cam", "smoothgrad")
PICTURES, CLASSES_FIGURE, DOUBT_FOLDER = "cells", "classes.png", "doubt"

Options = Mapping[str, Mapping[str, object]]


@dataclass(frozen=True)
class ExplanationResult:
    """What came out of explaining cells.

    Attributes
    ----------
    output : Path
        Folder of results.
    cells : DataFrame
        One row a cell, aligned with the arrays: identity, ``predicted``, ``probability``, ``p_<CODE>``, ``target``.
    methods : tuple of str
    paths : dict of str to Path
        ``attributions`` (the Zarr group), ``cells``, ``pictures``, ``figure``, and ``doubt`` where asked for.
    seconds : float
    done_before : int
        Cells of an earlier call that were not done again.
    doubtful : DataFrame or None
        The cells in doubt, where asked for.
    notes : tuple of str
        What the reader should mind.
    """

    output: Path
    cells: pd.DataFrame
    methods: tuple[str, ...]
    paths: dict[str, Path]
    seconds: float
    done_before: int = 0
    doubtful: pd.DataFrame | None = None
    notes: tuple[str, ...] = field(default=())

    def maps(self, method: str) -> np.ndarray:
        """All maps of a method, float32 (N, S, S), in pixels of the network's input."""
        import zarr

        return np.asarray(zarr.open_group(self.paths["attributions"], mode="r")[method])

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        known = self.cells[self.cells["label"] != ""] if "label" in self.cells.columns else self.cells.iloc[:0]
        return {
            "output": str(self.output),
            "cells": len(self.cells),
            "done_before": self.done_before,
            "methods": list(self.methods),
            "targets": {str(code): int(count) for code, count in self.cells["target"].value_counts().items()},
            "misclassified": int((known["label"] != known["predicted"]).sum()),
            "doubtful": None if self.doubtful is None else len(self.doubtful),
            "seconds": round(self.seconds, 3),
            "notes": list(self.notes),
            "paths": {name: str(path) for name, path in self.paths.items()},
            "research_use_only": True,
        }

    def lines(self) -> list[str]:
        """The summary for a person, one statement per line."""
        again = f" ({self.done_before:,} of them before)" if self.done_before else ""
        lines = [f"{len(self.cells):,} cells explained by {', '.join(self.methods)}{again}, {self.seconds:.1f} s"]
        lines += [f"Warning: {note}" for note in self.notes]
        if self.doubtful is not None:
            lines.append(f"In doubt (misclassified or unsure): {len(self.doubtful):,} cells")
        lines += [f"{name.capitalize()}: {path}" for name, path in self.paths.items()]
        lines.append("For research use only")
        return lines


def explain(
    model: str | Path,
    output: str | Path,
    *,
    store: str | Path | None = None,
    images: Sequence[str | Path] | None = None,
    cells: Sequence[str] | None = None,
    split: str = "test",
    per_class: int | None = 4,
    methods: Sequence[str] = DEFAULT_METHODS,
    options: Options | None = None,
    target: str = PREDICTED,
    doubt: bool = False,
    unsure_below: float = 0.5,
    pictures: bool = True,
    device: str = "auto",
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress = no_progress,
) -> ExplanationResult:
    """Explain cells of a store, or images.

    Writes ``attributions.zarr`` (one float32 array a method, in pixels of the network's input), ``cells.parquet``
    (aligned by row), a picture a cell, and ``classes.png`` (the HematoNet paper's Fig. 8: one cell a class, below it
    its maps). Called again after a stop, it goes on with what is not done.

    Parameters
    ----------
    model : path
        Run or bundle.
    output : path
        Folder of results; new, empty, or from an earlier call with the same model, cells and settings.
    store : path, optional
        By default the one the run was trained on.
    images : sequence of path, optional
        Image files or folders of them instead; a folder named after a class gives its label.
    cells : sequence of str, optional
        Exactly these cells of the store.
    split : str
        Else cells of this split, or ``"all"``.
    per_class : int or None
        Of these, so many of each class, drawn at random; None: all.
    methods : sequence of str
        Names of registered explainers.
    options : mapping of str to mapping, optional
        Options by method.
    target : str
        The class explained: ``"predicted"``, ``"true"``, or a class code.
    doubt : bool
        Also draw sheets of the cells that are misclassified or unsure: maps for their two leading classes, and the
        difference.
    unsure_below : float
        Probability below which a cell is unsure.
    pictures : bool
        Draw a picture of each cell.
    device : str
    batch_size : int
        Cells at a time; maps do not depend on it.
    seed : int
        Of the draw of cells, and of explainers that have chance in them.
    progress : Progress
        Told how many cells are done; raising from it stops the work, and what is done is kept.

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
    >>> result = explain("runs/coatnet", "why", per_class=2)  # doctest: +SKIP
    >>> result.maps("grad-cam").shape  # doctest: +SKIP
    (16, 224, 224)
    """
    started = time.monotonic()
    check_threshold(unsure_below)
    if images is not None and (store is not None or cells is not None):
        raise ExplanationError("images were given and a store or its cells too; give one of --images and --store")
    bundle = find_bundle(model)
    explainers = make_explainers(methods, options, seed=seed)
    classifier = load_model(bundle, device=device, runtime="torch")
    opened = None if images is not None else _open(classifier, Path(model), store)
    if opened is None:
        paths = [Path(image) for image in images or ()]
        chosen = cells_of_images(paths, classifier.codes, classifier.patch_size)
    else:
        chosen = cells_of_store(opened, classifier.codes, cell_ids=cells, split=split, per_class=per_class, seed=seed)
    mismatch = scale_mismatch(classifier, chosen.cells, opened)
    return write_explanation(
        output,
        classifier,
        chosen,
        explainers,
        target=target,
        doubt=doubt,
        unsure_below=unsure_below,
        pictures=pictures,
        batch_size=batch_size,
        started=started,
        notes=[mismatch] if mismatch else [],
        progress=progress,
    )


def write_explanation(
    output: str | Path,
    classifier: Classifier,
    chosen: ChosenCells,
    explainers: Mapping[str, MadeExplainer],
    *,
    target: str,
    doubt: bool,
    unsure_below: float,
    pictures: bool,
    batch_size: int,
    started: float,
    deciding: Mapping[str, object] | None = None,
    lay_over: Callable[[Path, pd.DataFrame, MapArrays], Path] | None = None,
    notes: Sequence[str] = (),
    progress: Progress = no_progress,
) -> ExplanationResult:
    """Explain chosen cells and write everything: what `explain` and `explain_field` have in common.

    Parameters
    ----------
    output : path
    classifier : Classifier
        From a bundle.
    chosen : ChosenCells
    explainers : mapping of str to MadeExplainer
    target, doubt, unsure_below, pictures, batch_size, progress
        As for `explain`.
    started : float
        ``time.monotonic()`` when the work began.
    deciding : mapping, optional
        What else must be equal for maps to be equal.
    lay_over : callable, optional
        Given the folder, the table and the maps, writes the layers of a whole field and says where.
    notes : sequence of str
        Shown before those on the maps.

    Returns
    -------
    ExplanationResult
    """
    choose = target_chooser(target, chosen.cells, classifier.codes)
    identity = {
        "model": classifier.identity,
        "cells": chosen.content,
        "target": target,
        "methods": {name: _unnamed(made.identity()) for name, made in explainers.items()},
        **(deciding or {}),
    }
    folder = ExplanationFolder(Path(output), identity)
    before = folder.done("attributions")
    drawer = CellDrawer(folder.path / PICTURES, chosen, classifier) if pictures else None
    arrays, table = collect_maps(
        folder, classifier, chosen, choose, explainers, batch_size=batch_size, each=drawer, progress=progress
    )
    paths = {"attributions": arrays.path, "cells": folder.path / "cells.parquet"}
    if drawer is not None:
        paths["pictures"] = drawer.folder
    progress(len(chosen), len(chosen), "drawing")
    figure = draw_classes(classifier, chosen, table, arrays)
    if figure is not None:
        paths["figure"] = folder.path / CLASSES_FIGURE
        with writing(folder.path):
            write_atomically(paths["figure"], figure)
    if lay_over is not None:
        paths["saliency"] = lay_over(folder.path, table, arrays)
    doubtful = None
    if doubt:
        doubt_arrays, doubtful = collect_doubt(
            folder,
            classifier,
            chosen,
            table,
            explainers,
            unsure_below=unsure_below,
            batch_size=batch_size,
            progress=progress,
        )
        if doubt_arrays is not None:
            paths["doubt"] = draw_doubt(folder.path / DOUBT_FOLDER, classifier, chosen, doubtful, doubt_arrays)
    told = (*notes, *notes_on(classifier, explainers, arrays, len(chosen)))
    seconds = time.monotonic() - started
    return ExplanationResult(Path(output), table, tuple(explainers), paths, seconds, before, doubtful, told)


def _open(classifier: Classifier, model: Path, store: str | Path | None) -> PatchStore:
    opened = open_training_store(classifier, model, store, ExplanationError)
    if opened.patch_size != classifier.patch_size:
        raise ExplanationError(
            f"store {opened.path} has patches of {opened.patch_size} px and {model} takes {classifier.patch_size} px; "
            "import the images again with that patch size"
        )
    return opened


def notes_on(
    classifier: Classifier, explainers: Mapping[str, MadeExplainer], arrays: MapArrays, count: int
) -> tuple[str, ...]:
    """What the reader of these maps should mind, one line each.

    An explainer may say so itself, by a method ``notes(classifier) -> sequence of str``; and an empty map is a
    finding, not a fault.
    """
    notes = []
    for name, named in explainers.items():
        own = getattr(named.value, "notes", None)
        if callable(own):
            notes += [f"{name}: {printable(str(note))}" for note in own(classifier)]
        empty = sum(not np.any(arrays.maps(name, row) > 0) for row in range(count))
        if empty:
            notes.append(f"{name} finds nothing that speaks for the class in {empty:,} of {count:,} cells")
    return tuple(notes)


def _unnamed(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return an explainer's identity as a folder of maps records it: by name, which is not repeated."""
    return {key: value for key, value in identity.items() if key != "name"}
