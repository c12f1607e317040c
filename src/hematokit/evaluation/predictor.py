"""What evaluation and explanation need of a classifier, and the store that it was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd

from hematokit.errors import HematokitError
from hematokit.store import PatchStore, open_store, summarize_pixel_sizes
from hematokit.taxonomy import Taxonomy

__all__ = ["Predictor", "open_training_store", "scale_mismatch", "training_of", "training_store"]


class Predictor(Protocol):
    """What is needed of a classifier; `hematokit.models.Classifier` is one."""

    @property
    def codes(self) -> tuple[str, ...]:
        """Class codes in the order of the probabilities."""

    @property
    def taxonomy(self) -> Taxonomy:
        """The classes of `codes`."""

    @property
    def temperature(self) -> float:
        """Calibration temperature."""

    @property
    def patch_size(self) -> int:
        """Side of its patches in pixels."""

    @property
    def config(self) -> Any:
        """Bundle configuration; its ``training`` says what it was trained on."""

    def predict(self, patches: npt.NDArray[np.uint8], batch_size: int = ...) -> pd.DataFrame:
        """Calibrated predictions: ``predicted``, ``probability``, ``p_<CODE>`` ..."""


def training_of(model: Predictor) -> dict[str, Any]:
    """What a classifier's bundle says about its training; empty where it says nothing."""
    training = getattr(getattr(model, "config", None), "training", None)
    return dict(training) if isinstance(training, Mapping) else {}


def training_store(model: Predictor) -> Path | None:
    """Path of the store that a classifier was trained on, as its bundle states it; ``None`` where it does not."""
    stated = training_of(model).get("store")
    return Path(str(stated)) if stated else None


def scale_mismatch(model: Predictor, cells: pd.DataFrame, store: PatchStore | None = None) -> str:
    """Say in one line why cells may not have the scale that a classifier was trained at; empty if they have it.

    Parameters
    ----------
    model : Predictor
    cells : DataFrame
        With the column ``pixel_size_um``.
    store : PatchStore, optional
        Where they are from. An unknown pixel size is no doubt in the classifier's own training store, nor of image
        files, which rarely state it.
    """
    own = store is not None and training_of(model).get("store_hash") == store.content_hash
    recorded = getattr(getattr(model, "config", None), "pixel_size_um", None)
    return summarize_pixel_sizes(cells).mismatch(recorded, unknown=store is not None and not own)


def open_training_store(
    model: Predictor, model_path: Path, store: str | Path | None, kind: type[HematokitError]
) -> PatchStore:
    """Open the store given or, without one, the store that the classifier was trained on.

    Parameters
    ----------
    model : Predictor
    model_path : Path
        Where it was loaded from, for messages.
    store : path, optional
    kind : type
        Error to raise.

    Returns
    -------
    PatchStore

    Raises
    ------
    HematokitError
        Of that `kind`, if none is given and the classifier names none or one that is gone.
    StoreError
        If the store cannot be opened.
    """
    if store is not None:
        return open_store(store)
    stated = training_store(model)
    if stated is None:
        raise kind(f"{model_path} does not say which store it was trained on; give one with --store")
    if not stated.exists():
        raise kind(
            f"store {stated}, on which {model_path} was trained, is not there any more; give its place with --store"
        )
    return open_store(stated)
