"""Groups of cells that a split must not part: patients, equal pixels, and near duplicates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from hematokit.progress import Progress, no_progress
from hematokit.store.patchstore import PatchStore
from hematokit.store.writer import StoreWriter

__all__ = ["Regrouped", "exact_groups", "regroup"]


@dataclass(frozen=True, slots=True)
class Regrouped:
    """What a search for duplicates found in the whole store.

    Attributes
    ----------
    exact : int
        Cells whose pixels equal those of another cell.
    conflicting : int
        Sets of cells with equal pixels whose labels differ.
    near : int or None
        Cells that share a group with a cell of other pixels though no patient joins them; None if not searched for.
    """

    exact: int
    conflicting: int
    near: int | None


def exact_groups(cells: pd.DataFrame) -> pd.Series[str]:
    """Group cells of equal pixels and cells of one patient.

    Parameters
    ----------
    cells : DataFrame
        With ``cell_id``, ``pixel_sha256`` and ``patient_id`` (empty where unknown).

    Returns
    -------
    Series of str
        A group for each cell, named after its first cell in alphabetical order, whatever the order of the rows.
    """
    n = len(cells)
    pixels = pd.factorize(cells["pixel_sha256"])[0]
    known = np.flatnonzero((cells["patient_id"] != "").to_numpy())
    patients = pd.factorize(cells["patient_id"].iloc[known])[0]
    # A graph of cells, hashes and patients: what hangs together is a group.
    hashes = n + pixels
    people = n + n + patients
    edges = (np.concatenate([np.arange(n), known]), np.concatenate([hashes, people]))
    size = 3 * n
    graph = coo_array((np.ones(len(edges[0]), np.int8), edges), shape=(size, size))
    return _name_groups(cells, connected_components(graph, directed=False)[1][:n])


def _name_groups(cells: pd.DataFrame, component: npt.NDArray[np.integer]) -> pd.Series[str]:
    named = cells["cell_id"].astype(object).groupby(component).transform("min")
    return pd.Series(named.to_numpy(), index=cells.index, name="group", dtype=object)


def regroup(store: PatchStore, writer: StoreWriter, *, near: bool, progress: Progress = no_progress) -> Regrouped:
    """Bring the column ``group`` up to date, if cells came since it was computed, and commit it.

    Parameters
    ----------
    store : PatchStore
        The store that `writer` writes.
    writer : StoreWriter
        Open, with nothing pending.
    near : bool
        Search for near duplicates as well as for equal pixels.
    """
    state = writer.state
    cells = writer.cells
    if len(cells) and (state.groups_stale or (near and not state.groups_near)):
        duplicates = b""
        try:  # TEMP until duplicates.py is there
            import hematokit.store.duplicates
        except ImportError:
            near = False
        if near:
            from hematokit.store.duplicates import assign_groups

            store.refresh()
            groups, duplicates = assign_groups(store.read_rows, cells, state.duplicates, progress)
        else:
            groups = exact_groups(cells)
        cells = cells.assign(group=np.asarray(groups, dtype=object))
        writer.replace_cells(cells, groups_stale=False, groups_near=near, duplicates=duplicates)
        state = writer.state
    return _count(cells, near=state.groups_near)


def _count(cells: pd.DataFrame, *, near: bool) -> Regrouped:
    equal = cells[cells["pixel_sha256"].duplicated(keep=False)]
    conflicting = int((equal.groupby("pixel_sha256")["label"].nunique() > 1).sum())
    found = None
    if near:
        # Joined though neither pixels nor a patient join them.
        plain = exact_groups(cells)
        found = int((plain.groupby(cells["group"].to_numpy()).transform("nunique") > 1).sum())
    return Regrouped(len(equal), conflicting, found)
