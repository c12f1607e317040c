"""What tiling did, counted while it runs and told at its end.

From the cells of a field that a store keeps to rows of the store: ids, keys, and patches cut from its image.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from hematokit.files import shell_word
from hematokit.imaging.geometry import cut_patch, patch_box
from hematokit.store.describing import count_without_split, pixel_size_warnings, summarize_pixel_sizes
from hematokit.store.fields import open_pixels
from hematokit.store.patchstore import PatchStore
from hematokit.store.schema import CELL_COLUMNS, hash_pixels
from hematokit.store.smears import some_of
from hematokit.store.writer import StoreWriter

__all__ = ["TileSummary", "TileTally", "append_patches", "store_rows"]

_BATCH: Final = 64  # patches cut at a time, which bounds the memory


def store_rows(table: pd.DataFrame, digest: str, taken: set[str], pixel_size_um: float) -> pd.DataFrame:
    """Make rows of a store's table, but for the patches and their hashes.

    Parameters
    ----------
    table : DataFrame
        Cells of one field, from `hematokit.annotations.cells.name_cells`.
    digest : str
        SHA-256 of the field's file.
    taken : set of str
        Ids of the store's cells, to which the new ones are added.
    pixel_size_um : float
        Of the field; not a number where unknown.

    Returns
    -------
    DataFrame
        Columns `hematokit.store.CELL_COLUMNS`.
    """
    places = zip(*(table[name].tolist() for name in ("y", "x", "y0", "x0", "height", "width")), strict=True)
    keys = [
        hashlib.sha256(f"{field_id}\0{digest}\0{place}".encode()).hexdigest()[:32]
        for field_id, place in zip(table["field_id"], places, strict=True)
    ]
    ids = []
    for cell_id, key in zip(table["cell_id"], keys, strict=True):
        chosen = cell_id if cell_id not in taken else f"{cell_id}-{key[:8]}"
        taken.add(chosen)
        ids.append(chosen)
    new: dict[str, Any] = {"cell_id": ids, "source_key": keys, "row": 0, "group": "", "split": "", "pixel_sha256": ""}
    rows = table.assign(**new, pixel_size_um=pixel_size_um)
    return rows[list(CELL_COLUMNS)]


def append_patches(
    writer: StoreWriter, patch_size: int, folder: Path, height: int, width: int, rows: pd.DataFrame
) -> None:
    """Cut the patches of rows out of the stored image, fast in any order whatever the file was, and append both.

    Parameters
    ----------
    writer : StoreWriter
        Open; the rows count with its next commit.
    patch_size : int
        Side of the store's patches in pixels.
    folder : Path
        The field's image in the store.
    height, width : int
        Size of the field in pixels.
    rows : DataFrame
        From `store_rows`.
    """
    read = open_pixels(folder)
    for start in range(0, len(rows), _BATCH):
        batch = rows.iloc[start : start + _BATCH]
        patches = np.empty((len(batch), patch_size, patch_size, 3), np.uint8)
        for number, (y, x) in enumerate(zip(batch["y"].tolist(), batch["x"].tolist(), strict=True)):
            patches[number] = cut_patch(read, height, width, patch_box(y, x, patch_size))
        writer.append(patches, batch.assign(pixel_sha256=[hash_pixels(patch) for patch in patches]))


@dataclass(frozen=True)
class TileSummary:
    """What `tile_fields` did.

    Attributes
    ----------
    store : str
        The store's folder.
    fields : int
        Fields that were given.
    added_fields, present_fields : int
        Fields added by this call, and fields that were in the store already.
    added : int
        Cells added by this call.
    without_cells : int
        Fields among those added that have no cell.
    rejected : dict of str to int
        Fields and cells refused, by reason; the store's `rejects` name each.
    left_out : dict of str to int
        Known cells of classes that were not asked for, by name.
    cut_boxes : int
        Boxes of known cells that left the field by a part, of which the part inside was kept.
    notes : tuple of str
        Remarks on the files, each once, with the number of fields it concerns.
    cells : int
        Cells in the store now.
    stored_fields : int
        Fields in the store now.
    classes : dict of str to int
        Cells in the store now, by class.
    unlabelled : int
        Cells in the store now that have no class.
    without_split : int
        Labelled cells that an existing split does not cover.
    seconds : float
    warnings : tuple of str
        What is doubtful about the smears and patients, corrections that no longer apply, and what is doubtful about
        the pixel sizes of the cells in the store now.
    replaced_fields : int
        Fields in the store whose cells were replaced.
    removed : int
        Cells that these fields had before.
    """

    store: str
    fields: int
    added_fields: int
    present_fields: int
    added: int
    without_cells: int
    rejected: dict[str, int]
    left_out: dict[str, int]
    cut_boxes: int
    notes: tuple[str, ...]
    cells: int
    stored_fields: int
    classes: dict[str, int]
    unlabelled: int
    without_split: int
    seconds: float
    warnings: tuple[str, ...] = ()
    replaced_fields: int = 0
    removed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The summary for a person, one statement per line."""
        lines = [
            f"{self.added} cells of {self.added_fields} fields added to {self.store} in {self.seconds:.1f} s; "
            f"{self.present_fields} of {self.fields} fields were there already"
        ]
        if self.replaced_fields:
            lines.append(f"the cells of {self.replaced_fields} fields were replaced: {self.removed} cells removed")
        if self.without_cells:
            lines.append(f"{self.without_cells} of the fields added have no cells")
        if self.rejected:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.rejected.items())
            lines.append(f"rejected: {reasons}; 'hematokit store info --rejects {shell_word(self.store)}' names each")
        if self.left_out:
            lines.append("left out by class: " + ", ".join(f"{name} {n}" for name, n in self.left_out.items()))
        if self.cut_boxes:
            lines.append(f"{self.cut_boxes} boxes left their field by a part and were cut at its border")
        lines += [f"note: {note}" for note in self.notes]
        counts = [f"{code} {count}" for code, count in self.classes.items()]
        counts += [f"without a label {self.unlabelled}"] if self.unlabelled else []
        lines.append(
            f"the store holds {self.stored_fields} fields and {self.cells} cells: {', '.join(counts) or 'none'}"
        )
        if self.without_split:
            lines.append(
                f"{self.without_split} cells are in no split yet; run 'hematokit split {shell_word(self.store)}'"
            )
        return [*lines, *(f"Warning: {warning}" for warning in self.warnings)]


@dataclass
class TileTally:
    """What is counted over the fields."""

    added_fields: int = 0
    present_fields: int = 0
    added: int = 0
    without_cells: int = 0
    cut_boxes: int = 0
    rejects: list[tuple[str, str, str]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    warnings: list[str] = field(default_factory=list)
    copies: list[str] = field(default_factory=list)
    replaced_fields: int = 0
    removed: int = 0
    corrections_lost: int = 0

    def summarize(self, store: PatchStore, files: int, seconds: float) -> TileSummary:
        """Tell what was done to a store with so many files in so many seconds."""
        cells = store.cells
        counts = cells["label"].value_counts()
        warnings = list(self.warnings)
        if self.copies:
            warnings.append(
                f"{len(self.copies)} fields are copies of another field under another name ({some_of(self.copies)}): "
                "their cells count twice, on the same side of a split"
            )
        if self.corrections_lost:
            warnings.append(
                f"the corrections of {self.corrections_lost} cells no longer apply, because these cells were removed; "
                f"'hematokit store corrections {shell_word(store.path)}' lists them"
            )
        return TileSummary(
            store=str(store.path),
            fields=files,
            added_fields=self.added_fields,
            present_fields=self.present_fields,
            added=self.added,
            without_cells=self.without_cells,
            rejected=dict(sorted(Counter(reason for _, reason, _ in self.rejects).items())),
            left_out=dict(sorted(self.left_out.items())),
            cut_boxes=self.cut_boxes,
            notes=tuple(f"{note} ({count} of {files} fields)" for note, count in sorted(self.notes.items())),
            cells=len(cells),
            stored_fields=len(store.fields),
            classes={code: int(counts[code]) for code in store.taxonomy.codes if code in counts},
            unlabelled=int((cells["label"] == "").sum()),
            without_split=count_without_split(store),
            seconds=round(seconds, 3),
            warnings=(*warnings, *pixel_size_warnings(summarize_pixel_sizes(cells), store.path)),
            replaced_fields=self.replaced_fields,
            removed=self.removed,
        )
