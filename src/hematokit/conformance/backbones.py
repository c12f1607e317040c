"""Rules for backbones: what training, bundles, explanations and exports rely on."""

from __future__ import annotations

import copy
import importlib.util
import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final
from unittest import SkipTest

import numpy as np
import torch
from torch.nn import functional

from hematokit.conformance.packages import spec
from hematokit.conformance.rules import Rule, RuleBroken, RuleWarning
from hematokit.errors import HematokitError, describe_error
from hematokit.explanation.running import explain_cells
from hematokit.models import export_onnx, load_model, save_bundle
from hematokit.models.classifier import Classifier
from hematokit.models.construction import build_backbone, choose_backbone, load_weights
from hematokit.models.runtimes.parity import check_agreement, sample_patches
from hematokit.taxonomy import MATEK_21

__all__ = ["RULES", "BackboneUnderTest"]

_CLASSES: Final = 5
_TOLERANCE: Final = 1e-4
_PATCH: Final = 250


class BackboneUnderTest:
    """A variant of a backbone, built once.

    Parameters
    ----------
    name : str
        As registered, with a variant after a colon if not the default one.
    options : mapping
        Its options.
    """

    def __init__(self, name: str, options: Mapping[str, object]) -> None:
        self.choice = choose_backbone(name, options=options)
        self.spec = self.choice.spec

    @property
    def size(self) -> int:
        """Side of the input in pixels."""
        return self.choice.input.size

    def build(self, classes: int = _CLASSES, size: int | None = None) -> torch.nn.Module:
        """Build it, always from the same seed."""
        choice = self.choice
        if size is not None:
            choice = choose_backbone(choice.full_name, None, size, choice.options)
        torch.manual_seed(0)
        return build_backbone(choice, classes)

    @cached_property
    def module(self) -> torch.nn.Module:
        """The backbone, for reading; rules that change it build their own."""
        return self.build().eval()

    @cached_property
    def patches(self) -> np.ndarray:
        """Three unlike patches (3, 250, 250, 3) uint8."""
        return sample_patches(_PATCH)[[2, 4, 5]]

    @cached_property
    def images(self) -> torch.Tensor:
        """The patches as normalised input (3, 3, S, S) float32."""
        prepared = self.classifier.prepare(torch.from_numpy(self.patches))
        return (prepared - self.classifier.mean) / self.classifier.std

    @cached_property
    def classifier(self) -> Classifier:
        """A classifier around the backbone, for five classes."""
        taxonomy = MATEK_21.subset(MATEK_21.codes[:_CLASSES])
        return Classifier(self.module, taxonomy, self.choice.input, _PATCH).eval()

    @cached_property
    def loaded(self) -> Classifier:
        """The classifier saved as a bundle and loaded again."""
        with tempfile.TemporaryDirectory() as folder:
            save_bundle(Path(folder), self.classifier, self.choice, {})
            made = load_model(folder, "cpu", "torch")
            assert isinstance(made, Classifier)
            return made


def builds(plugin: BackboneUnderTest) -> str:
    """It is built without the network, from the same seed the same: training must be repeatable."""
    first, again = plugin.module.state_dict(), plugin.build().state_dict()
    differing = [name for name in first if not torch.equal(first[name], again[name])]
    if differing:
        raise RuleBroken(
            f"torch.manual_seed(0) gives other weights each time ({differing[0]}, ...); draw with torch only"
        )
    count = sum(parameter.numel() for parameter in plugin.module.parameters())
    return f"{type(plugin.module).__name__}, {count / 1e6:.2f} million parameters"


@torch.no_grad()
def shape(plugin: BackboneUnderTest) -> str:
    """(B, 3, S, S) float32 gives logits (B, C) float32, for one image or several, and for any number of classes."""
    for count in (1, 3):
        found = plugin.module(plugin.images[:count])
        if not isinstance(found, torch.Tensor) or tuple(found.shape) != (count, _CLASSES):
            what = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
            raise RuleBroken(f"{count} images and {_CLASSES} classes gave {what}, not ({count}, {_CLASSES})")
        if found.dtype != torch.float32:
            raise RuleBroken(f"logits are {found.dtype}, not float32")
    two = plugin.build(2).eval()(plugin.images[:2])
    if tuple(two.shape) != (2, 2):
        raise RuleBroken(f"built with num_classes=2 it gave {tuple(two.shape)}, not (2, 2)")
    return f"(B, {_CLASSES}) float32 at {plugin.size} px"


@torch.no_grad()
def logits(plugin: BackboneUnderTest) -> str:
    """It gives logits, not probabilities, and finite ones for blank and for black images."""
    extremes = torch.stack([torch.full_like(plugin.images[0], value) for value in (-3.0, 0.0, 3.0)])
    found = torch.cat([plugin.module(plugin.images), plugin.module(extremes)])
    if not torch.isfinite(found).all():
        raise RuleBroken("some logits are not finite")
    sums, unit = found.sum(1), torch.ones(len(found))
    if (found >= 0).all() and torch.allclose(sums, unit, atol=1e-3):
        raise RuleBroken("rows are positive and sum to 1: these are probabilities; leave the softmax out")
    if (found <= 0).all() and torch.allclose(found.exp().sum(1), unit, atol=1e-3):
        raise RuleBroken("these are logarithms of probabilities; leave the log-softmax out")
    return f"from {found.min():.2g} to {found.max():.2g}"


@torch.no_grad()
def determinism(plugin: BackboneUnderTest) -> str:
    """In evaluation mode the same image gives the same logits, whatever else is in the batch."""
    first, again = plugin.module(plugin.images), plugin.module(plugin.images)
    if not torch.equal(first, again):
        raise RuleBroken(
            f"the same batch twice differs by {(first - again).abs().max():.2g}; is dropout on in evaluation?"
        )
    alone = torch.cat([plugin.module(image[None]) for image in plugin.images])
    gap = float((first - alone).abs().max())
    if gap > _TOLERANCE * max(1.0, float(first.abs().max())):
        raise RuleBroken(f"an image alone and in a batch differ by {gap:.2g}; statistics of the batch must not matter")
    return f"repeated exactly; alone and in a batch within {gap:.1g}"


@torch.no_grad()
def sizes(plugin: BackboneUnderTest) -> str:
    """It takes any image size that its spec allows: multiples of the divisor, from twice the divisor on."""
    divisor = plugin.choice.input.divisor
    other = plugin.size - divisor if plugin.size > 2 * divisor else plugin.size + divisor
    found = plugin.build(size=other).eval()(torch.zeros(1, 3, other, other))
    if tuple(found.shape) != (1, _CLASSES):
        raise RuleBroken(f"at {other} px it gave {tuple(found.shape)}")
    return f"{other} px besides {plugin.size} px"


def gradients(plugin: BackboneUnderTest) -> str:
    """Every parameter that is trained gets a finite gradient; several processes wait for each of them."""
    module = plugin.build().train()
    trained = {name: value for name, value in module.named_parameters() if value.requires_grad}
    if not trained:
        raise RuleBroken("nothing can be trained: no parameter has requires_grad")
    functional.cross_entropy(module(plugin.images), torch.arange(3) % _CLASSES).backward()  # type: ignore[no-untyped-call]
    without = [name for name, value in trained.items() if value.grad is None]
    if without:
        raise RuleBroken(f"{len(without)} of {len(trained)} trained tensors get no gradient ({without[0]}, ...)")
    wild = [name for name, value in trained.items() if value.grad is not None and not value.grad.isfinite().all()]
    if wild:
        raise RuleBroken(f"gradients that are not finite ({wild[0]}, ...)")
    frozen = sum(1 for value in module.parameters() if not value.requires_grad)
    return f"{len(trained)} tensors trained, {frozen} frozen"


def input_gradients(plugin: BackboneUnderTest) -> str:
    """Gradients reach the image: explainers need them."""
    images = plugin.images.clone().requires_grad_()
    logits = plugin.module(images)
    gradient = None
    if logits.requires_grad:
        (gradient,) = torch.autograd.grad(logits[:, 0].sum(), images, allow_unused=True)
    if gradient is None:
        raise RuleWarning("no gradient reaches the image; explainers that need one cannot explain this backbone")
    if not gradient.isfinite().all():
        raise RuleBroken("the gradient at the image is not finite")
    if not gradient.any():
        raise RuleWarning("the gradient at the image is zero everywhere; explainers that need one show nothing")
    return "finite"


@torch.no_grad()
def mixed_precision(plugin: BackboneUnderTest) -> str:
    """It computes under bfloat16 autocast, as training on a GPU does."""
    with torch.autocast("cpu", torch.bfloat16):
        found = plugin.module(plugin.images[:1])
    if not found.float().isfinite().all():
        raise RuleBroken("logits under bfloat16 are not finite")
    return "bfloat16 on the CPU"


@torch.no_grad()
def devices(plugin: BackboneUnderTest) -> str:
    """It moves with .to(device): no tensor stays behind or is made on a fixed device."""
    if torch.cuda.is_available():
        moved = copy.deepcopy(plugin.module).cuda()
        gap = float((moved(plugin.images.cuda()).cpu() - plugin.module(plugin.images)).abs().max())
        if not gap < 0.1:
            raise RuleBroken(f"on the GPU logits differ from the CPU's by {gap:.2g}")
        return f"to the GPU; logits within {gap:.1g}"
    moved = copy.deepcopy(plugin.module).to("meta")
    try:
        moved(plugin.images.to("meta"))
    except NotImplementedError as error:
        raise SkipTest(f"no GPU here, and the device without data cannot follow it ({type(error).__name__})") from error
    except RuntimeError as error:
        text = " ".join(str(error).split())[:160]
        raise RuleBroken(
            f"something stays on the CPU ({text}); register tensors as buffers, make new ones on x.device"
        ) from error
    return "to torch's device without data (no GPU here)"


def bundle(plugin: BackboneUnderTest) -> str:
    """Saved as a bundle and loaded again, it gives the same logits: its state_dict holds all that was learned."""
    before, after = plugin.classifier.logits(plugin.patches), plugin.loaded.logits(plugin.patches)
    gap = float(np.abs(before - after).max())
    if not gap <= 1e-6:
        raise RuleBroken(f"after loading, logits differ by {gap:.2g}; what is learned must be parameters or buffers")
    return f"{len(plugin.module.state_dict())} tensors"


def weights(plugin: BackboneUnderTest) -> str:
    """Weights of a training with other classes can start a new one: get_classifier() says which layer is the head."""
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        save_file({name: value.contiguous() for name, value in plugin.module.state_dict().items()}, path)
        try:
            load_weights(plugin.build(2), path)
        except HematokitError as error:
            raise RuleWarning(
                f"--weights of {_CLASSES} classes for 2 classes: {error}; give it get_classifier()"
            ) from error
    return "body taken over, head left"


def attribution_layer(plugin: BackboneUnderTest) -> str:
    """Its attribution layer gives (B, c, h, w), and Grad-CAM shows something there; several classes at once work."""
    if plugin.spec.attribution_layer is None:
        raise RuleWarning("the spec names none: Grad-CAM works only where a person names a layer")
    layer = plugin.spec.attribution_layer(plugin.module)
    if not isinstance(layer, torch.nn.Module) or all(layer is not part for part in plugin.module.modules()):
        raise RuleBroken("attribution_layer(module) does not return a part of the module")
    seen: list[Any] = []
    handle = layer.register_forward_hook(lambda module, given, output: seen.append(output))
    try:
        with torch.no_grad():
            plugin.module(plugin.images[:1])
    finally:
        handle.remove()
    if not seen:
        raise RuleBroken(f"the layer ({type(layer).__name__}) is not used when the network computes")
    shape = tuple(seen[-1].shape) if isinstance(seen[-1], torch.Tensor) else ()
    if len(shape) != 4 or shape[2] * shape[3] < 2:
        raise RuleBroken(f"the layer ({type(layer).__name__}) gives {shape}, not (B, c, h, w) with h x w above 1")
    asked: dict[str, Any] = {"methods": ["grad-cam"], "options": {"grad-cam": {"positive": False}}}
    targets = np.tile(np.arange(2), (len(plugin.patches), 1))
    maps = explain_cells(plugin.loaded, plugin.patches, targets[:, 0], **asked)["grad-cam"]
    if not (np.ptp(maps, axis=(1, 2)) > 0).any():
        raise RuleBroken("Grad-CAM is the same everywhere: no gradient reaches the layer")
    try:
        explain_cells(plugin.loaded, plugin.patches, targets, **asked)
    except Exception as error:
        raise RuleBroken(
            "Grad-CAM for two classes at once fails: it repeats each image's map behind the layer, and what goes past "
            f"the layer (a class token, a skip) must be repeated as often ({describe_error(error)})"
        ) from error
    return f"{type(layer).__name__}, {shape[1]} channels of {shape[2]}x{shape[3]}"


def onnx(plugin: BackboneUnderTest) -> str:
    """It exports to ONNX, and the file gives the same logits for any size of batch."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise SkipTest(f"{', '.join(missing)} not installed; pip install 'hematokit[onnx]'")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(plugin.loaded, path)
        other = load_model(path, "cpu", "onnxruntime")
        gap = check_agreement(plugin.loaded.logits, other.logits, _PATCH, "the exported file")
    return f"logits within {gap:.1g}"


RULES: Final[Sequence[Rule]] = (
    spec, builds, shape, logits, determinism, sizes, gradients, input_gradients, mixed_precision, devices,
    bundle, weights, attribution_layer, onnx,
)  # fmt: skip
