"""Checking every patch and field of a store against the hash that was taken when it was written."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from hematokit.commands import CommandResult
from hematokit.errors import StoreError
from hematokit.files import hash_path
from hematokit.progress import Progress, no_progress
from hematokit.store.fields import field_folder
from hematokit.store.patchstore import DamageError, PatchRead, PatchStore, cannot_read, open_store
from hematokit.store.schema import hash_pixels

__all__ = ["DamagedField", "DamagedPatch", "VerifyReport", "verify_store"]

_BATCH = 64


@dataclass(frozen=True, slots=True)
class DamagedPatch:
    """A cell whose patch is not what was imported.

    Attributes
    ----------
    cell_id : str
    source : str
        Where it was imported from, to import it again.
    problem : str
        ``"unreadable"`` (its shard is missing or fails its checksum) or ``"changed"`` (readable, other pixels).
    deleted : bool
        A correction deletes the cell: readers of the store do not see it, unless the correction is undone.
    """

    cell_id: str
    source: str
    problem: str
    deleted: bool = False


@dataclass(frozen=True, slots=True)
class DamagedField:
    """A field whose image is not what was written.

    Attributes
    ----------
    field_id : str
    source : str
        The file it was tiled from.
    problem : str
        ``"missing"`` (its folder is gone), ``"unreadable"``, or ``"changed"`` (a file of it is missing, new or other).
    """

    field_id: str
    source: str
    problem: str


@dataclass(frozen=True)
class VerifyReport(CommandResult):
    """What `verify_store` found.

    Attributes
    ----------
    store : str
    cells : int
        Cells checked, those that corrections delete included.
    damaged : tuple of DamagedPatch
    content_hash : str
        Data-set version according to the table.
    fields : int
        Fields checked.
    damaged_fields : tuple of DamagedField
    """

    store: str
    cells: int
    damaged: tuple[DamagedPatch, ...]
    content_hash: str
    fields: int = 0
    damaged_fields: tuple[DamagedField, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every patch and field is what was written."""
        return not self.damaged and not self.damaged_fields

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"ok": self.ok, **asdict(self)}

    def lines(self) -> list[str]:
        """The report for a person, one statement per line."""
        if self.ok:
            fields = f" and {self.fields} fields" if self.fields else ""
            return [
                f"all {self.cells} patches{fields} of {self.store} are whole (content hash {self.content_hash[:16]})"
            ]
        lines = []
        if self.damaged:
            lines.append(f"{len(self.damaged)} of {self.cells} patches of {self.store} are damaged:")
            lines += [
                f"  {item.cell_id}: {item.problem}, imported from {item.source}"
                + (" (deleted by a correction)" if item.deleted else "")
                for item in self.damaged
            ]
            lines.append("import their files into a new store, or restore the folder 'patches' from a copy")
        if self.damaged_fields:
            lines.append(f"{len(self.damaged_fields)} of {self.fields} fields of {self.store} are damaged:")
            lines += [f"  {item.field_id}: {item.problem}, tiled from {item.source}" for item in self.damaged_fields]
            lines.append("tile their files into a new store, or restore their folders in 'fields' from a copy")
        return lines


def verify_store(path: str | Path, *, progress: Progress = no_progress) -> VerifyReport:
    """Read every committed patch and field, and compare them with the hashes taken when they were written.

    Parameters
    ----------
    path : str or Path
        The store.
    progress : Progress
        Called with the number of cells done, then of fields.

    Returns
    -------
    VerifyReport

    Raises
    ------
    StoreError
        If there is no store, one of its tables is damaged, or something cannot be read for another reason than damage.
    """
    store = open_store(path)
    _ = store.rejects  # read to check it, as opening has read and checked the cells
    cells = store.committed_cells.sort_values("row", ignore_index=True)
    shown = set(store.cells["cell_id"])
    if cells["row"].duplicated().any() or cells["cell_id"].duplicated().any():
        raise StoreError(f"store {path}: its table names a row or cell twice; restore cells.parquet from a copy")
    damaged: list[DamagedPatch] = []
    done = 0
    for batch, read in _read_ahead(store, cells):
        columns = (batch["cell_id"], batch["source"], batch["pixel_sha256"])
        for cell_id, source, expected, patch in zip(*columns, _patches(store, batch, read), strict=True):
            problem = "unreadable" if patch is None else "changed" if hash_pixels(patch) != expected else ""
            if problem:
                damaged.append(DamagedPatch(cell_id, source, problem, cell_id not in shown))
        done += len(batch)
        progress(done, len(cells), f"{len(damaged)} damaged" if damaged else "")
    fields = store.fields
    damaged_fields: list[DamagedField] = []
    for number, (field_id, source, expected) in enumerate(
        zip(fields["field_id"], fields["source"], fields["stored_sha256"], strict=True), start=1
    ):
        problem = _field_problem(field_folder(store.path, field_id), expected)
        if problem:
            damaged_fields.append(DamagedField(field_id, source, problem))
        progress(number, len(fields), "fields" + (f", {len(damaged_fields)} damaged" if damaged_fields else ""))
    return VerifyReport(str(path), len(cells), tuple(damaged), store.content_hash, len(fields), tuple(damaged_fields))


def _field_problem(folder: Path, expected: str) -> str:
    if not folder.is_dir():
        return "missing"
    try:
        return "" if hash_path(folder) == expected else "changed"
    except OSError as error:
        if error.errno == errno.EIO:
            return "unreadable"
        raise StoreError(cannot_read(folder.parent.parent, error)) from error


def _read_ahead(store: PatchStore, cells: pd.DataFrame) -> Iterator[tuple[pd.DataFrame, PatchRead | None]]:
    """Yield batches of cells with their reads, the next ones already under way."""
    ahead: deque[tuple[pd.DataFrame, PatchRead | None]] = deque()
    for start in range(0, len(cells), _BATCH):
        batch = cells.iloc[start : start + _BATCH]
        try:
            read = store.read_rows_async(batch["row"].to_numpy())
        except DamageError:
            read = None
        ahead.append((batch, read))
        if len(ahead) > 2:
            yield ahead.popleft()
    yield from ahead


def _patches(store: PatchStore, batch: pd.DataFrame, read: PatchRead | None) -> Iterator[npt.NDArray[np.uint8] | None]:
    """Yield the patches of a batch; if it cannot be read at once, one by one, with None for those that fail."""
    try:
        if read is not None:
            yield from read.result()
            return
    except DamageError:
        pass
    for row in batch["row"]:
        try:
            yield store.read_rows(np.array([row]))[0]
        except DamageError:
            yield None
