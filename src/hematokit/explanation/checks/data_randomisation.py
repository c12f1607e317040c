"""Does an explanation depend on what the model learned? The data-randomisation test of Adebayo et al. (2018).

The same network is trained twice with the same settings and the same seed: on the labels, and on labels that were
shuffled among the training cells. Maps that stay alike say nothing about what tells the classes apart. A third
training, on the true labels with another seed, shows how far maps of two models differ anyway. The trainings are those
of `hematokit.pipelines.retrain.retrain_models`; here their maps are compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from hematokit.explanation.checks.sanity import (
    LEAST_CHANGE,
    Groups,
    Maps,
    Sensitivity,
    compare_maps,
    judge_change,
    similarity_to_others,
)
from hematokit.explanation.checks.similarity import Estimate, bootstrapped_mean, has_signs
from hematokit.explanation.running import attribute_in_batches
from hematokit.progress import Progress, no_progress, part_of

if TYPE_CHECKING:
    from hematokit.models.classifier import Classifier
    from hematokit.plugins.specs import Explainer

__all__ = [
    "LEAST_FIT",
    "SMALL_TRAINING",
    "DataRandomisation",
    "RetrainedModel",
    "RetrainedModels",
    "data_randomisation",
    "shuffled_labels",
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
"""Settings in which the small trainings differ from the model's own by default."""

LEAST_FIT: Final = 0.5
"""Share of the shuffled labels that a model must have learned for its maps to be judged."""


@dataclass(frozen=True)
class RetrainedModel:
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
class RetrainedModels:
    """Models trained alike, on true and on shuffled labels.

    Attributes
    ----------
    true, shuffled : RetrainedModel
        Same settings, same seed.
    other_seed : RetrainedModel or None
        True labels, another seed.
    cells : int
        Training cells of each.
    settings : dict
        Of the trainings.
    """

    true: RetrainedModel
    shuffled: RetrainedModel
    other_seed: RetrainedModel | None
    cells: int
    settings: dict[str, Any]


@dataclass(frozen=True)
class DataRandomisation:
    """One explainer's maps by models trained on true and on shuffled labels.

    Attributes
    ----------
    table : DataFrame
        Rows ``repeated``, ``shuffled labels``, ``other seed`` (where there is one) and ``other cells``; columns
        ``model`` and the similarities to the true-label model's map of the same cell, as in `ParameterRandomisation`.
    seed_minus_shuffled : dict of str to Estimate
        How much closer another seed stays than shuffled labels, by measure; empty without a third model.
    signed : bool
    sensitivity : Sensitivity
        To the labels.
    cells : int
    examples : dict of str to ndarray (k, H, W), float32
        Maps of the example cells by model.
    """

    table: pd.DataFrame
    seed_minus_shuffled: Mapping[str, Estimate]
    signed: bool
    sensitivity: Sensitivity
    cells: int
    examples: Mapping[str, Maps] = field(default_factory=dict, repr=False)


def shuffled_labels(labels: npt.ArrayLike, seed: int) -> npt.NDArray[np.object_]:
    """Return labels in random order: each class keeps its number of cells, and labels are independent of the cells."""
    given = np.asarray(labels, dtype=object)
    return given[np.random.default_rng(seed).permutation(len(given))]


def data_randomisation(
    models: RetrainedModels,
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
    models : RetrainedModels
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
    The sensitivity is that of `hematokit.explanation.checks.sanity.judge_change` for the model on shuffled labels,
    with two reservations. A change counts as *unclear* if that model has not learned its labels (less than
    `LEAST_FIT`), or if the maps of a model with another seed are not closer by at least `LEAST_CHANGE` in rank
    correlation and with the whole 95 % interval above 0: two trainings differ anyway, and the original test cannot tell
    that from an answer to the labels. (The interval is over cells; it ignores the chance of three trainings, hence the
    least difference.)
    """
    true = models.true.classifier
    images = true.prepare(torch.from_numpy(np.array(patches)))
    targets = torch.tensor([true.codes.index(label) for label in labels])
    by_name = {"true labels": true, "repeated": true, "shuffled labels": models.shuffled.classifier}
    if models.other_seed is not None:
        by_name["other seed"] = models.other_seed.classifier
    maps: dict[str, Maps] = {}
    for number, (name, model) in enumerate(by_name.items()):
        report = part_of(progress, number * len(images), len(by_name) * len(images), name)
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
            row |= bootstrapped_mean(values, groups, seed=seed).columns(measure)
        rows.append(row)
    closer = {}
    if "other seed" in found:
        closer = {
            measure: bootstrapped_mean(values - found["shuffled labels"][measure], groups, seed=seed)
            for measure, values in found["other seed"].items()
            if np.isfinite(values).all()
        }
    changed = judge_change(found["repeated"], found["shuffled labels"], found["other cells"], groups, seed=seed)
    return DataRandomisation(
        table=pd.DataFrame(rows),
        seed_minus_shuffled=closer,
        signed=signed,
        sensitivity=_judge_labels(changed, models, closer),
        cells=len(images),
        examples={
            "true labels": original[list(examples)],
            **{name: other[list(examples)] for name, other in maps.items() if name != "repeated"},
        },
    )


def _judge_labels(changed: Sensitivity, models: RetrainedModels, closer: Mapping[str, Estimate]) -> Sensitivity:
    """Take a change for an answer to the labels only if nothing else explains it."""
    if changed.outcome != "sensitive":
        return changed
    fit = models.shuffled.fit
    if fit < LEAST_FIT:
        why = f"but the model on shuffled labels has learned only {100 * fit:.0f} % of them; train longer"
        return Sensitivity("unclear", f"{changed.reason}; {why}")
    if "spearman" in closer and not (closer["spearman"].low > 0 and closer["spearman"].mean >= LEAST_CHANGE):
        return Sensitivity(
            "unclear", f"{changed.reason}; but another seed changes maps about as much as shuffled labels do"
        )
    return changed
