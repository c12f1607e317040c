"""Small models of every family, as the tests of the export formats need them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from hematokit.models import Classifier, choose_backbone, load_model, save_bundle
from hematokit.models.construction import build_backbone
from hematokit.plugins.specs import InputSpec
from hematokit.taxonomy import MATEK_21

Patches = npt.NDArray[np.uint8]
MakeModel = Callable[..., Classifier]

FAMILIES = ("coatnet:femto", "efficientnetv2:b0", "resnext50:32x4d")
CARD = "# a card\n\nWords.\n\n## Validation\n\nNone.\n"


def ignore(message: str) -> None:
    """Hear nothing of what a writer tells."""


def build_model(
    folder: Path,
    name: str = "timm:test_resnet",
    *,
    side: int = 64,
    size: int = 64,
    fit: Literal["resize", "reflect-pad", "crop", "auto"] = "auto",
    pixel_size_um: float | None = 0.25,
    temperature: float = 1.7,
) -> Classifier:
    """Build an untrained classifier of three classes, keep it as a bundle in the folder, and load that."""
    torch.manual_seed(0)
    choice = choose_backbone(name, image_size=size)
    given = choice.input
    spec = InputSpec(size, given.divisor, given.mean, given.std, fit)
    taxonomy = MATEK_21.subset(["BLA", "NGS", "LYT"])
    classifier = Classifier(build_backbone(choice, 3), taxonomy, spec, side, temperature)
    save_bundle(folder, classifier, choice, {}, pixel_size_um=pixel_size_um)
    return load_model(folder, device="cpu", runtime="torch")
