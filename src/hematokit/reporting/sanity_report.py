"""Checking explanations: the verb's functions, which run the checks for one or several models and write reports."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from hematokit import __version__
from hematokit.errors import ExplanationError, PluginError
from hematokit.explanation.data_randomisation import (
    SMALL_TRAINING,
    Twins,
    data_randomisation,
    train_twins,
)
from hematokit.explanation.faithfulness import deletion_insertion
from hematokit.explanation.localisation import CellMasks, find_cell_masks, localisation
from hematokit.explanation.running import NamedExplainer, make_explainers
from hematokit.explanation.sanity import (
    EdgeDetector,
    attribute_in_batches,
    parameter_randomisation,
)
from hematokit.files import one_line_write_errors, write_atomically
from hematokit.progress import Progress, no_progress
from hematokit.registry import load_plugins
from hematokit.reporting.check_documents import Documents, faithfulness_documents, sanity_documents
from hematokit.reporting.check_subjects import (
    ModelChecks,
    ModelFaithfulness,
    Models,
    Subject,
    code_of,
    load_subject,
    model_names,
    shown_labels,
    spread_examples,
)

if TYPE_CHECKING:
    from hematokit.specs import Explainer

__all__ = ["CONTROL", "CheckResult", "check_faithfulness", "check_sanity"]

CONTROL = "edge detector (control)"

Options = Mapping[str, Mapping[str, object]]


@dataclass(frozen=True)
class CheckResult:
    """What a check found, and where it was written.

    Attributes
    ----------
    table : DataFrame
        The headline, one row per model and method.
    document : dict
        The content of the JSON file.
    paths : dict of str to Path
        Files written: ``report``, ``json``, and the tables.
    said : tuple of str
        The summary for a person.
    seconds : float
    """

    table: pd.DataFrame
    document: dict[str, Any]
    paths: dict[str, Path]
    said: tuple[str, ...]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: the document and the paths."""
        return {**self.document, "paths": {name: str(path) for name, path in self.paths.items()}}

    def lines(self) -> list[str]:
        """The summary for a person, one statement per line."""
        return [*self.said, f"Report: {self.paths['report']}", "For research use only"]


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
    folder = _usable_folder(output)
    explainers: dict[str, Explainer] = {name: made.explainer for name, made in _made(methods, options, seed).items()}
    checked = []
    for name, path in model_names(models).items():
        subject = load_subject(name, path, store, cell_ids, split, per_class, target, seed, device)
        if len(subject.images) < 2:
            raise ExplanationError("the check compares cells with each other and needs two or more; give more cells")
        checks = _check_parameters(subject, explainers, blocks, draws, examples, seed, batch_size, progress)
        if labels:
            given = {**subject.classifier.config.training.get("settings", {}), **SMALL_TRAINING, **(training or {})}
            twins = train_twins(
                subject.store, given, per_class=train_per_class, other_seed=other_seed, seed=seed, device=device,
                progress=_prefixed(progress, name),
            )  # fmt: skip
            checks = _check_labels(checks, subject, explainers, twins, examples, seed, batch_size, progress)
        checked.append(checks)
    if not any(len(checks.parameters) > 1 for checks in checked):
        reason = next(iter(checked[0].impossible.values()))
        raise ExplanationError(f"none of the methods could be run: {reason}")
    settings = {
        "Methods": _described(methods, options, seed),
        "Cells": _cells_said(cell_ids, split, per_class),
        "Class explained": target,
        "Random draws": draws,
        "Seed": seed,
        "hematokit": __version__,
        "Made": datetime.now(UTC).isoformat(timespec="minutes"),
    }
    documents = sanity_documents(checked, control=CONTROL, settings=settings, command=command)
    return _written(folder, documents, started)


def check_faithfulness(
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
    steps: int = 24,
    replacement: Literal["blur", "mean"] = "blur",
    order: Literal["value", "magnitude"] = "value",
    detector: str | None = "nuclei",
    detector_options: Mapping[str, Any] | None = None,
    pixel_size_um: float | None = None,
    seed: int = 0,
    device: str = "auto",
    batch_size: int = 16,
    command: str = "",
    progress: Progress = no_progress,
) -> CheckResult:
    """Measure deletion, insertion and localisation of explanations beside simple baselines, and write a report.

    Writes ``faithfulness.html``, ``faithfulness.json``, ``faithfulness.csv``, ``faithfulness_cells.csv`` and, with a
    detector, ``localisation.csv``. Nothing is written before all is done.

    Parameters
    ----------
    models, store, methods, output, options, cell_ids, split, per_class, target, seed, device, batch_size, command
        As in `check_sanity`.
    steps : int
        Steps of the curves.
    replacement, order : str
        See `hematokit.explanation.faithfulness.deletion_insertion`.
    detector : str or None
        Detector that finds the cell and its nucleus in each patch; ``None``: no localisation.
    detector_options : mapping, optional
        Its options.
    pixel_size_um : float, optional
        Micrometres per pixel of the patches; by default what the bundle says, if it does.
    progress : Progress
        Told what is done of the part under way; raising from it cancels, and nothing is written.

    Returns
    -------
    CheckResult
        ``table``: ``model``, ``backbone``, ``method`` (baselines too), deletion and insertion areas and shares inside
        cell and nucleus, with intervals.

    Raises
    ------
    ExplanationError
        If no method works, a choice does not exist, or the folder cannot be written.
    PluginError, ModelError, StoreError
        If a method, the detector, a model or a store cannot be used.
    """
    started = time.monotonic()
    folder = _usable_folder(output)
    if steps < 2:
        raise ExplanationError(f"curves of {steps} steps cannot be drawn; give 2 or more")
    for name, value, known in (
        ("replacement", replacement, ("blur", "mean")),
        ("order", order, ("value", "magnitude")),
    ):
        if value not in known:
            raise ExplanationError(f"{name} {value!r} is not one of {', '.join(known)}; choose one of them")
    made = _made(methods, options, seed)
    finder = None
    if detector is not None:
        spec = load_plugins().detectors.get(detector)
        finder = spec.factory(**spec.resolve_options(detector_options))
    checked = []
    for name, path in model_names(models).items():
        subject = load_subject(name, path, store, cell_ids, split, per_class, target, seed, device)
        maps: dict[str, npt.NDArray[np.float32]] = {}
        impossible = {}
        for method, named in made.items():
            try:
                maps[method] = attribute_in_batches(
                    named.explainer, subject.classifier, subject.images, subject.targets, batch_size=batch_size,
                    progress=_prefixed(progress, f"{name}, {method}"),
                )  # fmt: skip
            except PluginError as error:
                impossible[method] = str(error)
        if not maps:
            raise ExplanationError(f"none of the methods could be run: {next(iter(impossible.values()))}")
        labels = shown_labels(subject)
        found = deletion_insertion(
            subject.classifier, subject.images, subject.targets, maps, labels=labels, groups=subject.groups,
            steps=steps, replacement=replacement, order=order, batch_size=max(batch_size, 32), seed=seed,
            progress=_prefixed(progress, name),
        )  # fmt: skip
        masks: CellMasks | None = None
        if finder is not None:
            masks = find_cell_masks(
                finder, subject.patches, subject.classifier.input_spec, progress=_prefixed(progress, name),
                pixel_size_um=pixel_size_um or getattr(subject.classifier.config, "pixel_size_um", None),
            )  # fmt: skip
        located = None if masks is None else localisation(maps, masks, labels, groups=subject.groups, seed=seed)
        missing = 0 if masks is None else int((~masks.found).sum())
        checked.append(
            ModelFaithfulness(
                name, subject.backbone, len(subject.images), list(maps), found, located, missing, impossible
            )
        )
    settings = {
        "Methods": _described(methods, options, seed),
        "Cells": _cells_said(cell_ids, split, per_class),
        "Class explained": target,
        "Steps": steps,
        "Replaced by": {"blur": "the blurred image", "mean": "the image's mean colour"}[replacement],
        "Pixels ranked by": order,
        "Detector": detector or "none",
        "Seed": seed,
        "hematokit": __version__,
        "Made": datetime.now(UTC).isoformat(timespec="minutes"),
    }
    documents = faithfulness_documents(checked, settings=settings, command=command)
    return _written(folder, documents, started)


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
                progress=_prefixed(progress, f"{subject.name}, {method}"),
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
            progress=_prefixed(progress, f"{subject.name}, {method}"),
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


def _made(methods: Sequence[str], options: Options | None, seed: int) -> dict[str, NamedExplainer]:
    return make_explainers([methods] if isinstance(methods, str) else methods, options, seed=seed)


def _described(methods: Sequence[str], options: Options | None, seed: int) -> str:
    parts = []
    for name, made in _made(methods, options, seed).items():
        listed = ", ".join(f"{key}={value}" for key, value in made.options.items())
        parts.append(f"{name} ({listed})" if listed else name)
    return "; ".join(parts)


def _cells_said(cell_ids: Sequence[str] | None, split: str, per_class: int | None) -> str:
    if cell_ids is not None:
        return f"{len(cell_ids)} named"
    return f"{split} split" + (f", {per_class} of each class" if per_class is not None else "")


def _prefixed(progress: Progress, name: str) -> Progress:
    return lambda done, total, message: progress(done, total, f"{name}: {message}" if message else name)


def _usable_folder(output: str | Path) -> Path:
    folder = Path(output)
    if folder.exists() and not folder.is_dir():
        raise ExplanationError(f"{folder} is a file; name a folder with --output")
    return folder


def _written(folder: Path, documents: Documents, started: float) -> CheckResult:
    paths = {}
    with one_line_write_errors(folder, ExplanationError, "make room or choose another folder"):
        folder.mkdir(parents=True, exist_ok=True)
        for name, (file, content) in documents.files.items():
            write_atomically(folder / file, content)
            paths[name] = folder / file
    return CheckResult(
        documents.table, documents.document, paths, tuple(documents.lines), round(time.monotonic() - started, 1)
    )
