"""What a store holds, in a few lines."""

from __future__ import annotations

import contextlib
import stat
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from hematokit.store.corrections import OF_CELLS, standing_corrections
from hematokit.store.patchstore import PatchStore, open_store
from hematokit.store.pixelsizes import PixelSizes, summarize_pixel_sizes
from hematokit.store.smears import on_several_sides

__all__ = ["StoreInfo", "describe_store"]


@dataclass(frozen=True)
class StoreInfo:
    """What `describe_store` found.

    Attributes
    ----------
    store : str
    schema_version : int
    patch_size : int
        Side of the patches in pixels.
    codec : str
    bytes : int
        Size of all the store's files.
    cells : int
    classes : dict of str to int
        Cells by class, in the taxonomy's order.
    unlabelled : int
        Cells without a class.
    taxonomy : str
        Its name.
    pixel_sizes : PixelSizes
        Pixel sizes of the cells' patches.
    fields : int
        Whole fields that the store keeps.
    patients, smears : int
        How many are known.
    groups : int
        Groups of at least two cells.
    groups_stale : bool
        Duplicates have not been searched for since cells were added.
    split_info : dict or None
    splits : dict of str to int
        Cells by split.
    straddling_groups : int
        Groups with cells on several sides of the split, because cells were added after it.
    rejects : dict of str to int
        Refused files and cells by reason.
    reject_messages : list of str or None
        One line for each of them, if asked for.
    content_hash : str
    corrections : dict of str to int
        What people corrected and did not undo, by kind: ``label``, ``confirm``, ``delete``, ``add``.
    """

    store: str
    schema_version: int
    patch_size: int
    codec: str
    bytes: int
    cells: int
    classes: dict[str, int]
    unlabelled: int
    taxonomy: str
    pixel_sizes: PixelSizes
    fields: int
    patients: int
    smears: int
    groups: int
    groups_stale: bool
    split_info: dict[str, Any] | None
    splits: dict[str, int]
    straddling_groups: int
    rejects: dict[str, int]
    reject_messages: list[str] | None
    content_hash: str
    corrections: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The same for a person, one statement per line."""
        lines = [
            f"{self.store}: {self.cells} cells of {self.patch_size}x{self.patch_size} px, {self.codec}, "
            f"{self.bytes / 1e6:.1f} MB, schema version {self.schema_version}",
            f"content hash {self.content_hash}",
            f"classes ({self.taxonomy}): "
            + (", ".join(f"{c} {n}" for c, n in self.classes.items()) or "none")
            + (f"; without a label {self.unlabelled}" if self.unlabelled else ""),
            f"{self.patients} patients and {self.smears} smears known; {self.groups} groups of two or more cells"
            + (" (not up to date: import or split again)" if self.groups_stale else ""),
        ]
        problem = self.pixel_sizes.problem()
        lines.append(
            f"Warning: {problem}; state it with 'hematokit store set-pixel-size'"
            if problem
            else f"pixel size {self.pixel_sizes.text}"
        )
        if self.corrections:
            words = {"label": "relabelled", "confirm": "confirmed", "delete": "deleted", "add": "added"}
            told = ", ".join(f"{count} {words[kind]}" for kind, count in self.corrections.items())
            lines.append(f"corrected by people: {told}")
        if self.fields:
            lines.append(f"{self.fields} whole fields, in the folder 'fields'")
        if self.split_info:
            shares = " ".join(map(str, self.split_info["fractions"]))
            counts = ", ".join(f"{name or 'in none'} {count}" for name, count in self.splits.items())
            lines.append(f"split {shares}, seed {self.split_info['seed']}: {counts}")
        else:
            lines.append("no split yet: run 'hematokit split'")
        if self.straddling_groups:
            lines.append(
                f"{self.straddling_groups} groups stand on several sides of the split, because cells were added after "
                "it: run 'hematokit split' again"
            )
        if self.rejects:
            lines.append("rejected: " + ", ".join(f"{count} {reason}" for reason, count in self.rejects.items()))
        lines += [f"  {message}" for message in self.reject_messages or []]
        return lines


def describe_store(path: str | Path, *, rejects: bool = False) -> StoreInfo:
    """Describe a store without reading its patches.

    Parameters
    ----------
    path : str or Path
    rejects : bool
        Name each refused file.

    Returns
    -------
    StoreInfo

    Raises
    ------
    StoreError
        If there is no store, or it is damaged.
    """
    store = open_store(path)
    cells, refused = store.cells, store.rejects
    labels = cells["label"].value_counts()
    splits = cells["split"].value_counts()
    return StoreInfo(
        store=str(path),
        schema_version=store.schema_version,
        patch_size=store.patch_size,
        codec=store.codec,
        bytes=_size(Path(path)),
        cells=len(cells),
        classes={code: int(labels[code]) for code in store.taxonomy.codes if code in labels},
        unlabelled=int((cells["label"] == "").sum()),
        taxonomy=store.taxonomy.name,
        pixel_sizes=summarize_pixel_sizes(cells),
        fields=len(store.fields),
        patients=_known(cells["patient_id"]),
        smears=_known(cells["smear_id"]),
        groups=int((cells.loc[cells["group"] != "", "group"].value_counts() > 1).sum()),
        groups_stale=store.groups_stale,
        split_info=store.split_info,
        splits={name: int(splits[name]) for name in ("train", "val", "test", "") if name in splits},
        straddling_groups=len(on_several_sides(cells, "group")),
        rejects={str(reason): int(count) for reason, count in refused["reason"].value_counts().sort_index().items()},
        reject_messages=[f"{row.reason}: {row.message}" for row in refused.itertuples()] if rejects else None,
        content_hash=store.content_hash,
        corrections=_count_corrections(store),
    )


def _count_corrections(store: PatchStore) -> dict[str, int]:
    """Cells by what was done to them last; a cell corrected three times is one cell, one that was replaced is none."""
    there = set(store.committed_cells["cell_id"]) if store.corrections else set()
    last = {
        entry.cell_id: entry.kind
        for entry in standing_corrections(store.corrections)
        if entry.kind == "add" or entry.cell_id in there
    }
    kinds = Counter(last.values())
    return {kind: kinds[kind] for kind in OF_CELLS if kinds[kind]}


def _size(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*"):
        # A writer may be at work: its temporary files come and go.
        with contextlib.suppress(OSError):
            status = file.lstat()
            total += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return total


def _known(column: pd.Series[str]) -> int:
    return int(column[column != ""].nunique())
