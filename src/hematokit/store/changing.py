"""Stating the pixel size, the smear and the patient of cells that are in a store already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hematokit.commands import CommandResult
from hematokit.errors import StoreError, printable, shell_word
from hematokit.imaging.fieldfiles.pixelsize import check_given
from hematokit.progress import Progress, no_progress
from hematokit.store.corrections import apply_corrections
from hematokit.store.duplicates import group_cells
from hematokit.store.patchstore import open_store
from hematokit.store.smears import OTHER_SMEARS, SMEAR_COLUMNS, id_warnings, load_smears, on_several_sides
from hematokit.store.writer import StoreWriter

__all__ = ["PixelSizeChange", "SmearsSummary", "set_pixel_size", "set_smears"]


@dataclass(frozen=True)
class PixelSizeChange(CommandResult):
    """What `set_pixel_size` did.

    Attributes
    ----------
    store : str
        The store's folder.
    pixel_size_um : float
    changed : int
        Cells whose pixel size was set.
    kept : int
        Cells that have another known pixel size and keep it.
    """

    store: str
    pixel_size_um: float
    changed: int
    kept: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The same for a person, one statement per line."""
        lines = [f"{self.store}: pixel size of {self.changed:,} cells set to {self.pixel_size_um:g} um"]
        if self.kept:
            lines.append(f"Warning: {self.kept:,} cells have another pixel size and keep it; --force replaces it")
        return lines


def set_pixel_size(
    store: str | Path, pixel_size_um: float, *, cell_ids: Sequence[str] | None = None, force: bool = False
) -> PixelSizeChange:
    """State the pixel size of cells that are in a store already.

    Neither the patches nor the store's content hash change. Models that are trained on the store afterwards record it.

    Parameters
    ----------
    store : str or Path
        Folder of the store.
    pixel_size_um : float
        Side of a pixel of the patches in micrometres.
    cell_ids : sequence of str, optional
        The cells; all by default.
    force : bool
        Replace a pixel size that is known, too.

    Returns
    -------
    PixelSizeChange

    Raises
    ------
    ImageError
        If the pixel size is not a finite number above 0.
    StoreError
        If there is no store, it is damaged or being written, or lacks one of the cells.

    Examples
    --------
    >>> set_pixel_size("bm.zarr", 0.086).changed
    128
    """
    check_given(pixel_size_um)
    with StoreWriter(open_store(store)) as writer:
        cells = writer.cells
        chosen = np.ones(len(cells), bool)
        if cell_ids is not None:
            wanted = [cell_ids] if isinstance(cell_ids, str) else list(cell_ids)
            absent = sorted(set(wanted) - set(cells["cell_id"]))
            if absent:
                raise StoreError(
                    f"store {store} has no cell {printable(str(absent[0]))!r}; the column 'cell_id' of its cells lists "
                    "them"
                )
            chosen = cells["cell_id"].isin(wanted).to_numpy()
        sizes = cells["pixel_size_um"].to_numpy(np.float64, na_value=np.nan)
        other = chosen & (sizes != pixel_size_um)
        changed = other if force else other & np.isnan(sizes)
        if changed.any():
            writer.replace_cells(cells.assign(pixel_size_um=np.where(changed, pixel_size_um, sizes)))
    return PixelSizeChange(str(store), pixel_size_um, int(changed.sum()), int((other & ~changed).sum()))


@dataclass(frozen=True)
class SmearsSummary(CommandResult):
    """What `set_smears` did.

    Attributes
    ----------
    store : str
        The store's folder.
    named : int
        Fields and imported crops that the table names.
    fields : int
        Fields and imported crops among them whose smear or patient has changed.
    cells : int
        Cells whose smear or patient has changed.
    removed_split : dict or None
        The previous split, if it was removed because it now divides cells that belong together.
    warnings : tuple of str
        Rows of the table that fit nothing, and what is doubtful about the store's smears and patients now.
    """

    store: str
    named: int
    fields: int
    cells: int
    removed_split: dict[str, Any] | None
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The summary for a person, one statement per line."""
        lines = [
            f"smear or patient of {self.cells} cells of {self.fields} fields changed in {self.store}; the table names "
            f"{self.named} fields (an imported crop is its own field)"
        ]
        if self.removed_split is not None:
            shares = " ".join(map(str, self.removed_split["fractions"]))
            lines.append(
                "Warning: the split was removed, because it divided cells that belong together now; run "
                f"'hematokit split {shell_word(self.store)} --fractions {shares} --seed {self.removed_split['seed']}', "
                "and train again"
            )
        return [*lines, *(f"Warning: {warning}" for warning in self.warnings)]


def set_smears(store: str | Path, table: str | Path, *, progress: Progress = no_progress) -> SmearsSummary:
    """Set the smears and patients of fields and imported crops of a store, and of their cells.

    All changes are committed together or not at all. Groups are computed again. A split that then divides a group is
    removed, because figures on its test cells would be too good.

    Parameters
    ----------
    store : str or Path
        Folder of the store.
    table : str or Path
        CSV, see `hematokit.store.smears.load_smears`. Its rows name the files as they were given to ``tile`` or
        ``import``, or the store's field ids. Files that it does not name, and empty entries, leave the store unchanged.
    progress : Progress
        Called with the progress of the search for duplicates.

    Returns
    -------
    SmearsSummary

    Raises
    ------
    FieldError
        If the table cannot be read, names nothing that the store holds, or names something twice.
    StoreError
        If the store is empty, damaged, or is being written; if the disk is full.
    """
    smears = load_smears(table)
    opened = open_store(store)
    with StoreWriter(opened) as writer:
        cells, fields, near = writer.cells, opened.fields, writer.state.groups_near
        places = dict(zip(cells["field_id"], cells["source"], strict=True))
        places |= dict(zip(fields["field_id"], fields["source"], strict=True))
        if not places:
            raise StoreError(f"store {store} holds no fields and no crops; import or tile some first")
        found = smears.match({Path(source): field_id for field_id, source in places.items()}, partly=True)
        said = {field_id: found.said[Path(source)] for field_id, source in places.items()}
        before_cells, before_fields = cells.copy(), fields.copy()
        for number, column in enumerate(SMEAR_COLUMNS):
            for frame in (cells, fields):
                given = frame["field_id"].map({field_id: values[number] for field_id, values in said.items()})
                frame[column] = given.where(given != "", frame[column]).astype(object)
        columns = list(SMEAR_COLUMNS)
        changed = (cells[columns] != before_cells[columns]).any(axis=1)
        of_fields = set(fields.loc[(fields[columns] != before_fields[columns]).any(axis=1), "field_id"])
        of_fields |= set(cells.loc[changed, "field_id"])
        removed = None
        if of_fields:
            cells = group_cells(opened, writer, cells, near=near, progress=progress)[0]
            split = writer.state.split_info
            if split is not None and on_several_sides(cells, "group"):
                cells["split"], removed, split = "", split, None
            writer.replace_cells(cells, fields=fields, split_info=split, groups_stale=False, groups_near=near)
        settled = {source for source in places.values() if any(found.said[Path(source)])}
        rejects = opened.rejects
        writer.write_rejects(rejects[~(rejects["source"].isin(settled) & rejects["reason"].isin(OTHER_SMEARS))])
        counted = apply_corrections(cells, opened.corrections)
    warnings = id_warnings(counted["smear_id"].tolist(), counted["patient_id"].tolist(), "cells of the store")
    named = sum(any(values) for values in said.values())
    return SmearsSummary(str(store), named, len(of_fields), int(changed.sum()), removed, (*found.warnings, *warnings))
