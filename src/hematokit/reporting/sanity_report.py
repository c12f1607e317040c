"""Do explanations depend on the model? Runs the sanity checks for one or several models and writes the report."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hematokit._version import __version__
from hematokit.errors import ExplanationError, PluginError
from hematokit.explanation.data_randomisation import (
    SMALL_TRAINING,
    Twins,
    data_randomisation,
    train_twins,
)
from hematokit.explanation.sanity import EdgeDetector, parameter_randomisation
from hematokit.progress import Progress, no_progress
from hematokit.reporting.check_documents import sanity_documents
from hematokit.reporting.check_results import (
    CheckResult,
    Options,
    cells_said,
    described,
    explainers_by_name,
    prefixed,
    usable_folder,
    written,
)
from hematokit.reporting.check_subjects import (
    ModelChecks,
    Models,
    Subject,
    code_of,
    load_subject,
    model_names,
    spread_examples,
)

if TYPE_CHECKING:
    from hematokit.specs import Explainer

__all__ = ["CONTROL", "check_sanity"]

CONTROL = "edge detector (control)"


def check_sanity(
    models: Models,
    store: str | Path | None,
    methods: Sequence[str],
    output: str | Path,
    *,
    options: Options | None = None,
    cell_ids: Sequence[str] | None = None,
    split: str = "test",
    per_class: int | None = 6,
    target: str = "predicted",
    blocks: int = 5,
    draws: int = 1,
    labels: bool = True,
    training: Mapping[str, Any] | None = None,
    train_per_class: int | None = 100,
    other_seed: bool = True,
    examples: int = 2,
    seed: int = 0,
    device: str = "auto",
    batch_size: int = 16,
    command: str = "",
    progress: Progress = no_progress,
) -> CheckResult:
    """Check that explanations depend on the model (Adebayo et al. 2018), and write a report.

    Writes ``sanity.html``, ``sanity.json`` and ``sanity.csv``. Nothing is written before all is done, and each file is
    the old one or the whole new one at any time.

    Parameters
    ----------
    models : path, or sequence of paths
        Runs or bundles; all stand in one report.
    store : path or None
        Store with the cells, and with a training split if `labels`; by default the one each model was trained on.
    methods : sequence of str
        Names of registered explainers. An edge detector, which knows no model, is checked beside them as a control.
    output : path
        Folder to write to.
    options : mapping of str to mapping, optional
        Options of the methods.
    cell_ids, split, per_class
        Which cells; see `hematokit.explanation.selection.cells_of_store`.
    target : str
        Class that is explained in the parameter randomisation: ``"predicted"``, ``"true"`` or a code.
    blocks : int
        Divide the network into at least so many blocks, where it can be.
    draws : int
        Cascades with other random weights, averaged.
    labels : bool
        Do the data-randomisation test, too: it trains two or three small models for each model.
    training : mapping, optional
        Settings of these trainings, over the model's own and `SMALL_TRAINING`.
    train_per_class : int, optional
        Their training cells per class; ``None`` for all.
    other_seed : bool
        Train the third one, which shows how far maps of two models differ anyhow.
    examples : int
        Cells whose maps are shown.
    seed : int
        Of everything random.
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"``, ...
    batch_size : int
        Cells explained at a time.
    command : str
        The command line, for the report.
    progress : Progress
        Told what is done of the part under way; raising from it cancels, and nothing is written.

    Returns
    -------
    CheckResult
        ``table``: ``model``, ``backbone``, ``method``, ``parameters`` and ``labels`` (``"sensitive"``, ``"not
        sensitive"``, ``"unclear"`` or empty), with reasons.

    Raises
    ------
    ExplanationError
        If there are fewer than two cells, no method works, or the folder cannot be written.
    PluginError, ModelError, StoreError, TrainingError
        If a method, a model or a store cannot be used.

    Examples
    --------
    >>> result = check_sanity(["runs/coatnet"], "bm.zarr", ["grad-cam"], "checks")  # doctest: +SKIP
    >>> result.table[["method", "parameters", "labels"]]  # doctest: +SKIP
    """
    started = time.monotonic()
    folder = usable_folder(output)
    explainers: dict[str, Explainer] = {
        name: made.explainer for name, made in explainers_by_name(methods, options, seed).items()
    }
    checked, warnings = [], []
    for name, path in model_names(models).items():
        subject = load_subject(name, path, store, cell_ids, split, per_class, target, seed, device)
        warnings += subject.warnings
        if len(subject.images) < 2:
            raise ExplanationError("the check compares cells with each other and needs two or more; give more cells")
        checks = _check_parameters(subject, explainers, blocks, draws, examples, seed, batch_size, progress)
        if labels:
            given = {**subject.classifier.config.training.get("settings", {}), **SMALL_TRAINING, **(training or {})}
            twins = train_twins(
                subject.store, given, per_class=train_per_class, other_seed=other_seed, seed=seed, device=device,
                progress=prefixed(progress, name),
            )  # fmt: skip
            checks = _check_labels(checks, subject, explainers, twins, examples, seed, batch_size, progress)
        checked.append(checks)
    if not any(len(checks.parameters) > 1 for checks in checked):
        reason = next(iter(checked[0].impossible.values()))
        raise ExplanationError(f"none of the methods could be run: {reason}")
    settings = {
        "Methods": described(methods, options, seed),
        "Cells": cells_said(cell_ids, split, per_class),
        "Class explained": target,
        "Random draws": draws,
        "Seed": seed,
        "hematokit": __version__,
        "Made": datetime.now(UTC).isoformat(timespec="minutes"),
        **({"Warning": "; ".join(warnings)} if warnings else {}),
    }
    documents = sanity_documents(checked, control=CONTROL, settings=settings, command=command)
    return written(folder, documents, started, warnings)


def _check_parameters(
    subject: Subject,
    explainers: Mapping[str, Explainer],
    blocks: int,
    draws: int,
    examples: int,
    seed: int,
    batch_size: int,
    progress: Progress,
) -> ModelChecks:
    shown = spread_examples(subject, examples)
    checks = ModelChecks(
        subject.name,
        subject.backbone,
        len(subject.images),
        pictures=subject.images[shown].permute(0, 2, 3, 1).cpu().numpy(),
        codes=[subject.classifier.codes[int(subject.targets[place])] for place in shown],
    )
    for method, explainer in {**explainers, CONTROL: EdgeDetector()}.items():
        try:
            checks.parameters[method] = parameter_randomisation(
                subject.classifier, explainer, subject.images, subject.targets, seed=seed, fewest_blocks=blocks,
                draws=draws, batch_size=batch_size, groups=subject.groups, examples=shown,
                progress=prefixed(progress, f"{subject.name}, {method}"),
            )  # fmt: skip
        except PluginError as error:
            checks.impossible[method] = str(error)
    return checks


def _check_labels(
    checks: ModelChecks,
    subject: Subject,
    explainers: Mapping[str, Explainer],
    twins: Twins,
    examples: int,
    seed: int,
    batch_size: int,
    progress: Progress,
) -> ModelChecks:
    codes = twins.true.classifier.codes
    known = [
        (place, code)
        for place, label in enumerate(subject.chosen.cells["label"])
        if (code := code_of(str(label), codes)) is not None
    ]
    if len(known) < 2:
        raise ExplanationError("the data-randomisation test needs two or more cells whose class is known")
    places = np.array([place for place, _ in known])
    labels = [code for _, code in known]
    patches, groups = subject.patches[places], subject.groups
    shown = list(range(0, len(labels), max(1, len(labels) // max(1, examples))))[:examples]
    results = {}
    for method, explainer in {**explainers, CONTROL: EdgeDetector()}.items():
        if method in checks.impossible:
            continue
        results[method] = data_randomisation(
            twins, explainer, patches, labels, seed=seed, batch_size=batch_size,
            groups=None if groups is None else groups[places], examples=shown,
            progress=prefixed(progress, f"{subject.name}, {method}"),
        )  # fmt: skip
    images = twins.true.classifier.prepare(torch.from_numpy(patches[shown].copy()))
    return ModelChecks(
        **{
            **{name: getattr(checks, name) for name in checks.__dataclass_fields__},
            "labels": results,
            "twins": twins,
            "label_pictures": images.permute(0, 2, 3, 1).numpy(),
            "label_codes": [labels[place] for place in shown],
        }
    )
