"""Reviewed cells as a training set: their fields, patches and labels in a store, kept up to date."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Unpack

import numpy as np
import pandas as pd

from hematokit.annotations.cells import DETECTION_COLUMNS, name_cells
from hematokit.errors import FieldError, ImageError, printable
from hematokit.imaging.fieldfiles import Field, field_name, file_orientation
from hematokit.imaging.fieldfiles.listing import safe_name
from hematokit.imaging.fieldfiles.pixelsize import check_given
from hematokit.overrides import StoreCorrectedOverrides
from hematokit.pipelines.settings import StoreCorrectedSettings
from hematokit.pipelines.tile import (
    CellsOfField,
    FieldCells,
    TileJob,
    annotation_identity,
    first_of,
    list_new_fields,
    tile_into,
)
from hematokit.progress import Progress, no_progress
from hematokit.review.session import Review
from hematokit.store.corrections import CONFIRMED, CORRECTIONS_FILE, Correction, append_corrections, new_edit, utc_now
from hematokit.store.creating import StoreTarget
from hematokit.store.duplicates import regroup
from hematokit.store.fields import write_field
from hematokit.store.patchstore import PatchStore, open_store
from hematokit.store.schema import ROOT_FILE
from hematokit.store.smears import SMEAR_COLUMNS, match_smears, other_smears
from hematokit.store.tiling import FieldRecord, FieldWriter, StoredFields, TileSummary, TileTally, hash_source
from hematokit.store.writer import StoreWriter
from hematokit.taxonomy import Taxonomy

__all__ = ["CORRECTED_KIND", "store_corrected"]

FieldImage = str | Path | Field

CORRECTED_KIND: Final = "corrected"
"""``kind`` in ``cells_from`` of a field whose cells are those that a person reviewed."""

_PLACE: Final = ["y", "x", "y0", "x0", "height", "width"]


def store_corrected(
    reviews: Review | Sequence[Review],
    fields: FieldImage | Sequence[FieldImage],
    store: str | Path,
    *,
    settings: StoreCorrectedSettings | None = None,
    progress: Progress = no_progress,
    **overrides: Unpack[StoreCorrectedOverrides],
) -> TileSummary:
    """Put reviewed cells into a store, new or existing, as a training set: their fields, patches and labels.

    A cell is reviewed if a person gave it a class or confirmed the one it had. A second call, after more cells of a
    field were reviewed, updates the store: new cells are appended, and changes of the others are added to the store's
    ``corrections.jsonl``.

    Parameters
    ----------
    reviews : Review or sequence of Review
        One for each field.
    fields : path, Field or sequence of them
        The image of each review. An opened field, which may have no file, is stored as it reads.
    store : path
        Folder of the store; created, if it does not exist, with the classes of the first review.
    settings : StoreCorrectedSettings, optional
    progress : Progress
        Called with the number of fields done.
    **overrides
        Fields of `StoreCorrectedSettings`; they take precedence over `settings`.

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
    started = time.monotonic()
    settings = StoreCorrectedSettings.combine(settings, overrides)
    smears, near_duplicates = settings.smears, settings.near_duplicates
    store_path = Path(store)
    opened = open_store(store_path) if (store_path / ROOT_FILE).exists() else None
    with tempfile.TemporaryDirectory(prefix="hematokit-") as folder:
        reviewed = _pair(reviews, fields, Path(folder), settings.others)
        present = {} if opened is None else _stored(opened, [one.path for one in reviewed])
        if not present and not any(len(one.cells) for one in reviewed):
            raise FieldError("no cell has been reviewed yet; give cells a class, or confirm the one they have, first")
        _check_classes(reviewed, opened, store_path)
        named = match_smears(smears, [one.path for one in reviewed])
        different = _count_other_smears(reviewed, present, named.said)
        new = [one for one in reviewed if one.path not in present]
        tally, update = TileTally(), _Update()
        if opened is not None and present:
            there = [one for one in reviewed if one.path in present]
            update = _update(opened, there, present, near=near_duplicates and not new, progress=progress)
        if new:
            taxonomy = reviewed[0].review.taxonomy if opened is None else None
            target = StoreTarget.at(store_path, taxonomy=taxonomy, patch_size=settings.patch_size, codec=settings.codec)
            files = list_new_fields([one.path for one in new], store_path)
            sizes = {
                one.path: one.review.pixel_size_um if settings.pixel_size_um is None else settings.pixel_size_um
                for one in new
            }
            for size in sizes.values():
                check_given(size)
            job = TileJob(files, _cells_of(new), named.said, sizes, settings.force_pixel_size, near_duplicates)
            opened, tally = tile_into(target, job, progress)
            if tally.rejects:
                raise FieldError(tally.rejects[0][2])
            _sign(opened, new, _stored(opened, [one.path for one in new]))
        assert opened is not None  # every field is in it, or new
        summary = tally.summarize(opened, len(new), time.monotonic() - started)
    return replace(
        summary,
        warnings=(*named.warnings, *other_smears(different, store_path, smears), *summary.warnings),
        fields=len(reviewed),
        present_fields=len(present),
        added=summary.added + update.added,
        notes=(*summary.notes, *update.notes()),
    )


@dataclass(frozen=True, slots=True)
class _Reviewed:
    """A reviewed field: the path of its image, its review, and the cells to store (from `_chosen`)."""

    path: Path
    review: Review
    cells: pd.DataFrame


def _pair(
    reviews: Review | Sequence[Review], fields: FieldImage | Sequence[FieldImage], folder: Path, others: bool
) -> list[_Reviewed]:
    """Pair reviews and images; an opened field is written to `folder`."""
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
    return [_Reviewed(path, review, _chosen(review, others)) for path, review in zip(paths, several, strict=True)]


def _saved(field: Field, review: Review, folder: Path) -> Path:
    """Write an opened field as a lossless image, identical each time, so that it is recognised."""
    name = safe_name(review.field_id or field.name)
    return write_field(folder, name, field, source=name)[0]


def _chosen(review: Review, others: bool) -> pd.DataFrame:
    """Return the cells to store: the columns of detections, id, label, smear and patient."""
    cells = review.cells
    seen = cells["reviewed"].to_numpy(bool) & (cells["label"] != "").to_numpy(bool)
    table = cells.reindex(columns=list(DETECTION_COLUMNS))
    labels = {"label": cells["label"].where(seen, ""), "label_source": cells["label_source"].where(seen, "")}
    people = {name: cells[name].fillna("") if name in cells.columns else "" for name in SMEAR_COLUMNS}
    table = table.assign(cell_id=cells["cell_id"], **labels, **people)
    return table if others else table[seen].reset_index(drop=True)


def _check_classes(reviewed: Sequence[_Reviewed], store: PatchStore | None, path: Path) -> None:
    """Raise an error for labels that the store, or the taxonomy of the first review if there is none, does not have."""
    taxonomy: Taxonomy = reviewed[0].review.taxonomy if store is None else store.taxonomy
    unknown = sorted({str(code) for one in reviewed for code in one.cells["label"]} - {*taxonomy.codes, ""})
    if unknown:
        where = "taxonomy of the first field" if store is None else f"store {path}"
        raise FieldError(f"class {printable(unknown[0])!r} is not in the {where}; correct those cells, or take another")


def _count_other_smears(
    reviewed: Sequence[_Reviewed], present: Mapping[Path, FieldRecord], said: Mapping[Path, tuple[str, str]]
) -> int:
    """Count the fields that are in the store with another smear or patient than is stated now."""
    count = 0
    for one in reviewed:
        if one.path in present:
            given = zip(SMEAR_COLUMNS, said.get(one.path, ("", "")), strict=True)
            stated = {name: value or first_of(one.cells, name) for name, value in given}
            count += any(value not in ("", present[one.path][name]) for name, value in stated.items())
    return count


def _cells_of(reviewed: Sequence[_Reviewed]) -> CellsOfField:
    """Return the function that gives the reviewed cells of an opened field."""
    by_path = {one.path.resolve(): one.cells for one in reviewed}

    def cells_of(opened: Field) -> FieldCells:
        table = by_path.get(Path(opened.path).resolve())
        if table is None:
            raise ImageError("no-review", f"{printable(str(opened.path))} was not reviewed; give the images by name")
        _check_inside(table, opened.height, opened.width, opened.path)
        found = table.drop(columns="cell_id").sort_values(["y", "x"], kind="stable", ignore_index=True)
        return FieldCells(annotation_identity(table, CORRECTED_KIND), lambda progress: found)

    return cells_of


def _check_inside(table: pd.DataFrame, height: int, width: int, path: Path) -> None:
    outside = (table["y"] > height) | (table["x"] > width) | (table["y0"] + table["height"] > height)
    outside |= (table["x0"] + table["width"] > width) | (table[_PLACE[:4]] < 0).any(axis=1)
    if outside.any():
        raise ImageError(
            "outside-field",
            f"{printable(str(path))} has {width}x{height} px, but {int(outside.sum())} reviewed cells are outside; "
            "give the image that was reviewed",
        )


def _sign(store: PatchStore, reviewed: Sequence[_Reviewed], records: Mapping[Path, FieldRecord]) -> None:
    """Record in a store's journal who labelled the cells just added, and when."""
    lines: list[Correction] = []
    every = store.cells
    for one in reviewed:
        field_id = records[one.path]["field_id"]
        ids, edit = _ids_by_place(every, field_id), new_edit()
        for place, name in zip(_places(one.cells), one.cells["cell_id"], strict=True):
            line = one.review.decision(str(name)) if place in ids else None
            if line is not None:
                lines.append(replace(line, edit=edit, cell_id=ids[place], field_id=field_id))
    append_corrections(store.path / CORRECTIONS_FILE, lines)
    store.refresh()


# --- fields that are in the store already -----------------------------------------------------------------------------


def _stored(store: PatchStore, paths: Iterable[Path]) -> dict[Path, FieldRecord]:
    """Return the fields of a store that correspond to images: the same file, or the store's own copy."""
    stored, found = StoredFields(store), {}
    for path in paths if len(store.fields) else ():
        record = stored.of_folder(path)
        if record is None:
            record = stored.of_file(field_name(path), hash_source(path))
            if record is not None:
                stored.check_orientation(record, printable(str(path)), file_orientation(path))
        if record is not None:
            found[path] = record
    return found


@dataclass
class _Update:
    """Changes of fields that were already in the store."""

    added: int = 0
    changed: int = 0
    removed: int = 0

    def notes(self) -> list[str]:
        """Return the changes of existing cells as text."""
        counts = [(self.changed, "labels changed"), (self.removed, "cells taken out")]
        done = ", ".join(f"{what}: {count}" for count, what in counts if count)
        return [f"in fields that were there already, {done}; see its {CORRECTIONS_FILE}"] if done else []


def _update(
    store: PatchStore,
    reviewed: Sequence[_Reviewed],
    records: Mapping[Path, FieldRecord],
    *,
    near: bool,
    progress: Progress,
) -> _Update:
    """Update fields of a store from their reviews: append new cells, and record changes in its journal."""
    update = _Update()
    lines: list[Correction] = []
    fresh: list[_Reviewed] = []
    with StoreWriter(store) as writer:
        fields, counted, every = FieldWriter(store, writer), store.cells, writer.cells
        for one in reviewed:
            record, table = records[one.path], one.cells
            _check_inside(table, record["height"], record["width"], one.path)
            ids = _ids_by_place(every, record["field_id"])
            is_there = np.array([place in ids for place in _places(table)], bool)
            new, is_own = table[~is_there], _is_own(store, one.review)
            update.added += len(fields.append_cells(record, _named(new, record, keep_ids=is_own)))
            if not is_own:  # else the review wrote its lines into the store's journal itself
                fresh.append(replace(one, cells=new))
                labels = counted[counted["field_id"] == record["field_id"]].set_index("cell_id")["label"].to_dict()
                lines += _changes(record, replace(one, cells=table[is_there]), ids, labels)
        writer.commit()
        if update.added:
            regroup(store, writer, near=near, progress=progress)
    append_corrections(store.path / CORRECTIONS_FILE, lines)
    store.refresh()
    _sign(store, fresh, records)
    update.removed = sum(line.kind == "delete" for line in lines)
    update.changed = len(lines) - update.removed
    return update


def _named(cells: pd.DataFrame, record: FieldRecord, *, keep_ids: bool) -> pd.DataFrame:
    """Return reviewed cells as rows of a cells table, with the smear and patient of their field."""
    of_field = {column: record[column] for column in SMEAR_COLUMNS}
    named = name_cells(cells.drop(columns="cell_id"), record["field_id"], record["source"], **of_field)
    if keep_ids:
        # The journal uses the id that the cell got when it was added.
        named["cell_id"] = cells["cell_id"].to_numpy()
    return named


def _changes(
    record: FieldRecord, one: _Reviewed, ids: Mapping[tuple[float, ...], str], labels: Mapping[str, str]
) -> list[Correction]:
    """Return the lines for the store's journal that bring the cells of a field in line with their review.

    Parameters
    ----------
    record : FieldRecord
        The field.
    one : _Reviewed
        With those of its cells that the store has.
    ids : mapping of place to str
        Ids of the field's cells in the store.
    labels : mapping of str to str
        Labels of these cells now, without those that were deleted.
    """
    review, field_id = one.review, record["field_id"]
    edit, when = new_edit(), utc_now()
    lines = []
    places = _places(one.cells)
    columns = (one.cells["cell_id"], one.cells["label"], one.cells["label_source"])
    for place, name, label, source in zip(places, *columns, strict=True):
        cell_id = ids[place]
        before = labels.get(cell_id)
        if label and before != label:
            kind = "confirm" if source == CONFIRMED else "label"
            said = review.decision(str(name))
            who, since = (review.who, when) if said is None else (said.who, said.when)
            lines.append(Correction(kind, edit, since, who, cell_id, field_id, before or "", label))
    gone = {ids[place] for place in _places(review.deleted) if place in ids}
    if json.loads(record["cells_from"]).get("kind") == CORRECTED_KIND:
        # Such a field has reviewed cells only; undoing a review removes the cell.
        gone |= set(ids.values()) - {ids[place] for place in places}
    for cell_id in sorted(gone & set(labels)):
        lines.append(Correction("delete", edit, when, review.who, cell_id, field_id, labels[cell_id], ""))
    return lines


def _is_own(store: PatchStore, review: Review) -> bool:
    """Return whether the journal of a review is that of the store."""
    journal = store.path / CORRECTIONS_FILE
    return review.journal is not None and review.journal.resolve() == journal.resolve()


def _ids_by_place(cells: pd.DataFrame, field_id: str) -> dict[tuple[float, ...], str]:
    of_field = cells[cells["field_id"] == field_id]
    return dict(zip(_places(of_field), of_field["cell_id"], strict=True))


def _places(cells: pd.DataFrame) -> list[tuple[float, ...]]:
    """Return the centres that identify the cells of a field, rounded to 0.01 px as in CSV tables."""
    if not len(cells):
        return []
    return list(zip(*(cells[name].astype(float).round(2).tolist() for name in _PLACE), strict=True))
