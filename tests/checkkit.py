"""Networks and explainers whose truth is known, for testing the checks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from hematokit.models.classifier import Classifier
from hematokit.plugins.specs import InputSpec
from hematokit.taxonomy import CellClass, Taxonomy

SIDE = 24
CLASSES = Taxonomy("pair", tuple(CellClass(code, code, "other", "#808080") for code in ("AAA", "BBB")))


def linear_classifier(weights: np.ndarray, scale: float = 1.0) -> Classifier:
    """A classifier whose logits are 0 and the sum of ``scale * weights * (image - 0.5) / 0.5``; weights (3, S, S)."""
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(weights.size, 2, bias=False))
    with torch.no_grad():
        network[1].weight.zero_()
        network[1].weight[1] = torch.from_numpy(weights.astype(np.float32).ravel()) * scale
    return Classifier(network, CLASSES, InputSpec(weights.shape[-1], divisor=1), weights.shape[-1]).eval()


def staged_classifier(seed: int = 0) -> Classifier:
    """A small network with a stem, two stages, a norm and a head."""
    torch.manual_seed(seed)

    def stage(inside: int, outside: int) -> torch.nn.Module:
        return torch.nn.Sequential(
            torch.nn.Conv2d(inside, outside, 3, padding=1), torch.nn.BatchNorm2d(outside), torch.nn.ReLU()
        )

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = stage(3, 8)
            self.stages = torch.nn.Sequential(stage(8, 8), stage(8, 12))
            self.norm = torch.nn.GroupNorm(1, 12)
            self.head = torch.nn.Linear(12, 2)

        def get_classifier(self) -> torch.nn.Module:
            return self.head

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.head(self.norm(self.stages(self.stem(images))).mean(dim=(2, 3)))

    return Classifier(Network(), CLASSES, InputSpec(SIDE, divisor=1), SIDE).eval()


class InputGradient:
    """The gradient of the target's logit times the input: for a linear network, exactly what each pixel adds."""

    def attribute(self, classifier: Any, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return maps (B, H, W)."""
        images = images.clone().requires_grad_(True)
        score = classifier(images).gather(1, targets[:, None]).sum()
        (gradient,) = torch.autograd.grad(score, images)
        return (gradient * (images - 0.5)).sum(1).detach()


class Fixed:
    """An explainer that returns prepared maps, whatever the network, in the order of the images."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def attribute(self, classifier: Any, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return maps (B, H, W)."""
        return self.function(images)


def noise_images(count: int, seed: int, side: int = SIDE) -> torch.Tensor:
    """Images (count, 3, side, side) of independent noise in [0, 1]."""
    return torch.from_numpy(np.random.default_rng(seed).random((count, 3, side, side), dtype=np.float32))
