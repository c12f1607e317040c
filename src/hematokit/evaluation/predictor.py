"""A model and the store that it was trained on."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from hematokit.errors import HematokitError
from hematokit.models.model import Model
from hematokit.store import PatchStore, open_store, summarize_pixel_sizes

__all__ = ["open_training_store", "scale_mismatch"]


def scale_mismatch(model: Model, cells: pd.DataFrame, store: PatchStore | None = None) -> str:
    """Say in one line why cells may not have the scale that a classifier was trained at; empty if they have it.

    Parameters
    ----------
    model : Model
    cells : DataFrame
        With the column ``pixel_size_um``.
    store : PatchStore, optional
        Where they are from. An unknown pixel size is no doubt in the classifier's own training store, nor of image
        files, which rarely state it.
    """
    own = store is not None and model.config.training.store_hash == store.content_hash
    return summarize_pixel_sizes(cells).mismatch(model.pixel_size_um, unknown=store is not None and not own)


def open_training_store(
    model: Model, model_path: Path, store: str | Path | None, kind: type[HematokitError]
) -> PatchStore:
    """Open the store given or, without one, the store that the classifier was trained on.

    Parameters
    ----------
    model : Model
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
    stated = Path(model.config.training.store or "")
    if not stated.name:
        raise kind(f"{model_path} does not say which store it was trained on; give one with --store")
    if not stated.exists():
        raise kind(
            f"store {stated}, on which {model_path} was trained, is not there any more; give its place with --store"
        )
    return open_store(stated)
