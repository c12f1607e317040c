"""Guided Grad-CAM (Selvaraju et al. 2017), by captum, with a rule for activations that are not ReLU."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from captum._utils.common import _register_backward_hook
from captum.attr import GuidedBackprop, GuidedGradCam
from torch import nn

from hematokit.builtins.attribution.frozen import INPUT_METHODS, check_batch, explaining
from hematokit.builtins.attribution.layers import LayerFinder
from hematokit.errors import PluginError

__all__ = ["GuidedGradCamExplainer"]

_SMOOTH = (nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.ELU, nn.CELU, nn.SELU, nn.LeakyReLU, nn.ReLU6, nn.Softplus)
_SMOOTH_OF_TIMM = {"GELU", "GELUTanh", "QuickGELU", "Swish", "SwishMe", "Mish", "MishMe", "HardSwish", "HardSwishMe"}


class GuidedGradCamExplainer:
    """Grad-CAM times guided backpropagation, pixel by pixel.

    Guided backpropagation (Springenberg et al. 2015) lets only positive gradients through each ReLU. CoAtNet and
    EfficientNetV2 have none: their activations are GELU and SiLU, at which captum's implementation does nothing, so
    that plain gradients would come out under a wrong name. Here, unless told otherwise, the rule is applied at them
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

    def attribute(self, classifier: Any, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
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
            layer = self._find(classifier, images.shape[-1])
            method = GuidedGradCam(classifier, layer)
            method.guided_backprop = _Guided(classifier)
            for start in range(0, len(images), self.per_pass):
                part, target = images[start : start + self.per_pass], targets[start : start + self.per_pass, 0]
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "Setting backward hooks on ReLU")
                    warnings.filterwarnings("ignore", "Input Tensor 0 did not already require gradients")
                    found = method.attribute(part, target=target, interpolate_mode="bilinear")
                maps.append(found.detach().float().sum(1))
        return torch.cat(maps) if maps else images[:, 0]

    def notes(self, classifier: Any) -> list[str]:
        """Say what such maps are worth, and where the published rule was extended."""
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


class _Guided(GuidedBackprop):  # type: ignore[misc]
    """captum's guided backpropagation, with hooks on activations of other kinds too."""

    def _register_hooks(self, module: nn.Module) -> None:
        if isinstance(module, nn.ReLU) or not _guided(module):
            super()._register_hooks(module)
            return
        self.backward_hooks.extend(_register_backward_hook(module, self._backward_hook, self))
