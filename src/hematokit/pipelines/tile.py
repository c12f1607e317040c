"""Whole fields into a patch store: the field's image, its cells, and a patch around each.

Fields are taken one by one, in the order of their names. The cells of a field and its row in the table of fields are
committed together or not at all, so a run that was killed goes on with the first field that is not in the store. Like
an import it adds and does not change: a field that is there with other content, or whose cells would now be others, is
refused with a reason. The cells of a field are replaced only on request.

Where the cells of a field come from when it is tiled: a detector, or files of known cells.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from hematokit.annotations import AnnotationFiles, ClassNames, check_annotations, load_class_map, read_class_names
from hematokit.annotations.cells import name_cells
from hematokit.errors import FieldError, ImageError, PluginError, StoreError
from hematokit.files import hash_path
from hematokit.imaging.fieldfiles import field_name, list_fields, open_field
from hematokit.imaging.fieldfiles.opening import safe_name
from hematokit.imaging.fieldfiles.pixelsize import check_given
from hematokit.imaging.reading import printable
from hematokit.pipelines.tile_rows import TileSummary, TileTally, append_patches, store_rows
from hematokit.plugins import load_plugins
from hematokit.progress import Progress, no_progress
from hematokit.store.corrections import standing_corrections
from hematokit.store.creating import _check_fit, create_store
from hematokit.store.duplicates import regroup
from hematokit.store.fields import field_folder, field_pixel_sizes, stored_orientation, write_field
from hematokit.store.patchstore import PatchStore, open_store
from hematokit.store.schema import ROOT_FILE
from hematokit.store.smears import SMEAR_COLUMNS, SmearMatch, count_other_smears, match_smears, other_smears
from hematokit.store.writer import StoreWriter, disk_errors
from hematokit.taxonomy import MATEK_21, Taxonomy

if TYPE_CHECKING:
    from hematokit.imaging.fieldfiles import Field

__all__ = [
    "CellSource",
    "FieldCells",
    "TileSummary",
    "check_orientation",
    "detected_cells",
    "first_of",
    "given_cells",
    "hash_source",
    "same_cells",
    "tile_fields",
]


@dataclass(frozen=True, slots=True)
class FieldCells:
    """The cells of one field.

    Attributes
    ----------
    identity : dict
        What has to be equal for the cells to be the same again.
    find : callable
        Given progress, returns them.
    rejects : list of tuple of str
        Reason and message of each known cell that cannot be used.
    """

    identity: dict[str, Any]
    find: Callable[[Progress], pd.DataFrame]
    rejects: list[tuple[str, str]]


CellSource = Callable[["Field", TileTally], FieldCells]
"""Given an opened field and the tally, says what its cells are; raises `ImageError` where that cannot be said."""


def detected_cells(name: str, options: Mapping[str, object] | None) -> CellSource:
    """Return what finds the cells of an opened field with a registered detector.

    Raises
    ------
    PluginError
        If there is no such detector, or an option does not fit.
    """
    from hematokit.detection.windows import detect_cells, make_detector

    made = make_detector(name, options)

    def cells(opened: Field, tally: TileTally) -> FieldCells:
        def find(progress: Progress) -> pd.DataFrame:
            try:
                return detect_cells(opened, made, progress=progress)
            except PluginError as error:
                raise ImageError("detector-failed", f"{printable(str(opened.path))}: {error}") from error

        return FieldCells({"detector": made.identity(), "pixel_size_um": opened.pixel_size_um}, find, [])

    return cells


def given_cells(
    files: AnnotationFiles, classes: ClassNames, only: Collection[str] | None, point_side: int
) -> CellSource:
    def cells(opened: Field, tally: TileTally) -> FieldCells:
        marks = files.of_field(opened.path, opened.height, opened.width)
        known = check_annotations(marks, opened.height, opened.width, classes, only, point_side)
        tally.left_out.update(known.left_out)
        tally.cut_boxes += known.cut
        places = known.cells[["y", "x", "y0", "x0", "height", "width", "label"]]
        digest = hashlib.sha256(places.to_csv(index=False).encode()).hexdigest()
        return FieldCells({"known_cells": digest, "kind": marks.kind}, lambda progress: known.cells, known.rejects)

    return cells


def same_cells(one: Mapping[str, Any], two: Mapping[str, Any]) -> bool:
    """Tell whether cells would be the same; a new version of a detector is no reason to refuse what is there."""

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


def tile_fields(
    paths: Sequence[str | Path],
    store_path: str | Path,
    *,
    detector: str = "nuclei",
    detector_options: Mapping[str, object] | None = None,
    cells: str | Path | CellSource | None = None,
    class_map: Sequence[str] | None = None,
    class_names: str | Path | None = None,
    only: Collection[str] | None = None,
    smears: str | Path | SmearMatch | None = None,
    pixel_size_um: float | None = None,
    force_pixel_size: bool = False,
    taxonomy: Taxonomy | None = None,
    patch_size: int | None = None,
    codec: str | None = None,
    near_duplicates: bool = True,
    replace: bool = False,
    progress: Progress = no_progress,
) -> TileSummary:
    """Put whole fields into a patch store, which is created if need be: their images, cells and patches.

    Every field ends in the store or as a row of the store's `rejects`. Killed at any moment, the same call goes on
    where the last commit was.

    Parameters
    ----------
    paths : sequence of str or Path
        Images, OME-Zarr folders, or folders of them.
    store_path : str or Path
        Folder of the store.
    detector : str
        Finds the cells, unless `cells` are given.
    detector_options : mapping, optional
        The detector's options.
    cells : str, Path or CellSource, optional
        Annotated cells instead of detection: files, see `hematokit.annotations.AnnotationFiles`; or a function that is
        given each opened field and says what its cells are.
    class_map : sequence of str, optional
        What the names that `cells` uses mean: ``"NAME=CODE"``, ``"NAME="`` for a cell without label, or YAML files.
    class_names : str or Path, optional
        File of the names of the classes of YOLO files.
    only : collection of str, optional
        Names or codes of the classes of `cells` to take; others are left out.
    smears : str, Path or SmearMatch, optional
        CSV that says which smear and patient a field is from; or what `match_smears` made of it.
    pixel_size_um : float, optional
        Micrometres per pixel, for files that do not state it.
    force_pixel_size : bool
        `pixel_size_um` wins over the files.
    taxonomy : Taxonomy, optional
        Classes of a new store, `MATEK_21` by default; must equal those of an existing one.
    patch_size : int, optional
        Side of the patches of a new store in pixels, 250 by default; must equal that of an existing one.
    codec : {"raw", "zstd"}, optional
        How a new store packs patches, ``"raw"`` by default.
    near_duplicates : bool
        Search for patches of different fields that show the same cell, too, not only for equal pixels.
    replace : bool
        Replace the cells, smear and patient of fields that are in the store with others; without it such fields are
        refused. Cells at the same place keep their id, and with it what people corrected; the new cells are in no
        split.
    progress : Progress
        Told the number of fields done.

    Returns
    -------
    TileSummary

    Raises
    ------
    ImageError
        If a path does not exist, there are no fields, or the pixel size is none.
    FieldError
        If the annotations or the smears cannot be used at all, or the smears name no field or name one twice.
    PluginError
        If there is no such detector, or an option does not fit.
    StoreError
        If the store does not fit, is damaged, or is being written; if the disk is full.
    """
    started = time.monotonic()
    store_path = Path(store_path)
    store = open_store(store_path) if (store_path / ROOT_FILE).exists() else None
    if store is not None:
        _check_fit(store, taxonomy, patch_size, codec)
    classes = store.taxonomy if store is not None else taxonomy or MATEK_21
    files = _outside(list_fields([Path(path) for path in paths]), store_path)
    check_given(pixel_size_um)
    size = store.patch_size if store is not None else 250 if patch_size is None else patch_size
    tally = TileTally()
    if cells is None:
        if only is not None or class_map or class_names is not None:
            raise FieldError("classes are named by known cells only: give --cells too, or leave these options out")
        cells_of = detected_cells(detector, detector_options)
    elif callable(cells):
        cells_of = cells
    else:
        names = None if class_names is None else read_class_names(Path(class_names))
        meaning = ClassNames(classes, load_class_map(class_map or (), classes))
        cells_of = given_cells(AnnotationFiles(Path(cells), files, names), meaning, only, size)
    named = smears if isinstance(smears, SmearMatch) else match_smears(smears, files)
    tally.warnings += named.warnings
    with ExitStack() as held:
        if store is None:
            store = create_store(store_path, patch_size=size, taxonomy=taxonomy, codec=codec or "raw")
        writer = held.enter_context(StoreWriter(store))
        tiling = _Tiling(store, writer, cells_of, named, tally, pixel_size_um, force_pixel_size, replace)
        with disk_errors(store_path, lambda: writer.committed):
            for number, path in enumerate(files):
                progress(number, len(files), field_name(path))
                tiling.take(path, _inner(progress, number, len(files), field_name(path)))
                writer.commit_fields_if_due()
            writer.commit()
            progress(len(files), len(files), f"{len(tally.rejects)} rejected" if tally.rejects else "")
        writer.update_rejects((printable(str(path)) for path in files), tally.rejects)
        regroup(store, writer, near=near_duplicates, progress=progress)
    table = None if isinstance(smears, SmearMatch) else smears
    tally.warnings += other_smears(count_other_smears(tally.rejects), store_path, table)
    return tally.summarize(store, len(files), time.monotonic() - started)


def _outside(files: Sequence[Path], store: Path) -> list[Path]:
    """Leave out the store's own fields, which a folder that holds the store has too."""
    inside = store.resolve()
    kept = [file for file in files if not file.resolve().is_relative_to(inside)]
    if not kept:
        raise FieldError(f"all fields given are those of the store {printable(str(store))} itself; give other images")
    return kept


def _inner(progress: Progress, number: int, fields: int, name: str) -> Progress:
    """Progress within one field, which shows beside the number of fields done."""

    def report(done: int, total: int | None, message: str) -> None:
        if total is not None and total > 1:
            progress(number, fields, f"{name}: {message or 'part'} {done} of {total}")

    return report


# --- one field after the other ----------------------------------------------------------------------------------------


class _Tiling:
    """Takes fields into an open writer."""

    def __init__(
        self,
        store: PatchStore,
        writer: StoreWriter,
        cells_of: CellSource,
        smears: SmearMatch,
        tally: TileTally,
        pixel_size_um: float | None,
        force_pixel_size: bool,
        replace: bool,
    ) -> None:
        self.store = store
        self.writer = writer
        self.cells_of = cells_of
        self.smears = smears
        self.tally = tally
        self.pixel_size_um = pixel_size_um
        self.force_pixel_size = force_pixel_size
        self.replace = replace
        there = store.fields
        records = [dict(zip(there.columns, row, strict=True)) for row in there.itertuples(index=False)]
        cells = writer.cells
        self.cell_ids = set(cells["cell_id"])
        self.ids_of = cells.groupby("field_id")["cell_id"].agg(list).to_dict()
        self.pixel_sizes = field_pixel_sizes(cells)
        for column in SMEAR_COLUMNS:
            # Older stores note in the cells only what a table of known cells said of them.
            stated = cells[cells[column] != ""].drop_duplicates("field_id")
            of_cells = dict(zip(stated["field_id"], stated[column], strict=True))
            for record in records:
                record[column] = record[column] or of_cells.get(record["field_id"], "")
        self.by_content = {(record["name"], record["sha256"]): record for record in records}
        self.by_source = {record["source"]: record for record in records}
        self.fresh: set[str] = set()
        self.names = {record["sha256"]: record["name"] for record in records}
        self.corrected = {entry.cell_id for entry in standing_corrections(store.corrections)}
        # Crops are fields too, though the store has no image of them.
        self.field_ids = {name.casefold() for name in [*there["field_id"], *cells["field_id"]]}

    def take(self, path: Path, progress: Progress) -> None:
        """Add a field, or note that it is there, or why it cannot be added."""
        source = printable(str(path))
        try:
            smear, patient = self.smears.said.get(path, ("", ""))
            digest = hash_source(path)
            with open_field(path, pixel_size_um=self.pixel_size_um, force_pixel_size=self.force_pixel_size) as opened:
                self._take_open(opened, source, digest, smear, patient, progress)
        except ImageError as error:
            self.tally.rejects.append((source, error.reason, str(error)))

    def _take_open(self, opened: Field, source: str, digest: str, smear: str, patient: str, progress: Progress) -> None:
        present = self.by_content.get((printable(opened.name), digest))
        if present is None and source in self.by_source:
            raise ImageError(
                "changed-file",
                f"{source} has other content than when it was tiled; the old field stays: tile into a new store, or "
                "give the file another name",
            )
        if present is not None:
            check_orientation(self.store, present["field_id"], source, opened.orientation)
        cells = self.cells_of(opened, self.tally)
        self.tally.rejects += [(source, reason, message) for reason, message in cells.rejects]
        if present is not None:
            stated = _stated(cells, smear, patient)
            try:
                _check_same(present, source, cells.identity, opened.pixel_size_um, *stated)
            except ImageError as error:
                # A field of this call, under another path, is not committed yet.
                committed = present["field_id"] not in self.fresh
                if not self.replace or not committed or error.reason == "pixel-size-differs":
                    raise
                self._replace(present, cells, smear, patient, progress)
                return
            self.tally.present_fields += 1
            return
        self._add(opened, cells, source, digest, smear, patient, progress)
        for note in opened.notes:
            self.tally.notes[note] += 1
        if opened.pixel_size_um is None:
            self.tally.notes["no pixel size in the file; state it with --pixel-size, in micrometres per pixel"] += 1

    def _add(
        self, opened: Field, cells: FieldCells, source: str, digest: str, smear: str, patient: str, progress: Progress
    ) -> None:
        found = cells.find(progress)
        field_id = _make_field_id(opened.name, self.field_ids, digest)
        stored = write_field(self.store.path, field_id, opened, source=source, progress=progress)[1]
        stated = _stated(cells, smear, patient)
        record = {
            "field_id": field_id,
            "name": printable(opened.name),
            "source": source,
            "sha256": digest,
            "height": opened.height,
            "width": opened.width,
            "pixel_size_um": np.nan if opened.pixel_size_um is None else opened.pixel_size_um,
            "cells": len(found),
            "cells_from": json.dumps(cells.identity, sort_keys=True),
            "smear_id": stated[0],
            "patient_id": stated[1],
            "stored_sha256": stored,
        }
        self._append(found, record, smear, patient)
        self.writer.add_field(record)
        self.field_ids.add(field_id.casefold())
        self.fresh.add(field_id)
        self.by_content[record["name"], digest] = self.by_source[source] = record
        if self.names.setdefault(digest, record["name"]) != record["name"]:
            self.tally.copies.append(f"{record['name']} of {self.names[digest]}")
        self.tally.added_fields += 1
        self.tally.without_cells += not len(found)

    def _append(self, found: pd.DataFrame, record: Mapping[str, Any], smear: str, patient: str) -> list[str]:
        """Append the cells of a field whose image is in the store, and return their ids."""
        of_field = {column: record[column] for column in SMEAR_COLUMNS}
        table = name_cells(found, record["field_id"], record["source"], **of_field)
        # That of cells may have been set since the field was tiled.
        size = self.pixel_sizes.get(record["field_id"], record["pixel_size_um"])
        rows = store_rows(table, record["sha256"], self.cell_ids, size)
        for column, value in zip(SMEAR_COLUMNS, (smear, patient), strict=True):
            # A table of known cells may state them for each cell.
            if column in found.columns and not value:
                rows[column] = found[column].where(found[column] != "", record[column]).to_numpy(dtype=object)
        folder = field_folder(self.store.path, record["field_id"])
        append_patches(self.writer, self.store.patch_size, folder, record["height"], record["width"], rows)
        self.tally.added += len(rows)
        return list(rows["cell_id"])

    def _replace(
        self, present: dict[str, Any], cells: FieldCells, smear: str, patient: str, progress: Progress
    ) -> None:
        """Put other cells in the place of those of a field that is in the store; its image stays."""
        found = cells.find(progress)
        stated = _stated(cells, smear, patient)
        field_id = present["field_id"]
        old = set(self.ids_of.get(field_id, ()))
        self.cell_ids -= old
        present["cells"] = len(found)
        present["cells_from"] = json.dumps(cells.identity, sort_keys=True)
        for column, value in zip(SMEAR_COLUMNS, stated, strict=True):
            present[column] = value or present[column]
        new = self._append(found, present, smear, patient)
        self.writer.replace_field(present)
        self.fresh.add(field_id)
        self.tally.replaced_fields += 1
        self.tally.removed += len(old)
        self.tally.corrections_lost += len((old - set(new)) & self.corrected)


def _stated(cells: FieldCells, smear: str, patient: str) -> tuple[str, str]:
    """Smear and patient of a field: as the table of smears says, or else its known cells."""
    if "known_cells" not in cells.identity or (smear and patient):
        return smear, patient
    found = cells.find(no_progress)
    return smear or first_of(found, "smear_id"), patient or first_of(found, "patient_id")


def first_of(cells: pd.DataFrame, column: str) -> str:
    """Return the first smear or patient that cells state; empty if none does."""
    return next((str(value) for value in cells[column] if value), "") if column in cells.columns else ""


def check_orientation(store: PatchStore, field_id: str, source: str, orientation: int) -> None:
    """Refuse a file whose field is in the store in another orientation than it is shown in.

    Parameters
    ----------
    store : PatchStore
    field_id : str
        The file's field in the store.
    source : str
        The file, for the message.
    orientation : int
        What the file states, 1 to 8 as in EXIF.

    Raises
    ------
    ImageError
        ``"orientation-differs"``.
    """
    stored = stored_orientation(store.path, field_id)
    if stored != orientation:
        raise ImageError(
            "orientation-differs",
            f"{source} is in the store in another orientation ({stored}) than its metadata state ({orientation}): it "
            "was taken before orientation was applied; tiling never changes what is there: tile it into a new store "
            "to have it as it is shown",
        )


def _check_same(
    present: Mapping[str, Any],
    source: str,
    identity: Mapping[str, Any],
    pixel_size_um: float | None,
    smear: str,
    patient: str,
) -> None:
    """Refuse what contradicts a field that is in the store."""
    size = None if np.isnan(present["pixel_size_um"]) else float(present["pixel_size_um"])
    if size != pixel_size_um:
        stated = "no pixel size" if size is None else f"a pixel size of {size:g} um"
        now = "none" if pixel_size_um is None else f"{pixel_size_um:g} um"
        raise _differs("pixel-size", source, f"with {stated}, not {now}", "leave --pixel-size as it was")
    # A table that does not say the smear or patient contradicts nobody.
    if smear not in ("", present["smear_id"]):
        raise _differs("smear", source, f"with the smear {present['smear_id']!r}, not {smear!r}", _SET_SMEARS)
    if patient not in ("", present["patient_id"]):
        raise _differs("patient", source, f"with the patient {present['patient_id']!r}, not {patient!r}", _SET_SMEARS)
    if not same_cells(json.loads(present["cells_from"]), identity):
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


def _make_field_id(name: str, taken: Collection[str], sha256: str) -> str:
    """Make a field's id of its name, with a piece of its content's hash behind it where another field has that.

    Parameters
    ----------
    name : str
        Stem of the file.
    taken : collection of str
        Ids of other fields, case-folded, since some file systems do not tell ``A`` from ``a``.
    sha256 : str
        Of the file's content, in hexadecimal.
    """
    plain = safe_name(name)
    # Zarr keeps names that begin with two underscores for itself.
    plain = f"field{plain}" if plain.startswith("__") else plain
    for candidate in (plain, *(f"{plain}-{sha256[:length]}" for length in (8, 16, 64))):
        if candidate.casefold() not in taken and candidate.casefold() != ROOT_FILE:
            return candidate
    raise StoreError(f"no free field id for {printable(name)}; rename the file")


def hash_source(path: Path) -> str:
    """SHA-256 of a field's file, or of an OME-Zarr folder's files."""
    try:
        return hash_path(path)
    except OSError as error:
        cause = error.strerror or error
        raise ImageError("unreadable", f"{printable(str(path))} cannot be read ({cause}); check the file") from error
