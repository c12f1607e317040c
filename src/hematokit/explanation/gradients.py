"""Explainers that need nothing of a network but its logits: SmoothGrad, integrated gradients and occlusion.

SmoothGrad is computed here, the other two by captum. `explaining` and `check_batch` prepare a classifier and a batch
for any explainer that uses gradients.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from captum.attr import IntegratedGradients as CaptumIntegratedGradients
from captum.attr import Occlusion as CaptumOcclusion

from hematokit.plugins.specs import Explainer

if TYPE_CHECKING:
    from hematokit.models.classifier import Classifier

__all__ = [
    "INPUT_METHODS",
    "IntegratedGradients",
    "Occlusion",
    "SmoothGrad",
    "check_batch",
    "explaining",
]

INPUT_METHODS = "smoothgrad, integrated-gradients, occlusion"
"""The methods of this module; named in errors where a method that needs more of a network cannot be used."""


@contextmanager
def explaining(classifier: Classifier) -> Iterator[None]:
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


def check_batch(
    classifier: Classifier, images: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
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
        raise ValueError(f"targets must be in 0 .. {len(codes or ()) - 1}, the positions of the classes")
    with torch.inference_mode(False):
        # A tensor made in inference mode can take no part in a graph; a copy can.
        plain = images.detach().clone(memory_format=torch.channels_last)
        places = targets.detach().clone().to(plain.device, torch.int64)
    return plain, places[:, None] if places.ndim == 1 else places


_SEED_SPREAD = 1_000_003
"""Between the seeds of one call and the next, so that no two draws share a seed by accident."""


class SmoothGrad(Explainer):
    r"""Mean gradient over noisy copies of the image (Smilkov et al. 2017).

    :math:`\frac1n\sum_k \nabla_x y(x + \epsilon_k)`, where :math:`\epsilon_k` is normal and its deviation a share of
    the input's range.

    The noise of copy k comes from the seed and k alone and is the same for every image: a cell's map depends
    neither on the cells beside it nor on their order, and maps of two classes or two models differ by nothing but the
    class or the model. (This is why the noise is not drawn by captum's ``NoiseTunnel``, which draws for a whole batch;
    with the same noise the results are equal.) Images are taken one at a time, their noisy copies together.

    Parameters
    ----------
    samples : int
        Noisy copies.
    noise : float
        Standard deviation as a share of the input's range (which is 1).
    magnitude : bool
        Add up absolute values over the colours, as the authors' own program does for its figures: how much a pixel
        matters, for or against. Otherwise the signed sum.
    seed : int
        Of the noise.
    per_pass : int
        Copies computed at a time, which bounds the memory.
    """

    def __init__(
        self, samples: int = 25, noise: float = 0.15, magnitude: bool = True, seed: int = 0, per_pass: int = 32
    ) -> None:
        self.samples = samples
        self.noise = noise
        self.magnitude = magnitude
        self.seed = seed
        self.per_pass = per_pass

    def attribute(self, classifier: Classifier, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return maps (B, H, W), float32, of images (B, 3, H, W) in [0, 1] for the classes (B,) among the logits."""
        return self.attribute_many(classifier, images, targets[:, None])[:, 0]

    def attribute_many(self, classifier: Classifier, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return maps (B, T, H, W) for several classes (B, T) of each image, with one forward pass for all classes."""
        images, targets = check_batch(classifier, images, targets)
        noise = self._draw(images)
        maps = torch.empty(len(images), targets.shape[1], *images.shape[2:], device=images.device)
        with explaining(classifier):
            for number, image in enumerate(images):
                total = torch.zeros(targets.shape[1], *image.shape, device=images.device)
                for start in range(0, self.samples, self.per_pass):
                    noisy = image + noise[start : start + self.per_pass]
                    total += _summed_gradients(classifier, noisy, targets[number])
                mean = total / self.samples
                maps[number] = (mean.abs() if self.magnitude else mean).sum(1)
        return maps

    def _draw(self, images: torch.Tensor) -> torch.Tensor:
        """Return noise (samples, 3, H, W); drawn on the CPU, so that every device gets the same."""
        drawn = []
        for number in range(self.samples):
            generator = torch.Generator().manual_seed(self.seed * _SEED_SPREAD + number)
            drawn.append(torch.randn(tuple(images.shape[1:]), generator=generator))
        stacked = torch.stack(drawn).mul_(self.noise).to(images.device)
        return stacked.contiguous(memory_format=torch.channels_last)


def _summed_gradients(classifier: Classifier, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return gradients of each target's logit (T,), added up over images (n, 3, H, W): (T, 3, H, W)."""
    images = images.requires_grad_()
    logits = classifier(images).float()
    sums = []
    for place, target in enumerate(targets.tolist()):
        last = place == len(targets) - 1
        (gradient,) = torch.autograd.grad(logits[:, target].sum(), images, retain_graph=not last)
        sums.append(gradient.float().sum(0))
    return torch.stack(sums)


class IntegratedGradients(Explainer):
    r"""Gradients along the straight path from a baseline image, times the difference (Sundararajan et al. 2017).

    The map's sum is the difference of the class's logit between the image and the baseline, up to the error of the
    integration (completeness).

    Parameters
    ----------
    steps : int
        Points of the Gauss-Legendre rule.
    baseline : str
        The baseline image: ``"white"`` (an empty bright field), ``"black"``, or ``"mean"`` (the image's own mean
        colour).
    per_pass : int
        Points computed at a time, which bounds the memory.
    """

    def __init__(self, steps: int = 32, baseline: str = "white", per_pass: int = 32) -> None:
        self.steps = steps
        self.baseline = baseline
        self.per_pass = per_pass

    def attribute(self, classifier: Classifier, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return signed maps (B, H, W), float32, of images (B, 3, H, W) in [0, 1] for the classes (B,)."""
        images, targets = check_batch(classifier, images, targets)
        maps = torch.empty(len(images), *images.shape[2:], device=images.device)
        with explaining(classifier):
            method = CaptumIntegratedGradients(classifier)
            for number in range(len(images)):
                # One image at a time, its points together: the result never depends on the images beside it.
                image = images[number : number + 1]
                found = method.attribute(
                    image,
                    baselines=_baseline_of(image, self.baseline),
                    target=int(targets[number, 0]),
                    n_steps=self.steps,
                    internal_batch_size=self.per_pass,
                )
                maps[number] = found.detach().float().sum(1)[0]
        return maps


def _baseline_of(images: torch.Tensor, name: str) -> torch.Tensor:
    """Return baseline images (B, 3, H, W): ``"white"``, ``"black"``, or each image's ``"mean"`` colour."""
    if name == "mean":
        return images.mean(dim=(2, 3), keepdim=True).expand_as(images).contiguous()
    return torch.full_like(images, 1.0 if name == "white" else 0.0)


class Occlusion(Explainer):
    """Fall of the class's logit where a square of the image is covered; needs no gradients.

    Each pixel has the mean fall over the squares that cover it.

    Parameters
    ----------
    window : int
        Side of the square in input pixels; 0: an eighth of the input.
    stride : int
        Pixels from one square to the next; 0: half the window.
    baseline : str
        Fill colour of the square: ``"white"``, ``"black"`` or ``"mean"``.
    per_pass : int
        Covered copies computed at a time, which bounds the memory.
    """

    def __init__(self, window: int = 0, stride: int = 0, baseline: str = "white", per_pass: int = 32) -> None:
        self.window = window
        self.stride = stride
        self.baseline = baseline
        self.per_pass = per_pass

    def attribute(self, classifier: Classifier, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
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
                    baselines=_baseline_of(image, self.baseline),
                    target=int(targets[number, 0]),
                    perturbations_per_eval=self.per_pass,
                )
                # The square covers all three colours at once, so their maps are equal.
                maps[number] = found.detach().float()[0, 0]
        return maps
