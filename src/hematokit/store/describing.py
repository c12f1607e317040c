"""Summaries of a store and of its cells: classes, pixel sizes, splits, corrections."""

from __future__ import annotations

import contextlib
import stat
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hematokit.commands import CommandResult
from hematokit.errors import shell_word
from hematokit.imaging.fieldfiles.pixelsize import is_same_size
from hematokit.store.corrections import OF_CELLS, standing_corrections
from hematokit.store.patchstore import PatchStore, open_store
from hematokit.store.smears import on_several_sides
from hematokit.taxonomy import Taxonomy

__all__ = [
    "PixelSizes",
    "StoreInfo",
    "class_counts",
    "count_without_split",
    "describe_store",
    "pixel_size_warnings",
    "summarize_pixel_sizes",
]


@dataclass(frozen=True)
class PixelSizes:
    """Pixel sizes of the patches of some cells, in micrometres.

    Attributes
    ----------
    cells, unknown : int
        All cells, and those of unknown pixel size.
    smallest, median, largest : float or None
        Of the others; None where there are none.
    """

    cells: int
    unknown: int
    smallest: float | None
    median: float | None
    largest: float | None

    @property
    def common(self) -> float | None:
        """The median, if the known pixel sizes differ by less than 2 %; else None."""
        if self.smallest is None or self.largest is None:
            return None
        return self.median if is_same_size(self.largest, self.smallest) else None

    @property
    def text(self) -> str:
        """The known pixel sizes: ``"0.09 um"``, ``"0.09 to 0.25 um"``, ``"not known"``."""
        if self.common is not None:
            return f"{self.common:.4g} um"
        return "not known" if self.smallest is None else f"{self.smallest:.4g} to {self.largest:.4g} um"

    def problem(self, cells: str = "cells") -> str:
        """Return a short text on unknown or differing pixel sizes; empty if there are none.

        Parameters
        ----------
        cells : str
            Name of the cells in the text.
        """
        parts = []
        if self.unknown:
            count = "" if self.unknown == self.cells else f"{self.unknown:,} of {self.cells:,} "
            parts.append(f"the pixel size of {count or 'the '}{cells} is not known")
        if self.common is None and self.smallest is not None:
            parts.append(f"the {cells} have different pixel sizes, {self.text}")
        return "; ".join(parts)

    def mismatch(self, model_um: float | None, *, unknown: bool = True) -> str:
        """Return in one line why the cells may not have the scale that a model was trained at; empty if they have it.

        Parameters
        ----------
        model_um : float or None
            Pixel size that the model was trained at.
        unknown : bool
            Say so where one of the two is not known, too.
        """
        known = [size for size in (self.smallest, self.largest) if size is not None]
        if model_um is not None and not all(is_same_size(model_um, size) for size in known):
            return (
                f"the cells have a pixel size of {self.text}, the model was trained at {model_um:.4g} um: crops are "
                "not rescaled, so the model sees them at the wrong scale; give crops of its pixel size"
            )
        if unknown and model_um is None:
            return "the pixel size that the model was trained at is not known: make sure that the cells have its scale"
        if unknown and self.unknown:
            return f"{self.problem()}: make sure that they have the scale of the model, {model_um:.4g} um per pixel"
        return ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def summarize_pixel_sizes(cells: pd.DataFrame) -> PixelSizes:
    """Summarise the pixel sizes of cells.

    Parameters
    ----------
    cells : DataFrame
        Rows of a store's table.
    """
    sizes = cells["pixel_size_um"].to_numpy(np.float64, na_value=np.nan)
    known = sizes[np.isfinite(sizes)]
    if not len(known):
        return PixelSizes(len(sizes), len(sizes), None, None, None)
    return PixelSizes(
        len(sizes), len(sizes) - len(known), float(known.min()), float(np.median(known)), float(known.max())
    )


def pixel_size_warnings(sizes: PixelSizes, store: Path) -> list[str]:
    """Return a warning of what a training on the cells of a store will lack, or none."""
    problem = sizes.problem()
    if not problem:
        return []
    if sizes.common is None and sizes.smallest is not None:
        return [f"{problem}: a model trained on all of them has no pixel size, so fields are not rescaled for it"]
    return [
        f"{problem}; state it with 'hematokit store set-pixel-size {shell_word(store)} UM', so that models record it"
    ]


def class_counts(cells: pd.DataFrame, taxonomy: Taxonomy) -> dict[str, int]:
    """Return the number of cells of each class that has any, in the taxonomy's order."""
    counts = cells["label"].value_counts()
    return {code: int(counts[code]) for code in taxonomy.codes if code in counts}


def count_without_split(store: PatchStore) -> int:
    """Return the number of labelled cells that a store's split does not cover; 0 if it has no split."""
    cells = store.cells
    return int(((cells["split"] == "") & (cells["label"] != "")).sum()) if store.split_info else 0


@dataclass(frozen=True)
class StoreInfo(CommandResult):
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
        Number of corrections that were not undone, by type: ``label``, ``confirm``, ``delete``, ``add``.
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
            verbs = {"label": "relabelled", "confirm": "confirmed", "delete": "deleted", "add": "added"}
            done = ", ".join(f"{count} {verbs[kind]}" for kind, count in self.corrections.items())
            lines.append(f"corrected by people: {done}")
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
    splits = cells["split"].value_counts()
    return StoreInfo(
        store=str(path),
        schema_version=store.schema_version,
        patch_size=store.patch_size,
        codec=store.codec,
        bytes=_size(Path(path)),
        cells=len(cells),
        classes=class_counts(cells, store.taxonomy),
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
    """Return the number of cells by their last correction; a cell corrected three times counts once."""
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
        # A writer may be active, whose temporary files appear and disappear.
        with contextlib.suppress(OSError):
            status = file.lstat()
            total += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return total


def _known(column: pd.Series[str]) -> int:
    return int(column[column != ""].nunique())
