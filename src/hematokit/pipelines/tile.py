"""Tiling of whole fields into a patch store: the image, its cells, and a patch around each cell.

Fields are taken one by one, in the order of their names. The cells of a field and its row in the table of fields are
committed together or not at all, so an interrupted call resumes with the first field that is not in the store. Like an
import, it adds and never changes: a field that is in the store with other content or other cells is rejected with a
reason. The cells of a field are replaced only on request.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Unpack

import numpy as np
import pandas as pd

from hematokit.annotations import AnnotationFiles, ClassNames, check_annotations, load_class_map, read_class_names
from hematokit.annotations.cells import name_cells
from hematokit.commands import Inputs, as_paths
from hematokit.errors import FieldError, ImageError, PluginError, printable
from hematokit.imaging.fieldfiles import Field, field_name, list_fields, open_field
from hematokit.imaging.fieldfiles.pixelsize import check_given
from hematokit.overrides import TileOverrides
from hematokit.pipelines.settings import TileSettings
from hematokit.plugins import load_plugins
from hematokit.progress import Progress, no_progress
from hematokit.store.corrections import standing_corrections
from hematokit.store.creating import StoreTarget
from hematokit.store.duplicates import regroup
from hematokit.store.patchstore import PatchStore
from hematokit.store.smears import SMEAR_COLUMNS, count_other_smears, match_smears, other_smears
from hematokit.store.tiling import FieldRecord, FieldWriter, TileSummary, TileTally, hash_source
from hematokit.store.writer import StoreWriter, disk_errors
from hematokit.taxonomy import Taxonomy, load_taxonomy

__all__ = [
    "CellsOfField",
    "FieldCells",
    "TileJob",
    "annotation_identity",
    "first_of",
    "list_new_fields",
    "tile",
    "tile_into",
]


def tile(
    inputs: Inputs,
    store: str | Path,
    *,
    cells: str | Path | CellsOfField | None = None,
    taxonomy: Taxonomy | str | Path | None = None,
    settings: TileSettings | None = None,
    progress: Progress = no_progress,
    **overrides: Unpack[TileOverrides],
) -> TileSummary:
    """Tile whole fields into a patch store: their images, cells and patches.

    Every field ends in the store or as a row of the store's `rejects`. Interrupted at any moment, the same call
    continues after the last commit.

    Parameters
    ----------
    inputs : path, or sequence of path
        Images, OME-Zarr folders, or folders of them.
    store : path
        Folder of the store; created if it does not exist.
    cells : path or callable, optional
        Annotations instead of detection: files, see `hematokit.annotations.AnnotationFiles`; or a function that takes
        an opened field and returns its cells.
    taxonomy : Taxonomy or path, optional
        Classes of a new store, `MATEK_21` by default; must equal those of an existing one.
    settings : TileSettings, optional
    progress : Progress
        Called with the number of fields done.
    **overrides
        Fields of `TileSettings`; they take precedence over `settings`.

    Returns
    -------
    TileSummary

    Raises
    ------
    ImageError
        If a path does not exist, there are no fields, or the pixel size is not one.
    FieldError
        If the annotations or the smears cannot be used at all, or the smears name no field or name one twice.
    PluginError
        If there is no such detector, or an option does not fit.
    StoreError
        If the store does not fit, is damaged, or is being written; if the disk is full.
    """
    started = time.monotonic()
    settings = TileSettings.combine(settings, overrides)
    classes = load_taxonomy(taxonomy) if isinstance(taxonomy, str | Path) else taxonomy
    target = StoreTarget.at(Path(store), taxonomy=classes, patch_size=settings.patch_size, codec=settings.codec)
    files = list_new_fields(as_paths(inputs), target.path)
    check_given(settings.pixel_size_um)
    only = settings.only or None
    if cells is None:
        if only or settings.class_map or settings.class_names is not None:
            raise FieldError(
                "--class-map, --class-names and --only are for annotations: give --cells too, or leave them out"
            )
        cells_of = _detected(settings.detector, settings.detector_options)
    elif callable(cells):
        cells_of = cells
    else:
        yolo_names = None if settings.class_names is None else read_class_names(Path(settings.class_names))
        names = ClassNames(target.taxonomy, load_class_map(settings.class_map, target.taxonomy))
        cells_of = _annotated(AnnotationFiles(Path(cells), files, yolo_names), names, only, target.patch_size)
    named = match_smears(settings.smears, files)
    sizes = dict.fromkeys(files, settings.pixel_size_um)
    job = TileJob(
        files, cells_of, named.said, sizes, settings.force_pixel_size, settings.near_duplicates, settings.replace
    )
    tiled, tally = tile_into(target, job, progress)
    lost = other_smears(count_other_smears(tally.rejects), target.path, settings.smears)
    tally.warnings += [*named.warnings, *lost]
    return tally.summarize(tiled, len(files), time.monotonic() - started)


# --- the cells of a field: a detector, or annotations -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FieldCells:
    """The cells of one field, detected or annotated.

    Attributes
    ----------
    identity : dict
        What has to be equal for the cells to be the same again.
    read : callable
        Given progress, returns them.
    rejects : list of tuple of str
        Reason and message of each annotation that cannot be used.
    left_out : dict of str to int
        Annotations of classes that were not asked for, by name.
    cut_boxes : int
        Boxes that left the field by a part, of which the part inside was kept.
    """

    identity: dict[str, Any]
    read: Callable[[Progress], pd.DataFrame]
    rejects: list[tuple[str, str]] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    cut_boxes: int = 0


CellsOfField = Callable[[Field], FieldCells]
"""Given an opened field, returns its cells; raises `ImageError` where it cannot."""


def _detected(name: str, options: Mapping[str, object] | None) -> CellsOfField:
    """Return the function that detects the cells of an opened field."""
    from hematokit.detection.windows import detect_cells, make_detector  # scikit-image, which annotations do not need

    made = make_detector(name, options)

    def cells_of(opened: Field) -> FieldCells:
        def read(progress: Progress) -> pd.DataFrame:
            try:
                return detect_cells(opened, made, progress=progress)
            except PluginError as error:
                raise ImageError("detector-failed", f"{printable(str(opened.path))}: {error}") from error

        return FieldCells({"detector": made.identity(), "pixel_size_um": opened.pixel_size_um}, read)

    return cells_of


def _annotated(
    files: AnnotationFiles, classes: ClassNames, only: Collection[str] | None, point_side: int
) -> CellsOfField:
    """Return the function that reads the annotations of an opened field."""

    def cells_of(opened: Field) -> FieldCells:
        marks = files.of_field(opened.path, opened.height, opened.width)
        known = check_annotations(marks, opened.height, opened.width, classes, only, point_side)
        identity = annotation_identity(known.cells, marks.kind)
        return FieldCells(identity, lambda progress: known.cells, known.rejects, known.left_out, known.cut)

    return cells_of


def annotation_identity(cells: pd.DataFrame, kind: str) -> dict[str, Any]:
    """Return the `FieldCells.identity` of annotated cells: a hash of their positions and labels, and their source.

    Parameters
    ----------
    cells : DataFrame
        With ``y, x, y0, x0, height, width`` and ``label``.
    kind : str
        ``"csv"``, ``"geojson"``, ``"voc"``, ``"yolo"`` or ``"corrected"``.
    """
    places = cells[["y", "x", "y0", "x0", "height", "width", "label"]]
    return {"known_cells": hashlib.sha256(places.to_csv(index=False).encode()).hexdigest(), "kind": kind}


def _same_cells(one: Mapping[str, Any], two: Mapping[str, Any]) -> bool:
    """Return whether two identities stand for the same cells; another version of the same detector does."""

    def essence(identity: Mapping[str, Any]) -> dict[str, Any]:
        detector = identity.get("detector")
        if not isinstance(detector, Mapping):
            return {"known_cells": identity.get("known_cells")}
        detector = load_plugins().detectors.update_identity(str(detector.get("name")), detector)
        return {
            "detector": {key: value for key, value in detector.items() if key != "version"},
            "pixel_size_um": identity.get("pixel_size_um"),
        }

    return essence(one) == essence(two)


def first_of(cells: pd.DataFrame, column: str) -> str:
    """Return the first smear or patient in a cells table; empty if there is none."""
    return next((str(value) for value in cells[column] if value), "") if column in cells.columns else ""


# --- from files to the store ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TileJob:
    """The fields to tile, with their cells, smears and pixel sizes.

    Attributes
    ----------
    files : sequence of Path
        From `list_new_fields`.
    cells_of : CellsOfField
        Returns the cells of each.
    smears : mapping of Path to (str, str)
        Smear and patient of files, as a table states them.
    pixel_sizes : mapping of Path to float or None
        Micrometres per pixel, for files that do not state it.
    force_pixel_size : bool
        `pixel_sizes` win over the files.
    near_duplicates : bool
        Search for near duplicates, too.
    replace : bool
        Replace the cells of fields that are in the store with others.
    """

    files: Sequence[Path]
    cells_of: CellsOfField
    smears: Mapping[Path, tuple[str, str]]
    pixel_sizes: Mapping[Path, float | None]
    force_pixel_size: bool = False
    near_duplicates: bool = True
    replace: bool = False


def list_new_fields(paths: Sequence[str | Path], store: Path) -> list[Path]:
    """List the fields in files and folders, except those inside the store itself.

    Raises
    ------
    ImageError
        As of `hematokit.imaging.fieldfiles.list_fields`.
    FieldError
        If there are no other fields than the store's own.
    """
    inside = store.resolve()
    kept = [file for file in list_fields([Path(path) for path in paths]) if not file.resolve().is_relative_to(inside)]
    if not kept:
        raise FieldError(f"all fields given are those of the store {printable(str(store))} itself; give other images")
    return kept


def tile_into(target: StoreTarget, job: TileJob, progress: Progress) -> tuple[PatchStore, TileTally]:
    """Tile fields into a store, commit them, and bring its rejects and groups up to date.

    Returns
    -------
    store : PatchStore
        Up to date.
    tally : TileTally
        What was done.

    Raises
    ------
    StoreError
        If the store cannot be created, is damaged, or is being written; if the disk is full.
    """
    store, tally, count = target.open(), TileTally(), len(job.files)
    with StoreWriter(store) as writer:
        tiling = _Tiling(job, store, writer, tally)
        with disk_errors(store.path, lambda: writer.committed):
            for number, path in enumerate(job.files):
                progress(number, count, field_name(path))
                tiling.take(path, _inner(progress, number, count, field_name(path)))
                writer.commit_fields_if_due()
            writer.commit()
            progress(count, count, f"{len(tally.rejects)} rejected" if tally.rejects else "")
        writer.update_rejects((printable(str(path)) for path in job.files), tally.rejects)
        regroup(store, writer, near=job.near_duplicates, progress=progress)
    return store, tally


def _inner(progress: Progress, number: int, fields: int, name: str) -> Progress:
    """Return the progress function for work within one field."""

    def report(done: int, total: int | None, message: str) -> None:
        if total is not None and total > 1:
            progress(number, fields, f"{name}: {message or 'part'} {done} of {total}")

    return report


class _Tiling:
    """Adds the fields of a job to an open store, one after the other."""

    def __init__(self, job: TileJob, store: PatchStore, writer: StoreWriter, tally: TileTally) -> None:
        self.job = job
        self.fields = FieldWriter(store, writer)
        self.tally = tally
        self.corrected = {entry.cell_id for entry in standing_corrections(store.corrections)}
        self.names = dict(zip(store.fields["sha256"], store.fields["name"], strict=True))

    def take(self, path: Path, progress: Progress) -> None:
        """Add a field, replace its cells, count it as present, or record the reason why it is refused."""
        source = printable(str(path))
        try:
            digest = hash_source(path)
            size, force = self.job.pixel_sizes.get(path), self.job.force_pixel_size
            with open_field(path, pixel_size_um=size, force_pixel_size=force) as opened:
                stored = self.fields.stored
                record = stored.of_file(opened.name, digest)
                if record is not None:
                    stored.check_orientation(record, source, opened.orientation)
                elif stored.of_source(source) is not None:
                    raise ImageError(
                        "changed-file",
                        f"{source} has other content than when it was tiled; the old field stays: tile into a new "
                        "store, or give the file another name",
                    )
                cells = self.job.cells_of(opened)
                self.tally.rejects += [(source, reason, message) for reason, message in cells.rejects]
                self.tally.left_out.update(cells.left_out)
                self.tally.cut_boxes += cells.cut_boxes
                given = dict(zip(SMEAR_COLUMNS, self.job.smears.get(path, ("", "")), strict=True))
                if record is None:
                    self._add(opened, source, digest, cells, given, progress)
                elif self._is_same(record, opened, source, cells, given):
                    self.tally.present_fields += 1
                else:
                    self._replace(record, cells, given, progress)
        except ImageError as error:
            self.tally.rejects.append((source, error.reason, str(error)))

    def _add(
        self, opened: Field, source: str, digest: str, cells: FieldCells, given: Mapping[str, str], progress: Progress
    ) -> None:
        found = cells.read(progress)
        stated = {**_stated(cells, given), "cells_from": json.dumps(cells.identity, sort_keys=True)}
        record = self.fields.write_image(opened, source, digest, progress=progress, **stated)
        self.fields.add(record, _named(found, record, given))
        tally = self.tally
        tally.added_fields += 1
        tally.added += len(found)
        tally.without_cells += not len(found)
        if self.names.setdefault(digest, record["name"]) != record["name"]:
            tally.copies.append(f"{record['name']} of {self.names[digest]}")
        tally.notes.update(opened.notes)
        if opened.pixel_size_um is None:
            tally.notes["no pixel size in the file; state it with --pixel-size, in micrometres per pixel"] += 1

    def _is_same(
        self, record: FieldRecord, opened: Field, source: str, cells: FieldCells, given: Mapping[str, str]
    ) -> bool:
        """Return whether a field is in the store with the same cells; raise an error if it differs and stays."""
        try:
            _check_same(record, source, opened.pixel_size_um, cells.identity, _stated(cells, given))
        except ImageError as error:
            # The same field under another path of this call, not committed yet.
            may_replace = self.job.replace and self.fields.is_committed(record)
            if not may_replace or error.reason == "pixel-size-differs":
                raise
            return False
        return True

    def _replace(self, record: FieldRecord, cells: FieldCells, given: Mapping[str, str], progress: Progress) -> None:
        """Replace the cells of a field in the store; its image stays."""
        found = cells.read(progress)
        record["cells_from"] = json.dumps(cells.identity, sort_keys=True)
        for column, value in _stated(cells, given).items():
            record[column] = value or record[column]
        old, new = self.fields.replace(record, _named(found, record, given))
        self.tally.replaced_fields += 1
        self.tally.added += len(new)
        self.tally.removed += len(old)
        self.tally.corrections_lost += len((old - new) & self.corrected)


def _stated(cells: FieldCells, given: Mapping[str, str]) -> dict[str, str]:
    """Return smear and patient of a field: from the table of smears, otherwise from its annotations."""
    if "known_cells" not in cells.identity or all(given.values()):
        return dict(given)
    found = cells.read(no_progress)
    return {column: value or first_of(found, column) for column, value in given.items()}


def _named(found: pd.DataFrame, record: FieldRecord, given: Mapping[str, str]) -> pd.DataFrame:
    """Return the cells of a field with their ids, its smear and its patient."""
    of_field = {column: record[column] for column in SMEAR_COLUMNS}
    table = name_cells(found, record["field_id"], record["source"], **of_field)
    for column, value in given.items():
        # Annotations may state them for each cell.
        if column in found.columns and not value:
            table[column] = found[column].where(found[column] != "", record[column]).to_numpy(dtype=object)
    return table


def _check_same(
    record: FieldRecord,
    source: str,
    pixel_size_um: float | None,
    identity: Mapping[str, Any],
    stated: Mapping[str, str],
) -> None:
    """Raise an error if a field contradicts the one in the store."""
    size = None if np.isnan(record["pixel_size_um"]) else float(record["pixel_size_um"])
    if size != pixel_size_um:
        before = "no pixel size" if size is None else f"a pixel size of {size:g} um"
        now = "none" if pixel_size_um is None else f"{pixel_size_um:g} um"
        raise _differs("pixel-size", source, f"with {before}, not {now}", "leave --pixel-size as it was")
    for column, value in stated.items():
        # A table without smear or patient is no contradiction.
        if value not in ("", record[column]):
            what = column.removesuffix("_id")
            raise _differs(what, source, f"with the {what} {record[column]!r}, not {value!r}", _SET_SMEARS)
    if not _same_cells(json.loads(record["cells_from"]), identity):
        raise _differs(
            "cells",
            source,
            "with cells that were detected or given otherwise",
            "leave --detector, --set, --cells and its file as they were, replace the cells with --replace",
        )


_SET_SMEARS: Final = "set it with 'hematokit store set-smears'"


def _differs(what: str, source: str, how: str, remedy: str) -> ImageError:
    return ImageError(
        f"{what}-differ" if what == "cells" else f"{what}-differs",
        f"{source} is in the store {how}; tiling does not change what is there by itself: {remedy}, or tile into a new "
        "store",
    )
