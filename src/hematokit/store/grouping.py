"""Groups of cells that a split must not part: patients, fields, equal pixels, and near duplicates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from hematokit.errors import StoreError
from hematokit.progress import Progress, no_progress
from hematokit.store.corrections import apply_corrections
from hematokit.store.duplicates import Fingerprints, assign_groups, find_pairs, label_conflicts
from hematokit.store.files import disk_errors
from hematokit.store.patchstore import PatchStore
from hematokit.store.schema import FINGERPRINTS_FILE
from hematokit.store.smears import composed
from hematokit.store.writer import StoreWriter

__all__ = ["Regrouped", "exact_groups", "group_cells", "regroup"]


@dataclass(frozen=True, slots=True)
class Regrouped:
    """What a search for duplicates found in the whole store.

    Attributes
    ----------
    exact : int
        Cells whose pixels equal those of another cell.
    conflicting : int
        Pairs of cells that are exact or near duplicates of each other, with different labels.
    near : int or None
        Pairs that show one cell, in other pixels; None if they were not searched for.
    overlap : int or None
        Pairs of crops that were cut from one field and overlap.
    """

    exact: int
    conflicting: int
    near: int | None
    overlap: int | None


def exact_groups(cells: pd.DataFrame) -> pd.Series[str]:
    """Group cells of equal pixels, cells of one field and cells of one patient.

    Parameters
    ----------
    cells : DataFrame
        With ``cell_id``, ``field_id``, ``pixel_sha256`` and ``patient_id`` (empty where unknown).

    Returns
    -------
    Series of str
        A group for each cell, named as `assign_groups` names them: ``patient:`` and the first patient, or the first
        cell_id in alphabetical order.
    """
    n = len(cells)
    patient = cells["patient_id"].to_numpy(dtype=object)
    known = np.flatnonzero(patient != "")
    # A graph of cells, hashes, fields and patients: what hangs together is a group.
    hashes = n + pd.factorize(cells["pixel_sha256"])[0]
    fields = 2 * n + pd.factorize(cells["field_id"])[0]
    people = 3 * n + pd.factorize(patient[known])[0]
    edges = (np.concatenate([np.arange(n), np.arange(n), known]), np.concatenate([hashes, fields, people]))
    graph = coo_array((np.ones(len(edges[0]), np.int8), edges), shape=(4 * n, 4 * n))
    component = connected_components(graph, directed=False)[1][:n]
    names = cells["cell_id"].astype(object).groupby(component).transform("min").to_numpy(dtype=object, copy=True)
    if len(known):
        first = pd.Series(patient[known]).groupby(component[known]).min()
        named = np.isin(component, first.index)
        names[named] = [f"patient:{first[group]}" for group in component[named]]
    return pd.Series(names, index=cells.index, name="group", dtype=object)


def regroup(store: PatchStore, writer: StoreWriter, *, near: bool, progress: Progress = no_progress) -> Regrouped:
    """Bring the column ``group`` up to date, if cells came since it was computed, and commit it.

    Only the patches that are new since the last search are read: what it found of the others is in
    ``fingerprints.npz``, filed under the hash of their pixels.

    Parameters
    ----------
    store : PatchStore
        The store that `writer` writes.
    writer : StoreWriter
        Open, with nothing pending.
    near : bool
        Search for near duplicates as well as for equal pixels.
    progress : Progress
    """
    cells, state = writer.cells, writer.state
    known: Fingerprints | None = None
    if len(cells) and (state.groups_stale or (near and not state.groups_near)):
        cells, known = group_cells(store, writer, cells, near=near, progress=progress)
        writer.replace_cells(cells, groups_stale=False, groups_near=near)
    elif len(cells) and state.groups_near:
        known = _load(store)
    return _count(apply_corrections(cells, store.corrections), known)


def group_cells(
    store: PatchStore, writer: StoreWriter, cells: pd.DataFrame, *, near: bool, progress: Progress = no_progress
) -> tuple[pd.DataFrame, Fingerprints | None]:
    """Compute the column ``group`` of all committed cells, and commit nothing.

    Parameters
    ----------
    store, writer, near, progress
        As of `regroup`.
    cells : DataFrame
        ``writer.cells``, possibly with other patients.

    Returns
    -------
    DataFrame
        `cells` with the groups.
    Fingerprints or None
        What the search for near duplicates remembers; None without one.
    """
    store.refresh()
    # Copies of one file under several names are one field.
    fields = store.fields
    first = dict(zip(fields["field_id"], fields.groupby("sha256")["field_id"].transform("first"), strict=True))
    people = cells.assign(
        field_id=[first.get(name, name) for name in cells["field_id"]],
        patient_id=list(map(composed, cells["patient_id"])),
    )
    known: Fingerprints | None = None
    if near:
        groups, known = assign_groups(store.read_rows, people, _load(store), progress)
        with disk_errors(store.path, lambda: writer.committed):
            known.save(store.path / FINGERPRINTS_FILE)
    else:
        groups = exact_groups(people)
    return cells.assign(group=np.asarray(groups, dtype=object)), known


def _load(store: PatchStore) -> Fingerprints | None:
    try:
        return Fingerprints.load(store.path / FINGERPRINTS_FILE)
    except StoreError:
        return None  # a cache: what is missing or damaged is computed again


def _count(cells: pd.DataFrame, known: Fingerprints | None) -> Regrouped:
    exact = int(cells["pixel_sha256"].duplicated(keep=False).sum())
    pairs = find_pairs(cells, Fingerprints() if known is None else known)
    conflicting = len(label_conflicts(cells, pairs))
    if known is None:
        return Regrouped(exact, conflicting, None, None)
    kinds = pairs["kind"].value_counts()
    return Regrouped(exact, conflicting, int(kinds.get("near", 0)), int(kinds.get("overlap", 0)))
