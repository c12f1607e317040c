"""Importing crops: files in, committed cells and a table of rejects out.

The import adds and never changes: a file that is already in the store is skipped, and one that has changed since is
rejected with a reason. Files are read and decoded by a few threads (Pillow's decoders release the interpreter lock)
and arrive in the order of their names, so two imports of one folder make the same store. A bounded number of files is
in memory at any time.
"""

from __future__ import annotations

import contextlib
import time
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final, Unpack

import numpy as np
import numpy.typing as npt
import pandas as pd

from hematokit.commands import CommandResult
from hematokit.errors import ImageError, StoreError, shell_word
from hematokit.imaging.fieldfiles.pixelsize import check_given, is_same_size
from hematokit.overrides import ImportOverrides
from hematokit.progress import Progress, no_progress
from hematokit.store.creating import StoreTarget
from hematokit.store.describing import (
    PixelSizes,
    class_counts,
    count_without_split,
    pixel_size_warnings,
    summarize_pixel_sizes,
)
from hematokit.store.duplicates import regroup
from hematokit.store.loading import CropFit, LoadedCrop, load_in_order
from hematokit.store.patchstore import PatchStore
from hematokit.store.schema import CELL_COLUMNS
from hematokit.store.settings import ImportSettings
from hematokit.store.smears import count_other_smears, other_smears
from hematokit.store.sources import Listing, open_source
from hematokit.store.writer import StoreWriter
from hematokit.taxonomy import Taxonomy, load_taxonomy

__all__ = ["ImportSummary", "import_crops"]


@dataclass(frozen=True)
class ImportSummary(CommandResult):
    """Summary of an import.

    Attributes
    ----------
    store : str
        The store's folder.
    files : int
        Image files that the source lists.
    added : int
        Cells committed by this import.
    present : int
        Files that were in the store already.
    rejected : dict of str to int
        Files refused, by reason; the store's `rejects` name each.
    ignored : dict of str to int
        Files that are no images by name, by their ending.
    cells : int
        Cells in the store now.
    classes : dict of str to int
        Cells in the store now, by class.
    exact_duplicates : int
        Cells whose pixels equal those of another cell.
    conflicting_duplicates : int
        Pairs of exact or near duplicates whose labels differ.
    near_duplicates : int or None
        Pairs of cells that show the same cell in other pixels; None if they were not searched for.
    overlaps : int or None
        Pairs of crops that were cut from one field and overlap; None if they were not searched for.
    without_split : int
        Cells that an existing split does not cover.
    pixel_sizes : PixelSizes
        Pixel sizes of the patches in the store now.
    warnings : tuple of str
        Unknown or differing pixel sizes; smears and patients that contradict those in the store.
    seconds : float
    """

    store: str
    files: int
    added: int
    present: int
    rejected: dict[str, int]
    ignored: dict[str, int]
    cells: int
    classes: dict[str, int]
    exact_duplicates: int
    conflicting_duplicates: int
    near_duplicates: int | None
    overlaps: int | None
    without_split: int
    pixel_sizes: PixelSizes
    warnings: tuple[str, ...]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The summary for a person, one statement per line."""
        rejected = sum(self.rejected.values())
        lines = [
            f"{self.added} cells added to {self.store} from {self.files} image files in {self.seconds:.1f} s; "
            f"{self.present} were there already, {rejected} rejected"
        ]
        if rejected:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.rejected.items())
            lines.append(
                f"rejected: {reasons}; 'hematokit store info --rejects {shell_word(self.store)}' names each file"
            )
        if self.ignored:
            endings = ", ".join(f"{count} {ending or 'without ending'}" for ending, count in self.ignored.items())
            lines.append(f"not images by name, ignored: {endings}")
        lines.append(f"the store holds {self.cells} cells: " + ", ".join(f"{c} {n}" for c, n in self.classes.items()))
        if self.exact_duplicates:
            lines.append(f"{self.exact_duplicates} cells have exactly the pixels of another cell")
        if self.near_duplicates or self.overlaps:
            lines.append(
                f"{self.near_duplicates} pairs show the same cell, {self.overlaps} pairs are overlapping crops of one "
                "field: each pair shares a group, which a split keeps together"
            )
        if self.conflicting_duplicates:
            lines.append(f"{self.conflicting_duplicates} pairs of duplicates have labels that contradict each other")
        if self.without_split:
            lines.append(
                f"{self.without_split} cells are in no split yet; run 'hematokit split {shell_word(self.store)}'"
            )
        return [*lines, *(f"Warning: {text}" for text in self.warnings)]


class _Names:
    """Gives out cell ids: the file's stem, with a piece of its key behind where another cell has it."""

    def __init__(self, taken: Iterable[str]) -> None:
        self._taken = set(taken)

    def new(self, name: str, key: str) -> str:
        stem = PurePosixPath(name).stem
        candidates = (stem if length == 0 else f"{stem}-{key[:length]}" for length in (0, 8, 16, 32))
        chosen = next((candidate for candidate in candidates if candidate not in self._taken), None)
        if chosen is None:
            raise StoreError(f"no free cell id for {name}; rename the file")
        self._taken.add(chosen)
        return chosen


@dataclass
class _Import:
    """The state of one import into an open writer."""

    writer: StoreWriter
    names: _Names
    fit: CropFit
    known: dict[str, tuple[str, str, str]]
    sizes: dict[str, tuple[float, int, int]]
    keys_by_source: dict[str, str]
    added: int = 0
    present: int = 0
    rejects: list[tuple[str, str, str]] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)
    _batch: list[tuple[npt.NDArray[np.uint8], dict[str, Any]]] = field(default_factory=list)

    @classmethod
    def begin(cls, writer: StoreWriter, fit: CropFit, fields: Iterable[str]) -> _Import:
        cells = writer.cells
        keys, sources = cells["source_key"].tolist(), cells["source"].tolist()
        said = zip(cells["label"].tolist(), cells["smear_id"].tolist(), cells["patient_id"].tolist(), strict=True)
        known = dict(zip(keys, said, strict=True))
        measured = zip(*(cells[name].tolist() for name in ("pixel_size_um", "height", "width")), strict=True)
        sizes = dict(zip(keys, measured, strict=True))
        # A crop is also a field, so its id must not be that of another field.
        taken = [*cells["cell_id"], *cells["field_id"], *fields]
        return cls(writer, _Names(taken), fit, known, sizes, dict(zip(sources, keys, strict=True)))

    def take(self, loaded: LoadedCrop) -> None:
        """Add a loaded item, or note why not."""
        item = loaded.item
        problem = loaded.problem or self._contradiction(loaded)
        if problem is not None:
            self.rejects.append((item.source, problem.reason, str(problem)))
            return
        self.notes.update(loaded.notes)
        if loaded.key in self.sizes:
            self._compare_size(loaded)
        if loaded.key in self.known or loaded.patch is None or loaded.box is None:
            self.present += 1
            return
        self.known[loaded.key] = (item.label, item.smear_id, item.patient_id)
        self.keys_by_source[item.source] = loaded.key
        cell_id = self.names.new(item.name, loaded.key)
        y, x = loaded.box.centre
        row = {
            "cell_id": cell_id,
            "row": 0,
            "field_id": cell_id,  # a crop is its own field
            "source": item.source,
            "y": y,
            "x": x,
            **asdict(loaded.box),
            "label": item.label,
            "label_source": item.label_source,
            "smear_id": item.smear_id,
            "patient_id": item.patient_id,
            "group": "",
            "split": "",
            "pixel_sha256": loaded.pixel_sha256,
            "source_key": loaded.key,
            "pixel_size_um": self.fit.pixel_size(loaded.pixel_size_um, loaded.box.height, loaded.box.width),
        }
        self._batch.append((loaded.patch, row))
        self.added += 1
        if len(self._batch) == 64:
            self.flush()

    def _compare_size(self, loaded: LoadedCrop) -> None:
        """Note a cell that is in the store with another pixel size than is stated now."""
        before, height, width = self.sizes[loaded.key]
        now = loaded.pixel_size_um
        if now is None or before != before:
            return
        # It may have been scaled when it was imported, with other options than now.
        if not any(is_same_size(before, size) for size in (now, now * max(height, width) / self.fit.patch_size)):
            self.notes[
                f"cells are in the store with a pixel size of {before:.4g} um, not {now:.4g}; an import never changes "
                "cells: 'hematokit store set-pixel-size --force' does"
            ] += 1

    def _contradiction(self, loaded: LoadedCrop) -> ImageError | None:
        item, key = loaded.item, loaded.key
        known = self.known.get(key)
        if known is not None:
            new = (item.label, item.smear_id, item.patient_id)
            # A source without patient or smear is no contradiction.
            for what, old_value, new_value in zip(("label", "smear", "patient"), known, new, strict=True):
                if new_value not in ("", old_value):
                    return ImageError(
                        f"{what}-differs",
                        f"{item.source} is in the store with the {what} {old_value!r}, not {new_value!r}; an import "
                        "never changes cells: correct it in the store"
                        + ("" if what == "label" else " with 'hematokit store set-smears'")
                        + ", or import into a new one",
                    )
        if known is None and item.source in self.keys_by_source:
            return ImageError(
                "changed-file",
                f"{item.source} has other content than when it was imported; the old patch stays: import into a new "
                "store, or give another folder's path differently",
            )
        return None

    def flush(self) -> None:
        """Hand the batch to the writer, which commits from time to time."""
        if self._batch:
            patches = np.stack([patch for patch, _ in self._batch])
            self.writer.append(patches, pd.DataFrame([row for _, row in self._batch], columns=list(CELL_COLUMNS)))
            self._batch = []
        self.writer.commit_if_due()


def import_crops(
    inputs: str | Path,
    store: str | Path,
    *,
    taxonomy: Taxonomy | str | Path | None = None,
    settings: ImportSettings | None = None,
    progress: Progress = no_progress,
    **overrides: Unpack[ImportOverrides],
) -> ImportSummary:
    """Import single-cell crops into a patch store.

    Every file ends as a committed cell or as a row of the store's `rejects`. Interrupted at any moment, the same call
    continues after the last commit.

    Parameters
    ----------
    inputs : path
        A folder in which the class is the innermost folder named after a code of the taxonomy
        (``BLA/0001-1000/BLA_00001.jpg``); or a ``.csv`` with the columns ``path``, ``label`` and, if known,
        ``smear_id``, ``patient_id`` and ``pixel_size_um``, its paths relative to its own folder; or a ``.zip`` of such
        a folder.
    store : path
        Folder of the store; created if it does not exist.
    taxonomy : Taxonomy or path, optional
        Classes of a new store, `MATEK_21` by default; must equal those of an existing one.
    settings : ImportSettings, optional
    progress : Progress
        Called with the number of files done.
    **overrides
        Fields of `ImportSettings`; they take precedence over `settings`.

    Returns
    -------
    ImportSummary

    Raises
    ------
    StoreError
        If the source is missing, empty, or has unknown classes; if the store does not fit, is damaged, or is being
        written; if the disk is full.
    ImageError
        If the pixel size is not one.
    """
    started = time.monotonic()
    settings = ImportSettings.combine(settings, overrides)
    check_given(settings.pixel_size_um)
    src, store_path = Path(inputs), Path(store)
    classes = load_taxonomy(taxonomy) if isinstance(taxonomy, str | Path) else taxonomy
    target = StoreTarget.at(store_path, taxonomy=classes, patch_size=settings.patch_size, codec=settings.codec)
    fit = CropFit(target.patch_size, settings.resize, settings.pad, settings.pixel_size_um, settings.force_pixel_size)
    labels = None if settings.labels is None else Path(settings.labels)
    with contextlib.ExitStack() as held:
        with open_source(src, target.taxonomy, labels) as listing:
            opened = target.open()
            writer = held.enter_context(StoreWriter(opened))
            outcome = _add(opened, writer, listing, fit, progress)
            writer.update_rejects((item.source for item in listing.items), outcome.rejects)
            files, ignored = len(listing.items), listing.ignored
        # The list of files is freed before the search for duplicates, which needs memory.
        del listing
        regrouped = regroup(opened, writer, near=settings.near_duplicates, progress=progress)
    cells = opened.cells
    sizes = summarize_pixel_sizes(cells)
    return ImportSummary(
        store=str(store_path),
        files=files,
        added=outcome.added,
        present=outcome.present,
        rejected=dict(sorted(Counter(reason for _, reason, _ in outcome.rejects).items())),
        ignored=dict(sorted(ignored.items())),
        cells=len(cells),
        classes=class_counts(cells, opened.taxonomy),
        exact_duplicates=regrouped.exact,
        conflicting_duplicates=regrouped.conflicting,
        near_duplicates=regrouped.near,
        overlaps=regrouped.overlap,
        without_split=count_without_split(opened),
        pixel_sizes=sizes,
        warnings=(
            *other_smears(count_other_smears(outcome.rejects), store_path, labels or src),
            *_count_notes(outcome.notes),
            *pixel_size_warnings(sizes, store_path),
        ),
        seconds=round(time.monotonic() - started, 3),
    )


_NOTES: Final = 5  # shown; every file may have a note of its own


def _count_notes(notes: Counter[str]) -> list[str]:
    shown = [f"{note} ({count:,} files)" for note, count in notes.most_common(_NOTES)]
    rest = len(notes) - len(shown)
    return [*shown, f"{rest} more remarks like these"] if rest else shown


def _add(store: PatchStore, writer: StoreWriter, listing: Listing, fit: CropFit, progress: Progress) -> _Import:
    """Load all items, commit those that are cells, and collect the reasons of the others."""
    state = _Import.begin(writer, fit, store.fields["field_id"])
    committed = dict(zip(writer.cells["source_key"].tolist(), writer.cells["pixel_sha256"].tolist(), strict=True))
    total = len(listing.items)
    with warnings.catch_warnings():
        # Pillow's warnings (on EXIF data, for example) do not concern pixels, and would fill the terminal.
        warnings.filterwarnings("ignore", module=r"PIL(\.|$)")
        for done, loaded in enumerate(load_in_order(listing.items, committed, fit), start=1):
            state.take(loaded)
            if done % 32 == 0 or done == total:
                progress(done, total, f"{len(state.rejects)} rejected" if state.rejects else "")
    state.flush()
    writer.commit()
    return state
