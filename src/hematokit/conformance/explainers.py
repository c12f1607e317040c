"""Rules for explainers: what maps, checks and the viewer rely on."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from hematokit.conformance.rules import Broken, Caution, NotTried, Rule, rule
from hematokit.conformance.specs import check_spec
from hematokit.errors import HematokitError
from hematokit.explanation.running import explain_cells, make_explainer
from hematokit.models.classifier import Classifier
from hematokit.models.construction import build_backbone, choose_backbone
from hematokit.plugins import MadeExplainer, load_plugins
from hematokit.plugins.specs import InputSpec
from hematokit.taxonomy import MATEK_21

__all__ = ["RULES", "ExplainerSubject"]

RULES: Final[list[Rule]] = []

_CLASSES: Final = 4
_PATCH: Final = 96

# A convolutional network and a transformer: explainers may be for one of them only.
_NETWORKS: Final = (("timm:test_resnet", 64), ("timm:test_vit", 160))

Maps = npt.NDArray[np.float32]


class ExplainerSubject:
    """An explainer under trial, with the small networks that it explains.

    Parameters
    ----------
    name : str
        As registered.
    options : mapping
        Its options.
    """

    def __init__(self, name: str, options: Mapping[str, object]) -> None:
        from hematokit.models.parity import sample_patches

        self.name, self.options = name, dict(options)
        self.spec = load_plugins().explainers.get(name)
        self.patches = sample_patches(_PATCH)[[2, 4, 5]]
        self.refusals: list[str] = []

    def make(self) -> MadeExplainer:
        """Make it."""
        return make_explainer(self.name, self.options)

    def network(self, number: int, seed: int = 0) -> Classifier:
        """One of the small networks, untrained, from a seed."""
        name, size = _NETWORKS[number]
        choice = choose_backbone(name, image_size=size)
        torch.manual_seed(seed)
        backbone = build_backbone(choice, _CLASSES)
        taxonomy = MATEK_21.subset(MATEK_21.codes[:_CLASSES])
        spec = InputSpec(size, choice.input.divisor, choice.input.mean, choice.input.std)
        return Classifier(backbone, taxonomy, spec, _PATCH).eval()

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
        raise NotTried(f"it explains neither a convolutional network nor a transformer: {self.refusals[0]}")

    def attribute(self, classifier: Classifier) -> torch.Tensor:
        """What it returns, as it returns it, for the first class."""
        images = classifier.prepare(torch.from_numpy(self.patches))
        return self.make().value.attribute(classifier, images, torch.zeros(len(images), dtype=torch.int64))

    def explain(self, classifier: Classifier, target: int = 0, count: int = 3, batch: int = 16) -> Maps:
        """Maps (n, S, S) of one class."""
        targets = np.full(count, target, np.int64)
        made = {self.name: self.make()}
        return explain_cells(classifier, self.patches[:count], targets, made, batch_size=batch)[self.name]


@rule(RULES, "spec", first=True)
def _spec(subject: ExplainerSubject) -> str:
    """Its description and options are complete and agree with each other."""
    return check_spec(subject.spec)


@rule(RULES, "builds", first=True)
def _builds(subject: ExplainerSubject) -> str:
    """It is made from its options, without the network."""
    return type(subject.make().value).__name__


@rule(RULES, "shape", first=True)
def _shape(subject: ExplainerSubject) -> str:
    """Images (B, 3, S, S) and targets (B,) give finite maps (B, S, S); a network that it cannot explain is refused."""
    classifier = subject.network(subject.number)
    maps = subject.explain(classifier)
    refused = f"; refuses {_NETWORKS[0][0]}: {subject.refusals[0]}" if subject.refusals else ""
    return f"{maps.shape} for {_NETWORKS[subject.number][0]}{refused}"


@rule(RULES, "dtype")
def _dtype(subject: ExplainerSubject) -> str:
    """Maps are float32."""
    found = subject.attribute(subject.network(subject.number))
    if found.dtype != torch.float32:
        raise Broken(f"maps are {found.dtype}, not float32")
    return "float32"


@rule(RULES, "determinism")
def _determinism(subject: ExplainerSubject) -> str:
    """The same image gives the same map, whatever is explained beside it."""
    classifier = subject.network(subject.number)
    first, again = subject.explain(classifier), subject.explain(classifier)
    if not np.array_equal(first, again):
        raise Broken("two calls gave different maps; give it an option seed, and draw from a generator of its own")
    alone = subject.explain(classifier, batch=1)
    gap = float(np.abs(first - alone).max())
    if gap > 1e-4 * max(1e-3, float(np.abs(first).max())):
        raise Broken(f"maps of an image alone and in a batch differ by {gap:.2g}")
    return f"repeated exactly; alone and in a batch within {gap:.1g}"


@rule(RULES, "leaves-model")
def _leaves_model(subject: ExplainerSubject) -> str:
    """The model is afterwards as it was: weights, mode, hooks, gradients."""
    classifier = subject.network(subject.number)
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    flags = {name: value.requires_grad for name, value in classifier.named_parameters()}
    # Directly: `explain_cells` gives an explainer a copy of the modules.
    subject.attribute(classifier)
    changed = [name for name, value in classifier.state_dict().items() if not torch.equal(value, before[name])]
    if changed:
        raise Broken(f"it changed the model: {changed[0]}")
    if any(module.training for module in classifier.modules()):
        raise Broken("it left the model in training mode")
    if flags != {name: value.requires_grad for name, value in classifier.named_parameters()}:
        raise Broken("it left requires_grad changed")
    hooked = [name for name, module in classifier.named_modules() if module._forward_hooks or module._backward_hooks]
    if hooked:
        raise Broken(f"it left a hook on {hooked[0]}; remove it in a finally block")
    if any(value.grad is not None for value in classifier.parameters()):
        raise Broken("it left gradients in the parameters; use torch.autograd.grad")
    return "weights, mode, hooks and gradients"


@rule(RULES, "target")
def _target(subject: ExplainerSubject) -> str:
    """Another class gives another map."""
    classifier = subject.network(subject.number)
    if np.allclose(subject.explain(classifier, 0), subject.explain(classifier, 1), rtol=1e-3, atol=0):
        raise Caution("two classes gave the same map: say in the description that it does not depend on the class")
    return "maps of two classes differ"


@rule(RULES, "weights")
def _weights(subject: ExplainerSubject) -> str:
    """Other weights give another map (Adebayo et al. 2018); else it shows the picture, not the model."""
    maps = [subject.explain(subject.network(subject.number, seed), count=2) for seed in (0, 1)]
    if np.allclose(maps[0], maps[1], rtol=1e-3, atol=0):
        raise Caution("two networks with different weights gave the same map")
    return "maps of two networks differ"


@rule(RULES, "devices")
def _devices(subject: ExplainerSubject) -> str:
    """It works on the model's device."""
    if not torch.cuda.is_available():
        raise NotTried("no GPU here")
    subject.explain(subject.network(subject.number).cuda())
    return "on the GPU"
