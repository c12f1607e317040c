"""The protocol of a model, whichever runtime computes it, and the checks and columns that all models share.

This module does not import torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pandas as pd

from hematokit.errors import ModelError, PluginError
from hematokit.models.config import ModelConfig
from hematokit.taxonomy import Taxonomy

if TYPE_CHECKING:
    import torch

__all__ = [
    "Model",
    "Patches",
    "check_finite",
    "check_patches",
    "prediction_frame",
    "probability_matrix",
    "sorted_classes",
]

Patches = np.ndarray | Sequence[np.ndarray]
"""Patches of one size, uint8: an array (n, P, P, 3), or a sequence of n arrays (P, P, 3)."""


class Model(Protocol):
    """A trained model: a `hematokit.models.Classifier`, computed by torch, or a `hematokit.models.OnnxClassifier`."""

    @property
    def config(self) -> ModelConfig:
        """Configuration recorded in the bundle.

        Raises
        ------
        ModelError
            If the model does not come from a bundle.
        """

    @property
    def identity(self) -> str:
        """Content hash, as returned by `hematokit.models.bundle.bundle_identity`; empty for a model without files."""

    @property
    def taxonomy(self) -> Taxonomy:
        """Classes, in the order of the logits."""

    @property
    def codes(self) -> tuple[str, ...]:
        """Class codes in the order of the logits."""

    @property
    def classes_(self) -> np.ndarray:
        """Class codes in the order of the columns of `predict_proba`, which is sorted, as scikit-learn requires."""

    @property
    def patch_size(self) -> int:
        """Side of the patches in pixels."""

    @property
    def pixel_size_um(self) -> float | None:
        """Pixel size of the training images in micrometres; None if unknown."""

    @property
    def temperature(self) -> float:
        """Divisor of the logits before softmax."""

    @property
    def runtime(self) -> str:
        """Runtime: ``"torch"``, ``"onnxruntime"`` or ``"openvino"``."""

    @property
    def device(self) -> torch.device | str:
        """Device of the computation."""

    def on_cpu(self) -> Model:
        """Return the model on the CPU; the original is not modified."""

    def predict(self, patches: Patches, batch_size: int = ...) -> pd.DataFrame:
        """Classify patches.

        Parameters
        ----------
        patches : ndarray, shape (n, P, P, 3), or sequence of n arrays, shape (P, P, 3), uint8
        batch_size : int
            Number of patches per batch.

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
            If a logit is not finite; `PluginError` if the backbone comes from a third-party plugin.
        """

    def predict_proba(self, patches: Patches, batch_size: int = ...) -> np.ndarray:
        """Return calibrated probabilities, with the parameters and errors of `predict`.

        Returns
        -------
        ndarray, shape (n, C), float32
            One column per class, in the order of `classes_`, which differs from the order of the logits.
        """

    def embed(self, patches: Patches, batch_size: int = ...) -> np.ndarray:
        """Return embeddings, the input of the backbone's last layer, with the parameters and errors of `predict`.

        Returns
        -------
        ndarray, shape (n, D), float32

        Raises
        ------
        ModelError
            If the model does not provide embeddings.
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


def check_patches(patches: Patches, side: int) -> np.ndarray:
    """Return patches as one array; reject patches that the model cannot process.

    Parameters
    ----------
    patches : ndarray, shape (n, side, side, 3), or sequence of n arrays, shape (side, side, 3), uint8
    side : int
        Side of the patches that the model was trained on, in pixels.

    Returns
    -------
    ndarray, shape (n, side, side, 3), uint8

    Raises
    ------
    ModelError
        If the patches have another shape or dtype.
    """
    if not isinstance(patches, np.ndarray):
        different = next((patch for patch in patches if np.shape(patch) != (side, side, 3)), None)
        if different is not None:
            raise ModelError(
                f"the model takes uint8 patches of shape ({side}, {side}, 3), not of shape {np.shape(different)}; "
                f"cut or resize them to {side} px"
            )
        patches = np.stack(patches) if len(patches) else np.zeros((0, side, side, 3), np.uint8)
    if patches.ndim != 4 or patches.shape[1:] != (side, side, 3) or patches.dtype != np.uint8:
        raise ModelError(
            f"the model takes uint8 patches of shape (n, {side}, {side}, 3), not {patches.dtype} of shape "
            f"{patches.shape}; cut or resize them to {side} px"
        )
    return patches


def sorted_classes(codes: Sequence[str]) -> np.ndarray:
    """Return class codes as a sorted array; scikit-learn's metrics assume this order of the probability columns."""
    return np.sort(np.asarray(codes, dtype=str))


def probability_matrix(predictions: pd.DataFrame, classes: np.ndarray) -> np.ndarray:
    """Return the probabilities of predictions as an array.

    Parameters
    ----------
    predictions : DataFrame
        With the columns of `prediction_frame`.
    classes : ndarray of str
        Class codes in the order of the columns to return.

    Returns
    -------
    ndarray, shape (n, C), float32
    """
    return predictions[[f"p_{code}" for code in classes]].to_numpy(dtype=np.float32)


def prediction_frame(logits: np.ndarray, codes: tuple[str, ...], temperature: float = 1.0) -> pd.DataFrame:
    """Return the predictions of logits as a table.

    Parameters
    ----------
    logits : ndarray, shape (n, C)
        Uncalibrated output of the network.
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
        If a logit, or a logit divided by the temperature, is not finite.
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
