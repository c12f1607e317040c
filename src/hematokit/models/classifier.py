"""The classifier: patch -> input -> normalisation -> backbone -> logits -> calibrated probabilities."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch.nn import functional

from hematokit.errors import ModelError
from hematokit.progress import Progress, no_progress
from hematokit.specs import InputSpec
from hematokit.taxonomy import Taxonomy

if TYPE_CHECKING:
    from hematokit.models.bundle import BundleConfig

__all__ = ["Classifier", "prediction_frame", "shrink_patches"]


class Classifier(torch.nn.Module):
    """A backbone with everything that belongs around it.

    Parameters
    ----------
    backbone : torch.nn.Module
        ``(B, 3, S, S) float32 -> logits (B, C)``.
    taxonomy : Taxonomy
        The classes, in the order of the logits.
    input_spec : InputSpec
        Size, fit and normalisation of the input.
    patch_size : int
        Side of the patches it was trained on, in pixels.
    temperature : float
        Divides the logits before softmax (Guo et al. 2017).
    config : BundleConfig, optional
        What the bundle says about it.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        backbone: torch.nn.Module,
        taxonomy: Taxonomy,
        input_spec: InputSpec,
        patch_size: int,
        temperature: float = 1.0,
        config: BundleConfig | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.taxonomy = taxonomy
        self.input_spec = input_spec
        self.patch_size = patch_size
        self.temperature = temperature
        self._config = config
        # Not persistent: the numbers belong to the configuration, and weights files hold only what was learned.
        self.register_buffer("mean", torch.tensor(input_spec.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(input_spec.std).view(1, 3, 1, 1), persistent=False)

    @property
    def codes(self) -> tuple[str, ...]:
        """Class codes in the order of the logits."""
        return self.taxonomy.codes

    @property
    def config(self) -> BundleConfig:
        """The bundle's configuration.

        Raises
        ------
        ModelError
            If the classifier does not come from a bundle.
        """
        if self._config is None:
            raise ModelError("this classifier has no bundle configuration; save it as a bundle and load that")
        return self._config

    @property
    def device(self) -> torch.device:
        """Device it is on."""
        return self.mean.device

    def prepare(self, patches: torch.Tensor) -> torch.Tensor:
        """Turn patches into the network's input, unnormalised, on the patches' device.

        Parameters
        ----------
        patches : Tensor, shape (B, P, P, 3), uint8

        Returns
        -------
        Tensor, shape (B, 3, S, S), float32 in [0, 1]
            Where augmenters and explainers work.
        """
        # The store's layout seen as (B, 3, P, P) is channels_last already: no copy.
        images = patches.permute(0, 3, 1, 2).float().div_(255.0)
        return fit_to_input(images, self.input_spec)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits (B, C) of images (B, 3, S, S) in [0, 1]."""
        normalised = (images - self.mean) / self.std
        logits: torch.Tensor = self.backbone(normalised.contiguous(memory_format=torch.channels_last))
        return logits

    @torch.inference_mode()
    def logits(self, patches: np.ndarray, batch_size: int = 64, progress: Progress = no_progress) -> np.ndarray:
        """Return uncalibrated logits.

        Parameters
        ----------
        patches : ndarray, shape (n, P, P, 3), uint8
        batch_size : int
            Patches at a time.
        progress : Progress
            Told after each batch.

        Returns
        -------
        ndarray, shape (n, C), float32

        Raises
        ------
        ModelError
            If the patches are of another shape or type than the model was trained on.
        """
        self._check(patches)
        was_training = self.training
        self.eval()
        parts = []
        for start in range(0, len(patches), batch_size):
            # A copy, because views of files and pictures are often read-only, which torch cannot express.
            batch = torch.from_numpy(patches[start : start + batch_size].copy()).to(self.device)
            parts.append(self(self.prepare(batch)).float().cpu().numpy())
            progress(min(start + batch_size, len(patches)), len(patches), "")
        self.train(was_training)
        return np.concatenate(parts) if parts else np.zeros((0, len(self.codes)), np.float32)

    def predict(self, patches: np.ndarray, batch_size: int = 64, progress: Progress = no_progress) -> pd.DataFrame:
        """Classify patches.

        Parameters
        ----------
        patches : ndarray, shape (n, P, P, 3), uint8
        batch_size : int
            Patches at a time.
        progress : Progress
            Told after each batch.

        Returns
        -------
        DataFrame
            One row per patch: ``predicted`` (code), ``probability`` of it, and ``p_<CODE>`` for every class;
            probabilities are calibrated by the bundle's temperature.

        Raises
        ------
        ModelError
            If the patches are of another shape or type than the model was trained on.
        """
        return prediction_frame(self.logits(patches, batch_size, progress), self.codes, self.temperature)

    def _check(self, patches: np.ndarray) -> None:
        side = self.patch_size
        if patches.ndim != 4 or patches.shape[1:] != (side, side, 3) or patches.dtype != np.uint8:
            raise ModelError(
                f"the model takes uint8 patches of shape (n, {side}, {side}, 3), not {patches.dtype} of shape "
                f"{patches.shape}; cut or resize them to {side} px"
            )


def _fit(side: int, spec: InputSpec) -> str:
    """Decide between resizing, padding and cropping."""
    if spec.fit == "auto":
        # A narrow reflected margin costs no sharpness; a wide one would only add pixels to compute.
        return "reflect-pad" if side < spec.size <= side + side // 8 else "resize"
    return spec.fit


def shrink_patches(patches: torch.Tensor, spec: InputSpec) -> torch.Tensor:
    """Resize uint8 patches ahead of training, where the specification asks for resizing; else return them as they are.

    The uint8 kernel is some twenty times faster on a CPU than the float one that `Classifier.prepare` uses, and
    differs from it by rounding to whole grey levels only, which training cannot tell from noise. Predictions do not
    use it, so that exported models can repeat them exactly.

    Parameters
    ----------
    patches : Tensor, shape (B, P, P, 3), uint8

    Returns
    -------
    Tensor, shape (B, S, S, 3) or (B, P, P, 3), uint8
    """
    side = patches.shape[1]
    if side == spec.size or _fit(side, spec) != "resize":
        return patches
    planes = patches.permute(0, 3, 1, 2)
    small = functional.interpolate(planes, size=(spec.size, spec.size), mode="bilinear", antialias=True)
    return small.permute(0, 2, 3, 1)


def fit_to_input(images: torch.Tensor, spec: InputSpec) -> torch.Tensor:
    """Bring square images (B, 3, P, P) to (B, 3, S, S) as the input specification says."""
    side, size = images.shape[-1], spec.size
    if side == size:
        return images
    fit = _fit(side, spec)
    if fit == "reflect-pad" and size > side:
        before = (size - side) // 2
        after = size - side - before
        return functional.pad(images, (before, after, before, after), mode="reflect")
    if fit == "crop" and size < side:
        start = (side - size) // 2
        return images[:, :, start : start + size, start : start + size]
    resized = functional.interpolate(images, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    return resized.clamp(0.0, 1.0)


def prediction_frame(logits: np.ndarray, codes: tuple[str, ...], temperature: float = 1.0) -> pd.DataFrame:
    """Turn logits (n, C) into the prediction columns: ``predicted``, ``probability``, ``p_<CODE>``."""
    probabilities = torch.from_numpy(np.asarray(logits, np.float64) / temperature).softmax(dim=1).numpy()
    best = probabilities.argmax(axis=1) if len(codes) else np.zeros(0, int)
    columns: dict[str, object] = {
        "predicted": np.asarray(codes, dtype=object)[best],
        "probability": probabilities[np.arange(len(best)), best].astype(np.float32),
    }
    for index, code in enumerate(codes):
        columns[f"p_{code}"] = probabilities[:, index].astype(np.float32)
    return pd.DataFrame(columns)
