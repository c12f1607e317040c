"""The classifier: patch -> input -> normalisation -> backbone -> logits -> calibrated probabilities; devices."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from torch.nn import functional

from hematokit.errors import HematokitError, ModelError, PluginError, describe_error
from hematokit.models.config import ModelConfig
from hematokit.models.model import (
    Patches,
    check_finite,
    check_patches,
    prediction_frame,
    probability_matrix,
    sorted_classes,
)
from hematokit.plugins.specs import InputSpec
from hematokit.progress import Progress, no_progress
from hematokit.taxonomy import Taxonomy

__all__ = [
    "ORIGIN",
    "Classifier",
    "describe_device",
    "fit_to_input",
    "penultimate",
    "resizing_matrix",
    "resolve_device",
    "resize_patches",
]


ORIGIN: Final = "hematokit_origin"
"""Attribute of a backbone from a third-party plugin: its name and package, for messages."""


class Classifier(torch.nn.Module):
    """A backbone with its input preparation, normalisation, classes and calibration.

    Parameters
    ----------
    backbone : torch.nn.Module
        ``(B, 3, S, S) float32 -> logits (B, C)``.
    taxonomy : Taxonomy
        The classes, in the order of the logits.
    input_spec : InputSpec
        Size, fit and normalisation of the input.
    patch_size : int
        Side of the training patches in pixels.
    temperature : float
        Divisor of the logits before softmax (Guo et al. 2017).
    config : ModelConfig, optional
        Configuration of the bundle.
    identity : str
        Content hash of the bundle, as returned by `hematokit.models.bundle.bundle_identity`; empty if the model does
        not come from a bundle.

    Raises
    ------
    ModelError
        If the temperature is not positive and finite.
    """

    runtime: Final = "torch"
    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        backbone: torch.nn.Module,
        taxonomy: Taxonomy,
        input_spec: InputSpec,
        patch_size: int,
        temperature: float = 1.0,
        config: ModelConfig | None = None,
        identity: str = "",
    ) -> None:
        super().__init__()
        if not 0 < temperature < math.inf:
            raise ModelError(f"a temperature of {temperature} is not possible; give a positive, finite number")
        self.identity = identity
        self.backbone = backbone
        self.taxonomy = taxonomy
        self.input_spec = input_spec
        self.patch_size = patch_size
        self.temperature = temperature
        self._config = config
        # Not persistent: these values are part of the configuration; weights files contain learned parameters only.
        self.register_buffer("mean", torch.tensor(input_spec.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(input_spec.std).view(1, 3, 1, 1), persistent=False)

    @property
    def codes(self) -> tuple[str, ...]:
        """Class codes in the order of the logits."""
        return self.taxonomy.codes

    @property
    def classes_(self) -> np.ndarray:
        """Class codes in the order of the columns of `predict_proba`, which is sorted, as scikit-learn requires."""
        return sorted_classes(self.codes)

    @property
    def config(self) -> ModelConfig:
        """Configuration of the bundle.

        Raises
        ------
        ModelError
            If the classifier does not come from a bundle.
        """
        if self._config is None:
            raise ModelError("this classifier has no bundle configuration; save it as a bundle and load that")
        return self._config

    @property
    def has_config(self) -> bool:
        """Whether the classifier comes from a bundle."""
        return self._config is not None

    @property
    def pixel_size_um(self) -> float | None:
        """Pixel size of the training images in micrometres; None if unknown."""
        return self._config.pixel_size_um if self._config is not None else None

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return self.mean.device

    def prepare(self, patches: torch.Tensor) -> torch.Tensor:
        """Return the unnormalised input of the network, on the device of the patches.

        Parameters
        ----------
        patches : Tensor, shape (B, P, P, 3), uint8

        Returns
        -------
        Tensor, shape (B, 3, S, S), float32 in [0, 1]
            Input of augmenters and explainers.
        """
        # The layout of the store, viewed as (B, 3, P, P), is channels_last already: no copy.
        images = patches.permute(0, 3, 1, 2).float().div_(255.0)
        return fit_to_input(images, self.input_spec)

    def _normalise(self, images: torch.Tensor) -> torch.Tensor:
        return ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def embed_images(self, images: torch.Tensor) -> torch.Tensor:
        """Return embeddings (B, D), float32, of images (B, 3, S, S) in [0, 1].

        Raises
        ------
        ModelError
            If the backbone does not have the two halves of timm's: forward_features, and forward_head with pre_logits.
        """
        backbone: Any = self.backbone
        lacks = (
            f"{type(backbone).__name__} gives no embeddings: it has no forward_features and "
            "forward_head(..., pre_logits=True) as in timm"
        )
        if not (hasattr(backbone, "forward_features") and hasattr(backbone, "forward_head")):
            raise ModelError(lacks)
        try:
            return penultimate(backbone, backbone.forward_features(self._normalise(images)))
        except (HematokitError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise ModelError(f"{lacks} ({describe_error(error)})") from error

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits (B, C) of images (B, 3, S, S) in [0, 1]."""
        normalised = self._normalise(images)
        origin = getattr(self.backbone, ORIGIN, None)
        if origin is None:
            logits: torch.Tensor = self.backbone(normalised)
            return logits
        try:
            logits = self.backbone(normalised)
        except (HematokitError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise PluginError(f"{origin} failed: {describe_error(error)}") from error
        if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or logits.shape[1] != len(self.codes):
            what = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
            raise PluginError(f"{origin} returned {what}, not logits (batch, {len(self.codes)}); tell its author")
        return logits

    def logits(self, patches: Patches, batch_size: int = 64, progress: Progress = no_progress) -> np.ndarray:
        """Return uncalibrated logits.

        Parameters
        ----------
        patches : ndarray, shape (n, P, P, 3), or sequence of n arrays, shape (P, P, 3), uint8
        batch_size : int
            Number of patches per batch.
        progress : Progress
            Called after each batch.

        Returns
        -------
        ndarray, shape (n, C), float32

        Raises
        ------
        ModelError
            If the patches are of another shape or type than the model was trained on.
        ModelError, PluginError
            If a logit is not finite; `PluginError` if the backbone comes from a third-party plugin.
        """
        return self._compute(self, check_patches(patches, self.patch_size), batch_size, progress)

    def embed(self, patches: Patches, batch_size: int = 64, progress: Progress = no_progress) -> np.ndarray:
        """Return embeddings, the input of the backbone's last layer, with the parameters of `logits`.

        Returns
        -------
        ndarray, shape (n, D), float32

        Raises
        ------
        ModelError
            If the backbone does not provide embeddings.
        ModelError, PluginError
            As for `logits`.
        """
        return self._compute(self.embed_images, check_patches(patches, self.patch_size), batch_size, progress)

    @torch.inference_mode()
    def _compute(
        self,
        network: Callable[[torch.Tensor], torch.Tensor],
        patches: np.ndarray,
        batch_size: int,
        progress: Progress,
    ) -> np.ndarray:
        """Return the output of `network` for patches, shape (n, D), float32, computed in evaluation mode."""
        total = len(patches)
        if not total:
            # One blank patch is computed for the number of columns.
            patches = np.zeros((1, self.patch_size, self.patch_size, 3), np.uint8)
        was_training = self.training
        self.eval()
        parts = []
        try:
            for start in range(0, len(patches), batch_size):
                # A copy, because views of files and images are often read-only, which torch does not support.
                batch = torch.from_numpy(patches[start : start + batch_size].copy()).to(self.device)
                parts.append(network(self.prepare(batch)).float().cpu().numpy())
                if total:
                    progress(min(start + batch_size, total), total, "")
        finally:
            self.train(was_training)
        found = np.concatenate(parts)[:total]
        check_finite(found, getattr(self.backbone, ORIGIN, ""))
        return found

    def on_cpu(self) -> Classifier:
        """Return a copy on the CPU; the original is not modified, and its device needs no additional memory."""
        memo: dict[int, torch.Tensor] = {}
        for tensor in (*self.parameters(), *self.buffers()):
            moved = tensor.detach().to("cpu", copy=True)
            is_parameter = isinstance(tensor, torch.nn.Parameter)
            memo[id(tensor)] = torch.nn.Parameter(moved, tensor.requires_grad) if is_parameter else moved
        # deepcopy uses the tensors in the memo, so they are not copied on their own device.
        return copy.deepcopy(self, memo)

    def predict(self, patches: Patches, batch_size: int = 64, progress: Progress = no_progress) -> pd.DataFrame:
        """Classify patches.

        Parameters
        ----------
        patches : ndarray, shape (n, P, P, 3), or sequence of n arrays, shape (P, P, 3), uint8
        batch_size : int
            Number of patches per batch.
        progress : Progress
            Called after each batch.

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

    def predict_proba(self, patches: Patches, batch_size: int = 64, progress: Progress = no_progress) -> np.ndarray:
        """Return calibrated probabilities, shape (n, C), float32, in the order of `classes_`; errors of `predict`."""
        return probability_matrix(self.predict(patches, batch_size, progress), self.classes_)


def penultimate(backbone: Any, features: torch.Tensor) -> torch.Tensor:
    """Return embeddings (B, D), float32, of the output of a backbone's ``forward_features``."""
    embeddings: torch.Tensor = backbone.forward_head(features, pre_logits=True).flatten(1).float()
    return embeddings


def resize_patches(patches: torch.Tensor, spec: InputSpec) -> torch.Tensor:
    """Resize uint8 patches ahead of training, if required by the specification; else return them unchanged.

    The uint8 kernel is some twenty times faster on a CPU than the float one that `Classifier.prepare` uses, and
    differs from it only by rounding to integers, which is negligible in training. Predictions do not
    use it, so that exported models reproduce them exactly.

    Parameters
    ----------
    patches : Tensor, shape (B, P, P, 3), uint8

    Returns
    -------
    Tensor, shape (B, S, S, 3) or (B, P, P, 3), uint8
    """
    side = patches.shape[1]
    if spec.fit_of(side) != "resize":
        return patches
    planes = patches.permute(0, 3, 1, 2)
    small = functional.interpolate(planes, size=(spec.size, spec.size), mode="bilinear", antialias=True)
    return small.permute(0, 2, 3, 1)


def fit_to_input(images: torch.Tensor, spec: InputSpec) -> torch.Tensor:
    """Fit square images (B, 3, P, P) to (B, 3, S, S) according to the input specification."""
    side, size = images.shape[-1], spec.size
    fit = spec.fit_of(side)
    if fit == "none":
        return images
    if fit == "reflect-pad" and size > side:
        before = (size - side) // 2
        after = size - side - before
        return functional.pad(images, (before, after, before, after), mode="reflect")
    if fit == "crop" and size < side:
        start = (side - size) // 2
        return images[:, :, start : start + size, start : start + size]
    resized = functional.interpolate(images, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    return resized.clamp(0.0, 1.0)


def resizing_matrix(side: int, spec: InputSpec) -> torch.Tensor | None:
    """Return the matrix W whose products W @ image @ W.T resize as `fit_to_input` does; None if it does not resize.

    The antialiased bilinear kernel is separable and linear, so a row of W holds the weights of one row of the result.

    Parameters
    ----------
    side : int
        Side of the patches in pixels.
    spec : InputSpec

    Returns
    -------
    Tensor, shape (S, side), float32, or None
        To be clamped to [0, 1] after use, as `fit_to_input` does.
    """
    size = spec.size
    fit = spec.fit_of(side)
    if fit == "none" or (fit == "reflect-pad" and size > side) or (fit == "crop" and size < side):
        return None
    # Resizing the rows of the identity matrix yields the weights.
    unit = torch.eye(side)[None, None]
    return functional.interpolate(unit, size=(size, side), mode="bilinear", antialias=True, align_corners=False)[0, 0]


def resolve_device(name: str = "auto") -> torch.device:
    """Return the device of a name.

    Parameters
    ----------
    name : str
        ``"auto"`` (a GPU if available, else the CPU), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``.

    Raises
    ------
    ModelError
        If the device is not available.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ModelError(f"device {name!r}: no usable NVIDIA GPU here; use --device cpu or auto")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f"device {name!r} is not available here ({str(error).splitlines()[0]}); use auto or cpu"
        ) from None
    return device


def describe_device(device: torch.device) -> str:
    """Return a readable name of a device: ``"cpu (2 threads)"``, ``"cuda (NVIDIA H100)"``."""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    if device.type == "cpu":
        return f"cpu ({torch.get_num_threads()} threads)"
    return str(device)
