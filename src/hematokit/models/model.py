"""What a model is to all that use one, whatever computes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
import pandas as pd

from hematokit.models.config import ModelConfig
from hematokit.taxonomy import Taxonomy

if TYPE_CHECKING:
    import torch

__all__ = ["Model"]


class Model(Protocol):
    """A trained model: a `hematokit.models.Classifier`, computed by torch, or a `hematokit.models.OnnxClassifier`."""

    @property
    def config(self) -> ModelConfig:
        """What its bundle records.

        Raises
        ------
        ModelError
            If it does not come from a bundle.
        """

    @property
    def identity(self) -> str:
        """Hash of all that decides its predictions, as `hematokit.models.bundle.bundle_identity` gives it; or empty."""

    @property
    def taxonomy(self) -> Taxonomy:
        """Its classes, in the order of the logits."""

    @property
    def codes(self) -> tuple[str, ...]:
        """Class codes in the order of the logits."""

    @property
    def patch_size(self) -> int:
        """Side of its patches in pixels."""

    @property
    def pixel_size_um(self) -> float | None:
        """Side of a pixel of the training images in micrometres; None where it is not known."""

    @property
    def temperature(self) -> float:
        """Divides the logits before softmax."""

    @property
    def runtime(self) -> str:
        """What computes it: ``"torch"``, ``"onnxruntime"`` or ``"openvino"``."""

    @property
    def device(self) -> torch.device | str:
        """Where it computes."""

    def on_cpu(self) -> Model:
        """Return the same model on the CPU; this one stays as it is."""

    def predict(self, patches: np.ndarray, batch_size: int = ...) -> pd.DataFrame:
        """Classify patches.

        Parameters
        ----------
        patches : ndarray, shape (n, P, P, 3), uint8
        batch_size : int
            Patches at a time.

        Returns
        -------
        DataFrame
            One row per patch: ``predicted`` (code), ``probability`` of it, and ``p_<CODE>`` for every class;
            probabilities are calibrated by the temperature.

        Raises
        ------
        ModelError
            If the patches are of another shape or type than the model was trained on.
        ModelError, PluginError
            If a logit is not finite; the second names the package where the backbone is a third-party one.
        """
