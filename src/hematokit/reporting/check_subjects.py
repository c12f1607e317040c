"""What the checks of explanations work on (models with their cells), and what they find for each model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from hematokit.errors import ExplanationError
from hematokit.evaluation.predictor import open_training_store, scale_mismatch
from hematokit.explanation.data_randomisation import DataRandomisation, Twins
from hematokit.explanation.faithfulness import Faithfulness
from hematokit.explanation.localisation import Localisation
from hematokit.explanation.sanity import ParameterRandomisation
from hematokit.explanation.selection import ChosenCells, cells_of_store, target_chooser
from hematokit.models import find_bundle, load_model
from hematokit.models.classifier import Classifier
from hematokit.store import PatchStore, summarize_pixel_sizes
from hematokit.training.data import REST

__all__ = [
    "ModelChecks",
    "ModelFaithfulness",
    "Subject",
    "code_of",
    "load_subject",
    "model_names",
    "shown_labels",
    "spread_examples",
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
    """Load a model and the cells it is checked on; see `hematokit.reporting.sanity_report.check_sanity`."""
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
