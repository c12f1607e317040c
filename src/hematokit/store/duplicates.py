"""Duplicates among cells, and the groups of cells that a split must not part.

Three grades: *exact* (equal pixels), *near* (a copy that was encoded again, brightened, shifted by a few pixels,
mirrored, turned by right angles or resized) and *overlap* (two crops cut from one field, so that the cell in the
middle of one stands at the edge of the other). How it works, and how well: ``docs/explanation/duplicates.md``.
Cells of one field and of one patient belong together, too. The column ``group`` of a store is kept up to date by
`regroup`.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from hematokit.errors import StoreError
from hematokit.files import replace_file
from hematokit.imaging.fingerprint import (
    KEYPOINTS,
    SHAPE_SIZE,
    TRANSFORMS,
    Overlap,
    PatchFingerprints,
    compare_patches,
    contrast,
    fingerprint_patches,
    match_shapes,
    match_translations,
)
from hematokit.progress import Progress, no_progress
from hematokit.store.corrections import apply_corrections
from hematokit.store.patchstore import PatchStore
from hematokit.store.schema import FINGERPRINTS_FILE
from hematokit.store.smears import composed
from hematokit.store.writer import StoreWriter, disk_errors

__all__ = [
    "PAIR_COLUMNS",
    "Fingerprints",
    "Regrouped",
    "assign_groups",
    "find_pairs",
    "group_cells",
    "label_conflicts",
    "regroup",
]

ReadPatches = Callable[[npt.NDArray[np.int64]], npt.NDArray[np.uint8]]

PAIR_COLUMNS = ("cell_a", "cell_b", "kind", "dy", "dx", "similarity", "transform")
"""Columns of what `find_pairs` returns."""

_VERSION = 1  # of the fingerprints; raise it when hematokit.imaging.fingerprint computes something else
_BATCH = 64  # patches fingerprinted, and pairs compared, at a time: bounds the memory
_SHIFTED = 0.08  # of the patch size: a copy moved by up to this is `near`, by more an `overlap`


@dataclass(frozen=True)
class Fingerprints:
    """Fingerprints of each distinct patch, so that only new patches are read when cells are added.

    Everything is filed under the hash of the pixels, not under the cell: a cell whose pixels change is another patch,
    and a fingerprint can be out of place but never wrong. The file is a cache: without it, all is computed again.

    Attributes
    ----------
    digests : uint8 (n, 32)
        SHA-256 of each distinct patch.
    prints : PatchFingerprints
        In the same order.
    links : int64 (m, 2)
        Indices of pairs of patches that were found to show the same pixels; the later one first.
    shifts : int16 (m, 2)
        (dy, dx) of each link: the pixel at p of the second patch is at p + (dy, dx) of the first, px.
    transforms : uint8 (m,)
        Number of the symmetry in `TRANSFORMS` that was applied to the second patch.
    similarities : float32 (m,)
        Correlation of the overlap.
    patch_size : int
        Side of the patches, px; 0 before the first.
    """

    digests: npt.NDArray[np.uint8] = field(default_factory=lambda: np.zeros((0, 32), np.uint8))
    prints: PatchFingerprints = field(default_factory=lambda: _no_prints())
    links: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    shifts: npt.NDArray[np.int16] = field(default_factory=lambda: np.zeros((0, 2), np.int16))
    transforms: npt.NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, np.uint8))
    similarities: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    patch_size: int = 0

    def __len__(self) -> int:
        return len(self.digests)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to `path` (an uncompressed ``.npz`` without pickle), replacing what was there in one step."""
        columns: dict[str, Any] = {
            item.name: getattr(self, item.name) for item in fields(self) if item.name != "prints"
        }
        prints = {item.name: getattr(self.prints, item.name) for item in fields(self.prints)}

        def write(stream: BinaryIO) -> None:
            np.savez(stream, allow_pickle=False, version=_VERSION, **columns, **prints)

        replace_file(Path(path), write)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Fingerprints:
        """Read what `save` wrote.

        A file of another version of hematokit gives empty fingerprints: they are then computed again.

        Raises
        ------
        StoreError
            If the file is missing or damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                if int(file["version"]) != _VERSION:
                    return cls()
                own: dict[str, Any] = {name: file[name] for name in _OWN if name != "patch_size"}
                prints = PatchFingerprints(file["hashes"], file["positions"], file["shapes"], step=int(file["step"]))
                loaded = cls(prints=prints, patch_size=int(file["patch_size"]), **own)
        except FileNotFoundError as error:
            raise StoreError(f"{path}: no fingerprints here; an import or a split makes them") from error
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise StoreError(
                f"{path}: the fingerprints cannot be read ({type(error).__name__}); delete the file, it is made again"
            ) from error
        if not loaded._is_sound():
            raise StoreError(f"{path}: the fingerprints are damaged; delete the file, it is made again")
        return loaded

    def _is_sound(self) -> bool:
        n, m = len(self.digests), len(self.links)
        shapes = {
            "digests": (n, 32),
            "links": (m, 2),
            "shifts": (m, 2),
            "transforms": (m,),
            "similarities": (m,),
        }
        return (
            all(getattr(self, name).shape == shape for name, shape in shapes.items())
            and self.prints.hashes.shape == (n, KEYPOINTS, 2)
            and self.prints.positions.shape == (n, KEYPOINTS, 2)
            and self.prints.shapes.shape == (n, SHAPE_SIZE)
            and bool(np.all((self.links >= 0) & (self.links < max(n, 1))))
            and bool(np.all(self.transforms < len(TRANSFORMS)))
        )

    def _keep(self, kept: npt.NDArray[np.bool_]) -> Fingerprints:
        """Without the patches for which `kept` is False, and their links."""
        if kept.all():
            return self
        place = np.cumsum(kept) - 1
        both = kept[self.links].all(axis=1)
        return Fingerprints(
            self.digests[kept],
            PatchFingerprints(
                self.prints.hashes[kept], self.prints.positions[kept], self.prints.shapes[kept], self.prints.step
            ),
            place[self.links[both]],
            self.shifts[both],
            self.transforms[both],
            self.similarities[both],
            self.patch_size if kept.any() else 0,
        )

    def _append(self, digests: npt.NDArray[np.uint8], parts: list[PatchFingerprints], size: int) -> Fingerprints:
        parts = [part for part in (self.prints, *parts) if len(part)]
        prints = PatchFingerprints(
            np.concatenate([part.hashes for part in parts]),
            np.concatenate([part.positions for part in parts]),
            np.concatenate([part.shapes for part in parts]),
            parts[-1].step,
        )
        return replace(self, digests=np.concatenate([self.digests, digests]), prints=prints, patch_size=size)

    def _link(self, links: list[tuple[int, int]], found: list[Overlap]) -> Fingerprints:
        if not links:
            return self
        return replace(
            self,
            links=np.concatenate([self.links, np.array(links, np.int64)]),
            shifts=np.concatenate([self.shifts, np.array([(one.dy, one.dx) for one in found], np.int16)]),
            transforms=np.concatenate([self.transforms, np.array([one.transform for one in found], np.uint8)]),
            similarities=np.concatenate([self.similarities, np.array([one.similarity for one in found], np.float32)]),
        )


_OWN = tuple(item.name for item in fields(Fingerprints) if item.name != "prints")


def _no_prints() -> PatchFingerprints:
    return PatchFingerprints(
        np.zeros((0, KEYPOINTS, 2), np.uint32),
        np.zeros((0, KEYPOINTS, 2), np.uint8),
        np.zeros((0, SHAPE_SIZE), np.float16),
    )


def assign_groups(
    read_patches: ReadPatches,
    cells: pd.DataFrame,
    fingerprints: Fingerprints | None = None,
    progress: Progress = no_progress,
) -> tuple[pd.Series[str], Fingerprints]:
    """Put cells that show the same pixels, cells of one field, and cells of one patient into groups.

    Parameters
    ----------
    read_patches : callable
        Given int64 (n,) values of the column ``row``, returns uint8 (n, P, P, 3).
    cells : DataFrame
        With ``cell_id``, ``row``, ``pixel_sha256`` (64 hexadecimal digits), ``patient_id`` (empty where unknown), and
        ``field_id`` (without that column, each cell is its own field). Patches of one field are not compared with each
        other: they belong together anyway, and overlap where cells are dense.
    fingerprints : Fingerprints, optional
        The fingerprints of an earlier call: only other patches are read. Patches no longer among `cells` are removed.
    progress : Progress
        Called with the patches fingerprinted, then with the pairs compared.

    Returns
    -------
    groups : Series of str
        On the index of `cells`: ``patient:`` and the alphabetically first patient of the group, or, where no patient
        is known, the group's alphabetically first ``cell_id``. A duplicate across two patients makes them one group.
    fingerprints : Fingerprints
        Of all `cells`, to be kept for the next call.
    """
    digests, content, first = _contents(cells)
    known = fingerprints if fingerprints is not None else Fingerprints()
    known = known._keep(np.isin(_as_keys(known.digests), _as_keys(digests)))
    fresh = np.flatnonzero(~np.isin(_as_keys(digests), _as_keys(known.digests)))
    rows = cells["row"].to_numpy(np.int64)[first]
    old = len(known)
    if len(fresh):
        fresh = fresh[np.argsort(rows[fresh], kind="stable")]  # neighbours on disk are read together
        parts, size = _fingerprint(read_patches, rows[fresh], known.patch_size, progress)
        known = known._append(digests[fresh], parts, size)
        place = _places(digests, known.digests)
        known = _find_links(read_patches, rows[place], _patch_fields(cells, content)[place], known, old, progress)
    return _name_groups(cells, content, known.links, _places(digests, known.digests)), known


def _contents(cells: pd.DataFrame) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Distinct patches: their digests (n, 32), the patch of each cell, and the first cell of each patch."""
    content, names = pd.factorize(cells["pixel_sha256"].astype(object))
    joined = "".join(names)
    if len(joined) != 64 * len(names) or any(len(name) != 64 for name in names):
        raise ValueError("pixel_sha256 must hold 64 hexadecimal digits for every cell")
    digests = np.frombuffer(bytes.fromhex(joined), np.uint8).reshape(-1, 32)
    first = np.full(len(names), -1, np.int64)
    first[content[::-1]] = np.arange(len(content))[::-1]
    return digests, content.astype(np.int64), first


def _as_keys(digests: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    # 64 of the 256 bits tell a million patches apart (chance of a collision 3e-8), and sort fast.
    return np.ascontiguousarray(digests[:, :8]).view(np.uint64).ravel()


def _places(digests: npt.NDArray[np.uint8], wanted: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Where each of `wanted` is among `digests`."""
    keys = _as_keys(digests)
    order = np.argsort(keys)
    return order[np.searchsorted(keys[order], _as_keys(wanted))] if len(wanted) else np.zeros(0, np.int64)


def _fingerprint(
    read_patches: ReadPatches, rows: npt.NDArray[np.int64], size: int, progress: Progress
) -> tuple[list[PatchFingerprints], int]:
    parts = []
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    waiting: deque[Future[PatchFingerprints]] = deque()
    done = 0
    with ThreadPoolExecutor(min(workers, 8)) as pool:
        try:
            for begin in range(0, len(rows), _BATCH):
                patches = read_patches(rows[begin : begin + _BATCH])
                if size and patches.shape[1] != size:
                    raise ValueError(f"patches of {patches.shape[1]} px among patches of {size} px")
                size = int(patches.shape[1])
                waiting.append(pool.submit(fingerprint_patches, patches))
                while len(waiting) > workers or (waiting and begin + _BATCH >= len(rows)):
                    parts.append(waiting.popleft().result())
                    done += len(parts[-1])
                    progress(done, len(rows), "looking for duplicates: fingerprints")
        finally:
            pool.shutdown(cancel_futures=True)
    return parts, size


def _field_numbers(cells: pd.DataFrame) -> npt.NDArray[np.int64]:
    column = cells["field_id" if "field_id" in cells.columns else "cell_id"]
    return pd.factorize(column.astype(object))[0].astype(np.int64)


def _patch_fields(cells: pd.DataFrame, content: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the number of the field of each distinct patch; unique and negative for a patch in several fields."""
    fields = pd.Series(_field_numbers(cells)).groupby(content).agg(["min", "max"])
    lowest, highest = fields["min"].to_numpy(np.int64), fields["max"].to_numpy(np.int64)
    return np.where(lowest == highest, lowest, -1 - np.arange(len(fields)))


def _find_links(
    read_patches: ReadPatches,
    rows: npt.NDArray[np.int64],
    fields: npt.NDArray[np.int64],
    known: Fingerprints,
    start: int,
    progress: Progress,
) -> Fingerprints:
    """Propose pairs from the fingerprints and keep those whose pixels agree."""
    moved = match_translations(known.prints, start)
    alike = match_shapes(known.prints.shapes, start)
    taken = moved.first * len(known) + moved.second
    alike = alike[~np.isin(alike[:, 0] * len(known) + alike[:, 1], taken)]
    first = np.concatenate([moved.first, alike[:, 0]])
    second = np.concatenate([moved.second, alike[:, 1]])
    zeros = np.zeros(len(alike), np.int64)
    dy, dx = np.concatenate([moved.dy, zeros]), np.concatenate([moved.dx, zeros])
    turned = np.arange(len(first)) >= len(moved.first)
    apart = fields[first] != fields[second]
    first, second, dy, dx, turned = first[apart], second[apart], dy[apart], dx[apart], turned[apart]
    links: list[tuple[int, int]] = []
    found: list[Overlap] = []
    done = 0
    for batch in _batches(np.lexsort((second, first))):
        needed = np.unique([first[batch], second[batch]])
        needed = needed[np.argsort(rows[needed])]
        images = dict(zip(needed.tolist(), map(contrast, read_patches(rows[needed])), strict=True))
        for pair in batch.tolist():
            a, b = int(first[pair]), int(second[pair])
            result = compare_patches(
                images[a], images[b], int(dy[pair]), int(dx[pair]), any_transform=bool(turned[pair])
            )
            if result.same:
                links.append((a, b))
                found.append(result)
        done += len(batch)
        progress(done, len(first), "looking for duplicates: pairs")
    return known._link(links, found)


def _batches(order: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int64]]:
    for begin in range(0, len(order), _BATCH):
        yield order[begin : begin + _BATCH]


def _name_groups(
    cells: pd.DataFrame,
    content: npt.NDArray[np.int64],
    links: npt.NDArray[np.int64],
    place: npt.NDArray[np.int64],
) -> pd.Series[str]:
    # A graph of cells, patches, fields and patients: what hangs together is a group.
    n, patches = len(cells), int(content.max(initial=-1)) + 1
    patient, people = pd.factorize(cells["patient_id"].astype(object).fillna(""))
    has_patient = np.flatnonzero(np.asarray(people != "")[patient] if n else np.zeros(0, bool))
    field = _field_numbers(cells)
    ends = place[links] + n
    first_field = n + patches + len(people)
    one = np.concatenate([np.arange(n), np.arange(n), has_patient, ends[:, 0]])
    two = np.concatenate([n + content, first_field + field, n + patches + patient[has_patient], ends[:, 1]])
    size = first_field + n
    graph = coo_array((np.ones(len(one), np.int8), (one, two)), shape=(size, size))
    component = connected_components(graph, directed=False)[1][:n] if n else np.zeros(0, np.int64)
    names = cells["cell_id"].astype(object).groupby(component).transform("min").to_numpy(object, copy=True)
    if len(has_patient):
        by_group = cells["patient_id"].iloc[has_patient].astype(object).groupby(component[has_patient]).min()
        patients = pd.Series(component).map("patient:" + by_group).to_numpy(object)
        named = ~pd.isna(patients)
        names[named] = patients[named]
    return pd.Series(names, index=cells.index, name="group", dtype=object)


def find_pairs(cells: pd.DataFrame, fingerprints: Fingerprints) -> pd.DataFrame:
    """List the pairs of cells that show the same pixels.

    Parameters
    ----------
    cells : DataFrame
        As for `assign_groups`.
    fingerprints : Fingerprints
        What `assign_groups` returned for these cells.

    Returns
    -------
    DataFrame
        Columns `PAIR_COLUMNS`. ``kind`` is ``exact``, ``near`` or ``overlap``; the pixel at p of `cell_b` (after
        ``transform``, see `hematokit.imaging.fingerprint.TRANSFORMS`) is at p + (dy, dx) of `cell_a`, px. Of k cells
        with equal pixels, k - 1 pairs are listed, each with the alphabetically first one that has a label (where
        `cells` has the column ``label``, and one of them has one), which alone represents them in the pairs of the
        other kinds.
    """
    digests, content, _ = _contents(cells)
    names = cells["cell_id"].to_numpy(object)
    unlabelled = (cells["label"] == "").to_numpy(bool) if "label" in cells.columns else np.zeros(len(cells), bool)
    copies = pd.DataFrame({"content": content, "unlabelled": unlabelled, "name": names})
    first = copies.sort_values(["unlabelled", "name"]).groupby("content")["name"].first().to_numpy(object)
    others = np.flatnonzero(first[content] != names)
    exact = pd.DataFrame({"cell_a": first[content[others]], "cell_b": names[others]})
    exact = exact.assign(kind="exact", dy=0, dx=0, similarity=1.0, transform=TRANSFORMS[0])
    inside = np.isin(_as_keys(fingerprints.digests), _as_keys(digests))
    fingerprints = fingerprints._keep(inside)
    place = _places(digests, fingerprints.digests)
    far = np.abs(fingerprints.shifts).max(axis=1, initial=0) > _SHIFTED * fingerprints.patch_size
    linked = pd.DataFrame(
        {
            "cell_a": first[place[fingerprints.links[:, 0]]],
            "cell_b": first[place[fingerprints.links[:, 1]]],
            "kind": np.where(far, "overlap", "near").astype(object),
            "dy": fingerprints.shifts[:, 0].astype(np.int64),
            "dx": fingerprints.shifts[:, 1].astype(np.int64),
            "similarity": fingerprints.similarities.astype(np.float64),
            "transform": np.array(TRANSFORMS, object)[fingerprints.transforms],
        }
    )
    parts = [part for part in (exact, linked) if len(part)] or [linked]
    return pd.concat(parts, ignore_index=True)[list(PAIR_COLUMNS)]


def label_conflicts(cells: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """Pairs of one and the same cell under two labels.

    Overlaps do not count: they show two cells, each in the centre of its own crop.

    Parameters
    ----------
    cells : DataFrame
        With ``cell_id`` and ``label``.
    pairs : DataFrame
        From `find_pairs`.

    Returns
    -------
    DataFrame
        The ``exact`` and ``near`` pairs whose labels are known and differ, with columns ``label_a`` and ``label_b``.
    """
    labels = cells.set_index("cell_id")["label"].astype(object)
    same = pairs[pairs["kind"].isin(["exact", "near"])]
    same = same.assign(
        label_a=labels.reindex(same["cell_a"]).to_numpy(), label_b=labels.reindex(same["cell_b"]).to_numpy()
    )
    known = (same["label_a"] != "") & (same["label_b"] != "")
    return same[known & (same["label_a"] != same["label_b"])].reset_index(drop=True)


# --- the column ``group`` of a store ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Regrouped:
    """Result of a search for duplicates in a store.

    Attributes
    ----------
    exact : int
        Cells whose pixels equal those of another cell.
    conflicting : int
        Pairs of cells that are exact or near duplicates of each other, with different labels.
    near : int or None
        Pairs that show one cell, in other pixels; None if they were not searched for.
    overlap : int or None
        Pairs of crops that were cut from one field and overlap.
    """

    exact: int
    conflicting: int
    near: int | None
    overlap: int | None


def regroup(store: PatchStore, writer: StoreWriter, *, near: bool, progress: Progress = no_progress) -> Regrouped:
    """Bring the column ``group`` up to date, if cells came since it was computed, and commit it.

    Only the patches that are new since the last search are read: what it found of the others is in
    ``fingerprints.npz``, filed under the hash of their pixels.

    Parameters
    ----------
    store : PatchStore
        The store that `writer` writes.
    writer : StoreWriter
        Open, with nothing pending.
    near : bool
        Search for near duplicates as well as for equal pixels.
    progress : Progress
    """
    cells, state = writer.cells, writer.state
    known: Fingerprints | None = None
    if len(cells) and (state.groups_stale or (near and not state.groups_near)):
        cells, known = group_cells(store, writer, cells, near=near, progress=progress)
        writer.replace_cells(cells, groups_stale=False, groups_near=near)
    elif len(cells) and state.groups_near:
        known = _load(store)
    return _count(apply_corrections(cells, store.corrections), known)


def group_cells(
    store: PatchStore, writer: StoreWriter, cells: pd.DataFrame, *, near: bool, progress: Progress = no_progress
) -> tuple[pd.DataFrame, Fingerprints | None]:
    """Compute the column ``group`` of all committed cells, and commit nothing.

    Parameters
    ----------
    store, writer, near, progress
        As of `regroup`.
    cells : DataFrame
        ``writer.cells``, possibly with other patients.

    Returns
    -------
    DataFrame
        `cells` with the groups.
    Fingerprints or None
        Fingerprints of the search for near duplicates; None without one.
    """
    store.refresh()
    # Copies of one file under several names are one field.
    fields = store.fields
    first = dict(zip(fields["field_id"], fields.groupby("sha256")["field_id"].transform("first"), strict=True))
    people = cells.assign(
        field_id=[first.get(name, name) for name in cells["field_id"]],
        patient_id=list(map(composed, cells["patient_id"])),
    )
    known: Fingerprints | None = None
    if near:
        groups, known = assign_groups(store.read_rows, people, _load(store), progress)
        with disk_errors(store.path, lambda: writer.committed):
            known.save(store.path / FINGERPRINTS_FILE)
    else:
        groups = _name_groups(people, _contents(people)[1], np.zeros((0, 2), np.int64), np.zeros(0, np.int64))
    return cells.assign(group=np.asarray(groups, dtype=object)), known


def _load(store: PatchStore) -> Fingerprints | None:
    try:
        return Fingerprints.load(store.path / FINGERPRINTS_FILE)
    except StoreError:
        return None  # a cache: what is missing or damaged is computed again


def _count(cells: pd.DataFrame, known: Fingerprints | None) -> Regrouped:
    exact = int(cells["pixel_sha256"].duplicated(keep=False).sum())
    pairs = find_pairs(cells, Fingerprints() if known is None else known)
    conflicting = len(label_conflicts(cells, pairs))
    if known is None:
        return Regrouped(exact, conflicting, None, None)
    kinds = pairs["kind"].value_counts()
    return Regrouped(exact, conflicting, int(kinds.get("near", 0)), int(kinds.get("overlap", 0)))
