"""Do explanations tell what counts? Deletion, insertion and localisation for one or several models, and the report.

What the checks of explanations work on (models with their cells), and what they find for each model.

What the checks of explanations share: their result, and the files that hold it.

Do explanations depend on the model? Runs the sanity checks for one or several models and writes the report.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from hematokit._version import __version__
from hematokit.errors import ExplanationError, PluginError
from hematokit.evaluation.predictor import open_training_store, scale_mismatch
from hematokit.explanation.checks.data_randomisation import (
    SMALL_TRAINING,
    DataRandomisation,
    Twins,
    data_randomisation,
    train_twins,
)
from hematokit.explanation.checks.faithfulness import Faithfulness, deletion_insertion
from hematokit.explanation.checks.localisation import CellMasks, Localisation, find_cell_masks, localisation
from hematokit.explanation.checks.sanity import (
    EdgeDetector,
    ParameterRandomisation,
    attribute_in_batches,
    parameter_randomisation,
)
from hematokit.explanation.running import make_explainers
from hematokit.explanation.selection import ChosenCells, cells_of_store, target_chooser
from hematokit.files import one_line_write_errors, write_atomically
from hematokit.models import find_bundle, load_model
from hematokit.models.classifier import Classifier
from hematokit.models.config import TrainingSettings
from hematokit.plugins import MadeExplainer, load_plugins
from hematokit.progress import Progress, no_progress
from hematokit.reports.checks import Documents, faithfulness_documents, sanity_documents
from hematokit.store import PatchStore, summarize_pixel_sizes
from hematokit.training.data import REST

if TYPE_CHECKING:
    from hematokit.plugins.specs import Explainer

__all__ = [
    "CONTROL",
    "CheckResult",
    "ModelChecks",
    "ModelFaithfulness",
    "Options",
    "Subject",
    "cells_said",
    "check_faithfulness",
    "check_sanity",
    "code_of",
    "described",
    "explainers_by_name",
    "load_subject",
    "model_names",
    "prefixed",
    "shown_labels",
    "spread_examples",
    "usable_folder",
    "written",
]

Models = str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class ModelChecks:
    """The sanity checks of one model.

    Attributes
    ----------
    name, backbone : str
        Folder of the run, and its backbone.
    parameters, labels : dict
        Results by method.
    impossible : dict of str to str
        Why a method could not be run on this model.
    twins : Twins or None
        The models trained for the data-randomisation test.
    pictures : ndarray (k, S, S, 3)
        Example cells.
    codes : list of str
        Class explained for each of them.
    label_pictures, label_codes
        The same, for the data-randomisation test.
    """

    name: str
    backbone: str
    cells: int
    parameters: dict[str, ParameterRandomisation] = field(default_factory=dict)
    labels: dict[str, DataRandomisation] = field(default_factory=dict)
    impossible: dict[str, str] = field(default_factory=dict)
    twins: Twins | None = None
    pictures: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 1, 1, 3), np.float32))
    codes: list[str] = field(default_factory=list)
    label_pictures: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 1, 1, 3), np.float32))
    label_codes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ModelFaithfulness:
    """Faithfulness and localisation of one model's maps."""

    name: str
    backbone: str
    cells: int
    methods: list[str]
    faithfulness: Faithfulness
    localisation: Localisation | None
    not_found: int
    impossible: dict[str, str]


@dataclass(frozen=True)
class Subject:
    """A model with the cells it is checked on."""

    name: str
    classifier: Classifier
    store: PatchStore
    chosen: ChosenCells
    patches: npt.NDArray[np.uint8]
    images: torch.Tensor
    targets: torch.Tensor

    @property
    def groups(self) -> npt.NDArray[np.object_] | None:
        cells = self.chosen.cells
        return cells["group"].to_numpy(dtype=object) if "group" in cells.columns else None

    @property
    def pixel_size_um(self) -> float | None:
        """Pixel size of the cells, or that of the model where it is not known."""
        found = summarize_pixel_sizes(self.chosen.cells).common
        return self.classifier.config.pixel_size_um if found is None else found

    @property
    def warnings(self) -> list[str]:
        """What is doubtful about the scale of the cells."""
        said = scale_mismatch(self.classifier, self.chosen.cells, self.store)
        return [f"{self.name}: {said}"] if said else []

    @property
    def backbone(self) -> str:
        config = self.classifier.config.backbone
        return f"{config.name}:{config.variant}"


def load_subject(
    name: str,
    path: Path,
    store: str | Path | None,
    cell_ids: Sequence[str] | None,
    split: str,
    per_class: int | None,
    target: str,
    seed: int,
    device: str,
) -> Subject:
    """Load a model and the cells it is checked on; see `hematokit.pipelines.check_explanations.check_sanity`."""
    classifier = load_model(path, device=device, runtime="torch")
    assert isinstance(classifier, Classifier)
    opened = open_training_store(classifier, path, store, ExplanationError)
    if opened.patch_size != classifier.patch_size:
        raise ExplanationError(
            f"store {opened.path} has patches of {opened.patch_size} px, model {path} takes "
            f"{classifier.patch_size} px; import the crops at that size"
        )
    chosen = cells_of_store(opened, classifier.codes, cell_ids=cell_ids, split=split, per_class=per_class, seed=seed)
    positions = np.arange(len(chosen), dtype=np.int64)
    patches = chosen.read(positions)
    targets = target_chooser(target, chosen.cells, classifier.codes)(positions, classifier.logits(patches))
    images = classifier.prepare(torch.from_numpy(patches.copy()))
    return Subject(name, classifier, opened, chosen, patches, images, torch.from_numpy(targets))


def spread_examples(subject: Subject, count: int) -> list[int]:
    """Cells of different classes, spread over those that were chosen."""
    total = len(subject.images)
    return sorted({round(place) for place in np.linspace(0, total - 1, min(count, total) + 2)[1:-1]})


def shown_labels(subject: Subject) -> list[str]:
    """Class of each cell for the tables per class; the class explained where no label is known."""
    given = [str(label) for label in subject.chosen.cells["label"]]
    codes = subject.classifier.codes
    return [label or codes[int(target)] for label, target in zip(given, subject.targets, strict=True)]


def code_of(label: str, codes: Sequence[str]) -> str | None:
    """The model's class for a label; ``None`` where it has none."""
    if label in codes:
        return label
    return REST if label and REST in codes else None


def model_names(models: Models) -> dict[str, Path]:
    """Models by a short name; made longer from the right until all differ."""
    given = [models] if isinstance(models, str | Path) else list(models)
    if not given:
        raise ExplanationError("no model was named; give a run or a bundle")
    folders = [find_bundle(Path(path)).resolve() for path in given]
    folders = [folder.parent if folder.name == "bundle" else folder for folder in folders]
    if len(set(folders)) < len(folders):
        raise ExplanationError("a model was named twice; name each once")
    depth = 1
    while len({folder.parts[-depth:] for folder in folders}) < len(folders):
        depth += 1
    return {"/".join(folder.parts[-depth:]): Path(path) for folder, path in zip(folders, given, strict=True)}


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


def explainers_by_name(methods: Sequence[str], options: Options | None, seed: int) -> dict[str, MadeExplainer]:
    return make_explainers([methods] if isinstance(methods, str) else methods, options, seed=seed)


def described(methods: Sequence[str], options: Options | None, seed: int) -> str:
    parts = []
    for name, made in explainers_by_name(methods, options, seed).items():
        listed = ", ".join(f"{key}={value}" for key, value in made.options.items())
        parts.append(f"{name} ({listed})" if listed else name)
    return "; ".join(parts)


def cells_said(cell_ids: Sequence[str] | None, split: str, per_class: int | None) -> str:
    if cell_ids is not None:
        return f"{len(cell_ids)} named"
    return f"{split} split" + (f", {per_class} of each class" if per_class is not None else "")


def prefixed(progress: Progress, name: str) -> Progress:
    return lambda done, total, message: progress(done, total, f"{name}: {message}" if message else name)


def usable_folder(output: str | Path) -> Path:
    folder = Path(output)
    if folder.exists() and not folder.is_dir():
        raise ExplanationError(f"{folder} is a file; name a folder with --output")
    return folder


def written(folder: Path, documents: Documents, started: float, warnings: Sequence[str] = ()) -> CheckResult:
    paths = {}
    with one_line_write_errors(folder, ExplanationError, "make room or choose another folder"):
        folder.mkdir(parents=True, exist_ok=True)
        for name, (file, content) in documents.files.items():
            write_atomically(folder / file, content)
            paths[name] = folder / file
    return CheckResult(
        documents.table,
        documents.document,
        paths,
        (*(f"Warning: {warning}" for warning in warnings), *documents.lines),
        round(time.monotonic() - started, 1),
    )


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
        name: made.value for name, made in explainers_by_name(methods, options, seed).items()
    }
    checked, warnings = [], []
    for name, path in model_names(models).items():
        subject = load_subject(name, path, store, cell_ids, split, per_class, target, seed, device)
        warnings += subject.warnings
        if len(subject.images) < 2:
            raise ExplanationError("the check compares cells with each other and needs two or more; give more cells")
        checks = _check_parameters(subject, explainers, blocks, draws, examples, seed, batch_size, progress)
        if labels:
            own = subject.classifier.config.training.settings or TrainingSettings()
            given = {**own.model_dump(exclude_unset=True), **SMALL_TRAINING, **(training or {})}
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
        See `hematokit.explanation.checks.faithfulness.deletion_insertion`.
    detector : str or None
        Detector that finds the cell and its nucleus in each patch; ``None``: no localisation.
    detector_options : mapping, optional
        Its options.
    pixel_size_um : float, optional
        Micrometres per pixel of the patches; by default what the store says, else the bundle, if they do.
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
    folder = usable_folder(output)
    if steps < 2:
        raise ExplanationError(f"curves of {steps} steps cannot be drawn; give 2 or more")
    for name, value, known in (
        ("replacement", replacement, ("blur", "mean")),
        ("order", order, ("value", "magnitude")),
    ):
        if value not in known:
            raise ExplanationError(f"{name} {value!r} is not one of {', '.join(known)}; choose one of them")
    made = explainers_by_name(methods, options, seed)
    finder = None
    if detector is not None:
        spec = load_plugins().detectors.get(detector)
        finder = spec.factory(**spec.resolve_options(detector_options))
    checked, warnings = [], []
    for name, path in model_names(models).items():
        subject = load_subject(name, path, store, cell_ids, split, per_class, target, seed, device)
        warnings += subject.warnings
        maps: dict[str, npt.NDArray[np.float32]] = {}
        impossible = {}
        for method, named in made.items():
            try:
                maps[method] = attribute_in_batches(
                    named.value, subject.classifier, subject.images, subject.targets, batch_size=batch_size,
                    progress=prefixed(progress, f"{name}, {method}"),
                )  # fmt: skip
            except PluginError as error:
                impossible[method] = str(error)
        if not maps:
            raise ExplanationError(f"none of the methods could be run: {next(iter(impossible.values()))}")
        labels = shown_labels(subject)
        found = deletion_insertion(
            subject.classifier, subject.images, subject.targets, maps, labels=labels, groups=subject.groups,
            steps=steps, replacement=replacement, order=order, batch_size=max(batch_size, 32), seed=seed,
            progress=prefixed(progress, name),
        )  # fmt: skip
        masks: CellMasks | None = None
        if finder is not None:
            masks = find_cell_masks(
                finder, subject.patches, subject.classifier.input_spec, progress=prefixed(progress, name),
                pixel_size_um=pixel_size_um or subject.pixel_size_um,
            )  # fmt: skip
        located = None if masks is None else localisation(maps, masks, labels, groups=subject.groups, seed=seed)
        missing = 0 if masks is None else int((~masks.found).sum())
        checked.append(
            ModelFaithfulness(
                name, subject.backbone, len(subject.images), list(maps), found, located, missing, impossible
            )
        )
    settings = {
        "Methods": described(methods, options, seed),
        "Cells": cells_said(cell_ids, split, per_class),
        "Class explained": target,
        "Steps": steps,
        "Replaced by": {"blur": "the blurred image", "mean": "the image's mean colour"}[replacement],
        "Pixels ranked by": order,
        "Detector": detector or "none",
        "Seed": seed,
        "hematokit": __version__,
        "Made": datetime.now(UTC).isoformat(timespec="minutes"),
        **({"Warning": "; ".join(warnings)} if warnings else {}),
    }
    documents = faithfulness_documents(checked, settings=settings, command=command)
    return written(folder, documents, started, warnings)
