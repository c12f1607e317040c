"""Whole fields in a store: their images, the patches of their cells, and their files.

A field is written in this order: its image, the patches of its cells, then its row of ``fields.parquet`` together with
theirs of ``cells.parquet``. It counts with the next commit of the writer, which takes all of them or none.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from hematokit.commands import CommandResult
from hematokit.errors import ImageError, StoreError, printable, shell_word, some_of
from hematokit.files import hash_path
from hematokit.imaging.fieldfiles import Field
from hematokit.imaging.fieldfiles.listing import safe_name
from hematokit.imaging.geometry import cut_patch, patch_box
from hematokit.progress import Progress, no_progress
from hematokit.store.describing import class_counts, count_without_split, pixel_size_warnings, summarize_pixel_sizes
from hematokit.store.fields import field_folder, field_pixel_sizes, open_pixels, stored_orientation, write_field
from hematokit.store.patchstore import PatchStore
from hematokit.store.schema import CELL_COLUMNS, ROOT_FILE, hash_pixels
from hematokit.store.smears import SMEAR_COLUMNS
from hematokit.store.writer import StoreWriter

__all__ = ["FieldRecord", "FieldWriter", "StoredFields", "TileSummary", "TileTally", "hash_source"]

FieldRecord = dict[str, Any]
"""A row of the table of fields: the columns `hematokit.store.FIELD_COLUMNS`."""

_BATCH: Final = 64  # patches cut at a time, which bounds the memory


def hash_source(path: Path) -> str:
    """Return the SHA-256 of a field's file, or over the files of an OME-Zarr folder.

    Raises
    ------
    ImageError
        If it cannot be read.
    """
    try:
        return hash_path(path)
    except OSError as error:
        cause = error.strerror or error
        raise ImageError("unreadable", f"{printable(str(path))} cannot be read ({cause}); check the file") from error


class StoredFields:
    """The fields of a store, by the files that they were tiled from.

    Parameters
    ----------
    store : PatchStore
        The store.
    """

    def __init__(self, store: PatchStore) -> None:
        self._path = store.path
        table, cells = store.fields, store.committed_cells
        self._records: list[FieldRecord] = [
            dict(zip(table.columns, row, strict=True)) for row in table.itertuples(index=False)
        ]
        for column in SMEAR_COLUMNS:
            # Older stores note in the cells only what a table of annotations states of them.
            stated = cells[cells[column] != ""].drop_duplicates("field_id")
            of_cells = dict(zip(stated["field_id"], stated[column], strict=True))
            for record in self._records:
                record[column] = record[column] or of_cells.get(record["field_id"], "")
        self._by_content = {(record["name"], record["sha256"]): record for record in self._records}
        self._by_source = {record["source"]: record for record in self._records}

    @cached_property
    def _by_folder(self) -> dict[Path, FieldRecord]:
        return {field_folder(self._path, record["field_id"]).resolve(): record for record in self._records}

    def of_file(self, name: str, sha256: str) -> FieldRecord | None:
        """Return the field of a file, known by its name and content; None if the store does not have it.

        Parameters
        ----------
        name : str
            Name of the field, from `hematokit.imaging.fieldfiles.field_name`.
        sha256 : str
            From `hash_source`.
        """
        return self._by_content.get((printable(name), sha256))

    def check_orientation(self, record: FieldRecord, source: str, orientation: int) -> None:
        """Refuse a file whose field is in the store in another orientation than the file is shown in.

        Parameters
        ----------
        record : FieldRecord
            The file's field in the store.
        source : str
            Path of the file, for the message.
        orientation : int
            Orientation that the file states, 1 to 8 as in EXIF.

        Raises
        ------
        ImageError
            ``"orientation-differs"``.
        """
        stored = stored_orientation(self._path, record["field_id"])
        if stored != orientation:
            raise ImageError(
                "orientation-differs",
                f"{source} is in the store in another orientation ({stored}) than its metadata state ({orientation}): "
                "it was taken before orientation was applied; tiling never changes what is there: tile it into a new "
                "store to have it as it is shown",
            )

    def of_source(self, source: str) -> FieldRecord | None:
        """Return the field that was tiled from a path, whatever is there now."""
        return self._by_source.get(source)

    def of_folder(self, path: Path) -> FieldRecord | None:
        """Return the field whose image in the store is the folder `path`."""
        return self._by_folder.get(path.resolve())

    def add(self, record: FieldRecord) -> None:
        """Note a field that was written."""
        self._by_content[record["name"], record["sha256"]] = self._by_source[record["source"]] = record


class FieldWriter:
    """Writes fields, and the patches of their cells, into a store that has a writer open.

    Parameters
    ----------
    store : PatchStore
        The store.
    writer : StoreWriter
        Its open writer; what is written here counts with its next commit.

    Attributes
    ----------
    stored : StoredFields
        The fields of the store, with those written here.
    """

    def __init__(self, store: PatchStore, writer: StoreWriter) -> None:
        self._store, self._writer = store, writer
        self.stored = StoredFields(store)
        cells = self._cells = writer.cells
        self._cell_ids = set(cells["cell_id"])
        self._pixel_sizes = field_pixel_sizes(cells)
        # Crops are fields too, though the store has no image of them. Some file systems do not tell 'A' from 'a'.
        self._field_ids = {name.casefold() for name in [*store.fields["field_id"], *cells["field_id"]]}
        self._uncommitted: set[str] = set()

    @cached_property
    def _ids_by_field(self) -> dict[str, list[str]]:
        """Ids of the cells that were there before anything was written here."""
        return dict(self._cells.groupby("field_id")["cell_id"].agg(list))

    def is_committed(self, record: FieldRecord) -> bool:
        """Whether a field was in the store, with the cells it has, before anything was written here."""
        return record["field_id"] not in self._uncommitted

    def write_image(
        self, opened: Field, source: str, sha256: str, *, progress: Progress = no_progress, **stated: str
    ) -> FieldRecord:
        """Write the image of a field under a new id.

        Parameters
        ----------
        opened : Field
            The opened field.
        source : str
            Its path as given.
        sha256 : str
            From `hash_source`.
        progress : Progress
            Called with the bands of rows written.
        **stated : str
            The columns ``cells_from``, ``smear_id`` and ``patient_id``.

        Returns
        -------
        FieldRecord
            For `add`.
        """
        field_id = self._new_id(opened.name, sha256)
        stored = write_field(self._store.path, field_id, opened, source=source, progress=progress)[1]
        return {
            "field_id": field_id,
            "name": printable(opened.name),
            "source": source,
            "sha256": sha256,
            "height": opened.height,
            "width": opened.width,
            "pixel_size_um": np.nan if opened.pixel_size_um is None else opened.pixel_size_um,
            "stored_sha256": stored,
            **stated,
        }

    def add(self, record: FieldRecord, cells: pd.DataFrame) -> None:
        """Add a field whose image is written, with its cells.

        Parameters
        ----------
        record : FieldRecord
            From `write_image`; the number of cells is set.
        cells : DataFrame
            Its cells, with ids, as `hematokit.annotations.cells.name_cells` returns them.
        """
        record["cells"] = len(cells)
        self.append_cells(record, cells)
        self._writer.add_field(record)
        self.stored.add(record)
        self._field_ids.add(record["field_id"].casefold())
        self._uncommitted.add(record["field_id"])

    def replace(self, record: FieldRecord, cells: pd.DataFrame) -> tuple[set[str], set[str]]:
        """Replace the cells of a field that is in the store; its image stays.

        Parameters
        ----------
        record : FieldRecord
            From `stored`, changed to what is true of the new cells; their number is set.
        cells : DataFrame
            As of `add`.

        Returns
        -------
        old, new : set of str
            Ids of the cells that the field had, and of those it has now.
        """
        record["cells"] = len(cells)
        old = set(self._ids_by_field.get(record["field_id"], ()))
        self._cell_ids -= old
        new = self.append_cells(record, cells)
        self._writer.replace_field(record)
        self._uncommitted.add(record["field_id"])
        return old, set(new)

    def append_cells(self, record: FieldRecord, cells: pd.DataFrame) -> list[str]:
        """Append cells of a field whose image is in the store, with their patches, and return the ids they get.

        Parameters
        ----------
        record : FieldRecord
        cells : DataFrame
            As of `add`. An id that another cell of the store has gets a piece of the cell's key behind it.
        """
        if cells.empty:
            return []
        # The pixel size of the cells may have been stated since the field was tiled.
        size = self._pixel_sizes.get(record["field_id"])
        rows = self._rows(cells, record["sha256"], record["pixel_size_um"] if size is None else size)
        read = open_pixels(field_folder(self._store.path, record["field_id"]))
        side = self._store.patch_size
        for start in range(0, len(rows), _BATCH):
            batch = rows.iloc[start : start + _BATCH]
            patches = np.empty((len(batch), side, side, 3), np.uint8)
            for number, (y, x) in enumerate(zip(batch["y"].tolist(), batch["x"].tolist(), strict=True)):
                patches[number] = cut_patch(read, record["height"], record["width"], patch_box(y, x, side))
            self._writer.append(patches, batch.assign(pixel_sha256=[hash_pixels(patch) for patch in patches]))
        return list(rows["cell_id"])

    def _rows(self, cells: pd.DataFrame, sha256: str, pixel_size_um: float) -> pd.DataFrame:
        """Return rows of the store's table, without the hashes of the patches."""
        places = zip(*(cells[name].tolist() for name in ("y", "x", "y0", "x0", "height", "width")), strict=True)
        keys = [
            hashlib.sha256(f"{field_id}\0{sha256}\0{place}".encode()).hexdigest()[:32]
            for field_id, place in zip(cells["field_id"], places, strict=True)
        ]
        ids = []
        for cell_id, key in zip(cells["cell_id"], keys, strict=True):
            chosen = cell_id if cell_id not in self._cell_ids else f"{cell_id}-{key[:8]}"
            self._cell_ids.add(chosen)
            ids.append(chosen)
        new: dict[str, Any] = {"cell_id": ids, "source_key": keys, "row": 0, "group": "", "split": ""}
        rows = cells.assign(**new, pixel_sha256="", pixel_size_um=pixel_size_um)
        return rows[list(CELL_COLUMNS)]

    def _new_id(self, name: str, sha256: str) -> str:
        """Return an id made of the file's stem, with a piece of its content's hash behind it where that is taken."""
        plain = safe_name(name)
        # Zarr keeps names that begin with two underscores for itself.
        plain = f"field{plain}" if plain.startswith("__") else plain
        for candidate in (plain, *(f"{plain}-{sha256[:length]}" for length in (8, 16, 64))):
            if candidate.casefold() not in self._field_ids and candidate.casefold() != ROOT_FILE:
                return candidate
        raise StoreError(f"no free field id for {printable(name)}; rename the file")


# --- what was done ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TileSummary(CommandResult):
    """What `hematokit.tile` did.

    Attributes
    ----------
    store : str
        The store's folder.
    fields : int
        Fields that were given.
    added_fields, present_fields : int
        Fields added by this call, and fields that were in the store already.
    added : int
        Cells added by this call.
    without_cells : int
        Fields among those added that have no cell.
    rejected : dict of str to int
        Fields and cells refused, by reason; the store's `rejects` name each.
    left_out : dict of str to int
        Annotations of classes that were not asked for, by name.
    cut_boxes : int
        Boxes of annotations that left the field by a part, of which the part inside was kept.
    notes : tuple of str
        Remarks on the files, each once, with the number of fields it concerns.
    cells : int
        Cells in the store now.
    stored_fields : int
        Fields in the store now.
    classes : dict of str to int
        Cells in the store now, by class.
    unlabelled : int
        Cells in the store now that have no class.
    without_split : int
        Labelled cells that an existing split does not cover.
    seconds : float
    warnings : tuple of str
        What is doubtful about the smears and patients, corrections that no longer apply, and what is doubtful about
        the pixel sizes of the cells in the store now.
    replaced_fields : int
        Fields in the store whose cells were replaced.
    removed : int
        Cells that these fields had before.
    """

    store: str
    fields: int
    added_fields: int
    present_fields: int
    added: int
    without_cells: int
    rejected: dict[str, int]
    left_out: dict[str, int]
    cut_boxes: int
    notes: tuple[str, ...]
    cells: int
    stored_fields: int
    classes: dict[str, int]
    unlabelled: int
    without_split: int
    seconds: float
    warnings: tuple[str, ...] = ()
    replaced_fields: int = 0
    removed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The summary for a person, one statement per line."""
        lines = [
            f"{self.added} cells of {self.added_fields} fields added to {self.store} in {self.seconds:.1f} s; "
            f"{self.present_fields} of {self.fields} fields were there already"
        ]
        if self.replaced_fields:
            lines.append(f"the cells of {self.replaced_fields} fields were replaced: {self.removed} cells removed")
        if self.without_cells:
            lines.append(f"{self.without_cells} of the fields added have no cells")
        if self.rejected:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.rejected.items())
            lines.append(f"rejected: {reasons}; 'hematokit store info --rejects {shell_word(self.store)}' names each")
        if self.left_out:
            lines.append("left out by class: " + ", ".join(f"{name} {n}" for name, n in self.left_out.items()))
        if self.cut_boxes:
            lines.append(f"{self.cut_boxes} boxes left their field by a part and were cut at its border")
        lines += [f"note: {note}" for note in self.notes]
        counts = [f"{code} {count}" for code, count in self.classes.items()]
        counts += [f"without a label {self.unlabelled}"] if self.unlabelled else []
        lines.append(
            f"the store holds {self.stored_fields} fields and {self.cells} cells: {', '.join(counts) or 'none'}"
        )
        if self.without_split:
            lines.append(
                f"{self.without_split} cells are in no split yet; run 'hematokit split {shell_word(self.store)}'"
            )
        return [*lines, *(f"Warning: {warning}" for warning in self.warnings)]


@dataclass
class TileTally:
    """Counts over all fields."""

    added_fields: int = 0
    present_fields: int = 0
    added: int = 0
    without_cells: int = 0
    cut_boxes: int = 0
    rejects: list[tuple[str, str, str]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    warnings: list[str] = field(default_factory=list)
    copies: list[str] = field(default_factory=list)
    replaced_fields: int = 0
    removed: int = 0
    corrections_lost: int = 0

    def summarize(self, store: PatchStore, files: int, seconds: float) -> TileSummary:
        """Return the summary of what was done to a store with so many files in so many seconds."""
        cells = store.cells
        warnings = list(self.warnings)
        if self.copies:
            warnings.append(
                f"{len(self.copies)} fields are copies of another field under another name ({some_of(self.copies)}): "
                "their cells count twice, on the same side of a split"
            )
        if self.corrections_lost:
            warnings.append(
                f"the corrections of {self.corrections_lost} cells no longer apply, because these cells were removed; "
                f"'hematokit store corrections {shell_word(store.path)}' lists them"
            )
        return TileSummary(
            store=str(store.path),
            fields=files,
            added_fields=self.added_fields,
            present_fields=self.present_fields,
            added=self.added,
            without_cells=self.without_cells,
            rejected=dict(sorted(Counter(reason for _, reason, _ in self.rejects).items())),
            left_out=dict(sorted(self.left_out.items())),
            cut_boxes=self.cut_boxes,
            notes=tuple(f"{note} ({count} of {files} fields)" for note, count in sorted(self.notes.items())),
            cells=len(cells),
            stored_fields=len(store.fields),
            classes=class_counts(cells, store.taxonomy),
            unlabelled=int((cells["label"] == "").sum()),
            without_split=count_without_split(store),
            seconds=round(seconds, 3),
            warnings=(*warnings, *pixel_size_warnings(summarize_pixel_sizes(cells), store.path)),
            replaced_fields=self.replaced_fields,
            removed=self.removed,
        )
