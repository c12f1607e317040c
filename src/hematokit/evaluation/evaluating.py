"""Classifying the cells of a split or of a folder, and scoring what came out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from hematokit._version import __version__
from hematokit.errors import EvaluationError, HematokitError, ModelError, some_of
from hematokit.evaluation.metrics import OVERALL_METRICS, Scores, score
from hematokit.evaluation.sources import ALL_CELLS, EvaluatedCells, ImageCells, StoreCells, scale_mismatch
from hematokit.models.config import TrainingRecord
from hematokit.models.model import Model
from hematokit.progress import Progress, no_progress
from hematokit.store import PatchStore, open_store
from hematokit.store.smears import on_several_sides
from hematokit.taxonomy import MATEK_21, REST, Taxonomy

__all__ = ["Evaluation", "evaluate_images", "evaluate_store"]

METRICS_VERSION: Final = 1


@dataclass(frozen=True)
class Evaluation:
    """A classifier's predictions on some cells, and their scores where labels are known.

    Attributes
    ----------
    predictions : DataFrame
        ``cell_id, source, label, predicted, probability, p_<CODE>..., group``; `label` is empty where unknown. With a
        one-vs-rest classifier `label` is the code or ``"rest"``, and ``original_label`` the class itself.
    scores : Scores or None
        ``None`` where no cell has a label that the classifier knows.
    taxonomy : Taxonomy
        The classifier's classes.
    left_out : dict of str to int
        Cells without a part in the scores, by label (``""``: no label).
    rejects : DataFrame
        Images that could not be used: ``source``, ``reason``, ``message``.
    distribution : DataFrame
        Cells by class code (rows) and split (columns).
    training : TrainingRecord
        Training record of the bundle.
    about : dict
        Provenance: model, data, time and version.
    notes : tuple of str
        Warnings for the reader of the metrics.
    read_patches : callable
        Positions in `predictions` -> their patches, uint8 ``(k, P, P, 3)``.
    paths : dict of str to Path
        Files written: ``metrics``, ``predictions``, ``table2``, ``report``, ``picture``, ``rejects``, those that
        there are; empty until they are written.
    """

    predictions: pd.DataFrame
    scores: Scores | None
    taxonomy: Taxonomy
    left_out: dict[str, int]
    rejects: pd.DataFrame
    distribution: pd.DataFrame
    training: TrainingRecord
    about: dict[str, Any]
    notes: tuple[str, ...]
    read_patches: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.uint8]] = field(repr=False)
    paths: dict[str, Path] = field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, Any]:
        """The content of ``metrics.json``; without labels, all scores are ``None`` and ``n`` is 0."""
        if self.scores is None:
            figures: dict[str, Any] = {**dict.fromkeys(OVERALL_METRICS), "n": 0, "intervals": {}, "per_class": {}}
        else:
            figures = self.scores.to_dict()
            figures["neighbour_confusions"] = self.scores.neighbour_confusions(self.taxonomy)
        return {
            **figures,
            "predicted_cells": len(self.predictions),
            "left_out": self.left_out,
            "rejected_images": len(self.rejects),
            "notes": list(self.notes),
            "evaluated": self.about,
            "metrics_version": METRICS_VERSION,
        }


def evaluate_store(
    model: Model,
    store: PatchStore,
    split: str = "test",
    *,
    batch_size: int = 64,
    seed: int = 0,
    bootstrap: int = 1000,
    progress: Progress = no_progress,
) -> Evaluation:
    """Classify and score one split of a store.

    The store's taxonomy may differ from the classifier's: classes are matched by code, and cells of other classes
    are left out and counted. For a one-vs-rest classifier every other class is the rest.

    Parameters
    ----------
    model : Model
        The classifier.
    store : PatchStore
        Any store with patches of the classifier's size.
    split : str
        ``"train"``, ``"val"``, ``"test"``, or ``"all"``.
    batch_size : int
        Patches classified at a time.
    seed, bootstrap : int
        See `hematokit.evaluation.metrics.score`.
    progress : Progress
        Called with the number of cells that are done.

    Returns
    -------
    Evaluation

    Raises
    ------
    EvaluationError
        If the patch sizes differ, there is no such split, or none of its cells has a class the classifier knows.
    StoreError
        If the store is damaged.
    """
    if store.patch_size != model.patch_size:
        raise EvaluationError(
            f"store {store.path} has patches of {store.patch_size} px, the model takes {model.patch_size} px; "
            f"import the images again with --patch-size {model.patch_size} (and --resize or --pad)"
        )
    source = StoreCells(store, split)
    truth = _true_codes(source.cells["label"], model)
    wanted = np.flatnonzero(truth.to_numpy() != "")
    if not len(wanted):
        found = ", ".join(sorted(set(source.cells["label"]) - {""})) or "no labels at all"
        raise EvaluationError(
            f"split {split!r} of store {store.path} has no cell of a class that the model knows "
            f"({', '.join(model.codes)}); it has: {found}"
        )
    training = model.config.training
    own = training.store_hash == store.content_hash
    about = {"store": str(store.path), **data_identity(store), "split": split, "images": None}
    notes = [
        *_split_notes(training, store, split, own),
        *_seen_notes(model, store, source.cells["pixel_sha256"], own, source.cells["patient_id"]),
        *_scale_notes(scale_mismatch(model, source.cells.iloc[wanted], store)),
    ]
    cells = _Cells(source, truth, wanted, about, _distribution(store), notes)
    return _evaluate(model, cells, batch_size=batch_size, seed=seed, bootstrap=bootstrap, progress=progress)


def data_identity(store: PatchStore) -> dict[str, Any]:
    """Return the hashes of a store on which metrics depend: ``store_hash`` and ``split_hash``."""
    return {"store_hash": store.content_hash, "split_hash": (store.split_info or {}).get("hash")}


def evaluate_images(
    model: Model,
    folder: str | Path,
    *,
    batch_size: int = 64,
    seed: int = 0,
    bootstrap: int = 1000,
    progress: Progress = no_progress,
) -> Evaluation:
    """Classify the images of a folder, and score those in folders named after a class.

    Parameters
    ----------
    model : Model
        The classifier.
    folder : path
        Images of the classifier's patch size, at any depth.
    batch_size, seed, bootstrap, progress
        As in `evaluate_store`.

    Returns
    -------
    Evaluation
        Its `rejects` list the images that could not be used; its `scores` are ``None`` where no image has a label.

    Raises
    ------
    EvaluationError
        If the folder is missing or has no image that can be used.
    """
    training = model.config.training
    # Classes that were excluded in training are labels too: their images are known, and known to be left out.
    counted = training.counts or {}
    known = {*model.codes, *MATEK_21.codes, *(code for part in counted.values() for code in part)}
    known = (known | training.without_part) - {REST if training.one_vs_rest else ""}
    source = ImageCells(Path(folder), frozenset(known), model.patch_size)
    truth = _true_codes(source.cells["label"], model)
    everything = np.arange(len(truth), dtype=np.int64)
    about = {"store": None, "store_hash": None, "split_hash": None, "split": None, "images": str(folder)}
    cells = _Cells(source, truth, everything, about, _counts_frame(counted))
    evaluation = _evaluate(model, cells, batch_size=batch_size, seed=seed, bootstrap=bootstrap, progress=progress)
    # Hashes and pixel sizes are known now that the images were read; those that could not be have no hash.
    digests = source.cells["pixel_sha256"]
    notes = _seen_notes(model, None, digests[digests != ""], False)
    notes += _scale_notes(scale_mismatch(model, source.cells))
    if len(evaluation.rejects):
        notes.append(f"{len(evaluation.rejects)} image files could not be used; rejects.csv says which and why.")
    return replace(evaluation, notes=tuple(notes))


@dataclass(frozen=True)
class _Cells:
    """The cells to evaluate, and what is known of them before they are classified.

    Attributes
    ----------
    source : EvaluatedCells
    truth : Series of str
        Class of each cell of `source` as the classifier names it; empty where it has none.
    wanted : ndarray (n,), int64
        Positions of the cells to classify.
    about : dict
        Where they are from, for `Evaluation.about`.
    distribution : DataFrame
        See `Evaluation`.
    notes : list of str
        See `Evaluation`.
    """

    source: EvaluatedCells
    truth: pd.Series
    wanted: npt.NDArray[np.int64]
    about: dict[str, Any]
    distribution: pd.DataFrame
    notes: list[str] = field(default_factory=list)


def _evaluate(
    model: Model, cells: _Cells, *, batch_size: int, seed: int, bootstrap: int, progress: Progress
) -> Evaluation:
    """Classify cells and score those with a label."""
    started = datetime.now(UTC)
    source = cells.source
    places, probabilities = _classified(model, cells, batch_size, progress)
    table = _predictions(model, source.cells.iloc[places], cells.truth.iloc[places], probabilities)
    labelled = (table["label"] != "").to_numpy()
    scores = None
    if labelled.any():
        progress(len(table), len(table), "computing intervals")
        scored = table[labelled]
        scores = score(
            scored["label"].to_numpy(), probabilities[labelled], model.codes, scored["group"], seed, bootstrap
        )
    used = np.zeros(len(source.cells), dtype=bool)
    used[places[labelled]] = True
    rejected = set(source.rejects["source"])
    outside = source.cells[~used & ~source.cells["source"].isin(rejected)]["label"].value_counts()
    config = model.config
    about = {
        **cells.about,
        "backbone": config.backbone.name,
        "variant": config.backbone.variant,
        "model_created": config.created,
        "temperature": float(model.temperature),
        "bootstrap": bootstrap,
        "seed": seed,
        "hematokit_version": __version__,
        "created": started.isoformat(timespec="seconds"),
        "seconds": round((datetime.now(UTC) - started).total_seconds(), 1),
    }
    return Evaluation(
        predictions=table,
        scores=scores,
        taxonomy=model.taxonomy,
        left_out={str(label): int(count) for label, count in sorted(outside.items())},
        rejects=source.rejects,
        distribution=cells.distribution,
        training=model.config.training,
        about=about,
        notes=tuple(cells.notes),
        read_patches=lambda positions: source.read(places[positions]),
    )


def _classified(
    model: Model, cells: _Cells, batch_size: int, progress: Progress
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return the positions (n,) of the cells that could be read, and their probabilities (n, C)."""
    wanted = len(cells.wanted)
    columns = [f"p_{code}" for code in model.codes]
    places = np.empty(wanted, dtype=np.int64)
    probabilities = np.empty((wanted, len(columns)), dtype=np.float32)
    done = 0
    progress(0, wanted, "")
    for part, patches in cells.source.batches(cells.wanted, batch_size):
        rows = slice(done, done + len(part))
        probabilities[rows] = model.predict(patches, batch_size=batch_size)[columns].to_numpy(dtype=np.float32)
        places[rows] = part
        done = rows.stop
        progress(done, wanted, "")
    if not done:
        first = cells.source.rejects["message"].iloc[0]
        raise EvaluationError(f"none of the {wanted} images can be used; the first one: {first}")
    if not np.isfinite(probabilities[:done]).all():
        raise ModelError("the model gives probabilities that are not finite; its weights are damaged: train it again")
    return places[:done], probabilities[:done]


def _predictions(
    model: Model, cells: pd.DataFrame, truth: pd.Series, probabilities: npt.NDArray[np.float32]
) -> pd.DataFrame:
    """Return the table `Evaluation.predictions`."""
    best = probabilities.argmax(axis=1)
    table: dict[str, Any] = {
        "cell_id": cells["cell_id"].to_numpy(),
        "source": cells["source"].to_numpy(),
        "label": truth.to_numpy(dtype=object),
        "predicted": np.array(model.codes, dtype=object)[best],
        "probability": probabilities[np.arange(len(best)), best],
        **{f"p_{code}": probabilities[:, index] for index, code in enumerate(model.codes)},
        "group": cells["group"].to_numpy(),
    }
    if model.config.training.one_vs_rest:
        table["original_label"] = cells["label"].to_numpy()
    return pd.DataFrame(table)


def _true_codes(labels: pd.Series, model: Model) -> pd.Series:
    """Label of each cell as the classifier has it; empty where it has none."""
    training = model.config.training
    one = training.one_vs_rest
    given = labels.astype(object)
    if one:
        known = (given != "") & ~given.isin(list(training.without_part))
        return given.where(given == one, REST).where(known, "")
    return given.where(given.isin(list(model.codes)), "")


def _split_notes(training: TrainingRecord, store: PatchStore, split: str, own: bool) -> list[str]:
    notes = []
    same_place = bool(training.store) and Path(training.store or "").resolve() == store.path.resolve()
    if same_place and not own:
        notes.append("The store has changed since the training: cells or labels were added, removed or corrected.")
    if not (own or same_place):
        return notes
    if split in ("train", ALL_CELLS):
        notes.append("These cells include the ones the model was trained on: the figures say nothing about new cells.")
    if split == "val":
        notes.append("The validation cells chose the epoch and the temperature: the figures are somewhat too good.")
    then = training.trained_split_hash
    now = (store.split_info or {}).get("hash")
    if then and now and then != now and split != ALL_CELLS:
        notes.append(
            "The store was split again since the training: cells evaluated here may have been trained on, "
            "and the figures may be far too good. Train again, or restore the split with its seed."
        )
    patients, groups = (on_several_sides(store.cells, column) for column in ("patient_id", "group"))
    if patients or groups:
        what = f"{len(patients)} patients ({some_of(patients)})" if patients else f"{len(groups)} groups of duplicates"
        notes.append(f"The split divides the cells of {what}: the figures may be too good. Split and train again.")
    return notes


def _seen_notes(
    model: Model, store: PatchStore | None, digests: pd.Series, own: bool, patients: pd.Series | None = None
) -> list[str]:
    """Look for cells from elsewhere, and their patients, among those trained on, if that store is in reach."""
    stated = model.config.training.store
    if own or not stated or (store is not None and Path(stated).resolve() == store.path.resolve()):
        return []
    try:
        trained = open_store(stated).cells
    except HematokitError:
        return ["The store the model was trained on is out of reach: whether these cells were trained on is not known."]
    trained = trained[trained["split"].isin(["train", "val"])]
    notes = []
    seen = int(digests.isin(set(trained["pixel_sha256"])).sum())
    if seen:
        notes.append(
            f"{seen} of {len(digests)} cells are, pixel for pixel, cells of the training or validation split: too good."
        )
    known = 0 if patients is None else int(patients.isin(set(trained["patient_id"]) - {""}).sum())
    if known:
        notes.append(
            f"{known} of {len(digests)} cells have a patient_id of the training or validation split: if these are the "
            "same patients, the figures are too good."
        )
    return notes


def _scale_notes(said: str) -> list[str]:
    return [f"{said[:1].upper()}{said[1:]}."] if said else []


def _counts_frame(counts: dict[str, dict[str, int]]) -> pd.DataFrame:
    """Counts that a bundle states, ``{split: {code: cells}}``, as a table; empty where it states none."""
    parts = {split: pd.Series(part) for split, part in counts.items() if part}
    return pd.DataFrame(parts).fillna(0).astype(int) if parts else pd.DataFrame()


def _distribution(store: PatchStore) -> pd.DataFrame:
    cells = store.cells
    cells = cells[cells["label"] != ""]
    table = pd.crosstab(cells["label"], cells["split"].replace("", "no split"))
    order = [name for name in ("train", "val", "test", "no split") if name in table.columns]
    return table[order]
