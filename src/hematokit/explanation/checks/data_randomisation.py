"""Does an explanation depend on what the model learned? The data-randomisation test of Adebayo et al. (2018).

The same network is trained twice with the same settings and the same seed: on the labels, and on labels that were
shuffled among the training cells. Maps that stay alike say nothing about what tells the classes apart. A third
training, on the true labels with another seed, shows how far maps of two models differ anyhow.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from hematokit.errors import StoreError
from hematokit.explanation.checks.sanity import (
    LEAST_CHANGE,
    Groups,
    Maps,
    Verdict,
    attribute_in_batches,
    compare_maps,
    judge,
    similarity_to_others,
)
from hematokit.explanation.checks.similarity import Estimate, bootstrapped_mean, has_signs
from hematokit.files import shell_word
from hematokit.models.classifier import Classifier
from hematokit.models.loading import load_model
from hematokit.pipelines.train import train
from hematokit.plugins.specs import Explainer
from hematokit.progress import Progress, no_progress
from hematokit.store import PatchStore, StoreWriter, create_store, open_store

__all__ = [
    "LEAST_FIT",
    "SMALL_TRAINING",
    "DataRandomisation",
    "Trained",
    "Twins",
    "data_randomisation",
    "shuffled_labels",
    "train_twins",
]

SMALL_TRAINING: Final[Mapping[str, Any]] = {
    # Shuffled labels can only be learned by heart, which augmentation is made to prevent.
    "augmenter": "none",
    "augmenter_options": {},
    "balance": "none",
    "target_per_class": None,
    "epochs": 15,
    "warmup": 1.0,
    "patience": 0,
    "stop_after": None,
}
"""What the small trainings change in a model's own settings, unless told otherwise."""

LEAST_FIT: Final = 0.5
"""Share of the shuffled labels that a model must have learned for its maps to stand for them."""

_READ = 256


@dataclass(frozen=True)
class Trained:
    """One of the small models.

    Attributes
    ----------
    classifier : Classifier
    fit : float
        Share of its training cells that it gets right, by the labels it was given.
    """

    classifier: Classifier
    fit: float


@dataclass(frozen=True)
class Twins:
    """Models trained alike, on true and on shuffled labels.

    Attributes
    ----------
    true, shuffled : Trained
        Same settings, same seed.
    other_seed : Trained or None
        True labels, another seed.
    cells : int
        Training cells of each.
    settings : dict
        Of the trainings.
    """

    true: Trained
    shuffled: Trained
    other_seed: Trained | None
    cells: int
    settings: dict[str, Any]


@dataclass(frozen=True)
class DataRandomisation:
    """One explainer's maps by twins.

    Attributes
    ----------
    table : DataFrame
        Rows ``repeated``, ``shuffled labels``, ``other seed`` (where there is one) and ``other cells``; columns
        ``model`` and the similarities to the true-label model's map of the same cell, as in `ParameterRandomisation`.
    seed_minus_shuffled : dict of str to Estimate
        How much closer another seed stays than shuffled labels, by measure; empty without a third model.
    signed : bool
    verdict : Verdict
    cells : int
    examples : dict of str to ndarray (k, H, W), float32
        Maps of the example cells by model.
    """

    table: pd.DataFrame
    seed_minus_shuffled: Mapping[str, Estimate]
    signed: bool
    verdict: Verdict
    cells: int
    examples: Mapping[str, Maps] = field(default_factory=dict, repr=False)


def shuffled_labels(labels: npt.ArrayLike, seed: int) -> npt.NDArray[np.object_]:
    """Return labels in random order: each class keeps its number of cells, and a cell's label tells nothing of it."""
    given = np.asarray(labels, dtype=object)
    return given[np.random.default_rng(seed).permutation(len(given))]


def train_twins(
    store: PatchStore,
    settings: Mapping[str, Any],
    *,
    per_class: int | None = 100,
    other_seed: bool = True,
    seed: int = 0,
    device: str = "auto",
    folder: str | Path | None = None,
    progress: Progress = no_progress,
) -> Twins:
    """Train the same network on true and on shuffled labels, through `hematokit.pipelines.train.train`.

    The training cells are copied to a temporary store that has nothing but a training split, so that no validation
    figure picks an epoch: with shuffled labels it would pick an untrained one.

    Parameters
    ----------
    store : PatchStore
        Store with a training split; it is only read.
    settings : mapping
        Settings of `hematokit.training.settings.TrainConfig`; those of the model in question, changed by
        `SMALL_TRAINING`. ``store``, ``output``, ``seed`` and ``device`` are replaced.
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
        Told how many cells were trained on in the training under way.

    Returns
    -------
    Twins

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
    return Twins(true, shuffled, third, len(cells), given)


def data_randomisation(
    twins: Twins,
    explainer: Explainer,
    patches: npt.NDArray[np.uint8],
    labels: Sequence[str],
    *,
    seed: int = 0,
    batch_size: int = 16,
    groups: Groups = None,
    examples: Sequence[int] = (),
    progress: Progress = no_progress,
) -> DataRandomisation:
    """Compare an explainer's maps of models trained on true and on shuffled labels.

    Parameters
    ----------
    twins : Twins
        From `train_twins`.
    explainer : Explainer
    patches : ndarray (n, P, P, 3), uint8
        Cells that none of the models was trained on; at least two.
    labels : sequence of str
        The class whose score is explained, for each cell.
    seed : int
        Of the choice of other cells and the intervals.
    batch_size, groups, examples, progress
        As in `hematokit.explanation.checks.sanity.parameter_randomisation`.

    Returns
    -------
    DataRandomisation

    Notes
    -----
    The verdict is that of `hematokit.explanation.checks.sanity.judge` for the model on shuffled labels, with two
    reservations. A change counts as *unclear* if that model has not learned its labels (less than `LEAST_FIT`), or if
    the maps of a model with another seed are not closer by at least `LEAST_CHANGE` in rank correlation and with the
    whole 95 % interval above 0: two trainings differ anyhow, and the original test cannot tell that from an answer to
    the labels. (The interval is over cells; it does not know the chance of three trainings, hence the least
    difference.)
    """
    true = twins.true.classifier
    images = true.prepare(torch.from_numpy(np.array(patches)))
    targets = torch.tensor([true.codes.index(label) for label in labels])
    models = {"true labels": true, "repeated": true, "shuffled labels": twins.shuffled.classifier}
    if twins.other_seed is not None:
        models["other seed"] = twins.other_seed.classifier
    maps: dict[str, Maps] = {}
    for number, (name, model) in enumerate(models.items()):
        report = partial(_within, progress, number * len(images), len(models) * len(images), name)
        maps[name] = attribute_in_batches(
            explainer, model.eval(), images, targets, batch_size=batch_size, progress=report
        )
    original = maps.pop("true labels")
    signed = has_signs(original)
    found = {name: compare_maps(original, other, signed=signed) for name, other in maps.items()}
    found["other cells"] = similarity_to_others(original, seed, signed=signed)
    rows = []
    for name, similar in found.items():
        row: dict[str, Any] = {"model": name}
        for measure, values in similar.items():
            estimate = bootstrapped_mean(values, groups, seed=seed)
            row.update({measure: estimate.mean, f"{measure}_low": estimate.low, f"{measure}_high": estimate.high})
        rows.append(row)
    closer = {}
    if "other seed" in found:
        closer = {
            measure: bootstrapped_mean(values - found["shuffled labels"][measure], groups, seed=seed)
            for measure, values in found["other seed"].items()
            if np.isfinite(values).all()
        }
    return DataRandomisation(
        table=pd.DataFrame(rows),
        seed_minus_shuffled=closer,
        signed=signed,
        verdict=_judge_labels(
            judge(found["repeated"], found["shuffled labels"], found["other cells"], groups, seed=seed), twins, closer
        ),
        cells=len(images),
        examples={
            "true labels": original[list(examples)],
            **{name: other[list(examples)] for name, other in maps.items() if name != "repeated"},
        },
    )


def _judge_labels(changed: Verdict, twins: Twins, closer: Mapping[str, Estimate]) -> Verdict:
    """Take a change for an answer to the labels only if nothing else explains it."""
    if changed.word != "sensitive":
        return changed
    if twins.shuffled.fit < LEAST_FIT:
        why = (
            f"but the model on shuffled labels has learned only {100 * twins.shuffled.fit:.0f} % of them; train longer"
        )
        return Verdict("unclear", f"{changed.reason}; {why}")
    if "spearman" in closer and not (closer["spearman"].low > 0 and closer["spearman"].mean >= LEAST_CHANGE):
        return Verdict(
            "unclear", f"{changed.reason}; but another seed changes maps about as much as shuffled labels do"
        )
    return changed


def _within(progress: Progress, before: int, total: int, what: str, done: int, _: int | None, __: str) -> None:
    """Report a part of the work as such."""
    progress(before + done, total, what)


def _copy_cells(store: PatchStore, cells: pd.DataFrame, path: Path) -> PatchStore:
    copied = create_store(path, patch_size=store.patch_size, taxonomy=store.taxonomy)
    with StoreWriter(copied) as writer:
        for start in range(0, len(cells), _READ):
            part = cells.iloc[start : start + _READ]
            writer.append(store.read_rows(part["row"].to_numpy()), part.drop(columns="row").reset_index(drop=True))
        writer.commit()
        writer.replace_cells(writer.cells, split_info=store.split_info)
    return open_store(path)


def _train(store: PatchStore, output: Path, settings: Mapping[str, Any], what: str, progress: Progress) -> Trained:
    result = train(
        store.path,
        output,
        settings={key: value for key, value in settings.items() if key not in ("store", "output")},
        progress=lambda done, total, message: progress(done, total, f"training on {what}"),
    )
    if result.bundle is None:
        # Training ends in an orderly way when it is interrupted; this check has nothing to go on with then.
        raise KeyboardInterrupt
    classifier = load_model(result.bundle, device=str(settings["device"]), runtime="torch")
    assert isinstance(classifier, Classifier)
    return Trained(classifier, _fit(classifier, store, settings))


def _fit(classifier: Classifier, store: PatchStore, settings: Mapping[str, Any]) -> float:
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
