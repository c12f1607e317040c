"""Grad-CAM (Selvaraju et al. 2017), by captum."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from captum.attr import LayerGradCam
from torch.nn import functional

from hematokit.builtins.attribution.frozen import check_batch, explaining
from hematokit.builtins.attribution.layers import LayerFinder, spatial_layers

__all__ = ["GradCam"]

_COARSE = 6
"""Positions along a side below which a map says little more than left, right or middle."""


class GradCam:
    r"""Weights the maps of a layer by the mean gradient of the class's logit, and adds them up.

    :math:`\mathrm{ReLU}(\sum_k \alpha_k A^k)` with :math:`\alpha_k` the mean of
    :math:`\partial y / \partial A^k` over positions (Selvaraju et al. 2017, eqs. 1 and 2), enlarged bilinearly to the
    input.

    Neither weights nor input need gradients, so nothing is kept of what lies before the layer: the price is one
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

    def attribute(self, classifier: Any, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return maps (B, H, W), float32, of images (B, 3, H, W) in [0, 1] for the classes (B,) among the logits.

        Raises
        ------
        PluginError
            If the network has no such layer.
        """
        return self.attribute_many(classifier, images, targets[:, None])[:, 0]

    def attribute_many(self, classifier: Any, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return maps (B, T, H, W) for several classes (B, T) of each image.

        What lies before the layer is computed once for all classes of an image.
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

    def notes(self, classifier: Any) -> list[str]:
        """Say how fine the maps are, where they are very coarse."""
        size = classifier.input_spec.size
        layer = self._find(classifier, size)
        sizes = spatial_layers(classifier, size)
        path = next((name for name, module in classifier.backbone.named_modules() if module is layer), "")
        height, width = sizes.get(path, (_COARSE, _COARSE))
        if min(height, width) >= _COARSE:
            return []
        finer = [f"{h}x{w}" for h, w in sizes.values() if min(h, w) > min(height, width)]
        hint = f"; --set grad-cam.layer={finer[-1]} is finer" if finer else ""
        return [f"the layer has {height}x{width} positions only, at an input of {size} px{hint}"]


@contextmanager
def _repeated(layer: torch.nn.Module, times: int) -> Iterator[None]:
    """Let a layer hand on each image's output `times` times, so that what follows sees one copy a class."""
    if times == 1:
        yield
        return
    # Hooks run in the order they were registered: captum's, which comes later, sees the repeated output.
    hook = layer.register_forward_hook(lambda _module, _inputs, output: output.repeat_interleave(times, dim=0))
    try:
        yield
    finally:
        hook.remove()
