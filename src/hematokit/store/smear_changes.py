"""Setting smears and patients in an existing store, where they were wrong or missing."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hematokit.errors import StoreError
from hematokit.files import shell_word
from hematokit.progress import Progress, no_progress
from hematokit.store.corrections import apply_corrections
from hematokit.store.grouping import group_cells
from hematokit.store.importing import OTHER_SMEARS
from hematokit.store.patchstore import open_store
from hematokit.store.smears import SMEAR_COLUMNS, id_warnings, load_smears, on_several_sides

__all__ = ["SmearsSummary", "set_smears"]


@dataclass(frozen=True)
class SmearsSummary:
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
        What the store said of its split, if that was removed because it now divides cells that belong together.
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
        ``import``, or the store's field ids. What it does not name, or leaves empty, stays as it is.
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
    with opened.writer() as writer:
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
