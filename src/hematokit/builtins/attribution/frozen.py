"""A classifier held still while it is asked for gradients with respect to its input."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["INPUT_METHODS", "check_batch", "explaining"]

INPUT_METHODS = "smoothgrad, integrated-gradients, occlusion"
"""Methods that need nothing of a network but its logits; named where one that needs more cannot be used."""


@contextmanager
def explaining(classifier: Any) -> Iterator[None]:
    """Put a classifier into evaluation mode with parameters that need no gradients; undo both afterwards.

    Without gradients of weights the graph keeps no input of any layer for their sake, which is what bounds the memory,
    and a graph that needs no gradient of the input either begins at the layer that is asked about.
    """
    was_training = {module: module.training for module in classifier.modules()}
    needed = [parameter for parameter in classifier.parameters() if parameter.requires_grad]
    try:
        classifier.eval()
        for parameter in needed:
            parameter.requires_grad_(False)
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for parameter in needed:
            parameter.requires_grad_(True)
        for module, mode in was_training.items():
            module.training = mode


def check_batch(classifier: Any, images: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images as a plain tensor in channels_last, and targets as (B, T) on the images' device.

    Parameters
    ----------
    classifier : Classifier
    images : Tensor, shape (B, 3, H, W), float32 in [0, 1]
    targets : Tensor, shape (B,) or (B, T), int64
        Positions of classes among the logits.

    Raises
    ------
    ValueError
        If shapes do not go together, or a target is no class of the classifier.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be (B, 3, H, W), not {tuple(images.shape)}")
    if targets.ndim not in (1, 2) or len(targets) != len(images):
        raise ValueError(f"targets must be (B,) or (B, T) for {len(images)} images, not {tuple(targets.shape)}")
    codes = getattr(classifier, "codes", None)
    if targets.numel() and (int(targets.min()) < 0 or (codes and int(targets.max()) >= len(codes))):
        raise ValueError(f"targets must lie in 0 .. {len(codes or ()) - 1}, the positions of the classes")
    with torch.inference_mode(False):
        # A tensor made in inference mode can take no part in a graph; a copy can.
        plain = images.detach().clone(memory_format=torch.channels_last)
        places = targets.detach().clone().to(plain.device, torch.int64)
    return plain, places[:, None] if places.ndim == 1 else places
