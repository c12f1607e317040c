"""Rules for explainers: what maps, checks and the viewer rely on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Final
from unittest import SkipTest

import numpy as np
import numpy.typing as npt
import torch

from hematokit.conformance.packages import PluginUnderTest, builds, spec
from hematokit.conformance.rules import Rule, RuleBroken, RuleWarning
from hematokit.errors import HematokitError
from hematokit.explanation.running import explain_cells
from hematokit.models.classifier import Classifier
from hematokit.models.construction import build_backbone, choose_backbone
from hematokit.models.runtimes.parity import sample_patches
from hematokit.plugins.specs import InputSpec
from hematokit.taxonomy import MATEK_21

__all__ = ["RULES", "ExplainerUnderTest"]

_CLASSES: Final = 4
_PATCH: Final = 96

# A convolutional network and a transformer: explainers may be for one of them only.
_NETWORKS: Final = (("timm:test_resnet", 64), ("timm:test_vit", 160))

Maps = npt.NDArray[np.float32]


class ExplainerUnderTest(PluginUnderTest):
    """An explainer, and the small networks that it explains."""

    registry = "explainers"

    def __init__(self, name: str, options: Mapping[str, object]) -> None:
        super().__init__(name, options)
        self.patches = sample_patches(_PATCH)[[2, 4, 5]]
        self.refusals: list[str] = []

    def network(self, number: int, seed: int = 0) -> Classifier:
        """One of the small networks, untrained, from a seed."""
        name, size = _NETWORKS[number]
        choice = choose_backbone(name, image_size=size)
        torch.manual_seed(seed)
        backbone = build_backbone(choice, _CLASSES)
        taxonomy = MATEK_21.subset(MATEK_21.codes[:_CLASSES])
        taken = InputSpec(size, choice.input.divisor, choice.input.mean, choice.input.std)
        return Classifier(backbone, taxonomy, taken, _PATCH).eval()

    @cached_property
    def number(self) -> int:
        """Which of the networks it explains: the first that it does not refuse."""
        for number in range(len(_NETWORKS)):
            classifier = self.network(number)
            try:
                self.attribute(classifier)
            except HematokitError as error:
                self.refusals.append(str(error))
            else:
                return number
        raise SkipTest(f"it explains neither a convolutional network nor a transformer: {self.refusals[0]}")

    def attribute(self, classifier: Classifier) -> torch.Tensor:
        """The returned attributions, unchanged, for the first class."""
        images = classifier.prepare(torch.from_numpy(self.patches))
        targets = torch.zeros(len(images), dtype=torch.int64)
        maps: torch.Tensor = self.make().value.attribute(classifier, images, targets)
        return maps

    def explain(self, classifier: Classifier, target: int = 0, count: int = 3, batch: int = 16) -> Maps:
        """Maps (n, S, S) of one class."""
        targets = np.full(count, target, np.int64)
        made = {self.name: self.make()}
        return explain_cells(classifier, self.patches[:count], targets, made, batch_size=batch)[self.name]


def shape(plugin: ExplainerUnderTest) -> str:
    """Images (B, 3, S, S) and targets (B,) give finite maps (B, S, S); a network that it cannot explain is refused."""
    classifier = plugin.network(plugin.number)
    maps = plugin.explain(classifier)
    refused = f"; refuses {_NETWORKS[0][0]}: {plugin.refusals[0]}" if plugin.refusals else ""
    return f"{maps.shape} for {_NETWORKS[plugin.number][0]}{refused}"


def dtype(plugin: ExplainerUnderTest) -> str:
    """Maps are float32."""
    found = plugin.attribute(plugin.network(plugin.number))
    if found.dtype != torch.float32:
        raise RuleBroken(f"maps are {found.dtype}, not float32")
    return "float32"


def determinism(plugin: ExplainerUnderTest) -> str:
    """The same image gives the same map, whatever is explained beside it."""
    classifier = plugin.network(plugin.number)
    first, again = plugin.explain(classifier), plugin.explain(classifier)
    if not np.array_equal(first, again):
        raise RuleBroken("two calls gave different maps; give it an option seed, and draw from a generator of its own")
    alone = plugin.explain(classifier, batch=1)
    gap = float(np.abs(first - alone).max())
    if gap > 1e-4 * max(1e-3, float(np.abs(first).max())):
        raise RuleBroken(f"maps of an image alone and in a batch differ by {gap:.2g}")
    return f"repeated exactly; alone and in a batch within {gap:.1g}"


def leaves_model(plugin: ExplainerUnderTest) -> str:
    """The model is afterwards as it was: weights, mode, hooks, gradients."""
    classifier = plugin.network(plugin.number)
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    flags = {name: value.requires_grad for name, value in classifier.named_parameters()}
    # Directly: `explain_cells` gives an explainer a copy of the modules.
    plugin.attribute(classifier)
    changed = [name for name, value in classifier.state_dict().items() if not torch.equal(value, before[name])]
    if changed:
        raise RuleBroken(f"it changed the model: {changed[0]}")
    if any(module.training for module in classifier.modules()):
        raise RuleBroken("it left the model in training mode")
    if flags != {name: value.requires_grad for name, value in classifier.named_parameters()}:
        raise RuleBroken("it left requires_grad changed")
    hooked = [name for name, module in classifier.named_modules() if module._forward_hooks or module._backward_hooks]
    if hooked:
        raise RuleBroken(f"it left a hook on {hooked[0]}; remove it in a finally block")
    if any(value.grad is not None for value in classifier.parameters()):
        raise RuleBroken("it left gradients in the parameters; use torch.autograd.grad")
    return "weights, mode, hooks and gradients"


def target(plugin: ExplainerUnderTest) -> str:
    """Another class gives another map."""
    classifier = plugin.network(plugin.number)
    if np.allclose(plugin.explain(classifier, 0), plugin.explain(classifier, 1), rtol=1e-3, atol=0):
        raise RuleWarning("two classes gave the same map: say in the description that it does not depend on the class")
    return "maps of two classes differ"


def weights(plugin: ExplainerUnderTest) -> str:
    """Other weights give another map (Adebayo et al. 2018); else it shows the image, not the model."""
    maps = [plugin.explain(plugin.network(plugin.number, seed), count=2) for seed in (0, 1)]
    if np.allclose(maps[0], maps[1], rtol=1e-3, atol=0):
        raise RuleWarning("two networks with different weights gave the same map")
    return "maps of two networks differ"


def devices(plugin: ExplainerUnderTest) -> str:
    """It works on the model's device."""
    if not torch.cuda.is_available():
        raise SkipTest("no GPU here")
    plugin.explain(plugin.network(plugin.number).cuda())
    return "on the GPU"


RULES: Final[Sequence[Rule]] = (
    spec, builds, shape, dtype, determinism, leaves_model, target, weights, devices,
)  # fmt: skip
