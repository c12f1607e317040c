"""Writing a store: its lock, its one writer, and failures of the disk as one-line errors.

Patches go into whole shards after the committed rows; they are not part of the store until ``cells.parquet`` is
replaced.
A writer that is killed therefore leaves the store as it was at its last commit, and the next writer removes what is
behind it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock, Timeout

from hematokit.errors import StoreError
from hematokit.files import TEMPORARY_PREFIX, write_json
from hematokit.store import schema
from hematokit.store.fields import remove_uncommitted_fields
from hematokit.store.patchstore import PatchStore, open_patches

__all__ = ["StoreWriter", "disk_errors", "store_lock"]

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

_KEEP: Any = object()

# Replacing the table costs more the longer it is. Committing after at least this many times the cost of the last
# commit bounds the share of time spent on it, and what a kill can undo.
_COMMIT_EVERY = 20
_COMMIT_SECONDS = 10.0


@contextlib.contextmanager
def store_lock(path: Path) -> Iterator[None]:
    """Hold the store's lock file.

    The operating system releases it when the process ends, however it ends.

    Raises
    ------
    StoreError
        If another writer holds it.
    """
    try:
        lock = FileLock(path / schema.LOCK_FILE, timeout=0, thread_local=False)
        with lock:
            yield
    except Timeout as error:
        raise StoreError(
            f"store {path} is being written by another process; wait until that ends, then run the command again"
        ) from error


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of writers that were killed. Only the holder of the store's lock may call this."""
    for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
        with contextlib.suppress(OSError):
            path.unlink()


@contextlib.contextmanager
def disk_errors(store: Path, committed: Callable[[], int]) -> Iterator[None]:
    """Turn a full disk and other failures to write into one-line store errors.

    Parameters
    ----------
    store : Path
        The store, named in the message.
    committed : callable
        Returns the number of cells that are safe.
    """
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(
            _write_error(store, committed(), error.errno in _FULL, error.strerror or str(error))
        ) from error
    except ValueError as error:
        # tensorstore reports failures of the operating system as ValueError, with its text in the message.
        text = str(error)
        if not any(sign in text for sign in ("local file", "OS error", "directory")):
            raise
        full = any(os.strerror(code) in text for code in _FULL)
        raise StoreError(_write_error(store, committed(), full, " ".join(text.split()))) from error


def _write_error(store: Path, committed: int, full: bool, detail: str) -> str:
    safe = f"its {committed} committed cells are safe"
    if full:
        return f"no space left on the disk of store {store}; {safe}: free some space and run the same command again"
    return f"store {store} cannot be written ({detail}); {safe}: correct that and run the same command again"


class StoreWriter:
    """Appends cells to a store and changes its table. Use it as a context manager; a store has one writer at a time.

    Entering the block takes the store's lock. Leaving it commits; leaving it by an exception drops what was not
    committed.

    Parameters
    ----------
    store : PatchStore
        The store; it is brought up to date when the lock is taken and when the block ends.

    Raises
    ------
    StoreError
        On entering, if another process is writing; from any method, if the disk is full or fails.
    """

    def __init__(self, store: PatchStore) -> None:
        self._store = store
        self._path = store.path
        self._closing = contextlib.ExitStack()

    def __enter__(self) -> StoreWriter:
        store = self._store
        with disk_errors(self._path, lambda: len(store)), contextlib.ExitStack() as stack:
            stack.enter_context(store_lock(self._path))
            store.refresh()
            self._table = store._table
            self._state = store._state
            highest = pc.max(self._table["row"]).as_py()
            self._first_row = _next_shard(max(self._state.rows, 0 if highest is None else highest + 1))
            self._pending: list[pa.Table] = []
            self._pending_rows = 0
            self._pending_fields: list[dict[str, Any]] = []
            self._replaced_fields: dict[str, dict[str, Any]] = {}
            # Patches not yet sent to a shard: they begin at row `_buffer_row`, always a shard's first.
            self._buffer = np.empty((0,), np.uint8)
            self._buffer_row = self._first_row
            self._filled = 0
            self._writes: list[Any] = []
            self._array: Any = None
            self._last_commit = time.monotonic()
            self._commit_cost = 0.0
            self._remove_uncommitted()
            self._closing = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._closing:
            try:
                if kind is None:
                    self.commit()
            finally:
                # A write under way must end before the lock is given up; if it fails, the first failure is reported.
                with contextlib.suppress(Exception):
                    self._drain()
                self._store._set_table(self._table, self._state)

    @property
    def cells(self) -> pd.DataFrame:
        """A copy of the committed cells, without corrections, which are no part of the table."""
        frame: pd.DataFrame = self._table.to_pandas()
        return frame

    @property
    def committed(self) -> int:
        """Number of cells that are safe."""
        return int(self._table.num_rows)

    @property
    def path(self) -> Path:
        """Folder of the store."""
        return self._path

    @property
    def state(self) -> schema.TableState:
        """Metadata committed with the rows."""
        return self._state

    def append(self, patches: npt.NDArray[np.uint8], cells: pd.DataFrame) -> None:
        """Add cells. They count once `commit` has returned.

        Parameters
        ----------
        patches : ndarray of uint8, shape (n, P, P, 3)
        cells : DataFrame
            n rows with the columns `CELL_COLUMNS` except ``row``, which is assigned here; without ``pixel_size_um``
            it is unknown.

        Raises
        ------
        StoreError
            If the disk is full.
        ValueError
            If shapes or columns do not fit.
        """
        size = self._store.patch_size
        if patches.dtype != np.uint8 or patches.shape != (len(cells), size, size, 3):
            raise ValueError(f"patches must be uint8 of shape ({len(cells)}, {size}, {size}, 3), not {patches.shape}")
        with disk_errors(self._path, lambda: self.committed):
            first = self._first_row + self._pending_rows
            if "pixel_size_um" not in cells.columns:
                cells = cells.assign(pixel_size_um=np.nan)
            self._pending.append(schema.to_arrow(cells.assign(row=np.arange(first, first + len(cells)))))
            self._pending_rows += len(cells)
            while len(patches):
                if self._filled == 0:
                    self._buffer = np.empty((schema.SHARD_PATCHES, size, size, 3), np.uint8)
                taken = min(len(patches), schema.SHARD_PATCHES - self._filled)
                self._buffer[self._filled : self._filled + taken] = patches[:taken]
                self._filled += taken
                patches = patches[taken:]
                if self._filled == schema.SHARD_PATCHES:
                    self._flush()

    def add_field(self, record: Mapping[str, Any]) -> None:
        """Note a field whose image is in the store and whose cells were appended; it counts with the next commit.

        Parameters
        ----------
        record : mapping
            The columns `hematokit.store.schema.FIELD_COLUMNS`.
        """
        self._pending_fields.append({name: record[name] for name in schema.FIELD_COLUMNS})

    def replace_field(self, record: Mapping[str, Any]) -> None:
        """Replace the committed cells of a field by those appended for it, with the next commit.

        Parameters
        ----------
        record : mapping
            The columns `hematokit.store.schema.FIELD_COLUMNS`, with the ``field_id`` of a committed field.
        """
        self._replaced_fields[record["field_id"]] = {name: record[name] for name in schema.FIELD_COLUMNS}

    def commit_if_due(self) -> bool:
        """Commit if the pending cells fill their shards and enough time has passed since the last commit.

        Returns
        -------
        bool
            Whether it committed.
        """
        if not self._pending_rows or self._filled:
            return False
        if self._waited() < min(_COMMIT_EVERY * self._commit_cost, _COMMIT_SECONDS):
            return False
        self.commit()
        return True

    def commit_fields_if_due(self) -> bool:
        """Commit between two fields, if the cells fill a shard or enough time has passed.

        Unlike `commit_if_due` it may leave the last shard partly filled, because the cells of a field are committed
        together or not at all.

        Returns
        -------
        bool
            Whether it committed.
        """
        limit = _COMMIT_SECONDS
        if self._pending_rows >= schema.SHARD_PATCHES:
            limit = min(_COMMIT_EVERY * self._commit_cost, _COMMIT_SECONDS)
        if not (self._pending_fields or self._replaced_fields) or self._waited() < limit:
            return False
        self.commit()
        return True

    def _waited(self) -> float:
        return time.monotonic() - self._last_commit

    def commit(self) -> None:
        """Make the pending cells and fields count: wait for their shards, then replace the table.

        Raises
        ------
        StoreError
            If the disk is full; the store is then as after the last commit.
        """
        if not self._pending_rows and not self._pending_fields and not self._replaced_fields:
            return
        with disk_errors(self._path, lambda: self.committed):
            self._flush()
            self._drain()
            kept = self._table
            state = replace(self._state, rows=self._first_row + self._pending_rows)
            state.groups_stale = state.groups_stale or self._pending_rows > 0 or bool(self._replaced_fields)
            if self._replaced_fields:
                gone = pc.is_in(kept["field_id"], pa.array(list(self._replaced_fields), pa.string()))
                kept = kept.filter(pc.invert(gone))
                present = schema.read_fields(self._path, state.fields, state.fields_first).to_pylist()
                changed = [self._replaced_fields.get(row["field_id"], row) for row in present]
                self._write_fields(pd.DataFrame([*changed, *self._pending_fields]), state, other_version=True)
            elif self._pending_fields:
                self._write_fields(pd.DataFrame(self._pending_fields), state, other_version=False)
            self._replace(pa.concat_tables([kept, *self._pending]).combine_chunks(), state)
            self._pending_fields, self._replaced_fields = [], {}
            self._first_row = self._buffer_row = _next_shard(self._first_row + self._pending_rows)
            self._pending, self._pending_rows = [], 0

    def replace_cells(
        self,
        cells: pd.DataFrame,
        *,
        fields: pd.DataFrame | None = None,
        split_info: dict[str, Any] | None = _KEEP,
        groups_stale: bool = _KEEP,
        groups_near: bool = _KEEP,
    ) -> None:
        """Commit changed columns of the committed cells, and what belongs to them, in one step.

        Parameters
        ----------
        cells : DataFrame
            All committed cells, each with the ``cell_id``, ``row`` and ``pixel_sha256`` it has; columns
            `CELL_COLUMNS`.
        fields : DataFrame, optional
            All committed fields with changed columns, in their order.
        split_info, groups_stale, groups_near
            Replace what is committed under these names; left out, they stay.

        Raises
        ------
        ValueError
            If cells are missing or were moved: patches and rows would part company.
        StoreError
            If the disk is full.
        """
        self.commit()
        table = schema.to_arrow(cells)
        fixed = ["cell_id", "row", "pixel_sha256"]
        order = [("row", "ascending")]
        if not table.select(fixed).sort_by(order).equals(self._table.select(fixed).sort_by(order)):
            raise ValueError("replace_cells takes exactly the committed cells, with the rows and hashes they have")
        given: dict[str, Any] = {"split_info": split_info, "groups_stale": groups_stale, "groups_near": groups_near}
        state = replace(self._state, **{name: value for name, value in given.items() if value is not _KEEP})
        with disk_errors(self._path, lambda: self.committed):
            if fields is not None:
                self._write_fields(fields, state, other_version=True)
            self._replace(table, state)

    def write_rejects(self, rejects: pd.DataFrame) -> None:
        """Replace the table of refused files (columns ``source``, ``reason``, ``message``)."""
        with disk_errors(self._path, lambda: self.committed):
            schema.write_rejects(self._path, rejects)

    def update_rejects(self, sources: Iterable[str], rejects: Sequence[tuple[str, str, str]]) -> None:
        """Replace the refused files and cells of some sources, and keep those of others.

        Parameters
        ----------
        sources : iterable of str
            Sources of this call.
        rejects : sequence of (source, reason, message)
            Sources rejected in this call.
        """
        given, old = set(sources), self._store.rejects
        new = pd.DataFrame(list(rejects), columns=list(schema.REJECT_COLUMNS))
        kept = pd.concat([old[~old["source"].isin(given)], new], ignore_index=True)
        if not kept.equals(old):
            self.write_rejects(kept)

    def _write_fields(self, fields: pd.DataFrame, state: schema.TableState, *, other_version: bool) -> None:
        """Put rows behind those of ``fields.parquet``, and note in `state` which of them count with the next commit.

        The earlier rows stay: until the next commit, the committed table refers to them.
        """
        before = schema.read_fields(self._path, state.fields_first + state.fields)
        more = schema.fields_to_arrow(fields)
        schema.write_fields(self._path, pa.concat_tables([before, more]).combine_chunks())
        if other_version:
            state.fields_first, state.fields = before.num_rows, more.num_rows
        else:
            state.fields += more.num_rows

    def _replace(self, table: pa.Table, state: schema.TableState) -> None:
        started = time.monotonic()
        schema.write_cells(self._path, table, state)
        self._table, self._state = table, state
        self._last_commit = time.monotonic()
        self._commit_cost = self._last_commit - started

    def _flush(self) -> None:
        """Start writing the buffered patches as one shard."""
        if not self._filled:
            return
        start, stop = self._buffer_row, self._buffer_row + self._filled
        self._grow(stop)
        # One shard may be on its way to the disk while the next fills up; more would only cost memory.
        self._drain()
        patches = self._buffer[: self._filled]
        self._writes.append(self._array[start:stop].write(patches, can_reference_source_data_indefinitely=True))
        self._filled = 0
        self._buffer_row = _next_shard(stop)

    def _drain(self) -> None:
        writes, self._writes = self._writes, []
        for write in writes:
            write.result()

    def _grow(self, rows: int) -> None:
        path = self._path / schema.ARRAY_FOLDER / schema.ROOT_FILE
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["shape"][0] < rows:
            document["shape"][0] = rows
            write_json(path, document)
            self._array = None
        if self._array is None:
            self._array = open_patches(self._path, write=True)

    def _remove_uncommitted(self) -> None:
        """Remove what a killed writer left: shards past the committed rows, fields, and temporary files."""
        remove_leftovers(self._path)
        remove_leftovers(self._path / schema.ARRAY_FOLDER)
        remove_uncommitted_fields(self._path, self._state.fields, self._state.fields_first)
        first_shard = self._first_row // schema.SHARD_PATCHES
        for folder in (self._path / schema.ARRAY_FOLDER / "c").glob("*"):
            if not folder.name.isdigit():
                continue
            used = int(folder.name) < first_shard
            for file in folder.rglob("*"):
                if file.is_file() and (not used or file.name.endswith(".__lock")):
                    file.unlink()


def _next_shard(row: int) -> int:
    """First row of the first shard that begins at `row` or later."""
    return -(-row // schema.SHARD_PATCHES) * schema.SHARD_PATCHES
