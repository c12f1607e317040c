"""What a model is to all that use one, whatever computes it: its protocol, and the checks and columns all share.

Needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
import pandas as pd

from hematokit.errors import ModelError, PluginError
from hematokit.models.config import ModelConfig
from hematokit.taxonomy import Taxonomy

if TYPE_CHECKING:
    import torch

__all__ = ["Model", "check_finite", "check_patches", "prediction_frame"]


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


def check_finite(logits: np.ndarray, origin: str = "") -> None:
    """Refuse logits that are not finite; the output of every runtime is checked here.

    Parameters
    ----------
    logits : ndarray, shape (n, C)
    origin : str
        Third-party backbone that gave them, with its package; empty for built-in ones.

    Raises
    ------
    PluginError, ModelError
        If one is NaN or infinite; the first where there is an `origin`.
    """
    bad = int((~np.isfinite(logits)).any(axis=1).sum())
    if not bad:
        return
    what = f"gives numbers that are not finite (NaN or infinity) for {bad} of {len(logits)} patches"
    if origin:
        raise PluginError(f"{origin} {what}; report it to its author")
    raise ModelError(f"the model {what}; its weights are damaged or its precision is too low: copy or train it again")


def check_patches(patches: np.ndarray, side: int) -> None:
    """Refuse patches that a model cannot take.

    Parameters
    ----------
    patches : ndarray
        Right is uint8 of shape ``(n, side, side, 3)``.
    side : int
        Side of the patches that the model was trained on, in pixels.

    Raises
    ------
    ModelError
        If they are of another shape or type.
    """
    if patches.ndim != 4 or patches.shape[1:] != (side, side, 3) or patches.dtype != np.uint8:
        raise ModelError(
            f"the model takes uint8 patches of shape (n, {side}, {side}, 3), not {patches.dtype} of shape "
            f"{patches.shape}; cut or resize them to {side} px"
        )


def prediction_frame(logits: np.ndarray, codes: tuple[str, ...], temperature: float = 1.0) -> pd.DataFrame:
    """Turn logits into the prediction columns.

    Parameters
    ----------
    logits : ndarray, shape (n, C)
        As the network gives them.
    codes : tuple of str
        Class codes, in the order of the logits.
    temperature : float
        Divides the logits before softmax.

    Returns
    -------
    DataFrame
        One row per patch: ``predicted`` (code), ``probability`` of it, and ``p_<CODE>`` for every class.

    Raises
    ------
    ModelError
        If a logit, or its quotient by the temperature, is not finite.
    """
    with np.errstate(over="ignore"):
        scaled = np.asarray(logits, np.float64) / temperature
    check_finite(scaled)
    weights = np.exp(scaled - scaled.max(axis=1, keepdims=True, initial=-np.inf))
    probabilities = weights / weights.sum(axis=1, keepdims=True)
    best = probabilities.argmax(axis=1) if len(codes) else np.zeros(0, int)
    columns: dict[str, object] = {
        "predicted": np.asarray(codes, dtype=object)[best],
        "probability": probabilities[np.arange(len(best)), best].astype(np.float32),
    }
    for index, code in enumerate(codes):
        columns[f"p_{code}"] = probabilities[:, index].astype(np.float32)
    return pd.DataFrame(columns)
