"""Retraining on true and on shuffled labels, for the data-randomisation test of explanations."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from hematokit.errors import StoreError, shell_word
from hematokit.explanation.checks.data_randomisation import RetrainedModel, RetrainedModels, shuffled_labels
from hematokit.models import load_model
from hematokit.models.classifier import Classifier
from hematokit.pipelines.train import train
from hematokit.progress import Progress, no_progress
from hematokit.store import PatchStore, StoreWriter, create_store, open_store

__all__ = ["retrain_models"]

_READ: Final = 256
"""Patches read at a time."""


def retrain_models(
    store: PatchStore,
    settings: Mapping[str, Any],
    *,
    per_class: int | None = 100,
    other_seed: bool = True,
    seed: int = 0,
    device: str = "auto",
    folder: str | Path | None = None,
    progress: Progress = no_progress,
) -> RetrainedModels:
    """Train the same network on true and on shuffled labels, for the data-randomisation test.

    The training cells are copied to a temporary store that has nothing but a training split, so that no validation
    metric selects an epoch: with shuffled labels it would select an untrained one.

    Parameters
    ----------
    store : PatchStore
        Store with a training split; it is only read.
    settings : mapping
        Settings of `hematokit.training.settings.TrainSettings`; those of the model in question, changed by
        `hematokit.explanation.checks.data_randomisation.SMALL_TRAINING`. ``store``, ``output``, ``seed`` and
        ``device`` are replaced.
    per_class : int, optional
        Training cells of each class, drawn at random; ``None`` for all.
    other_seed : bool
        Train a third model, on true labels with ``seed + 1``.
    seed : int
        Of the trainings, the choice of cells and the shuffling.
    device : str
        As in training.
    folder : path, optional
        Where temporary files go.
    progress : Progress
        Called with the number of cells trained on in the training under way.

    Returns
    -------
    RetrainedModels

    Raises
    ------
    StoreError
        If the store has no labelled training cells.
    TrainingError
        If the settings do not fit.
    """
    cells = store.cells
    cells = cells[(cells["split"] == "train") & (cells["label"] != "")]
    if cells.empty:
        raise StoreError(
            f"store {store.path} has no labelled training cells; run: hematokit split {shell_word(store.path)}"
        )
    if per_class is not None:
        order = np.random.default_rng(seed).permutation(len(cells))
        cells = cells.iloc[order].groupby("label", sort=False).head(per_class).sort_values("row")
    given = {**settings, "device": device, "seed": seed}
    with tempfile.TemporaryDirectory(prefix="hematokit-", dir=folder) as name:
        place = Path(name)
        copied = _copy_cells(store, cells, place / "cells.zarr")
        true = _train(copied, place / "true", given, "true labels", progress)
        third = None
        if other_seed:
            third = _train(copied, place / "seed", {**given, "seed": seed + 1}, "true labels, other seed", progress)
        with StoreWriter(copied) as writer:
            table = writer.cells
            writer.replace_cells(table.assign(label=shuffled_labels(table["label"], seed), label_source="shuffled"))
        shuffled = _train(copied, place / "shuffled", given, "shuffled labels", progress)
    return RetrainedModels(true, shuffled, third, len(cells), given)


def _copy_cells(store: PatchStore, cells: pd.DataFrame, path: Path) -> PatchStore:
    copied = create_store(path, patch_size=store.patch_size, taxonomy=store.taxonomy)
    with StoreWriter(copied) as writer:
        for start in range(0, len(cells), _READ):
            part = cells.iloc[start : start + _READ]
            writer.append(store.read_rows(part["row"].to_numpy()), part.drop(columns="row").reset_index(drop=True))
        writer.commit()
        writer.replace_cells(writer.cells, split_info=store.split_info)
    return open_store(path)


def _train(
    store: PatchStore, output: Path, settings: Mapping[str, Any], labels: str, progress: Progress
) -> RetrainedModel:
    result = train(
        store.path,
        output,
        settings={key: value for key, value in settings.items() if key not in ("store", "output")},
        progress=lambda done, total, message: progress(done, total, f"training on {labels}"),
    )
    if result.bundle is None:
        # An interrupted training returns normally, but this check needs its model.
        raise KeyboardInterrupt
    classifier = load_model(result.bundle, device=str(settings["device"]), runtime="torch")
    assert isinstance(classifier, Classifier)
    return RetrainedModel(classifier, _fit(classifier, store, settings))


def _fit(classifier: Classifier, store: PatchStore, settings: Mapping[str, Any]) -> float:
    """Return the share of training cells that a model classifies as labelled."""
    store.refresh()
    cells = store.cells
    target = settings.get("one_vs_rest")
    if target:
        cells["label"] = np.where(
            cells["label"] == target, target, classifier.codes[1 - classifier.codes.index(target)]
        )
    cells = cells[cells["label"].isin(list(classifier.codes))]
    right = 0
    for start in range(0, len(cells), _READ):
        part = cells.iloc[start : start + _READ]
        best = classifier.logits(store.read_rows(part["row"].to_numpy())).argmax(axis=1)
        right += sum(classifier.codes[index] == label for index, label in zip(best, part["label"], strict=True))
    return right / max(1, len(cells))
