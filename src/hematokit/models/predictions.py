"""What every runtime says of patches in the same words; needs no torch."""

from __future__ import annotations

import numpy as np
import pandas as pd

from hematokit.errors import ModelError

__all__ = ["check_patches", "prediction_frame"]


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
    """
    scaled = np.asarray(logits, np.float64) / temperature
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
