"""Rules for backbones: what training, bundles, explanations and exports rely on."""

from __future__ import annotations

import copy
import importlib.util
import tempfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch.nn import functional

from hematokit.conformance.rules import Broken, Caution, NotTried, Rule, rule
from hematokit.conformance.specs import check_spec
from hematokit.errors import HematokitError, describe_error
from hematokit.models.classifier import Classifier
from hematokit.models.construction import build_backbone, choose_backbone, load_weights
from hematokit.taxonomy import MATEK_21

__all__ = ["RULES", "BackboneSubject"]

RULES: Final[list[Rule]] = []

_CLASSES: Final = 5
_TOLERANCE: Final = 1e-4
_PATCH: Final = 250


class BackboneSubject:
    """A variant of a backbone under trial, built once.

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
        """Build it anew, always from the same seed."""
        choice = self.choice
        if size is not None:
            name = f"{choice.spec.name}:{choice.variant_name}"
            choice = choose_backbone(name, None, size, choice.options)
        torch.manual_seed(0)
        return build_backbone(choice, classes)

    @cached_property
    def module(self) -> torch.nn.Module:
        """The backbone, for reading; rules that change it build their own."""
        return self.build().eval()

    @cached_property
    def patches(self) -> np.ndarray:
        """Three unlike patches (3, 250, 250, 3) uint8."""
        from hematokit.models.parity import sample_patches

        return sample_patches(_PATCH)[[2, 4, 5]]

    @cached_property
    def images(self) -> torch.Tensor:
        """The patches as normalised input (3, 3, S, S) float32."""
        return self.inputs(self.classifier())

    def inputs(self, classifier: Classifier) -> torch.Tensor:
        """Prepare and normalise the patches for a classifier."""
        prepared = classifier.prepare(torch.from_numpy(self.patches))
        return (prepared - classifier.mean) / classifier.std

    def classifier(self) -> Classifier:
        """A classifier around the backbone, for five classes."""
        taxonomy = MATEK_21.subset(MATEK_21.codes[:_CLASSES])
        return Classifier(self.module, taxonomy, self.choice.input, _PATCH).eval()

    @cached_property
    def loaded(self) -> Classifier:
        """The classifier saved as a bundle and loaded again."""
        from hematokit.models import load_model, save_bundle

        with tempfile.TemporaryDirectory() as folder:
            save_bundle(Path(folder), self.classifier(), self.choice, {})
            made = load_model(folder, "cpu", "torch")
            assert isinstance(made, Classifier)
            return made


@rule(RULES, "spec", first=True)
def _spec(subject: BackboneSubject) -> str:
    """Its description, options and variants are complete and agree with each other."""
    return check_spec(subject.spec)


@rule(RULES, "builds", first=True)
def _builds(subject: BackboneSubject) -> str:
    """It is built without the network, from the same seed the same: training must be repeatable."""
    first, again = subject.module.state_dict(), subject.build().state_dict()
    differing = [name for name in first if not torch.equal(first[name], again[name])]
    if differing:
        raise Broken(f"torch.manual_seed(0) gives other weights each time ({differing[0]}, ...); draw with torch only")
    count = sum(parameter.numel() for parameter in subject.module.parameters())
    return f"{type(subject.module).__name__}, {count / 1e6:.2f} million parameters"


@rule(RULES, "shape", first=True)
@torch.no_grad()
def _shape(subject: BackboneSubject) -> str:
    """(B, 3, S, S) float32 gives logits (B, C) float32, for one image or several, and for any number of classes."""
    for count in (1, 3):
        found = subject.module(subject.images[:count])
        if not isinstance(found, torch.Tensor) or tuple(found.shape) != (count, _CLASSES):
            what = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
            raise Broken(f"{count} images and {_CLASSES} classes gave {what}, not ({count}, {_CLASSES})")
        if found.dtype != torch.float32:
            raise Broken(f"logits are {found.dtype}, not float32")
    two = subject.build(2).eval()(subject.images[:2])
    if tuple(two.shape) != (2, 2):
        raise Broken(f"built with num_classes=2 it gave {tuple(two.shape)}, not (2, 2)")
    return f"(B, {_CLASSES}) float32 at {subject.size} px"


@rule(RULES, "logits")
@torch.no_grad()
def _logits(subject: BackboneSubject) -> str:
    """It gives logits, not probabilities, and finite ones for blank and for black images."""
    extremes = torch.stack([torch.full_like(subject.images[0], value) for value in (-3.0, 0.0, 3.0)])
    found = torch.cat([subject.module(subject.images), subject.module(extremes)])
    if not torch.isfinite(found).all():
        raise Broken("some logits are not finite")
    sums, unit = found.sum(1), torch.ones(len(found))
    if (found >= 0).all() and torch.allclose(sums, unit, atol=1e-3):
        raise Broken("rows are positive and sum to 1: these are probabilities; leave the softmax out")
    if (found <= 0).all() and torch.allclose(found.exp().sum(1), unit, atol=1e-3):
        raise Broken("these are logarithms of probabilities; leave the log-softmax out")
    return f"from {found.min():.2g} to {found.max():.2g}"


@rule(RULES, "determinism")
@torch.no_grad()
def _determinism(subject: BackboneSubject) -> str:
    """In evaluation mode the same image gives the same logits, whatever else is in the batch."""
    first, again = subject.module(subject.images), subject.module(subject.images)
    if not torch.equal(first, again):
        raise Broken(f"the same batch twice differs by {(first - again).abs().max():.2g}; is dropout on in evaluation?")
    alone = torch.cat([subject.module(image[None]) for image in subject.images])
    gap = float((first - alone).abs().max())
    if gap > _TOLERANCE * max(1.0, float(first.abs().max())):
        raise Broken(f"an image alone and in a batch differ by {gap:.2g}; statistics of the batch must not matter")
    return f"repeated exactly; alone and in a batch within {gap:.1g}"


@rule(RULES, "sizes")
@torch.no_grad()
def _sizes(subject: BackboneSubject) -> str:
    """It takes any image size that its spec allows: multiples of the divisor, from twice the divisor on."""
    divisor = subject.choice.input.divisor
    other = subject.size - divisor if subject.size > 2 * divisor else subject.size + divisor
    found = subject.build(size=other).eval()(torch.zeros(1, 3, other, other))
    if tuple(found.shape) != (1, _CLASSES):
        raise Broken(f"at {other} px it gave {tuple(found.shape)}")
    return f"{other} px besides {subject.size} px"


@rule(RULES, "gradients")
def _gradients(subject: BackboneSubject) -> str:
    """Every parameter that is trained gets a finite gradient; several processes wait for each of them."""
    module = subject.build().train()
    trained = {name: value for name, value in module.named_parameters() if value.requires_grad}
    if not trained:
        raise Broken("nothing can be trained: no parameter has requires_grad")
    functional.cross_entropy(module(subject.images), torch.arange(3) % _CLASSES).backward()  # type: ignore[no-untyped-call]
    without = [name for name, value in trained.items() if value.grad is None]
    if without:
        raise Broken(f"{len(without)} of {len(trained)} trained tensors get no gradient ({without[0]}, ...)")
    wild = [name for name, value in trained.items() if value.grad is not None and not value.grad.isfinite().all()]
    if wild:
        raise Broken(f"gradients that are not finite ({wild[0]}, ...)")
    frozen = sum(1 for value in module.parameters() if not value.requires_grad)
    return f"{len(trained)} tensors trained, {frozen} frozen"


@rule(RULES, "input-gradients")
def _input_gradients(subject: BackboneSubject) -> str:
    """Gradients reach the image: explainers need them."""
    images = subject.images.clone().requires_grad_()
    logits = subject.module(images)
    gradient = None
    if logits.requires_grad:
        (gradient,) = torch.autograd.grad(logits[:, 0].sum(), images, allow_unused=True)
    if gradient is None:
        raise Caution("no gradient reaches the image; explainers that need one cannot explain this backbone")
    if not gradient.isfinite().all():
        raise Broken("the gradient at the image is not finite")
    if not gradient.any():
        raise Caution("the gradient at the image is zero everywhere; explainers that need one show nothing")
    return "finite"


@rule(RULES, "mixed-precision")
@torch.no_grad()
def _mixed_precision(subject: BackboneSubject) -> str:
    """It computes under bfloat16 autocast, as training on a GPU does."""
    with torch.autocast("cpu", torch.bfloat16):
        found = subject.module(subject.images[:1])
    if not found.float().isfinite().all():
        raise Broken("logits under bfloat16 are not finite")
    return "bfloat16 on the CPU"


@rule(RULES, "devices")
@torch.no_grad()
def _devices(subject: BackboneSubject) -> str:
    """It moves with .to(device): no tensor stays behind or is made on a fixed device."""
    if torch.cuda.is_available():
        moved = copy.deepcopy(subject.module).cuda()
        gap = float((moved(subject.images.cuda()).cpu() - subject.module(subject.images)).abs().max())
        if not gap < 0.1:
            raise Broken(f"on the GPU logits differ from the CPU's by {gap:.2g}")
        return f"to the GPU; logits within {gap:.1g}"
    moved = copy.deepcopy(subject.module).to("meta")
    try:
        moved(subject.images.to("meta"))
    except NotImplementedError as error:
        raise NotTried(f"no GPU here, and the device without data cannot follow it ({type(error).__name__})") from error
    except RuntimeError as error:
        text = " ".join(str(error).split())[:160]
        raise Broken(
            f"something stays on the CPU ({text}); register tensors as buffers, make new ones on x.device"
        ) from error
    return "to torch's device without data (no GPU here)"


@rule(RULES, "bundle")
def _bundle(subject: BackboneSubject) -> str:
    """Saved as a bundle and loaded again, it gives the same logits: its state_dict holds all that was learned."""
    before, after = subject.classifier().logits(subject.patches), subject.loaded.logits(subject.patches)
    gap = float(np.abs(before - after).max())
    if not gap <= 1e-6:
        raise Broken(f"after loading, logits differ by {gap:.2g}; what is learned must be parameters or buffers")
    return f"{len(subject.module.state_dict())} tensors"


@rule(RULES, "weights")
def _weights(subject: BackboneSubject) -> str:
    """Weights of a training with other classes can start a new one: get_classifier() says which layer is the head."""
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        save_file({name: value.contiguous() for name, value in subject.module.state_dict().items()}, path)
        try:
            load_weights(subject.build(2), path)
        except HematokitError as error:
            raise Caution(
                f"--weights of {_CLASSES} classes for 2 classes: {error}; give it get_classifier()"
            ) from error
    return "body taken over, head left"


@rule(RULES, "attribution-layer")
def _attribution_layer(subject: BackboneSubject) -> str:
    """Its attribution layer gives (B, c, h, w), and Grad-CAM shows something there; several classes at once work."""
    if subject.spec.attribution_layer is None:
        raise Caution("the spec names none: Grad-CAM works only where a person names a layer")
    layer = subject.spec.attribution_layer(subject.module)
    if not isinstance(layer, torch.nn.Module) or all(layer is not part for part in subject.module.modules()):
        raise Broken("attribution_layer(module) does not return a part of the module")
    seen: list[Any] = []
    handle = layer.register_forward_hook(lambda module, given, output: seen.append(output))
    try:
        with torch.no_grad():
            subject.module(subject.images[:1])
    finally:
        handle.remove()
    if not seen:
        raise Broken(f"the layer ({type(layer).__name__}) is not used when the network computes")
    shape = tuple(seen[-1].shape) if isinstance(seen[-1], torch.Tensor) else ()
    if len(shape) != 4 or shape[2] * shape[3] < 2:
        raise Broken(f"the layer ({type(layer).__name__}) gives {shape}, not (B, c, h, w) with h x w above 1")
    from hematokit.explanation.running import explain_cells

    asked: dict[str, Any] = {"methods": ["grad-cam"], "options": {"grad-cam": {"positive": False}}}
    targets = np.tile(np.arange(2), (len(subject.patches), 1))
    maps = explain_cells(subject.loaded, subject.patches, targets[:, 0], **asked)["grad-cam"]
    if not (np.ptp(maps, axis=(1, 2)) > 0).any():
        raise Broken("Grad-CAM is the same everywhere: no gradient reaches the layer")
    try:
        explain_cells(subject.loaded, subject.patches, targets, **asked)
    except Exception as error:
        raise Broken(
            "Grad-CAM for two classes at once fails: it repeats each image's map behind the layer, and what goes past "
            f"the layer (a class token, a skip) must be repeated as often ({describe_error(error)})"
        ) from error
    return f"{type(layer).__name__}, {shape[1]} channels of {shape[2]}x{shape[3]}"


@rule(RULES, "onnx")
def _onnx(subject: BackboneSubject) -> str:
    """It exports to ONNX, and the file gives the same logits for any size of batch."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise NotTried(f"{', '.join(missing)} not installed; pip install 'hematokit[onnx]'")
    from hematokit.models import export_onnx, load_model
    from hematokit.models.parity import check_agreement

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(subject.loaded, path)
        other = load_model(path, "cpu", "onnxruntime")
        gap = check_agreement(subject.loaded.logits, other.logits, _PATCH, "the exported file")
    return f"logits within {gap:.1g}"
