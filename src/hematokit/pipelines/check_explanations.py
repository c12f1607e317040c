"""Checks of explanations: ``hematokit explain --sanity`` and ``--faithfulness``.

`check_sanity` tests whether maps depend on the model, `check_faithfulness` whether the pixels that they mark matter to
it. Both check one or several models on cells of a store, and write a report.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Unpack

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from hematokit._version import __version__
from hematokit.commands import CommandResult, Inputs, as_paths
from hematokit.detection.windows import make_detector
from hematokit.errors import ExplanationError, PluginError
from hematokit.evaluation.sources import scale_mismatch
from hematokit.explanation.checks.data_randomisation import (
    SMALL_TRAINING,
    RetrainedModels,
    data_randomisation,
)
from hematokit.explanation.checks.faithfulness import deletion_insertion
from hematokit.explanation.checks.localisation import find_cell_masks, localisation
from hematokit.explanation.checks.sanity import EdgeDetector, parameter_randomisation
from hematokit.explanation.running import attribute_in_batches, make_explainers
from hematokit.explanation.selection import (
    ChosenCells,
    cells_of_store,
    open_cells_store,
    read_cell_ids,
    target_chooser,
)
from hematokit.files import one_line_write_errors, write_atomically
from hematokit.models import find_bundle, load_model
from hematokit.models.classifier import Classifier
from hematokit.models.config import TrainingSettings
from hematokit.overrides import FaithfulnessOverrides, SanityOverrides
from hematokit.pipelines.retrain import retrain_models
from hematokit.pipelines.settings import FaithfulnessSettings, SanitySettings, StoreCellsSettings
from hematokit.plugins import MadeExplainer
from hematokit.progress import Progress, no_progress
from hematokit.reports.checks import (
    Documents,
    ExampleCells,
    ModelFaithfulness,
    ModelSanity,
    faithfulness_documents,
    sanity_documents,
)
from hematokit.store import PatchStore, summarize_pixel_sizes
from hematokit.taxonomy import REST

if TYPE_CHECKING:
    from hematokit.plugins.specs import Explainer

__all__ = ["CONTROL", "CheckResult", "check_faithfulness", "check_sanity"]

CONTROL: Final = "edge detector (control)"


@dataclass(frozen=True)
class CheckResult(CommandResult):
    """The result of a check.

    Attributes
    ----------
    table : DataFrame
        The headline, one row per model and method.
    document : dict
        The content of the JSON file.
    paths : dict of str to Path
        Files written: ``report``, ``json``, and the tables.
    findings : tuple of str
        The findings, one line each.
    seconds : float
    """

    table: pd.DataFrame
    document: dict[str, Any]
    paths: dict[str, Path]
    findings: tuple[str, ...]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the content of the JSON file and the paths."""
        return {**self.document, "paths": {name: str(path) for name, path in self.paths.items()}}

    def lines(self) -> list[str]:
        """Return the findings and the path of the report."""
        return [*self.findings, f"Report: {self.paths['report']}", "For research use only"]


def check_sanity(
    models: Inputs,
    output: str | Path,
    *,
    store: str | Path | None = None,
    settings: SanitySettings | None = None,
    progress: Progress = no_progress,
    command: str = "",
    **overrides: Unpack[SanityOverrides],
) -> CheckResult:
    """Check that explanations depend on the model (Adebayo et al. 2018), and write a report.

    Writes ``sanity.html``, ``sanity.json`` and ``sanity.csv``, all at the end, each as a whole. An edge detector, which
    ignores the model, is checked beside the methods as a control.

    Parameters
    ----------
    models : path, or sequence of path
        Runs or bundles; all appear in one report.
    output : path
        Folder to write to.
    store : path, optional
        Store with the cells, and with a training split for the data-randomisation test; by default the one each model
        was trained on.
    settings : SanitySettings, optional
    progress : Progress
        Called with the progress of the current part; raising from it cancels, and nothing is written.
    command : str
        The command line, for the report.
    **overrides
        Fields of `SanitySettings`; they take precedence over `settings`.

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
    >>> result = check_sanity("runs/coatnet", "checks", methods="grad-cam")
    >>> result.table["method"].tolist()
    ['grad-cam', 'edge detector (control)']
    """
    started = time.monotonic()
    settings = SanitySettings.combine(settings, overrides)
    seed, batch_size = settings.seed, settings.batch_size
    folder = _usable_folder(output)
    explainers = make_explainers(settings.methods, settings.options, seed=seed)
    choice = _CellChoice.of(store, settings)
    checked: list[ModelSanity] = []
    warnings: list[str] = []
    for name, path in _model_names(models).items():
        subject = _CheckedModel.load(name, path, choice, settings.device)
        if len(subject.images) < 2:
            raise ExplanationError("the check compares cells with each other and needs two or more; give more cells")
        warnings += subject.warnings
        sanity = ModelSanity(subject.name, subject.backbone, len(subject.images))
        run = _SanityRun(subject, explainers, sanity, settings.examples, seed, batch_size, progress)
        run.randomise_parameters(settings.blocks, settings.draws)
        if settings.retrain:
            own = subject.classifier.config.training.settings or TrainingSettings()
            retrained = retrain_models(
                subject.store,
                {**own.model_dump(exclude_unset=True), **SMALL_TRAINING, **settings.training},
                per_class=settings.train_per_class or None,
                other_seed=settings.other_seed,
                seed=seed,
                device=settings.device,
                progress=_prefixed(progress, name),
            )
            run.randomise_labels(retrained)
        checked.append(sanity)
    if not any(len(sanity.parameters) > 1 for sanity in checked):
        reason = next(iter(checked[0].impossible.values()))
        raise ExplanationError(f"none of the methods could be run: {reason}")
    shown = _settings(explainers, choice, warnings, {"Random draws": settings.draws})
    documents = sanity_documents(checked, control=CONTROL, settings=shown, command=command)
    return _write(folder, documents, started, warnings)


def check_faithfulness(
    models: Inputs,
    output: str | Path,
    *,
    store: str | Path | None = None,
    settings: FaithfulnessSettings | None = None,
    progress: Progress = no_progress,
    command: str = "",
    **overrides: Unpack[FaithfulnessOverrides],
) -> CheckResult:
    """Measure deletion, insertion and localisation of explanations beside simple baselines, and write a report.

    Writes ``faithfulness.html``, ``faithfulness.json``, ``faithfulness.csv``, ``faithfulness_cells.csv`` and, with a
    detector, ``localisation.csv``, all at the end.

    Parameters
    ----------
    models, output, store, progress, command
        As in `check_sanity`.
    settings : FaithfulnessSettings, optional
    **overrides
        Fields of `FaithfulnessSettings`; they take precedence over `settings`.

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
    settings = FaithfulnessSettings.combine(settings, overrides)
    seed, batch_size = settings.seed, settings.batch_size
    folder = _usable_folder(output)
    explainers = make_explainers(settings.methods, settings.options, seed=seed)
    detector = None
    if settings.detector is not None:
        detector = make_detector(settings.detector, settings.detector_options).value
    choice = _CellChoice.of(store, settings)
    checked: list[ModelFaithfulness] = []
    warnings: list[str] = []
    for name, path in _model_names(models).items():
        subject = _CheckedModel.load(name, path, choice, settings.device)
        warnings += subject.warnings
        maps, impossible = _maps(subject, explainers, batch_size, progress)
        faithfulness = deletion_insertion(
            subject.classifier,
            subject.images,
            subject.targets,
            maps,
            labels=subject.labels,
            groups=subject.groups,
            steps=settings.steps,
            replacement=settings.replacement,
            order=settings.order,
            batch_size=max(batch_size, 32),
            seed=seed,
            progress=_prefixed(progress, name),
        )
        located, not_found = None, 0
        if detector is not None:
            masks = find_cell_masks(
                detector,
                subject.patches,
                subject.classifier.input_spec,
                pixel_size_um=settings.pixel_size_um or subject.pixel_size_um,
                progress=_prefixed(progress, name),
            )
            not_found = int((~masks.found).sum())
            located = localisation(maps, masks, subject.labels, groups=subject.groups, seed=seed)
        checked.append(
            ModelFaithfulness(
                subject.name,
                subject.backbone,
                len(subject.images),
                list(maps),
                faithfulness,
                located,
                not_found,
                impossible,
            )
        )
    details = {
        "Steps": settings.steps,
        "Replaced by": {"blur": "the blurred image", "mean": "the image's mean colour"}[settings.replacement],
        "Pixels ranked by": settings.order,
        "Detector": settings.detector or "none",
    }
    documents = faithfulness_documents(
        checked, settings=_settings(explainers, choice, warnings, details), command=command
    )
    return _write(folder, documents, started, warnings)


@dataclass(frozen=True)
class _CellChoice:
    """The cells that models are checked on; see `hematokit.explanation.selection.cells_of_store`."""

    store: str | Path | None
    cell_ids: Sequence[str] | None
    split: str
    per_class: int | None
    target: str
    seed: int

    @classmethod
    def of(cls, store: str | Path | None, settings: StoreCellsSettings) -> _CellChoice:
        """Return the choice that the settings of a check describe."""
        ids = None if settings.cells is None else read_cell_ids(settings.cells)
        return cls(store, ids, settings.split, settings.per_class or None, settings.target, settings.seed)

    def __str__(self) -> str:
        if self.cell_ids is not None:
            return f"{len(self.cell_ids)} named"
        return f"{self.split} split" + (f", {self.per_class} of each class" if self.per_class is not None else "")


@dataclass(frozen=True)
class _CheckedModel:
    """A model with the cells it is checked on: as patches (n, P, P, 3), as images (n, 3, S, S), and their targets."""

    name: str
    classifier: Classifier
    store: PatchStore
    chosen: ChosenCells
    patches: npt.NDArray[np.uint8]
    images: torch.Tensor
    targets: torch.Tensor

    @classmethod
    def load(cls, name: str, path: Path, choice: _CellChoice, device: str) -> _CheckedModel:
        """Load the model, and read the cells from the store chosen, else from the one that it was trained on."""
        classifier = load_model(path, device=device, runtime="torch")
        assert isinstance(classifier, Classifier)
        store = open_cells_store(classifier, path, choice.store)
        chosen = cells_of_store(
            store,
            classifier.codes,
            cell_ids=choice.cell_ids,
            split=choice.split,
            per_class=choice.per_class,
            seed=choice.seed,
        )
        positions = np.arange(len(chosen), dtype=np.int64)
        patches = chosen.read(positions)
        targets = target_chooser(choice.target, chosen.cells, classifier.codes)(positions, classifier.logits(patches))
        images = classifier.prepare(torch.from_numpy(patches.copy()))
        return cls(name, classifier, store, chosen, patches, images, torch.from_numpy(targets))

    @property
    def backbone(self) -> str:
        config = self.classifier.config.backbone
        return f"{config.name}:{config.variant}"

    @property
    def labels(self) -> list[str]:
        """Class of each cell for the tables per class: its label, or the explained class if it has none."""
        labels = map(str, self.chosen.cells["label"])
        codes = self.classifier.codes
        return [label or codes[int(target)] for label, target in zip(labels, self.targets, strict=True)]

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
        """Warnings that the cells may not have the scale of the model."""
        mismatch = scale_mismatch(self.classifier, self.chosen.cells, self.store)
        return [f"{self.name}: {mismatch}"] if mismatch else []


class _SanityRun:
    """Runs the two sanity checks on one model and collects the results in `sanity`."""

    def __init__(
        self,
        subject: _CheckedModel,
        explainers: Mapping[str, MadeExplainer],
        sanity: ModelSanity,
        examples: int,
        seed: int,
        batch_size: int,
        progress: Progress,
    ) -> None:
        self.subject, self.sanity = subject, sanity
        self.explainers: dict[str, Explainer] = {name: made.value for name, made in explainers.items()}
        self.explainers[CONTROL] = EdgeDetector()
        self.examples, self.seed, self.batch_size, self.progress = examples, seed, batch_size, progress

    def randomise_parameters(self, blocks: int, draws: int) -> None:
        subject, count = self.subject, len(self.subject.images)
        # Cells of different classes, spread over those that were chosen.
        places = np.linspace(0, count - 1, min(self.examples, count) + 2)[1:-1]
        shown = sorted({round(place) for place in places})
        self.sanity.examples = ExampleCells(
            _as_arrays(subject.images[shown]), [subject.classifier.codes[int(subject.targets[row])] for row in shown]
        )
        for method, explainer in self.explainers.items():
            try:
                self.sanity.parameters[method] = parameter_randomisation(
                    subject.classifier,
                    explainer,
                    subject.images,
                    subject.targets,
                    seed=self.seed,
                    fewest_blocks=blocks,
                    draws=draws,
                    batch_size=self.batch_size,
                    groups=subject.groups,
                    examples=shown,
                    progress=_prefixed(self.progress, f"{subject.name}, {method}"),
                )
            except PluginError as error:
                self.sanity.impossible[method] = str(error)

    def randomise_labels(self, retrained: RetrainedModels) -> None:
        subject, true = self.subject, retrained.true.classifier
        known = {
            place: code
            for place, label in enumerate(subject.chosen.cells["label"])
            if (code := _code_of(str(label), true.codes)) is not None
        }
        if len(known) < 2:
            raise ExplanationError("the data-randomisation test needs two or more cells whose class is known")
        places, labels = list(known), list(known.values())
        patches, groups = subject.patches[places], subject.groups
        shown = list(range(0, len(labels), max(1, len(labels) // max(1, self.examples))))[: self.examples]
        self.sanity.retrained = retrained
        self.sanity.label_examples = ExampleCells(
            _as_arrays(true.prepare(torch.from_numpy(patches[shown].copy()))), [labels[place] for place in shown]
        )
        for method, explainer in self.explainers.items():
            if method in self.sanity.impossible:
                continue
            self.sanity.labels[method] = data_randomisation(
                retrained,
                explainer,
                patches,
                labels,
                seed=self.seed,
                batch_size=self.batch_size,
                groups=None if groups is None else groups[places],
                examples=shown,
                progress=_prefixed(self.progress, f"{subject.name}, {method}"),
            )


def _maps(
    subject: _CheckedModel, explainers: Mapping[str, MadeExplainer], batch_size: int, progress: Progress
) -> tuple[dict[str, npt.NDArray[np.float32]], dict[str, str]]:
    """Return the maps by method, and the reasons why other methods could not be run."""
    maps, impossible = {}, {}
    for method, made in explainers.items():
        try:
            maps[method] = attribute_in_batches(
                made.value,
                subject.classifier,
                subject.images,
                subject.targets,
                batch_size=batch_size,
                progress=_prefixed(progress, f"{subject.name}, {method}"),
            )
        except PluginError as error:
            impossible[method] = str(error)
    if not maps:
        raise ExplanationError(f"none of the methods could be run: {next(iter(impossible.values()))}")
    return maps, impossible


def _as_arrays(images: torch.Tensor) -> npt.NDArray[np.float32]:
    """Return images (n, 3, S, S) as arrays (n, S, S, 3)."""
    arrays: npt.NDArray[np.float32] = images.permute(0, 2, 3, 1).cpu().numpy()
    return arrays


def _code_of(label: str, codes: Sequence[str]) -> str | None:
    """Return the model's class for a label; ``None`` where it has none."""
    if label in codes:
        return label
    return REST if label and REST in codes else None


def _model_names(models: Inputs) -> dict[str, Path]:
    """Return models by a short name: the last parts of their paths, as many as make all names differ."""
    given = as_paths(models)
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


def _prefixed(progress: Progress, name: str) -> Progress:
    return lambda done, total, message: progress(done, total, f"{name}: {message}" if message else name)


def _settings(
    explainers: Mapping[str, MadeExplainer], choice: _CellChoice, warnings: Sequence[str], details: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the settings that the report shows; `details` are those of one check."""
    methods = []
    for name, made in explainers.items():
        listed = ", ".join(f"{key}={value}" for key, value in made.options.items())
        methods.append(f"{name} ({listed})" if listed else name)
    return {
        "Methods": "; ".join(methods),
        "Cells": str(choice),
        "Class explained": choice.target,
        **details,
        "Seed": choice.seed,
        "hematokit": __version__,
        "Made": datetime.now(UTC).isoformat(timespec="minutes"),
        **({"Warning": "; ".join(warnings)} if warnings else {}),
    }


def _usable_folder(output: str | Path) -> Path:
    folder = Path(output)
    if folder.exists() and not folder.is_dir():
        raise ExplanationError(f"{folder} is a file; name a folder with --output")
    return folder


def _write(folder: Path, documents: Documents, started: float, warnings: Sequence[str]) -> CheckResult:
    paths = {}
    with one_line_write_errors(folder, ExplanationError, "free disk space or choose another folder"):
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
