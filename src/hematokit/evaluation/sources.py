"""Where the cells to evaluate come from: a split of a store, by default the one of the training, or a folder of images.

Both give a table of cells and their patches in batches, the next batch being read while the last one is classified.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd

from hematokit.errors import EvaluationError, HematokitError, ImageError, printable, shell_word
from hematokit.imaging.fieldfiles import stated_pixel_size
from hematokit.imaging.reading import IMAGE_SUFFIXES, decode_rgb, read_bytes
from hematokit.models.model import Model
from hematokit.store import PatchStore, open_store, summarize_pixel_sizes

__all__ = ["ALL_CELLS", "EvaluatedCells", "ImageCells", "StoreCells", "open_training_store", "scale_mismatch"]

ALL_CELLS: Final = "all"
"""Name that stands for every cell of a store, whatever its split."""

Patches = npt.NDArray[np.uint8]
Positions = npt.NDArray[np.int64]


class EvaluatedCells(Protocol):
    """Cells that can be read in batches."""

    @property
    def cells(self) -> pd.DataFrame:
        """One row per cell: ``cell_id``, ``source``, ``label`` (empty: unknown), ``group``, ``pixel_sha256``."""

    @property
    def rejects(self) -> pd.DataFrame:
        """Images that could not be read: ``source``, ``reason``, ``message``; complete once `batches` is exhausted."""

    def batches(self, positions: Positions, size: int) -> Iterator[tuple[Positions, Patches]]:
        """Yield positions in `cells` and their patches; those that cannot be read go to `rejects`."""

    def read(self, positions: Positions) -> Patches:
        """Read a few patches again, for showing them."""


class StoreCells:
    """The cells of one split of a store.

    Parameters
    ----------
    store : PatchStore
        The store.
    split : str
        ``"train"``, ``"val"``, ``"test"``, or ``"all"``.

    Raises
    ------
    EvaluationError
        If the store has no cells, no split, or no split of that name.
    """

    def __init__(self, store: PatchStore, split: str) -> None:
        self.store = store
        cells = store.cells
        if not len(cells):
            raise EvaluationError(
                f"store {store.path} has no cells; import some with: hematokit import SRC {shell_word(store.path)}"
            )
        if split != ALL_CELLS:
            made = [name for name in ("train", "val", "test") if (cells["split"] == name).any()]
            if not made:
                raise EvaluationError(
                    f"store {store.path} has no split yet; make one with: hematokit split {shell_word(store.path)}, "
                    f"or evaluate every cell with --split {ALL_CELLS}"
                )
            if split not in made:
                raise EvaluationError(
                    f"store {store.path} has no cell in a split {split!r}; "
                    f"give --split {', '.join(made)} or {ALL_CELLS}"
                )
            cells = cells[cells["split"] == split]
        # In the order of the array, so that neighbours in a shard are read together.
        self._cells = cells.sort_values("row").reset_index(drop=True)

    @property
    def cells(self) -> pd.DataFrame:
        """See `EvaluatedCells`."""
        return self._cells

    @property
    def rejects(self) -> pd.DataFrame:
        """None: a damaged store is an error, not a bad image."""
        return _reject_frame([])

    def batches(self, positions: Positions, size: int) -> Iterator[tuple[Positions, Patches]]:
        """See `EvaluatedCells`."""
        rows = self._cells["row"].to_numpy(dtype=np.int64)
        parts = [positions[start : start + size] for start in range(0, len(positions), size)]
        waiting = deque((part, self.store.read_rows_async(rows[part])) for part in parts[:2])
        for index in range(len(parts)):
            part, reading = waiting.popleft()
            if index + 2 < len(parts):
                waiting.append((parts[index + 2], self.store.read_rows_async(rows[parts[index + 2]])))
            yield part, reading.result()

    def read(self, positions: Positions) -> Patches:
        """See `EvaluatedCells`."""
        return self.store.read_rows(self._cells["row"].to_numpy(dtype=np.int64)[positions])


class ImageCells:
    """The images of a folder, at any depth; the innermost folder named after a class gives the label.

    Parameters
    ----------
    folder : Path
        The folder. Links are not followed.
    codes : collection of str
        Class codes that count as labels.
    patch_size : int
        Side that an image must have, in pixels.

    Raises
    ------
    EvaluationError
        If the folder is missing or has no image files.
    """

    def __init__(self, folder: Path, codes: frozenset[str], patch_size: int) -> None:
        if not folder.is_dir():
            raise EvaluationError(f"image folder {folder} does not exist; give an existing folder to --images")
        self.patch_size = patch_size
        self._files = sorted(_image_files(folder))
        if not self._files:
            raise EvaluationError(
                f"image folder {folder} has no image files ({', '.join(sorted(IMAGE_SUFFIXES))}); give another folder"
            )
        # As the importer does: exactly if possible, else whatever the case of the folder's name.
        by_name = {code.casefold(): code for code in codes} | {code: code for code in codes}
        names = [path.relative_to(folder) for path in self._files]
        folders = [(folder.name, *name.parts[:-1]) for name in names]
        labels = [
            next(
                (
                    by_name.get(part) or by_name[part.casefold()]
                    for part in reversed(parts)
                    if part.casefold() in by_name
                ),
                "",
            )
            for parts in folders
        ]
        self._cells = pd.DataFrame(
            {
                "cell_id": [printable(name.as_posix()) for name in names],
                "source": [printable(str(path)) for path in self._files],
                "label": labels,
                "group": "",
                "pixel_sha256": "",
                "pixel_size_um": np.nan,
            }
        ).astype({"cell_id": object, "source": object, "label": object, "group": object, "pixel_sha256": object})
        self._rejects: list[tuple[str, str, str]] = []
        self._sizes = self._cells["pixel_size_um"].to_numpy(np.float64, copy=True)

    @property
    def cells(self) -> pd.DataFrame:
        """See `EvaluatedCells`; hashes, groups and pixel sizes are known once `batches` is exhausted."""
        return self._cells

    @property
    def rejects(self) -> pd.DataFrame:
        """See `EvaluatedCells`."""
        return _reject_frame(self._rejects)

    def batches(self, positions: Positions, size: int) -> Iterator[tuple[Positions, Patches]]:
        """See `EvaluatedCells`."""
        digests = self._cells["pixel_sha256"].to_numpy(dtype=object, copy=True)
        self._sizes = self._cells["pixel_size_um"].to_numpy(np.float64, copy=True)
        self._rejects.clear()
        # Pillow decodes outside the interpreter lock; two batches under way bound the memory.
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            pending: deque[tuple[int, Future[Patches | ImageError]]] = deque()
            todo = iter(positions.tolist())
            good: list[int] = []
            patches: list[Patches] = []
            while True:
                while len(pending) < 2 * size and (position := next(todo, None)) is not None:
                    pending.append((position, pool.submit(self._read_one, position)))
                if not pending:
                    break
                place, future = pending.popleft()
                result = future.result()
                if isinstance(result, ImageError):
                    self._rejects.append((self._cells["source"].iloc[place], result.reason, str(result)))
                else:
                    digests[place] = hashlib.sha256(result.tobytes()).hexdigest()
                    good.append(place)
                    patches.append(result)
                if len(good) == size:
                    yield np.array(good, dtype=np.int64), np.stack(patches)
                    good, patches = [], []
            if good:
                yield np.array(good, dtype=np.int64), np.stack(patches)
        # The same image twice in a folder is one observation.
        twice = pd.Series(digests).duplicated(keep=False).to_numpy() & (digests != "")
        self._cells = self._cells.assign(
            pixel_sha256=digests, group=np.where(twice, digests, ""), pixel_size_um=self._sizes
        )

    def read(self, positions: Positions) -> Patches:
        """See `EvaluatedCells`."""
        patches = [
            result for position in positions if not isinstance(result := self._read_one(int(position)), ImageError)
        ]
        return np.stack(patches) if patches else np.zeros((0, self.patch_size, self.patch_size, 3), np.uint8)

    def _read_one(self, position: int) -> Patches | ImageError:
        path, side = self._files[position], self.patch_size
        try:
            data = read_bytes(path)
            # The size is judged by the header: a wrong one is never decoded.
            patch = decode_rgb(data, name=str(path), expect=(side, side))
            self._sizes[position] = stated_pixel_size(data).um or np.nan
            return patch
        except ImageError as error:
            if error.reason == "wrong-size":
                return ImageError("wrong-size", f"{error}, which the model takes; crop, pad or resize it")
            return error


def _image_files(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder, followlinks=False):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(parent, name)
            # A linked file may be anywhere on the machine: only what is in the folder is evaluated.
            if not name.startswith(".") and path.suffix.lower() in IMAGE_SUFFIXES and not path.is_symlink():
                yield path


def _reject_frame(rows: list[tuple[str, str, str]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["source", "reason", "message"], dtype=object)


def open_training_store(
    model: Model, model_path: Path, store: str | Path | None, kind: type[HematokitError]
) -> PatchStore:
    """Open the store given or, without one, the store that the classifier was trained on.

    Parameters
    ----------
    model : Model
    model_path : Path
        Where it was loaded from, for messages.
    store : path, optional
    kind : type
        Error to raise.

    Returns
    -------
    PatchStore

    Raises
    ------
    HematokitError
        Of that `kind`, if none is given and the classifier names none or one that is gone.
    StoreError
        If the store cannot be opened.
    """
    if store is not None:
        return open_store(store)
    stated = Path(model.config.training.store or "")
    if not stated.name:
        raise kind(f"{model_path} does not say which store it was trained on; give one with --store")
    if not stated.exists():
        raise kind(
            f"store {stated}, on which {model_path} was trained, is not there any more; give its place with --store"
        )
    return open_store(stated)


def scale_mismatch(model: Model, cells: pd.DataFrame, store: PatchStore | None = None) -> str:
    """Say in one line why cells may not have the scale that a classifier was trained at; empty if they have it.

    Parameters
    ----------
    model : Model
    cells : DataFrame
        With the column ``pixel_size_um``.
    store : PatchStore, optional
        Where they are from. An unknown pixel size is no doubt in the classifier's own training store, nor of image
        files, which rarely state it.
    """
    own = store is not None and model.config.training.store_hash == store.content_hash
    return summarize_pixel_sizes(cells).mismatch(model.pixel_size_um, unknown=store is not None and not own)
