"""Cells tables as AnnData, for scanpy and the tools around it (extra ``hematokit[anndata]``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from hematokit.errors import HematokitError, describe_missing_module
from hematokit.taxonomy import Taxonomy

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["cells_to_anndata"]


def cells_to_anndata(cells: pd.DataFrame, taxonomy: Taxonomy, metadata: Mapping[str, Any]) -> AnnData:
    """Return a cells table as AnnData.

    Parameters
    ----------
    cells : DataFrame
        A cells table of n rows. Contours, which AnnData cannot write, are left out; missing text is empty.
    taxonomy : Taxonomy
        Its codes, names and colours go into ``uns["hematokit"]``.
    metadata : mapping
        More entries of ``uns["hematokit"]``; None is left out.

    Returns
    -------
    AnnData
        ``obs`` has a row for each cell, with its id as the name; ``obsm["spatial"]`` has its centre, ``(x, y)`` in
        pixels of the field, where it is known; ``X`` is float32 ``(n, 0)``.

    Raises
    ------
    HematokitError
        If anndata is not installed.
    """
    try:
        from anndata import AnnData
    except ModuleNotFoundError as error:
        raise HematokitError(describe_missing_module(error)) from error
    obs = cells.drop(columns=["contour"], errors="ignore").set_index("cell_id")
    # AnnData writes text as objects only, not as the string type of pandas 3.
    for name, column in obs.items():
        if column.dtype == object or isinstance(column.dtype, pd.StringDtype):
            obs[name] = pd.Series(["" if pd.isna(value) else str(value) for value in column], obs.index, object)
    own = {
        "classes": np.array(taxonomy.codes, dtype=str),
        "names": np.array([entry.name for entry in taxonomy], dtype=str),
        "colours": np.array([entry.colour for entry in taxonomy], dtype=str),
    }
    own |= {name: value for name, value in metadata.items() if value is not None}
    obsm = {}
    if {"x", "y"} <= set(obs.columns) and len(obs) and obs[["x", "y"]].notna().all(axis=None):
        # scanpy's and squidpy's order is x, y.
        obsm["spatial"] = obs[["x", "y"]].to_numpy(np.float64)
    made = AnnData(X=np.empty((len(obs), 0), np.float32), obs=obs, obsm=obsm, uns={"hematokit": own})
    made.obs.index, made.var.index = made.obs.index.astype(object), made.var.index.astype(object)
    return made
