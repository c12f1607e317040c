"""From the cells of a field that a store keeps to rows of the store: ids, keys, and patches cut from its image."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from hematokit.imaging.geometry import cut_patch, patch_box
from hematokit.store.fields import open_pixels
from hematokit.store.schema import CELL_COLUMNS, hash_pixels
from hematokit.store.writer import StoreWriter

__all__ = ["append_patches", "store_rows"]

_BATCH: Final = 64  # patches cut at a time, which bounds the memory


def store_rows(table: pd.DataFrame, digest: str, taken: set[str], pixel_size_um: float) -> pd.DataFrame:
    """Make rows of a store's table, but for the patches and their hashes.

    Parameters
    ----------
    table : DataFrame
        Cells of one field, from `hematokit.fields.cells.name_cells`.
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
