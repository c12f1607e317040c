"""Dividing a store's cells into train, val and test, once, before any training.

Whole groups go to one side: all cells of a patient or a field, copies of an image, and crops that show the same cell.
Within that limit each class is divided by the fractions as closely as can be. The result depends on the cells, their
groups, the fractions and the seed only, not on the order in which cells were imported.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from hematokit.commands import CommandResult
from hematokit.errors import StoreError, shell_word, some_of
from hematokit.progress import Progress, no_progress
from hematokit.store.corrections import apply_corrections
from hematokit.store.duplicates import regroup
from hematokit.store.patchstore import open_store
from hematokit.store.smears import composed, id_warnings, on_several_sides
from hematokit.store.writer import StoreWriter

__all__ = ["SPLITS", "SplitSummary", "assign_split", "split_store"]

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class SplitSummary(CommandResult):
    """How a store was divided.

    Attributes
    ----------
    store : str
    fractions : tuple of float
        Wanted shares of train, val and test.
    seed : int
    counts : dict
        ``counts[split][code]``: number of cells.
    groups : int
        Groups of at least two cells that were kept together.
    hash : str
        SHA-256 over the sorted (cell_id, split): equal hashes are equal splits.
    replaced : dict or None
        The split that this one replaced.
    changed : int
        Cells that the replaced split had elsewhere.
    warnings : tuple of str
        Classes with too few cells, fractions that whole groups did not allow, and warnings about the patients.
    unlabelled : int
        Cells without a class; they are in no split.
    """

    store: str
    fractions: tuple[float, float, float]
    seed: int
    counts: dict[str, dict[str, int]]
    groups: int
    hash: str
    replaced: dict[str, Any] | None
    changed: int
    warnings: tuple[str, ...]
    unlabelled: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The summary for a person, one statement per line."""
        total = sum(sum(counts.values()) for counts in self.counts.values())
        lines = []
        if self.replaced is not None:
            old = self.replaced
            what = f"fractions {' '.join(map(str, old['fractions']))}, seed {old['seed']}, hash {old['hash'][:16]}"
            moved = f"{self.changed} of {total} cells changed sides" if self.changed else "no cell changed sides"
            lines.append(f"replaced the split with {what}: {moved}")
        for name, counts in self.counts.items():
            number = sum(counts.values())
            lines.append(
                f"{name:5} {number:7} cells ({number / total:.3f}): "
                + ", ".join(f"{code} {count}" for code, count in counts.items())
            )
        lines.append(
            f"{self.groups} groups of two or more cells (one patient, or duplicates) were kept together; "
            f"split hash {self.hash[:16]}"
        )
        if self.unlabelled:
            lines.append(f"note: {self.unlabelled} cells without a label are in no split")
        return [*lines, *(f"Warning: {warning}" for warning in self.warnings)]


def _check_fractions(fractions: Sequence[float]) -> tuple[float, float, float]:
    shown = " ".join(f"{value:g}" for value in fractions)
    if len(fractions) != 3 or not all(math.isfinite(value) and 0 <= value <= 1 for value in fractions):
        raise StoreError(f"fractions {shown} are not usable; give three numbers from 0 to 1 for train, val and test")
    if abs(sum(fractions) - 1) > 1e-6:
        raise StoreError(f"fractions {shown} sum to {sum(fractions):g}, not 1; give shares of train, val and test")
    if fractions[0] == 0:
        raise StoreError(f"fractions {shown} leave nothing to train on; give the first a share above 0")
    return float(fractions[0]), float(fractions[1]), float(fractions[2])


def _targets(count: int, fractions: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Divide a class's cells by the largest remainder; train gets at least one."""
    exact = count * fractions
    target = np.floor(exact + 1e-9).astype(np.int64)
    # A stable sort prefers train, then val, where remainders are equal.
    order = np.argsort(-np.round(exact - target, 9), kind="stable")
    target[order[: count - int(target.sum())]] += 1
    if target[0] == 0:
        target[int(np.argmax(target))] -= 1
        target[0] += 1
    return target


_PASSES = 20  # far more than are needed: two or three settle it


def assign_split(
    cells: pd.DataFrame, fractions: Sequence[float] = (0.7, 0.15, 0.15), seed: int = 0
) -> npt.NDArray[np.object_]:
    """Assign each cell to a split.

    Groups of several cells are placed first, the largest before the others, each where it brings the classes closest
    to their shares (the sum over its classes of squared distance from the target, relative to the class's size); then
    they are moved, one at a time, while that brings the classes closer still. Single cells then fill every class up to
    its exact target. Ties and order are settled by a hash of seed and cell.

    Parameters
    ----------
    cells : DataFrame
        With ``cell_id``, ``label`` and ``group``, in any order.
    fractions : sequence of float
        Shares of train, val and test; they sum to 1.
    seed : int

    Returns
    -------
    ndarray of object, shape (n,)
        ``"train"``, ``"val"`` or ``"test"`` for each row of `cells`.

    Raises
    ------
    StoreError
        If the fractions do not sum to 1.
    """
    shares = np.array(_check_fractions(fractions))
    allowed = np.flatnonzero(shares > 0)
    ids = cells["cell_id"].to_numpy(dtype=object)
    order = np.argsort(ids, kind="stable")
    codes, classes = pd.factorize(cells["label"].to_numpy(dtype=object)[order], sort=True)
    sizes = np.bincount(codes, minlength=len(classes))
    targets = np.stack([_targets(int(size), shares) for size in sizes]) if len(classes) else np.zeros((0, 3), np.int64)
    filled = np.zeros_like(targets)
    result = np.full(len(ids), -1, np.int64)  # in the sorted order

    groups = pd.Series(np.arange(len(ids))).groupby(cells["group"].to_numpy(dtype=object)[order]).indices
    members = sorted((np.sort(positions) for positions in groups.values()), key=lambda positions: int(positions[0]))
    # A group is known by its first cell, since the names of groups may change when cells are added.
    rank = {int(positions[0]): _hash(seed, ids[order[positions[0]]]) for positions in members}
    several = [positions for positions in members if len(positions) > 1]
    several.sort(key=lambda positions: (-len(positions), rank[int(positions[0])]))
    # The first pass places every group, largest first; the later ones move groups while that brings the shares closer,
    # because what was best for an early group need not be once the others are placed.
    for _ in range(_PASSES):
        moved = False
        for positions in several:
            present, counts = np.unique(codes[positions], return_counts=True)
            here = int(result[positions[0]])
            if here >= 0:
                filled[present, here] -= counts
            gap = targets[present] - filled[present]
            cost = (((gap - counts[:, None]) ** 2 - gap**2) / sizes[present][:, None]).sum(axis=0)
            chosen = int(allowed[np.argmin(cost[allowed])])
            if here >= 0 and cost[chosen] > cost[here] - 1e-9:
                chosen = here
            moved = moved or chosen != here
            filled[present, chosen] += counts
            result[positions] = chosen
        if not moved:
            break

    single = [int(positions[0]) for positions in members if len(positions) == 1]
    for position in sorted(single, key=rank.__getitem__):
        code = codes[position]
        gap = targets[code] - filled[code]
        chosen = int(allowed[np.argmax(gap[allowed])])
        filled[code, chosen] += 1
        result[position] = chosen

    names = np.empty(len(ids), dtype=object)
    names[order] = np.array(SPLITS, dtype=object)[result]
    return names


def _hash(seed: int, cell_id: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{cell_id}".encode()).digest()


def split_store(
    path: str | Path,
    fractions: Sequence[float] = (0.7, 0.15, 0.15),
    seed: int = 0,
    *,
    progress: Progress = no_progress,
) -> SplitSummary:
    """Divide the cells of a store into train, val and test, and commit the division.

    An existing split is replaced, which the summary states. If an import was killed before it had searched
    for duplicates, they are searched for first. Cells without a label are in no split.

    Parameters
    ----------
    path : str or Path
        The store.
    fractions : sequence of float
        Shares of train, val and test; they sum to 1.
    seed : int
    progress : Progress
        Called with the progress of the search for duplicates.

    Returns
    -------
    SplitSummary

    Raises
    ------
    StoreError
        If the fractions do not sum to 1, or the store has no labelled cells, is damaged, or is being written.
    """
    wanted = _check_fractions(fractions)
    store = open_store(path)
    if not len(store):
        raise StoreError(f"store {path} holds no cells to split; import some first")
    if not (store.cells["label"] != "").any():
        raise StoreError(
            f"store {path} holds no labelled cells to split; import crops with labels, or tile fields with --cells"
        )
    with StoreWriter(store) as writer:
        regroup(store, writer, near=writer.state.groups_near, progress=progress)
        cells = writer.cells
        old, old_split = writer.state.split_info, cells["split"].to_numpy(dtype=object)
        # Labels are divided as they were corrected; what is no cell takes no part.
        counted = apply_corrections(cells, store.corrections)
        labelled = (counted["label"] != "").to_numpy()
        counted["split"] = ""
        counted.loc[labelled, "split"] = assign_split(counted[labelled], wanted, seed)
        sides = dict(zip(counted["cell_id"], counted["split"], strict=True))
        cells["split"] = cells["cell_id"].map(sides).fillna("")
        split_hash = _split_hash(cells)
        info = {
            "fractions": list(wanted),
            "seed": seed,
            "by": "group",
            "hash": split_hash,
            "content_hash": store.content_hash,
        }
        if info != old or not np.array_equal(cells["split"].to_numpy(dtype=object), old_split):
            writer.replace_cells(cells, split_info=info)
        changed = int((cells["split"].to_numpy(dtype=object) != old_split).sum()) if old else 0
    present = set(counted["label"])
    classes = [code for code in store.taxonomy.codes if code in present]
    return SplitSummary(
        store=str(path),
        fractions=wanted,
        seed=seed,
        counts={
            name: {code: int(((counted["split"] == name) & (counted["label"] == code)).sum()) for code in classes}
            for name in SPLITS
        },
        groups=int((cells["group"].value_counts() > 1).sum()),
        hash=split_hash,
        replaced=old,
        changed=changed,
        warnings=(*_warnings(counted[labelled], wanted), *_patient_warnings(counted[labelled], path)),
        unlabelled=int((~labelled).sum()),
    )


def _patient_warnings(cells: pd.DataFrame, store: str | Path) -> list[str]:
    """Warn of patients whose cells may be on several sides of a split, and of patients that are joined by mistake."""
    lines = id_warnings(cells["smear_id"].tolist(), cells["patient_id"].tolist(), "cells")
    smears = on_several_sides(cells[cells["patient_id"] == ""], "smear_id")
    if smears:
        lines.append(
            f"cells of {len(smears)} smears without a patient are on several sides ({some_of(smears)}): only patients "
            "keep cells of several fields together; give each smear its patient, or its own name as patient_id"
        )
    known = cells[cells["patient_id"] != ""]
    people = known["patient_id"].map(composed).groupby(known["group"]).unique()
    joined = [" and ".join(sorted(map(str, group))) for group in people if len(group) > 1]
    if joined:
        lines.append(
            f"{len(joined)} groups join several patients, whose cells are duplicates of each other or of one field "
            f"({some_of(joined)}): check that these are not one patient under two names"
        )
    if lines:
        lines[-1] += f"; 'hematokit store set-smears {shell_word(store)} TABLE.csv' sets smears and patients"
    return lines


def _split_hash(cells: pd.DataFrame) -> str:
    lines = sorted(f"{cell}\t{split}\n" for cell, split in zip(cells["cell_id"], cells["split"], strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _warnings(cells: pd.DataFrame, fractions: tuple[float, float, float]) -> list[str]:
    notes = []
    wanted = {name: share for name, share in zip(SPLITS, fractions, strict=True) if share > 0}
    table = pd.crosstab(cells["label"], cells["split"]).reindex(columns=list(wanted), fill_value=0)
    sizes = table.sum(axis=1)
    lone = [str(code) for code in table.index[sizes == 1]]
    if lone:
        notes.append(f"one cell only, kept for training: {', '.join(lone)}")
    for name in wanted:
        missing = [str(code) for code in table.index[(table[name] == 0) & (sizes > 1)]]
        if missing:
            notes.append(f"no cell in {name}: {', '.join(missing)} (too few cells, or too few groups)")
    for name, share in wanted.items():
        off = (table[name] - share * sizes).abs()
        uneven = table.index[(off > np.maximum(1.0, 0.05 * sizes)) & (table[name] > 0)]
        if len(uneven):
            listed = ", ".join(f"{code} {table.loc[code, name]} of {sizes[code]}" for code in uneven)
            notes.append(f"off the share of {share:g} in {name}, because groups stay whole: {listed}")
    return notes
