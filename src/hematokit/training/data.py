"""From the split of a store to batches on the device: cells, patches, and the memory that they may take."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import psutil
import torch

from hematokit.errors import TrainingError, shell_word, some_of
from hematokit.models.classifier import resize_patches
from hematokit.plugins.specs import InputSpec
from hematokit.progress import Progress, no_progress
from hematokit.store import PatchStore, PixelSizes, summarize_pixel_sizes
from hematokit.store.smears import on_several_sides
from hematokit.taxonomy import REST, CellClass, Taxonomy

__all__ = ["PatchFeed", "Selection", "TrainingData", "select_cells"]

_READ = 256  # rows read at a time while a cache fills


@dataclass(frozen=True)
class Selection:
    """Cells of one split: rows in the store and class indices, both (n,) int64."""

    rows: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class TrainingData:
    """Classes and cells of a training.

    Attributes
    ----------
    taxonomy : Taxonomy
        Classes in the order of the logits.
    splits : dict of str to Selection
        ``train``, ``val`` (and ``test``, counted only).
    left_out : dict of str to int
        Labelled cells that take no part, by code.
    unlabelled : int
        Cells without a label, which take no part either.
    pixel_sizes : PixelSizes
        Of the cells in ``train``.
    divided_groups : int
        Groups of duplicates, fields or patients with cells on several sides of the split.
    outside_split : int
        Cells with a label that are in no split, and take no part.
    """

    taxonomy: Taxonomy
    splits: dict[str, Selection]
    left_out: dict[str, int]
    unlabelled: int = 0
    pixel_sizes: PixelSizes = field(default_factory=lambda: PixelSizes(0, 0, None, None, None))
    divided_groups: int = 0
    outside_split: int = 0

    @property
    def pixel_size_um(self) -> float | None:
        """Pixel size in micrometres that a model trained on these cells has; None if unknown, or if they differ."""
        return self.pixel_sizes.common

    def pixel_size_warning(self) -> str:
        """Return one line on why the model's pixel size is unknown or mixed; empty if it is known."""
        problem = self.pixel_sizes.problem("training cells")
        if not problem:
            return ""
        if self.pixel_size_um is not None:
            return f"{problem}; the model records {self.pixel_size_um:.4g} um, that of the others"
        remedy = (
            "state it with 'hematokit store set-pixel-size' and train again or --resume"
            if self.pixel_sizes.median is None
            else "train on cells of one pixel size, or give one with --model-pixel-size"
        )
        return f"{problem}, so the model records none and fields are not rescaled for it; {remedy}"

    def counts(self) -> dict[str, dict[str, int]]:
        """Cells by split and code."""
        return {
            name: {
                code: int(count)
                for code, count in zip(
                    self.taxonomy.codes, np.bincount(part.labels, minlength=len(self.taxonomy)), strict=True
                )
            }
            for name, part in self.splits.items()
        }


def select_cells(store: PatchStore, exclude: list[str] | None = None, one_vs_rest: str | None = None) -> TrainingData:
    """Choose classes and cells.

    Parameters
    ----------
    store : PatchStore
        A store that has been split.
    exclude : list of str, optional
        Codes left out; by default the taxonomy's reject classes.
    one_vs_rest : str, optional
        The class to tell from all others; classes in `exclude` take no part on either side.

    Raises
    ------
    TrainingError
        If the store has no split or one that divides a patient's cells, or fewer than two classes have training cells.
    """
    cells = store.cells
    if store.split_info is None or not (cells["split"] == "train").any():
        raise TrainingError(f"store {store.path} has no training split; run: hematokit split {shell_word(store.path)}")
    patients = on_several_sides(cells, "patient_id")
    if patients:
        raise TrainingError(
            f"the split of store {store.path} divides the cells of {len(patients)} patients ({some_of(patients)}), so "
            f"figures on its test cells would be too good; run: hematokit split {shell_word(store.path)}"
        )
    taxonomy = store.taxonomy
    if exclude is None:
        excluded = {entry.code for entry in taxonomy if entry.reject} - {one_vs_rest}
    else:
        excluded = {taxonomy[code].code for code in exclude}
    labelled = cells[cells["label"] != ""]
    allowed = labelled[~labelled["label"].isin(list(excluded))]
    classes, index = _classes(store, allowed) if one_vs_rest is None else _against_rest(store, allowed, one_vs_rest)
    takes_part = labelled["label"].isin(list(index))
    used, left_out = labelled[takes_part], labelled[~takes_part]["label"].value_counts()
    splits = {}
    for name in ("train", "val", "test"):
        part = used[used["split"] == name].sort_values("cell_id")
        splits[name] = Selection(
            part["row"].to_numpy(np.int64), np.array([index[code] for code in part["label"]], dtype=np.int64)
        )
    return TrainingData(
        classes,
        splits,
        left_out={str(code): int(count) for code, count in left_out.items()},
        unlabelled=len(cells) - len(labelled),
        pixel_sizes=summarize_pixel_sizes(used[used["split"] == "train"]),
        divided_groups=len(on_several_sides(cells, "group")),
        outside_split=int((used["split"] == "").sum()),
    )


def _classes(store: PatchStore, cells: pd.DataFrame) -> tuple[Taxonomy, dict[str, int]]:
    """Return the classes with training cells, and the index of each code."""
    in_training = set(cells.loc[cells["split"] == "train", "label"])
    codes = [code for code in store.taxonomy.codes if code in in_training]
    if len(codes) < 2:
        raise TrainingError(
            f"store {store.path}: {len(codes)} class(es) with training cells ({', '.join(codes) or 'none'}), two "
            "are needed; import cells of more classes, or leave fewer out with --exclude"
        )
    chosen = store.taxonomy.subset(codes)
    return chosen, {code: position for position, code in enumerate(chosen.codes)}


def _against_rest(store: PatchStore, cells: pd.DataFrame, code: str) -> tuple[Taxonomy, dict[str, int]]:
    """Return the taxonomy of one class and the rest, and the index of each code of the cells."""
    target = store.taxonomy[code]
    in_training = set(cells.loc[cells["split"] == "train", "label"])
    if target.code not in in_training or in_training == {target.code}:
        raise TrainingError(
            f"store {store.path}: one-vs-rest of {code} needs training cells of {code} and of other "
            "classes; import more cells or choose another class"
        )
    rest = CellClass(REST, "All other classes", "other", "#7f7f7f")
    one = CellClass(target.code, target.name, target.lineage, target.colour)
    return Taxonomy(store.taxonomy.name, (one, rest)), {
        label: int(label != target.code) for label in set(cells["label"])
    }


class PatchFeed:
    """Patches of one split, as uint8 batches on the device.

    Where they fit they are read once and kept, on the device or in memory; else batches are read ahead by threads
    (tensorstore reads and decodes outside the interpreter's lock). Either way they are resized to the input's size
    before they move.

    Parameters
    ----------
    store : PatchStore
    rows : ndarray (n,), int64
        Rows of the store.
    input_spec : InputSpec
        Input of the network.
    device : torch.device
    cache : str
        ``"auto"``, ``"device"``, ``"host"`` or ``"none"``.
    workers : int
        Batches read at once where nothing is kept.
    progress : Progress
        Called while the cache fills.
    """

    def __init__(
        self,
        store: PatchStore,
        rows: npt.NDArray[np.int64],
        input_spec: InputSpec,
        device: torch.device,
        *,
        cache: Literal["auto", "device", "host", "none"] = "auto",
        workers: int = 2,
        progress: Progress = no_progress,
    ) -> None:
        self.store = store
        self.rows = rows
        self.input_spec = input_spec
        self.device = device
        self.workers = workers
        self.kept: torch.Tensor | None = None
        probe = resize_patches(torch.zeros((1, store.patch_size, store.patch_size, 3), dtype=torch.uint8), input_spec)
        self.shape = tuple(probe.shape[1:])
        self.place = self._choose(cache)
        if self.place != "none":
            self._fill(progress)

    def batches(self, plan: Iterable[npt.NDArray[np.int64]]) -> Iterator[torch.Tensor]:
        """Yield one uint8 tensor (B, side, side, 3) on the device for each array of positions in `rows`."""
        if self.kept is not None:
            for positions in plan:
                index = torch.from_numpy(positions).to(self.kept.device)
                yield self._move(self.kept.index_select(0, index))
            return
        with ThreadPoolExecutor(self.workers, thread_name_prefix="hematokit-feed") as pool:
            waiting: deque[Future[torch.Tensor]] = deque()
            try:
                for positions in plan:
                    waiting.append(pool.submit(self._read, self.rows[positions]))
                    if len(waiting) > 2 * self.workers:
                        yield self._move(waiting.popleft().result())
                while waiting:
                    yield self._move(waiting.popleft().result())
            finally:
                for future in waiting:
                    future.cancel()

    def _read(self, rows: npt.NDArray[np.int64]) -> torch.Tensor:
        return resize_patches(torch.from_numpy(self.store.read_rows(rows)), self.input_spec)

    def _move(self, patches: torch.Tensor) -> torch.Tensor:
        if self.device.type == "cuda" and patches.device.type == "cpu":
            # Only from pinned memory does the copy run beside the computation.
            patches = patches.pin_memory()
        return patches.to(self.device, non_blocking=True)

    def _choose(self, cache: str) -> str:
        needed = len(self.rows) * int(np.prod(self.shape))
        on_gpu = self.device.type == "cuda"
        processes = _local_processes()  # each keeps the patches for itself, and all decide at the same time
        if cache == "auto":
            # At most half of the free memory: the model, its gradients and other processes need some too.
            if on_gpu and needed < torch.cuda.mem_get_info(self.device)[0] // 2:
                return "device"
            return "host" if needed * processes < _available_memory() // 2 else "none"
        if cache == "host" and needed * processes > _available_memory():
            times = f" for each of {processes} processes" if processes > 1 else ""
            raise TrainingError(
                f"--cache host: {needed / 1e9:.1f} GB of patches{times} do not fit into the free memory; use --cache "
                "none"
            )
        return cache

    def _fill(self, progress: Progress) -> None:
        place = self.device if self.place == "device" else torch.device("cpu")
        kept = torch.empty((len(self.rows), *self.shape), dtype=torch.uint8, device=place)
        # Read in the store's order, where neighbours share a shard.
        order = np.argsort(self.rows, kind="stable")
        for start in range(0, len(order), _READ):
            positions = order[start : start + _READ]
            kept[torch.from_numpy(positions).to(place)] = self._read(self.rows[positions]).to(place)
            progress(min(start + _READ, len(order)), len(order), "reading the store")
        self.kept = kept


# --- memory ----------------------------------------------------------------------------------------------------------

_OWN: Final = Path("/proc/self/cgroup")
_GROUPS: Final = Path("/sys/fs/cgroup")
_FILES: Final = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Limit, use, and the part of the use that can be reclaimed: in control groups of version 2, and of version 1."""

_LOCAL: Final = ("LOCAL_WORLD_SIZE", "MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE")


def _available_memory() -> int:
    """Return the bytes of memory that are free: of the machine, or of the container or job, whichever is less."""
    return max(0, min([psutil.virtual_memory().available, *_left_in_groups()]))


def _local_processes() -> int:
    """Return the number of training processes on this machine; all of them if the launcher does not state it."""
    stated = [os.environ.get(name, "") for name in _LOCAL]
    count = next((int(value) for value in stated if value.isdigit()), 0)
    if not count and torch.distributed.is_available() and torch.distributed.is_initialized():
        count = torch.distributed.get_world_size()
    return max(1, count)


def _left_in_groups() -> Iterator[int]:
    """Return the free memory of each control group of this process that has a limit; psutil does not know them."""
    try:
        lines = _OWN.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root = _GROUPS / controllers
        group = root / name.strip("/")
        # A container sees its own group as the root, whatever it is called outside.
        for folder in (group, *(parent for parent in group.parents if parent.is_relative_to(root))):
            for limit, used, reclaimable in _FILES:
                try:
                    free = int((folder / limit).read_text()) - int((folder / used).read_text())
                    stat = dict(entry.split(" ", 1) for entry in (folder / "memory.stat").read_text().splitlines())
                    yield free + int(stat.get(reclaimable, 0))
                except (OSError, ValueError):  # no such group, or no limit ("max")
                    continue
