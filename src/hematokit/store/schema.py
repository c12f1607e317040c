"""The layout of a store: the names of its files, the columns of its tables, and the metadata beside them.

A store is a folder in Zarr v3::

    zarr.json          root group; attributes: schema_version, patch_size, codec, taxonomy
    patches/           uint8 (N, P, P, 3), one patch per inner chunk, 256 patches per shard
    cells.parquet      one row per committed cell; replacing this file is the commit
    fields/            whole fields, each an OME-Zarr 0.5 image in a folder named after its field_id
    fields.parquet     one row per field; rows past the committed ones do not count
    rejects.parquet    files and cells that were refused, and why
    fingerprints.npz   what the search for duplicates remembers; a cache, made again if it is missing
    .lock              held by the one writer

What changes after creation (the split, whether the groups are up to date, how many rows of ``fields.parquet`` count)
lives in the metadata of ``cells.parquet`` itself, so that one replacement commits rows and metadata together.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from hematokit.errors import StoreError
from hematokit.parquet import read_table, write_table

__all__ = [
    "CELL_COLUMNS",
    "FIELD_COLUMNS",
    "REJECT_COLUMNS",
    "SCHEMA_VERSION",
    "SHARD_PATCHES",
    "TableState",
    "compute_content_hash",
    "empty_cells",
    "hash_pixels",
    "read_cells",
    "read_fields",
    "read_rejects",
    "write_cells",
    "write_fields",
    "write_rejects",
]

SCHEMA_VERSION = 1
SHARD_PATCHES = 256
"""Patches per shard file: 48 MB of 250 px patches, so that a full data set is some 700 files, not 171,000."""

ROOT_FILE = "zarr.json"
ARRAY_FOLDER = "patches"
CELLS_FILE = "cells.parquet"
FIELDS_FOLDER = "fields"
FIELDS_FILE = "fields.parquet"
REJECTS_FILE = "rejects.parquet"
FINGERPRINTS_FILE = "fingerprints.npz"
LOCK_FILE = ".lock"
STORE_KIND = "hematokit patch store"

_METADATA_KEY = b"hematokit"
_RESTORE = "restore that file from a copy of the store"

_SCHEMA = pa.schema(
    [
        ("cell_id", pa.string()),
        ("row", pa.int64()),
        ("field_id", pa.string()),
        ("source", pa.string()),
        ("y", pa.float64()),
        ("x", pa.float64()),
        ("y0", pa.int64()),
        ("x0", pa.int64()),
        ("height", pa.int64()),
        ("width", pa.int64()),
        ("label", pa.string()),
        ("label_source", pa.string()),
        ("smear_id", pa.string()),
        ("patient_id", pa.string()),
        ("group", pa.string()),
        ("split", pa.string()),
        ("pixel_sha256", pa.string()),
        ("source_key", pa.string()),
        ("pixel_size_um", pa.float64()),
    ]
)

CELL_COLUMNS = tuple(_SCHEMA.names)
"""Columns of `PatchStore.cells`.

``row`` is the index into the array ``patches`` (rows can have gaps); ``pixel_sha256`` is over the patch's uint8 bytes
in C order; ``source_key`` identifies a file by its path inside the imported folder and its bytes, so that importing
it again adds nothing; ``pixel_size_um`` is the side of a pixel of the patch, not a number where unknown. The others
are the columns of the cells table that every part of hematokit shares.
"""

_FIELD_SCHEMA = pa.schema(
    [
        ("field_id", pa.string()),
        ("name", pa.string()),
        ("source", pa.string()),
        ("sha256", pa.string()),
        ("height", pa.int64()),
        ("width", pa.int64()),
        ("pixel_size_um", pa.float64()),
        ("cells", pa.int64()),
        ("cells_from", pa.string()),
        ("smear_id", pa.string()),
        ("patient_id", pa.string()),
        ("stored_sha256", pa.string()),
    ]
)

FIELD_COLUMNS = tuple(_FIELD_SCHEMA.names)
"""Columns of `PatchStore.fields`.

``name`` is the file's stem, from which ``field_id`` was made; ``sha256`` is over the file's bytes; ``pixel_size_um`` is
not a number where unknown; ``cells_from`` is JSON: the detector of the cells and its options, or which annotations
they are; ``stored_sha256`` is over the files of the field's folder in the store.
"""

REJECT_COLUMNS = ("source", "reason", "message")
_REJECT_SCHEMA = pa.schema([(name, pa.string()) for name in REJECT_COLUMNS])


@dataclass
class TableState:
    """The metadata that is committed together with the rows of the cells table.

    Attributes
    ----------
    split_info : dict or None
        Fractions, seed, hash of the split, and what it was made by.
    groups_stale : bool
        Cells were added since the groups of duplicates were computed.
    groups_near : bool
        The groups hold near duplicates too, not only equal pixels; while they are stale: they shall.
    fields : int
        Rows of ``fields.parquet`` that are committed. That file only ever grows past them, and is replaced before the
        cells are, so a reader of any moment finds them.
    fields_first : int
        The first of these rows. Those before it are what was committed earlier of fields that have changed since.
    rows : int
        Rows of ``patches`` that were ever committed, with those whose cells were removed since; they are not used
        again, so that a reader of an earlier table never gets other patches. 0 in stores that do not say it.
    """

    split_info: dict[str, Any] | None = None
    groups_stale: bool = False
    groups_near: bool = True
    fields: int = 0
    fields_first: int = 0
    rows: int = 0


def empty_cells() -> pa.Table:
    """Return a cells table without rows."""
    return _SCHEMA.empty_table()


def to_arrow(cells: pd.DataFrame) -> pa.Table:
    """Convert a frame with the columns `CELL_COLUMNS` to the table's exact types."""
    missing = [name for name in CELL_COLUMNS if name not in cells.columns]
    if missing:
        raise ValueError(f"the cells table lacks the columns {missing}")
    table = pa.Table.from_pandas(cells[list(CELL_COLUMNS)], schema=_SCHEMA, preserve_index=False)
    return table.replace_schema_metadata()


def read_cells(store: Path) -> tuple[pa.Table, TableState]:
    """Read the committed rows and their metadata.

    Raises
    ------
    StoreError
        If the table is missing, damaged, or of other columns.
    """
    whole = _read(store, CELLS_FILE, None, _RESTORE)
    try:
        info = json.loads(whole.schema.metadata[_METADATA_KEY])
        state = TableState(
            split_info=info["split"],
            groups_stale=bool(info["groups_stale"]),
            groups_near=bool(info["groups_near"]),
            # Older stores lack these.
            fields=int(info.get("fields", 0)),
            fields_first=int(info.get("fields_first", 0)),
            rows=int(info.get("rows", 0)),
        )
        if "pixel_size_um" not in whole.column_names:
            whole = _with_pixel_sizes(whole, read_fields(store, state.fields))
        table = whole.select(list(CELL_COLUMNS)).cast(_SCHEMA).replace_schema_metadata()
    except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
        detail = " ".join(str(error).split())
        raise StoreError(f"{store / CELLS_FILE} is damaged ({detail}); {_RESTORE}") from error
    return table, state


def _with_pixel_sizes(table: pa.Table, fields: pa.Table) -> pa.Table:
    """Add the column to a table of an earlier version: cells of tiled fields have their field's pixel size."""
    known = dict(zip(fields["field_id"].to_pylist(), fields["pixel_size_um"].to_pylist(), strict=True))
    sizes = [known.get(field_id) for field_id in table["field_id"].to_pylist()]
    return table.append_column("pixel_size_um", pa.array(sizes, pa.float64()))


def _read(store: Path, name: str, schema: pa.Schema | None, advice: str) -> pa.Table:
    """Read a table of the store, with the columns and types of `schema`."""
    path = store / name
    try:
        table = read_table(path, kind=StoreError, advice=advice, columns=None if schema is None else schema.names)
        return table if schema is None else table.cast(schema).replace_schema_metadata()
    except pa.ArrowException as error:
        detail = " ".join(str(error).split())
        raise StoreError(f"{path} is damaged ({detail}); {advice}") from error


def write_cells(store: Path, table: pa.Table, state: TableState) -> None:
    """Commit: replace the table and its metadata in one step."""
    info = {
        "split": state.split_info,
        "groups_stale": state.groups_stale,
        "groups_near": state.groups_near,
        "fields": state.fields,
        "fields_first": state.fields_first,
        "rows": state.rows,
    }
    metadata = {_METADATA_KEY: json.dumps(info).encode()}
    write_table(store / CELLS_FILE, table.replace_schema_metadata(metadata))


def fields_to_arrow(fields: pd.DataFrame) -> pa.Table:
    """Convert a frame with the columns `FIELD_COLUMNS` to the table's exact types."""
    table = pa.Table.from_pandas(fields[list(FIELD_COLUMNS)], schema=_FIELD_SCHEMA, preserve_index=False)
    return table.replace_schema_metadata()


def read_fields(store: Path, count: int, first: int = 0) -> pa.Table:
    """Read `count` rows of the table of fields from row `first` on, which are the committed ones.

    Raises
    ------
    StoreError
        If the table is missing or damaged although fields are committed.
    """
    if not count:
        return _FIELD_SCHEMA.empty_table()
    table = _read(store, FIELDS_FILE, _FIELD_SCHEMA, _RESTORE)
    if table.num_rows < first + count:
        detail = f"it has {table.num_rows} rows, {first + count} are committed"
        raise StoreError(f"{store / FIELDS_FILE} is damaged ({detail}); {_RESTORE}")
    return table.slice(first, count)


def write_fields(store: Path, table: pa.Table) -> None:
    """Replace the table of fields in one step; its new rows are valid once `write_cells` has recorded their number."""
    write_table(store / FIELDS_FILE, table)


def read_rejects(store: Path) -> pd.DataFrame:
    """Read the table of rejected files; empty if it does not exist.

    Raises
    ------
    StoreError
        If the file is damaged.
    """
    if not (store / REJECTS_FILE).exists():
        table = _REJECT_SCHEMA.empty_table()
    else:
        advice = "it is only a report: delete it and run the import again"
        table = _read(store, REJECTS_FILE, _REJECT_SCHEMA, advice)
    frame: pd.DataFrame = table.to_pandas()
    return frame


def write_rejects(store: Path, rejects: pd.DataFrame) -> None:
    """Replace the table of refused files in one step."""
    table = pa.Table.from_pandas(rejects[list(REJECT_COLUMNS)], schema=_REJECT_SCHEMA, preserve_index=False)
    write_table(store / REJECTS_FILE, table.replace_schema_metadata())


def hash_pixels(patch: npt.NDArray[np.uint8]) -> str:
    """Return the SHA-256, in hexadecimal, over a patch's bytes in C order.

    Parameters
    ----------
    patch : ndarray of uint8, shape (P, P, 3)
    """
    return hashlib.sha256(np.ascontiguousarray(patch).data).hexdigest()


def compute_content_hash(cells: pd.DataFrame) -> str:
    """Hash the data set: its cells, their labels and their pixels, in whatever order they were imported.

    Parameters
    ----------
    cells : DataFrame
        With the columns ``cell_id``, ``label`` and ``pixel_sha256``.

    Returns
    -------
    str
        64 hexadecimal digits: SHA-256 over the lines ``cell_id TAB label TAB pixel_sha256``, sorted. The split does
        not enter: the same cells divided otherwise are the same data set.
    """
    lines = sorted(
        f"{cell}\t{label}\t{pixels}\n"
        for cell, label, pixels in zip(cells["cell_id"], cells["label"], cells["pixel_sha256"], strict=True)
    )
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode())
    return digest.hexdigest()
