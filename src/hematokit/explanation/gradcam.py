"""Grad-CAM and guided Grad-CAM (Selvaraju et al. 2017), and the choice of the layer that they use.

Grad-CAM is computed by captum. Guided Grad-CAM is Grad-CAM times guided backpropagation, whose rule is applied here
with torch's own hooks, because captum applies it to ReLU only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from captum.attr import LayerGradCam
from torch import nn
from torch.nn import functional

from hematokit.errors import PluginError
from hematokit.explanation.gradients import INPUT_METHODS, check_batch, explaining
from hematokit.plugins import load_plugins
from hematokit.plugins.specs import Explainer

if TYPE_CHECKING:
    from hematokit.models.classifier import Classifier

__all__ = ["GradCam", "GuidedGradCamExplainer", "LayerFinder", "find_layer"]


_COARSE = 6
"""Positions along a side below which a map says little more than left, right or middle."""

_SMOOTH = (nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.ELU, nn.CELU, nn.SELU, nn.LeakyReLU, nn.ReLU6, nn.Softplus)
_SMOOTH_OF_TIMM = {"GELU", "GELUTanh", "QuickGELU", "Swish", "SwishMe", "Mish", "MishMe", "HardSwish", "HardSwishMe"}


class LayerFinder:
    """`find_layer`, remembered for each network and size of input.

    Parameters
    ----------
    wanted : str
        As `find_layer` takes it.
    """

    def __init__(self, wanted: str) -> None:
        self.wanted = wanted
        self._found: WeakKeyDictionary[torch.nn.Module, dict[int, str]] = WeakKeyDictionary()

    def __call__(self, classifier: Classifier, size: int) -> torch.nn.Module:
        """Return the layer of a classifier's backbone for inputs of `size` pixels."""
        paths = self._found.setdefault(classifier.backbone, {})
        if size not in paths:
            # A path, not the module: a value that refers to its own key would keep a weak dictionary's entry alive.
            paths[size] = _path(classifier.backbone, find_layer(classifier, self.wanted, size))
        layer: torch.nn.Module = classifier.backbone.get_submodule(paths[size])
        return layer


def find_layer(classifier: Classifier, wanted: str, size: int) -> torch.nn.Module:
    """Return the layer of a classifier's backbone that a user names.

    Parameters
    ----------
    classifier : Classifier
        Its backbone is searched.
    wanted : str
        ``"auto"``: the backbone's own choice, its last stage. A module's path (``"stages.1"``). A size
        (``"28x28"``): the last stage that has it.
    size : int
        Side of the input in pixels; sizes of layers follow from it.

    Returns
    -------
    torch.nn.Module
        Its output is ``(B, c, h, w)``.

    Raises
    ------
    PluginError
        If there is no such layer, or its output has no height and width.
    """
    backbone = classifier.backbone
    if re.fullmatch(r"\d+x\d+", wanted):
        height, width = map(int, wanted.split("x"))
        found = _spatial_layers(classifier, size)
        matching = [name for name, shape in found.items() if shape == (height, width)]
        if matching:
            module: torch.nn.Module = backbone.get_submodule(matching[-1])
            return module
        said = ", ".join(dict.fromkeys(f"{h}x{w}" for h, w in found.values())) or "none"
        raise PluginError(
            f"no stage of {_name(backbone)} is {wanted} at an input of {size} px; there are: {said}"
            + ("" if found else f"; choose {INPUT_METHODS}")
        )
    if wanted == "auto":
        layer = _own_choice(classifier)
    else:
        try:
            layer = backbone.get_submodule(wanted)
        except AttributeError:
            found = _spatial_layers(classifier, size)
            raise PluginError(
                f"{_name(backbone)} has no layer {wanted!r}; its stages: {', '.join(found) or 'none'}"
            ) from None
    shape = _output_shape(classifier, layer, size)
    if shape is None or not _is_spatial(shape, _channels(backbone, layer)):
        said = "is not used" if shape is None else f"gives {_words(shape)}, not (batch, channels, height, width)"
        raise PluginError(
            f"layer {_path(backbone, layer)} of {_name(backbone)} {said}; name another layer, or choose {INPUT_METHODS}"
        )
    return layer


def _spatial_layers(classifier: Classifier, size: int) -> dict[str, tuple[int, int]]:
    """Height and width of the stages of a backbone, in the order of computing.

    Parameters
    ----------
    classifier : Classifier
    size : int
        Side of the input in pixels.

    Returns
    -------
    dict of str to (int, int)
        By path. The stages are those that the network describes itself by, as timm's do; of any other, the modules of
        the first two levels. Only those with an output ``(B, c, h, w)``, h and w above 1.
    """
    backbone = classifier.backbone
    described = [str(entry["module"]) for entry in _features(backbone) if entry.get("module")]
    names = described or [name for name, _ in backbone.named_modules() if name and name.count(".") < 2]
    wanted = {}
    for name in names:
        try:
            wanted[backbone.get_submodule(name)] = name
        except AttributeError:
            continue
    shapes = _shapes(classifier, list(wanted), size)
    return {
        wanted[module]: (shape[2], shape[3])
        for module, shape in shapes.items()
        if _is_spatial(shape, _channels(backbone, module)) and shape[2] * shape[3] > 1
    }


def _own_choice(classifier: Classifier) -> torch.nn.Module:
    """Return the attribution layer that the backbone's plugin names; without a plugin, timm's last stage."""
    if classifier.has_config:
        spec = load_plugins().backbones.get(classifier.config.backbone.name)
        if spec.attribution_layer is not None:
            try:
                return spec.attribution_layer(classifier.backbone)
            except PluginError as error:
                raise PluginError(f"{error}; choose one of {INPUT_METHODS}") from error
    entries = _features(classifier.backbone)
    if not entries:
        raise PluginError(
            f"{_name(classifier.backbone)} names no layer for attributions; give the path of one "
            f"(--set grad-cam.layer=PATH), or choose {INPUT_METHODS}"
        )
    module: torch.nn.Module = classifier.backbone.get_submodule(entries[-1]["module"])
    return module


def _features(backbone: torch.nn.Module) -> list[dict[str, Any]]:
    """Return timm's description of a network's stages; empty for networks of others."""
    described = getattr(backbone, "feature_info", None)
    entries = getattr(described, "info", described)
    if not isinstance(entries, list | tuple):
        return []
    return [dict(entry) for entry in entries if isinstance(entry, dict) and "module" in entry]


def _channels(backbone: torch.nn.Module, layer: torch.nn.Module) -> int | None:
    path = _path(backbone, layer)
    return next((int(entry["num_chs"]) for entry in _features(backbone) if entry["module"] == path), None)


def _is_spatial(shape: tuple[int, ...], channels: int | None) -> bool:
    # Swin and its like give (B, h, w, c), which looks the same but for the place of the channels.
    return len(shape) == 4 and (channels is None or shape[1] == channels)


def _output_shape(classifier: Classifier, layer: torch.nn.Module, size: int) -> tuple[int, ...] | None:
    return _shapes(classifier, [layer], size).get(layer)


def _shapes(classifier: Classifier, layers: list[torch.nn.Module], size: int) -> dict[torch.nn.Module, tuple[int, ...]]:
    """Run one empty image and return the shape of each layer's output."""
    seen: dict[torch.nn.Module, tuple[int, ...]] = {}

    def note(module: torch.nn.Module, _: object, output: object) -> None:
        seen.pop(module, None)  # the order of the last use
        seen[module] = tuple(output.shape) if isinstance(output, torch.Tensor) else ()

    hooks = [layer.register_forward_hook(note) for layer in layers]
    try:
        with torch.no_grad():
            classifier(torch.zeros(1, 3, size, size, device=classifier.device))
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _path(backbone: torch.nn.Module, layer: torch.nn.Module) -> str:
    return next((name for name, module in backbone.named_modules() if module is layer), "?")


def _name(backbone: torch.nn.Module) -> str:
    return type(backbone).__name__


def _words(shape: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, shape))})" if shape else "no single tensor"


class GradCam(Explainer):
    r"""Weights the maps of a layer by the mean gradient of the class's logit, and adds them up.

    :math:`\mathrm{ReLU}(\sum_k \alpha_k A^k)` with :math:`\alpha_k` the mean of
    :math:`\partial y / \partial A^k` over positions (Selvaraju et al. 2017, eqs. 1 and 2), enlarged bilinearly to the
    input.

    Neither weights nor input need gradients, so nothing is kept of what is before the layer: the price is one
    forward pass, and the part behind the layer backward.

    Parameters
    ----------
    layer : str
        ``"auto"``, a path in the backbone (``"stages.1"``), or a size (``"28x28"``).
    positive : bool
        Keep what speaks for the class only, as the paper does; otherwise the map is signed.
    """

    def __init__(self, layer: str = "auto", positive: bool = True) -> None:
        self._find = LayerFinder(layer)
        self.positive = positive

    def attribute(self, classifier: Classifier, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return maps (B, H, W), float32, of images (B, 3, H, W) in [0, 1] for the classes (B,) among the logits.

        Raises
        ------
        PluginError
            If the network has no such layer.
        """
        return self.attribute_many(classifier, images, targets[:, None])[:, 0]

    def attribute_many(self, classifier: Classifier, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return maps (B, T, H, W) for several classes (B, T) of each image.

        The part before the layer is computed once for all classes of an image.
        """
        images, targets = check_batch(classifier, images, targets)
        size = images.shape[2:]
        with explaining(classifier):
            layer = self._find(classifier, images.shape[-1])
            with _repeated(layer, targets.shape[1]):
                coarse = LayerGradCam(classifier, layer).attribute(
                    images, target=targets.flatten(), relu_attributions=self.positive
                )
        maps = functional.interpolate(coarse.detach().float(), size=size, mode="bilinear", align_corners=False)
        return maps.view(len(images), targets.shape[1], *size)

    def notes(self, classifier: Classifier) -> list[str]:
        """Warn where the maps are very coarse."""
        size = classifier.input_spec.size
        layer = self._find(classifier, size)
        sizes = _spatial_layers(classifier, size)
        path = next((name for name, module in classifier.backbone.named_modules() if module is layer), "")
        height, width = sizes.get(path, (_COARSE, _COARSE))
        if min(height, width) >= _COARSE:
            return []
        finer = [f"{h}x{w}" for h, w in sizes.values() if min(h, w) > min(height, width)]
        hint = f"; --set grad-cam.layer={finer[-1]} is finer" if finer else ""
        return [f"the layer has {height}x{width} positions only, at an input of {size} px{hint}"]


@contextmanager
def _repeated(layer: torch.nn.Module, times: int) -> Iterator[None]:
    """Repeat a layer's output for each image `times` times, so that the following layers get one copy a class."""
    if times == 1:
        yield
        return
    # Hooks run in the order they were registered: captum's, which comes later, sees the repeated output.
    hook = layer.register_forward_hook(lambda _module, _inputs, output: output.repeat_interleave(times, dim=0))
    try:
        yield
    finally:
        hook.remove()


class GuidedGradCamExplainer(Explainer):
    """Grad-CAM times guided backpropagation, pixel by pixel.

    Guided backpropagation (Springenberg et al. 2015) lets only positive gradients through each ReLU. CoAtNet and
    EfficientNetV2 have none: their activations are GELU and SiLU, at which captum's implementation does nothing, so
    that plain gradients would come out under a wrong name. By default the rule is applied at them here
    too: of the gradient that leaves an activation towards the input, the positive part goes on. That is an extension
    of the published method.

    Adebayo et al. (2018) found that guided methods hardly change when the network's weights are replaced by noise.

    Parameters
    ----------
    layer : str
        As for Grad-CAM.
    activations : str
        ``"all"``, or ``"relu"`` for the published method, which refuses networks with other activations.
    per_pass : int
        Pictures computed at a time, which bounds the memory.
    """

    def __init__(self, layer: str = "auto", activations: str = "all", per_pass: int = 32) -> None:
        self.activations = activations
        self.per_pass = per_pass
        self._find = LayerFinder(layer)

    def attribute(self, classifier: Classifier, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return signed maps (B, H, W), float32, of images (B, 3, H, W) in [0, 1] for the classes (B,).

        Raises
        ------
        PluginError
            If the network has no suitable layer or no activation that the rule is defined for.
        """
        images, targets = check_batch(classifier, images, targets)
        self._check(classifier.backbone)
        maps = []
        with explaining(classifier):
            grad_cam = LayerGradCam(classifier, self._find(classifier, images.shape[-1]))
            for start in range(0, len(images), self.per_pass):
                part, target = images[start : start + self.per_pass], targets[start : start + self.per_pass, 0]
                coarse = grad_cam.attribute(part, target=target, relu_attributions=True).detach()
                with _guided_backpropagation(classifier):
                    given = part.requires_grad_()
                    score = classifier(given).gather(1, target[:, None]).sum()
                    (gradient,) = torch.autograd.grad(score, given)
                regions = functional.interpolate(coarse, size=part.shape[2:], mode="bilinear")
                maps.append((regions * gradient).float().sum(1))
        return torch.cat(maps) if maps else images[:, 0]

    def notes(self, classifier: Classifier) -> list[str]:
        """Warn how little such maps depend on the weights, and where the published rule was extended."""
        others = sorted({type(m).__name__ for m in classifier.backbone.modules() if _guided(m)} - {"ReLU"})
        extended = [f"its rule is for ReLU and was applied to {', '.join(others)} too"] if others else []
        return [*extended, "such maps hardly depend on the weights (Adebayo et al. 2018); see --sanity"]

    def _check(self, backbone: nn.Module) -> None:
        name = type(backbone).__name__
        kinds = {type(module).__name__ for module in backbone.modules() if _guided(module)}
        if not kinds:
            raise PluginError(
                f"guided-grad-cam is not defined for {name}: it has no activation modules; choose {INPUT_METHODS}"
            )
        others = sorted(kinds - {"ReLU"})
        if self.activations == "relu" and others:
            raise PluginError(
                f"guided-grad-cam as published knows ReLU only, and {name} has {', '.join(others)}; leave out "
                f"guided-grad-cam.activations=relu, or choose {INPUT_METHODS}"
            )


def _guided(module: nn.Module) -> bool:
    if isinstance(module, (nn.ReLU, *_SMOOTH)):
        return True
    return type(module).__module__.startswith("timm.") and type(module).__name__ in _SMOOTH_OF_TIMM


@contextmanager
def _guided_backpropagation(classifier: nn.Module) -> Iterator[None]:
    """Let only the positive part of the gradient through each activation, towards its input."""

    def hook(_module: nn.Module, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        first, *others = given
        if first.requires_grad:
            first.register_hook(functional.relu)  # type: ignore[no-untyped-call]
        # A copy, because the activation may work in place.
        return (first.clone(), *others)

    hooks = [module.register_forward_pre_hook(hook) for module in classifier.modules() if _guided(module)]
    try:
        yield
    finally:
        for each in hooks:
            each.remove()
