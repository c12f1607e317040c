"""The patch store: single-cell crops on disk, read in batches, written by one process at a time.

>>> import hematokit
>>> store = hematokit.open_store("bm.zarr")
>>> store.cells["label"].value_counts().to_dict()
{'BLA': 48, 'LYT': 36, 'NGS': 24, 'ART': 20}

Modules
-------
In reading order: each imports only those above it.

settings
    The settings of an import.
schema
    The layout: names of files, columns of tables, metadata.
corrections
    The journal of corrections, and cells with corrections applied.
smears
    Smears and patients: a CSV that states them, and checks of their identifiers.
fields
    Whole fields as OME-Zarr images.
patchstore
    Reading: `PatchStore`, its cells, patches and fields.
writer
    Writing: the lock, `StoreWriter`, failures of the disk.
creating
    The store that a command adds to, created if need be.
describing
    Summaries: classes, pixel sizes, splits, corrections.
duplicates
    Duplicates, and the groups of cells that a split must not part.
sources, loading, importing
    Crops: files of a source, one file to one patch, the import.
tiling
    Fields with their cells and patches.
splitting
    Train, val and test.
changing
    Pixel size, smear and patient of cells that are in the store.
verifying
    Every patch and field compared with its hash.
"""

from __future__ import annotations

from hematokit.store.changing import PixelSizeChange, SmearsSummary, set_pixel_size, set_smears
from hematokit.store.creating import create_store
from hematokit.store.describing import PixelSizes, StoreInfo, describe_store, summarize_pixel_sizes
from hematokit.store.importing import ImportSummary, import_crops
from hematokit.store.patchstore import PatchRead, PatchStore, open_store, open_stored_field
from hematokit.store.schema import CELL_COLUMNS, FIELD_COLUMNS
from hematokit.store.settings import ImportSettings
from hematokit.store.splitting import SplitSummary, split_store
from hematokit.store.verifying import DamagedField, DamagedPatch, VerifyReport, verify_store
from hematokit.store.writer import StoreWriter

__all__ = [
    "CELL_COLUMNS",
    "FIELD_COLUMNS",
    "DamagedField",
    "DamagedPatch",
    "ImportSettings",
    "ImportSummary",
    "PatchRead",
    "PatchStore",
    "PixelSizeChange",
    "PixelSizes",
    "SmearsSummary",
    "SplitSummary",
    "StoreInfo",
    "StoreWriter",
    "VerifyReport",
    "create_store",
    "describe_store",
    "import_crops",
    "open_store",
    "open_stored_field",
    "set_pixel_size",
    "set_smears",
    "split_store",
    "summarize_pixel_sizes",
    "verify_store",
]
