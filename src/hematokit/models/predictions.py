"""What every runtime says of patches in the same words; needs no torch."""

from __future__ import annotations

import numpy as np
import pandas as pd

from hematokit.errors import ModelError, PluginError

__all__ = ["check_finite", "check_patches", "prediction_frame"]


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
