"""The patch store: single-cell crops on disk, read in batches, written by one process at a time.

>>> import hematokit  # doctest: +SKIP
>>> store = hematokit.open_store("marrow.zarr")  # doctest: +SKIP
>>> store.cells.label.value_counts()  # doctest: +SKIP
"""

from __future__ import annotations

from hematokit.store.changing import PixelSizeChange, SmearsSummary, set_pixel_size, set_smears
from hematokit.store.creating import create_store
from hematokit.store.describing import PixelSizes, StoreInfo, describe_store, summarize_pixel_sizes
from hematokit.store.importing import ImportSummary, import_crops
from hematokit.store.patchstore import PatchRead, PatchStore, open_store, open_stored_field
from hematokit.store.schema import CELL_COLUMNS, FIELD_COLUMNS
from hematokit.store.splitting import SplitSummary, split_store
from hematokit.store.verifying import DamagedField, DamagedPatch, VerifyReport, verify_store
from hematokit.store.writer import StoreWriter

__all__ = [
    "CELL_COLUMNS",
    "FIELD_COLUMNS",
    "DamagedField",
    "DamagedPatch",
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
