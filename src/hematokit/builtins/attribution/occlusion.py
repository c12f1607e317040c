"""Occlusion (Zeiler and Fergus 2014), by captum."""

from __future__ import annotations

from typing import Any

import torch
from captum.attr import Occlusion as CaptumOcclusion

from hematokit.builtins.attribution.frozen import check_batch, explaining
from hematokit.builtins.attribution.gradients import baseline_of

__all__ = ["Occlusion"]


class Occlusion:
    """How much the class's logit falls where a square of the picture is covered; needs no gradients at all.

    Each pixel has the mean fall over the squares that cover it.

    Parameters
    ----------
    window : int
        Side of the square in input pixels; 0: an eighth of the input.
    stride : int
        Pixels from one square to the next; 0: half the window.
    baseline : str
        What the square is filled with: ``"white"``, ``"black"`` or ``"mean"``.
    per_pass : int
        Covered copies computed at a time, which bounds the memory.
    """

    def __init__(self, window: int = 0, stride: int = 0, baseline: str = "white", per_pass: int = 32) -> None:
        self.window = window
        self.stride = stride
        self.baseline = baseline
        self.per_pass = per_pass

    def attribute(self, classifier: Any, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return signed maps (B, H, W), float32, of images (B, 3, H, W) in [0, 1] for the classes (B,)."""
        images, targets = check_batch(classifier, images, targets)
        height, width = images.shape[2:]
        window = min(self.window or max(min(height, width) // 8, 1), height, width)
        stride = min(self.stride or max(window // 2, 1), window)
        maps = torch.empty(len(images), height, width, device=images.device)
        with explaining(classifier), torch.no_grad():
            method = CaptumOcclusion(classifier)
            for number in range(len(images)):
                image = images[number : number + 1]
                found = method.attribute(
                    image,
                    sliding_window_shapes=(3, window, window),
                    strides=(3, stride, stride),
                    baselines=baseline_of(image, self.baseline),
                    target=int(targets[number, 0]),
                    perturbations_per_eval=self.per_pass,
                )
                # The square covers all three colours at once, so they say the same.
                maps[number] = found.detach().float()[0, 0]
        return maps
