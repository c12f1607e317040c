"""From reviewed cells to a training set: a store's fields, patches and labels, and keeping them up to date."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from hematokit.annotations.cells import DETECTION_COLUMNS, name_cells
from hematokit.errors import FieldError, ImageError
from hematokit.imaging.fieldfiles import field_name, file_orientation
from hematokit.imaging.fieldfiles.opening import safe_name
from hematokit.imaging.reading import printable
from hematokit.pipelines.tile import CellSource, FieldCells, check_orientation, first_of, hash_source, tile_fields
from hematokit.pipelines.tile_rows import TileSummary, TileTally, append_patches, store_rows
from hematokit.progress import Progress, no_progress
from hematokit.review.session import Review
from hematokit.store.corrections import CONFIRMED, CORRECTIONS_FILE, Correction, append_corrections, new_edit, utc_now
from hematokit.store.duplicates import regroup
from hematokit.store.fields import field_folder, field_pixel_sizes, write_field
from hematokit.store.patchstore import PatchStore, open_store
from hematokit.store.schema import ROOT_FILE
from hematokit.store.smears import SMEAR_COLUMNS, SmearMatch, match_smears, other_smears
from hematokit.store.writer import StoreWriter

if TYPE_CHECKING:
    from hematokit.imaging.fieldfiles import Field

    FieldImage = str | Path | Field

__all__ = ["CORRECTED_KIND", "store_corrected"]

CORRECTED_KIND: Final = "corrected"
"""``kind`` in ``cells_from`` of a field whose cells are those that a person reviewed."""

_PLACE: Final = ["y", "x", "y0", "x0", "height", "width"]


def store_corrected(
    reviews: Review | Sequence[Review],
    fields: FieldImage | Sequence[FieldImage],
    store_path: str | Path,
    *,
    others: bool = False,
    smears: str | Path | None = None,
    pixel_size_um: float | None = None,
    force_pixel_size: bool = False,
    patch_size: int | None = None,
    codec: str | None = None,
    near_duplicates: bool = True,
    progress: Progress = no_progress,
) -> TileSummary:
    """Put reviewed cells into a store, new or existing, as a training set: their fields, patches and labels.

    A cell counts as reviewed when a person gave it a class or confirmed the one it had. Calling again after more of a
    field was reviewed brings the store up to date: new cells are appended, and what changed of the others goes into
    the store's ``corrections.jsonl``.

    Parameters
    ----------
    reviews : Review or sequence of Review
        One for each field.
    fields : str, Path, Field or sequence of them
        The image of each review. An opened field, which may have no file, is stored as it reads.
    store_path : str or Path
        Folder of the store; made if need be, with the classes of the first review.
    others : bool
        Take the cells that nobody reviewed too, without a label.
    smears
        As `hematokit.pipelines.tile.tile_fields` takes it; without it, those of the reviewed cells are taken.
    pixel_size_um : float, optional
        Of fields whose file does not say; by default that of their review.
    force_pixel_size, patch_size, codec, near_duplicates
        As `hematokit.pipelines.tile.tile_fields` takes them.
    progress : Progress
        Told the number of fields done.

    Returns
    -------
    TileSummary

    Raises
    ------
    FieldError
        If nothing was reviewed, the cells are not of these images, the store does not know a class, or a field
        cannot be used.
    ImageError
        If an image does not exist.
    StoreError
        If the store does not fit, is damaged, or is being written; if the disk is full.
    """
    store_path = Path(store_path)
    with tempfile.TemporaryDirectory(prefix="hematokit-") as folder:
        pairs = _paired(reviews, fields, Path(folder))
        tiling: dict[str, Any] = {
            "smears": smears,
            "pixel_size_um": pixel_size_um,
            "force_pixel_size": force_pixel_size,
            "patch_size": patch_size,
            "codec": codec,
            "near_duplicates": near_duplicates,
            "progress": progress,
        }
        return _store(pairs, store_path, others, tiling)


def _store(pairs: Mapping[Path, Review], store_path: Path, others: bool, tiling: Mapping[str, Any]) -> TileSummary:
    started = time.monotonic()
    there = open_store(store_path) if (store_path / ROOT_FILE).exists() else None
    taken = {path: _chosen(review, others) for path, review in pairs.items()}
    own = {} if there is None else _stored(there, list(pairs))
    if not own and not sum(len(table) for table in taken.values()):
        raise FieldError("no cell has been reviewed yet; give cells a class, or confirm the one they have, first")
    classes = next(iter(pairs.values())).taxonomy if there is None else there.taxonomy
    unknown = sorted({str(code) for table in taken.values() for code in table["label"]} - {*classes.codes, ""})
    if unknown:
        where = "taxonomy of the first field" if there is None else f"store {store_path}"
        raise FieldError(f"class {printable(unknown[0])!r} is not in the {where}; correct those cells, or take another")
    new = {path: table for path, table in taken.items() if path not in own}
    table, named = tiling["smears"], match_smears(tiling["smears"], list(pairs))
    tiling = {**tiling, "smears": SmearMatch(named.said)}
    different = 0
    for path, record in own.items():
        said = zip(SMEAR_COLUMNS, named.said.get(path, ("", "")), strict=True)
        stated = {name: value or first_of(taken[path], name) for name, value in said}
        different += any(value not in ("", record[name]) for name, value in stated.items())
    update = _Update()
    if there is not None and own:
        near = tiling["near_duplicates"] and not new
        update.run(there, {path: pairs[path] for path in own}, taken, near, tiling["progress"])
    if new:
        made_with = classes if there is None else None
        summary = _tile(new, pairs, store_path, {**tiling, "taxonomy": made_with})
        if summary.rejected:
            sources = {printable(str(path)) for path in new}
            refused = open_store(store_path).rejects
            raise FieldError(str(refused[refused["source"].isin(sources)]["message"].iloc[0]))
        _sign(open_store(store_path), {path: pairs[path] for path in new}, new)
    else:
        assert there is not None
        summary = TileTally().summarize(there, 0, time.monotonic() - started)
    return replace(
        summary,
        warnings=(*named.warnings, *other_smears(different, store_path, table), *summary.warnings),
        fields=len(pairs),
        present_fields=len(own),
        added=summary.added + update.added,
        notes=(*summary.notes, *update.notes()),
    )


def _tile(
    tables: Mapping[Path, pd.DataFrame], reviews: Mapping[Path, Review], store_path: Path, tiling: Mapping[str, Any]
) -> TileSummary:
    """Tile new fields, each with the pixel size of its review where none is given."""
    by_size: dict[float | None, list[Path]] = {}
    for path in tables:
        size = reviews[path].pixel_size_um if tiling["pixel_size_um"] is None else tiling["pixel_size_um"]
        by_size.setdefault(size, []).append(path)
    cells = _reviewed_cells(tables)
    done = [
        tile_fields(paths, store_path, cells=cells, **{**tiling, "pixel_size_um": size})
        for size, paths in by_size.items()
    ]
    sums = ("added", "added_fields", "without_cells", "cut_boxes")
    counts: dict[str, Any] = {name: sum(getattr(summary, name) for summary in done) for name in sums}
    rejected = sum((Counter(summary.rejected) for summary in done), Counter[str]())
    notes = tuple(note for summary in done for note in summary.notes)
    return replace(done[-1], **counts, rejected=dict(rejected), notes=notes)


def _paired(
    reviews: Review | Sequence[Review], fields: FieldImage | Sequence[FieldImage], folder: Path
) -> dict[Path, Review]:
    several = [reviews] if isinstance(reviews, Review) else list(reviews)
    images: list[FieldImage] = (
        list(fields) if isinstance(fields, Sequence) and not isinstance(fields, str) else [fields]
    )
    paths = [
        Path(image) if isinstance(image, str | Path) else _saved(image, review, folder)
        for image, review in zip(images, several, strict=False)
    ]
    if len(several) != len(images) or len(set(paths)) < len(paths):
        raise FieldError(f"{len(several)} reviews and {len(images)} fields; give a different image for each")
    return dict(zip(paths, several, strict=True))


def _saved(field: Field, review: Review, folder: Path) -> Path:
    """Write an opened field as an image of its own: without loss, and the same each time, so that it is known again."""
    name = safe_name(review.field_id or field.name)
    return write_field(folder, name, field, source=name)[0]


def _chosen(review: Review, others: bool) -> pd.DataFrame:
    """The cells to store, with the columns of detections, their id and their label, and their smear and patient."""
    cells = review.cells
    seen = cells["reviewed"].to_numpy(bool) & (cells["label"] != "").to_numpy(bool)
    table = cells.reindex(columns=list(DETECTION_COLUMNS))
    labels = {"label": cells["label"].where(seen, ""), "label_source": cells["label_source"].where(seen, "")}
    people = {name: cells[name].fillna("") if name in cells.columns else "" for name in SMEAR_COLUMNS}
    table = table.assign(cell_id=cells["cell_id"], **labels, **people)
    return table if others else table[seen].reset_index(drop=True)


def _reviewed_cells(tables: Mapping[Path, pd.DataFrame]) -> CellSource:
    """What `tile_fields` asks for the cells of each field it opens."""
    by_path = {path.resolve(): table for path, table in tables.items()}

    def cells(opened: Field, tally: TileTally) -> FieldCells:
        table = by_path.get(Path(opened.path).resolve())
        if table is None:
            raise ImageError("no-review", f"{printable(str(opened.path))} was not reviewed; give the images by name")
        _check_inside(table, opened.height, opened.width, opened.path)
        digest = hashlib.sha256(table[[*_PLACE, "label"]].to_csv(index=False).encode()).hexdigest()
        found = table.drop(columns="cell_id").sort_values(["y", "x"], kind="stable", ignore_index=True)
        return FieldCells({"known_cells": digest, "kind": CORRECTED_KIND}, lambda progress: found, [])

    return cells


def _check_inside(table: pd.DataFrame, height: int, width: int, path: Path) -> None:
    outside = (table["y"] > height) | (table["x"] > width) | (table["y0"] + table["height"] > height)
    outside |= (table["x0"] + table["width"] > width) | (table[_PLACE[:4]] < 0).any(axis=1)
    if outside.any():
        raise ImageError(
            "outside-field",
            f"{printable(str(path))} has {width}x{height} px, but {int(outside.sum())} reviewed cells lie outside; "
            "give the image that was reviewed",
        )


def _sign(store: PatchStore, reviews: Mapping[Path, Review], tables: Mapping[Path, pd.DataFrame]) -> None:
    """Note in a store's journal who gave the cells of new fields their labels, and when."""
    told: list[Correction] = []
    every = store.cells
    for path, record in _stored(store, list(reviews)).items():
        raw = every[every["field_id"] == record["field_id"]]
        ids = dict(zip(_places(raw), raw["cell_id"], strict=True))
        table, edit = tables[path], new_edit()
        for place, name in zip(_places(table), table["cell_id"], strict=True):
            line = reviews[path].decision(str(name)) if place in ids else None
            if line is not None:
                told.append(replace(line, edit=edit, cell_id=ids[place], field_id=record["field_id"]))
    append_corrections(store.path / CORRECTIONS_FILE, told)
    store.refresh()


# --- fields that are in the store already -----------------------------------------------------------------------------


def _stored(store: PatchStore, paths: Sequence[Path]) -> dict[Path, dict[str, Any]]:
    """Those of some images that the store keeps: the same file, or the store's own copy."""
    there = store.fields
    records = [dict(zip(there.columns, row, strict=True)) for row in there.itertuples(index=False)]
    by_content = {(record["name"], record["sha256"]): record for record in records}
    by_folder = {field_folder(store.path, record["field_id"]).resolve(): record for record in records}
    found = {}
    for path in paths if records else ():
        record = by_folder.get(path.resolve())
        if record is None:
            record = by_content.get((printable(field_name(path)), hash_source(path)))
            if record is not None:
                check_orientation(store, record["field_id"], printable(str(path)), file_orientation(path))
        if record is not None:
            found[path] = record
    return found


class _Update:
    """Brings fields of a store up to date with their reviews, and counts what it did."""

    def __init__(self) -> None:
        self.added = 0
        self.changed = 0
        self.removed = 0

    def notes(self) -> list[str]:
        """What was done to cells that were there, in words."""
        said = [(self.changed, "labels changed"), (self.removed, "cells taken out")]
        told = ", ".join(f"{what}: {count}" for count, what in said if count)
        return [f"in fields that were there already, {told}; see its {CORRECTIONS_FILE}"] if told else []

    def run(
        self,
        store: PatchStore,
        reviews: Mapping[Path, Review],
        tables: Mapping[Path, pd.DataFrame],
        regroup_near: bool,
        progress: Progress,
    ) -> None:
        """Append what is new, then note what has changed."""
        records = _stored(store, list(reviews))
        told: list[Correction] = []
        fresh: dict[Path, pd.DataFrame] = {}
        with StoreWriter(store) as writer:
            counted, every = store.cells, writer.cells
            taken = set(every["cell_id"])
            for path, review in reviews.items():
                record, table = records[path], tables[path]
                _check_inside(table, record["height"], record["width"], path)
                raw = every[every["field_id"] == record["field_id"]]
                ids = dict(zip(_places(raw), raw["cell_id"], strict=True))
                is_there = np.array([place in ids for place in _places(table)], bool)
                new = self._append(store, writer, record, raw, table[~is_there], taken, _is_own(store, review))
                self.added += new
                if not _is_own(store, review):
                    fresh[path] = table[~is_there]
                told += self._changes(counted, record, review, table[is_there], ids, _is_own(store, review))
            writer.commit()
            if self.added:
                regroup(store, writer, near=regroup_near, progress=progress)
        append_corrections(store.path / CORRECTIONS_FILE, told)
        store.refresh()
        _sign(store, {path: reviews[path] for path in fresh}, fresh)

    def _append(
        self,
        store: PatchStore,
        writer: StoreWriter,
        record: Mapping[str, Any],
        there: pd.DataFrame,
        table: pd.DataFrame,
        taken: set[str],
        keep_ids: bool,
    ) -> int:
        if table.empty:
            return 0
        smear, patient = record["smear_id"], record["patient_id"]
        named = name_cells(
            table.drop(columns="cell_id"), record["field_id"], record["source"], smear_id=smear, patient_id=patient
        )
        if keep_ids:
            # The journal speaks of the cell by the id that it got when it was added.
            named["cell_id"] = table["cell_id"].to_numpy()
        # Of a field that did not say, somebody may have stated it for the cells since.
        size = field_pixel_sizes(there).get(record["field_id"], record["pixel_size_um"])
        rows = store_rows(named, record["sha256"], taken, size)
        folder = field_folder(store.path, record["field_id"])
        append_patches(writer, store.patch_size, folder, record["height"], record["width"], rows)
        return len(rows)

    def _changes(
        self,
        counted: pd.DataFrame,
        record: Mapping[str, Any],
        review: Review,
        table: pd.DataFrame,
        ids: Mapping[Any, str],
        own: bool,
    ) -> list[Correction]:
        """Lines for the store's journal, which make its cells what the review says."""
        if own:
            return []  # the review wrote them there itself
        labels = counted[counted["field_id"] == record["field_id"]].set_index("cell_id")["label"].to_dict()
        edit, when = new_edit(), utc_now()
        lines = []
        for place, name, label, source in zip(
            _places(table), table["cell_id"], table["label"], table["label_source"], strict=True
        ):
            cell_id = ids[place]
            before = labels.get(cell_id)
            if label and before != label:
                kind = "confirm" if source == CONFIRMED else "label"
                said = review.decision(str(name))
                who, since = (review.who, when) if said is None else (said.who, said.when)
                lines.append(Correction(kind, edit, since, who, cell_id, record["field_id"], before or "", label))
        self.changed += len(lines)
        gone = {ids[place] for place in _places(review.deleted) if place in ids}
        if _kind(record) == CORRECTED_KIND:
            # Such a field holds what was reviewed and nothing else; a review that was undone takes its cell out.
            gone |= set(ids.values()) - {ids[place] for place in _places(table)}
        removed = [cell_id for cell_id in sorted(gone) if cell_id in labels]
        self.removed += len(removed)
        for cell_id in removed:
            lines.append(Correction("delete", edit, when, review.who, cell_id, record["field_id"], labels[cell_id], ""))
        return lines


def _is_own(store: PatchStore, review: Review) -> bool:
    journal = store.path / CORRECTIONS_FILE
    return review.journal is not None and review.journal.resolve() == journal.resolve()


def _kind(record: Mapping[str, Any]) -> str:
    return str(json.loads(record["cells_from"]).get("kind", ""))


def _places(cells: pd.DataFrame) -> list[tuple[float, ...]]:
    """What tells the cells of a field apart; a hundredth of a pixel is what tables in CSV keep of a centre."""
    if not len(cells):
        return []
    return list(zip(*(cells[name].astype(float).round(2).tolist() for name in _PLACE), strict=True))
