"""A store as a data set of torch, for training loops other than `hematokit.train`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from hematokit.errors import StoreError, describe_error, shell_word
from hematokit.store import PatchStore, open_store
from hematokit.store.schema import ARRAY_FOLDER, hash_pixels

__all__ = ["PatchDataset"]

_PROCESS: Final = os.getpid()
"""The process that imported this module; another one, in a process that was forked from it."""


class PatchDataset(Dataset[tuple[Any, int]]):
    """The labelled patches of a store, or of one split of it, as a map-style data set.

    An item is a pair of the image, a float32 tensor (3, P, P) in [0, 1] or what `transform` returns for it, and the
    index of the cell's class in `classes_`. Cells without a label are left out. The cells are those that the store has
    when the data set is made.

    The workers of a `torch.utils.data.DataLoader` open the store for themselves. Patches are read faster in workers
    that are spawned (``multiprocessing_context="spawn"``) than in those that are forked: `tensorstore`, which reads
    patches in several threads, does not work in a forked process, so that `zarr` reads them there.

    Parameters
    ----------
    store : str, Path or PatchStore
    split : str, optional
        ``"train"``, ``"val"`` or ``"test"``; all labelled cells by default.
    transform : callable, optional
        Takes and returns an image; for example a transform of ``torchvision.transforms.v2``. For workers that are
        spawned, it must be picklable.

    Attributes
    ----------
    classes_ : ndarray of str, shape (C,)
        Codes of the classes with labelled cells in the store, sorted; the same for every split.
    labels : ndarray of int64, shape (n,)
        Index of each cell's class in `classes_`.
    cell_ids : list of str
        The cells, in the order of the items.

    Raises
    ------
    StoreError
        If the store cannot be read, or the split has no labelled cells.

    Examples
    --------
    >>> from torch.utils.data import DataLoader
    >>> images, labels = next(iter(DataLoader(PatchDataset("bm.zarr", "train"), batch_size=8, shuffle=True)))
    >>> images.shape, labels.dtype
    (torch.Size([8, 3, 64, 64]), torch.int64)
    """

    def __init__(
        self,
        store: str | Path | PatchStore,
        split: str | None = None,
        *,
        transform: Callable[[torch.Tensor], Any] | None = None,
    ) -> None:
        self.store = store if isinstance(store, PatchStore) else open_store(store)
        self.split = split
        self.transform = transform
        cells = self.store.cells
        cells = cells[cells["label"] != ""]
        self.classes_ = np.array(sorted(set(cells["label"])))
        if split is not None:
            cells = cells[cells["split"] == split]
        if cells.empty:
            path = self.store.path
            if split is None:
                raise StoreError(f"store {path} has no labelled cells; import cells with labels")
            raise StoreError(
                f"store {path} has no labelled cells in split {split!r}; the splits are train, val and test, made by: "
                f"hematokit split {shell_word(path)}"
            )
        self.labels = np.searchsorted(self.classes_, cells["label"].to_numpy(str)).astype(np.int64)
        self.cell_ids: list[str] = cells["cell_id"].tolist()
        self._rows = cells["row"].to_numpy(np.int64)
        self._hashes = cells["pixel_sha256"].to_numpy(object)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Return the image and the class index of one cell."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Any, int]]:
        """Return several items, which are read at once."""
        chosen = np.asarray(indices, dtype=np.int64)
        patches = self.store.read_rows(self._rows[chosen]) if os.getpid() == _PROCESS else self._read_forked(chosen)
        images = torch.from_numpy(patches).permute(0, 3, 1, 2).contiguous().float() / 255
        return [
            (image if self.transform is None else self.transform(image), int(label))
            for image, label in zip(images, self.labels[chosen], strict=True)
        ]

    def _read_forked(self, chosen: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        import zarr

        path = self.store.path
        try:
            array: Any = zarr.open_array(path / ARRAY_FOLDER, mode="r")
            patches: npt.NDArray[np.uint8] = array.oindex[self._rows[chosen]]
        except Exception as error:
            raise StoreError(f"patches of store {path} cannot be read ({describe_error(error)})") from error
        # zarr returns black patches for a shard that is missing.
        black = np.flatnonzero(~patches.any(axis=(1, 2, 3)))
        if any(hash_pixels(patches[place]) != self._hashes[chosen[place]] for place in black):
            raise StoreError(
                f"store {path} is damaged (patches are missing); run 'hematokit store verify' on it to see which cells "
                "are concerned"
            )
        return patches
