"""Reading a patch store: its cells with the corrections, its patches, its fields.

`zarr` defines the array, `tensorstore` reads and writes it: it gathers 64 random patches in about 10 ms, outside the
global interpreter lock, where zarr-python needs some 80 ms.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from hematokit._version import __version__
from hematokit.arrays import open_array, system_error, tensorstore_path
from hematokit.errors import StoreError, TaxonomyError, printable
from hematokit.imaging.fieldfiles import Field, open_field
from hematokit.store import schema
from hematokit.store.corrections import CORRECTIONS_FILE, Correction, apply_corrections, read_corrections
from hematokit.store.fields import field_folder, field_pixel_sizes
from hematokit.taxonomy import Taxonomy

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["DamageError", "PatchRead", "PatchStore", "cannot_read", "open_patches", "open_store", "open_stored_field"]

# Holds the shards' indices (4 kB each), so that a patch costs one read instead of two.
_CACHE_BYTES = 32 * 1024 * 1024


class DamageError(StoreError):
    """Patches that are damaged, as opposed to patches that cannot be read just now."""


class PatchRead:
    """A read under way.

    Obtained from `PatchStore.read_rows_async`; `result` waits for it.
    """

    def __init__(self, future: Any, path: Path) -> None:
        self._future = future
        self._path = path

    def done(self) -> bool:
        """Whether `result` would return at once."""
        return bool(self._future.done())

    def result(self) -> npt.NDArray[np.uint8]:
        """Wait for the patches.

        Returns
        -------
        ndarray of uint8, shape (n, P, P, 3)

        Raises
        ------
        StoreError
            If a shard is missing or damaged, or cannot be read.
        """
        try:
            patches: npt.NDArray[np.uint8] = self._future.result()
        except ValueError as error:
            raise _read_error(self._path, error) from error
        return patches


def cannot_read(path: Path, error: OSError) -> str:
    """Return the one-line message of what the operating system refuses to read of a store, which is not damage."""
    reason = error.strerror or error
    file = f", {printable(str(error.filename))}" if error.filename and str(error.filename) != str(path) else ""
    return f"store {printable(str(path))} cannot be read ({reason}{file}); correct that and run the same command again"


def _read_error(path: Path, error: ValueError | OSError) -> StoreError:
    """Distinguish damage from what the operating system refuses, and from a missing drive."""
    refused = error if isinstance(error, OSError) else system_error(error)
    if refused is not None:
        return StoreError(cannot_read(path, refused))
    if not (path / schema.ROOT_FILE).exists():
        return StoreError(f"store {path} is not there any more; connect its drive, or give its new place")
    detail = " ".join(str(error).split()).split(" [", maxsplit=1)[0]
    return DamageError(
        f"store {path} is damaged ({detail}); run 'hematokit store verify' on it to see which cells are concerned"
    )


class PatchStore:
    """A store of single-cell patches, opened for reading.

    Holds the cells as they were committed when it was opened; `refresh` looks again. Any number of readers may work
    while one process writes (`hematokit.store.StoreWriter`). Copies sent to other processes open the store there again.

    Parameters
    ----------
    path : str or Path
        Folder of the store.

    Raises
    ------
    StoreError
        If there is no store, or it is of a newer schema, or damaged.

    Attributes
    ----------
    path : Path
    patch_size : int
        Side of the square patches in pixels.
    taxonomy : Taxonomy
        The classes that labels may have.
    codec : str
        ``"raw"`` or ``"zstd"``.
    schema_version : int
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        attributes = _read_root(self.path)
        try:
            self.schema_version = int(attributes["schema_version"])
            self.patch_size = int(attributes["patch_size"])
            self.codec = str(attributes["codec"])
            self.taxonomy = Taxonomy.from_dict(attributes["taxonomy"], where=str(self.path / schema.ROOT_FILE))
        except (KeyError, TypeError, ValueError, TaxonomyError) as error:
            raise StoreError(
                f"{self.path / schema.ROOT_FILE} is damaged ({error}); restore that file from a copy of the store"
            ) from error
        self.refresh()

    def __reduce__(self) -> tuple[type[PatchStore], tuple[Path]]:
        return PatchStore, (self.path,)

    def __repr__(self) -> str:
        return f"<PatchStore {self.path}: {len(self)} cells, {self.patch_size} px>"

    def __len__(self) -> int:
        return len(self._frame) if self._corrections else int(self._table.num_rows)

    def refresh(self) -> None:
        """Read the committed cells and the corrections again."""
        self._corrections = read_corrections(self.path / CORRECTIONS_FILE)
        self._set_table(*schema.read_cells(self.path))

    def _set_table(self, table: pa.Table, state: schema.TableState) -> None:
        """Show what is committed, as it was read or as a `StoreWriter` left it."""
        self._table = table
        self._state = state
        self._array = None
        for name in ("_frame", "_rows", "_rows_by_id", "_fields", "content_hash"):
            self.__dict__.pop(name, None)

    @cached_property
    def _frame(self) -> pd.DataFrame:
        frame: pd.DataFrame = self._table.to_pandas()
        return apply_corrections(frame, self._corrections) if self._corrections else frame

    @cached_property
    def _rows(self) -> npt.NDArray[np.int64]:
        """Rows of the committed cells, sorted."""
        return np.sort(self._table["row"].to_numpy())

    @cached_property
    def _rows_by_id(self) -> dict[str, int]:
        return dict(zip(self._frame["cell_id"].tolist(), self._frame["row"].tolist(), strict=True))

    @property
    def cells(self) -> pd.DataFrame:
        """A copy of the cells table, one row per cell, columns `CELL_COLUMNS`; unknown text is the empty string.

        Corrections are applied: corrected labels have the ``label_source`` ``"corrected"`` (``"confirmed"`` if
        the class is unchanged), and deleted cells are left out.
        """
        return self._frame.copy()

    def to_anndata(self) -> AnnData:
        """Return the cells, with corrections, as AnnData, without their patches.

        Returns
        -------
        AnnData
            ``obs`` is `cells`; ``uns["hematokit"]`` has classes, names and colours, and the store's ``store_hash``.

        Raises
        ------
        HematokitError
            If anndata is not installed: ``pip install 'hematokit[anndata]'``.
        """
        from hematokit.anndata_tables import cells_to_anndata

        return cells_to_anndata(self.cells, self.taxonomy, {"store_hash": self.content_hash})

    @property
    def committed_cells(self) -> pd.DataFrame:
        """The cells as committed, without corrections: deleted cells are included, and labels are the old ones."""
        frame: pd.DataFrame = self._table.to_pandas()
        return frame

    @property
    def corrections(self) -> list[Correction]:
        """The corrections, as returned by `hematokit.store.corrections.read_corrections`."""
        return list(self._corrections)

    @property
    def rejects(self) -> pd.DataFrame:
        """Files that imports refused: columns ``source``, ``reason``, ``message``."""
        return schema.read_rejects(self.path)

    @cached_property
    def _fields(self) -> pa.Table:
        return schema.read_fields(self.path, self._state.fields, self._state.fields_first)

    @property
    def fields(self) -> pd.DataFrame:
        """A copy of the table of fields, one row per field that was tiled, columns `FIELD_COLUMNS`.

        Their images are in the folder ``fields`` of the store; `hematokit.store.open_stored_field` opens one.
        """
        frame: pd.DataFrame = self._fields.to_pandas()
        return frame

    @property
    def split_info(self) -> dict[str, Any] | None:
        """Parameters of the split: ``fractions``, ``seed``, ``by``, ``hash``; None if there is no split."""
        return None if self._state.split_info is None else dict(self._state.split_info)

    @property
    def groups_stale(self) -> bool:
        """Cells were added since duplicates were searched for; `split_store` and the next import search again."""
        return self._state.groups_stale

    @cached_property
    def content_hash(self) -> str:
        """Data-set version: SHA-256, in hexadecimal, over the sorted (cell_id, label, pixel_sha256).

        Of the cells with their corrections: a correction makes another data set, and undoing it the old one.
        """
        return schema.compute_content_hash(self._frame)

    def patches(self, cell_ids: Sequence[str]) -> npt.NDArray[np.uint8]:
        """Read patches by cell, in the order asked for.

        Parameters
        ----------
        cell_ids : sequence of str

        Returns
        -------
        ndarray of uint8, shape (n, P, P, 3)

        Raises
        ------
        StoreError
            If a cell is not in the store, or its shard is damaged.
        """
        if isinstance(cell_ids, str):
            cell_ids = [cell_ids]
        known = self._rows_by_id
        try:
            rows = np.array([known[cell_id] for cell_id in cell_ids], dtype=np.int64)
        except KeyError as error:
            raise StoreError(
                f"store {self.path} has no cell {error.args[0]!r}; the column 'cell_id' of its cells lists them"
            ) from error
        return self.read_rows(rows)

    def read_rows(self, rows: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.uint8]:
        """Read patches by row of the array (the column ``row``), in the order asked for.

        Parameters
        ----------
        rows : ndarray of int, shape (n,)

        Returns
        -------
        ndarray of uint8, shape (n, P, P, 3)

        Raises
        ------
        StoreError
            If `rows` are not integers, a row does not exist, or its shard is damaged or cannot be read.
        """
        return self.read_rows_async(rows).result()

    def read_rows_async(self, rows: npt.NDArray[np.integer[Any]]) -> PatchRead:
        """Start reading patches by row, and return at once.

        The reading happens in threads outside the interpreter lock.

        Parameters
        ----------
        rows : ndarray of int, shape (n,)

        Returns
        -------
        PatchRead
            Its ``result()`` is what `read_rows` returns.

        Raises
        ------
        StoreError
            If `rows` are not integers, or a row does not exist.
        """
        rows = np.asarray(rows)
        if rows.size and not np.issubdtype(rows.dtype, np.integer):
            raise StoreError(
                f"rows of a store are whole numbers, not {rows.dtype}; take them from the column 'row' of its cells"
            )
        place = np.searchsorted(self._rows, rows)
        unknown = rows[self._rows.take(place, mode="clip") != rows] if len(self._rows) else rows
        if unknown.size:
            raise StoreError(f"store {self.path} has no row {unknown[0]}; the column 'row' of its cells lists them")
        array, rows = self._open_array(), rows.astype(np.int64)
        if rows.size and rows.max() >= array.shape[0]:
            raise DamageError(
                f"store {self.path} is damaged (its patches end before row {rows.max()}); restore "
                f"{schema.ARRAY_FOLDER}/{schema.ROOT_FILE} from a copy of the store"
            )
        return PatchRead(array[rows].read(), self.path)

    def _open_array(self) -> Any:
        if self._array is None:
            self._array = open_patches(self.path, write=False)
        return self._array


def open_patches(path: Path, *, write: bool) -> Any:
    """Open the array ``patches`` of a store with tensorstore."""
    try:
        return open_array(
            path / schema.ARRAY_FOLDER,
            cache_bytes=0 if write else _CACHE_BYTES,
            write=write,
            # A missing shard is an error, not black patches.
            fill_missing_data_reads=False,
            store_data_equal_to_fill_value=True,
        )
    except (OSError, ValueError) as error:
        raise _read_error(path, error) from error


def _read_root(path: Path) -> dict[str, Any]:
    hint = "give the folder that 'hematokit import' wrote"
    try:
        document = json.loads((path / schema.ROOT_FILE).read_text(encoding="utf-8"))
        attributes = document["attributes"]
        kind = attributes["kind"]
        tensorstore_path(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        what = "is not a patch store" if path.exists() else "does not exist"
        raise StoreError(f"store {path} {what}; {hint}") from error
    except OSError as error:
        raise StoreError(cannot_read(path, error)) from error
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path} is not a patch store ({schema.ROOT_FILE}: {error}); {hint}") from error
    if kind != schema.STORE_KIND:
        raise StoreError(f"{path} is not a patch store (its kind is {kind!r}); {hint}")
    version = attributes.get("schema_version")
    if not isinstance(version, int) or version > schema.SCHEMA_VERSION:
        raise StoreError(
            f"store {path} has schema version {version!r}, newer than {schema.SCHEMA_VERSION}, which this hematokit "
            f"{__version__} knows; install a newer hematokit"
        )
    return dict(attributes)


def open_store(path: str | Path) -> PatchStore:
    """Open a patch store for reading.

    Parameters
    ----------
    path : str or Path
        Folder of the store.

    Returns
    -------
    PatchStore

    Raises
    ------
    StoreError
        If there is no store, or it is of a newer schema, or damaged.

    Examples
    --------
    >>> store = open_store("bm.zarr")
    >>> store.patches(store.cells["cell_id"][:2]).shape
    (2, 64, 64, 3)
    """
    return PatchStore(path)


def open_stored_field(store: PatchStore, field_id: str) -> Field:
    """Open a field that a store keeps.

    Where its file did not state a pixel size, the field has the one that was stated for its cells since.

    Raises
    ------
    StoreError
        If the store has no such field.
    ImageError
        If its image is damaged.
    """
    if field_id not in set(store.fields["field_id"]):
        raise StoreError(
            f"store {store.path} has no field {field_id!r}; the column 'field_id' of its fields lists them"
        )
    sizes = field_pixel_sizes(store.cells)
    return open_field(field_folder(store.path, field_id), pixel_size_um=sizes.get(field_id))
