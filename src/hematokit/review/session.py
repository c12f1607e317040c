"""Review of the cells of a field: correct, confirm, delete, add, undo and export, without a viewer.

Every change is written to the journal, a ``corrections.jsonl`` (`hematokit.store.corrections`), before the table shows
it. Changes that others write there are applied before each change, and by `Review.refresh`.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from hematokit.annotations.cells import MIN_PROBABILITY, called_classes, low_confidence_cells, order_columns
from hematokit.annotations.writing import write_csv, write_geojson, write_parquet
from hematokit.differential.summary import Summary
from hematokit.errors import FieldError, printable
from hematokit.files import one_line_write_errors
from hematokit.review.journal import ReviewJournal
from hematokit.review.table import (
    QUEUE_ORDERS,
    ReviewCells,
    complete_cells,
    differential_by_class,
    order_queue,
    summarize,
    whole_taxonomy,
)
from hematokit.store.corrections import Correction, new_edit, utc_now
from hematokit.taxonomy import Taxonomy

__all__ = ["QUEUE_ORDERS", "Review", "whole_taxonomy"]

_ENDINGS: Final = (".csv", ".geojson", ".parquet")
_PLACE: Final = ["y", "x", "y0", "x0", "height", "width"]

OnChange = Callable[[str, list[str]], object]


@dataclass(frozen=True)
class _Edit:
    """One step of `Review.undo`.

    Attributes
    ----------
    name : str
        Name of the edit in the journal.
    kind : str
        ``"label"``, ``"confirm"``, ``"delete"`` or ``"add"``.
    ids : list of str
        The cells.
    words : str
        Description for the user.
    """

    name: str
    kind: str
    ids: list[str]
    words: str


class Review:
    """Review of the cells of one field, or of several.

    It must be used from one thread.

    Parameters
    ----------
    cells : DataFrame
        A cells table (``docs/reference/cells-table.md``), classified or labelled; may be empty and without columns.
    taxonomy : Taxonomy
        The classes that cells may be given, usually `whole_taxonomy` of the model's.
    field_id : str
        Id of the field, if all cells are from one; cells that others added to it are read from the journal.
    who : str
        The reviewer's name, written into the journal.
    journal : Path, optional
        A ``corrections.jsonl``, created with the first correction. Its corrections are applied to the cells.
    min_probability : float
        Probability below which a cell that was not reviewed is low-confidence.
    pixel_size_um : float, optional
        Micrometres per pixel, for exports.

    Attributes
    ----------
    cells : DataFrame
        The table as it is now; do not change it. Index 0 to n - 1; the order of rows never changes.
    taxonomy, field_id, who, journal, min_probability, pixel_size_um
        As given.

    Raises
    ------
    StoreError
        If the journal is damaged.
    FieldError
        If a cell appears twice, or there is no column ``cell_id``.
    """

    def __init__(
        self,
        cells: pd.DataFrame,
        taxonomy: Taxonomy,
        *,
        field_id: str = "",
        who: str = "",
        journal: Path | None = None,
        min_probability: float = MIN_PROBABILITY,
        pixel_size_um: float | None = None,
    ) -> None:
        self.taxonomy = taxonomy
        self.field_id = field_id
        self.who = printable(who)
        self.journal = None if journal is None else Path(journal)
        self.min_probability = min_probability
        self.pixel_size_um = pixel_size_um
        self._changed: list[OnChange] = []
        self._done: list[_Edit] = []
        self._undone: list[_Edit] = []
        self._journal = ReviewJournal(self.journal)
        self._cells = ReviewCells(complete_cells(cells), self._journal, field_id)
        self.cells = self._cells.shown()

    def __len__(self) -> int:
        return len(self.cells)

    @property
    def deleted(self) -> pd.DataFrame:
        """Cells that were deleted, now or in the journal, as rows of a cells table."""
        return self._cells.all[~self._cells.present].reset_index(drop=True)

    def decision(self, cell_id: str) -> Correction | None:
        """Return the correction that gave a cell its class, or confirmed it; None where there is none."""
        return self._journal.decision(cell_id, "label", "confirm")

    # --- looking ------------------------------------------------------------------------------------------------------

    def shown_label(self) -> pd.Series[str]:
        """Return the class that each cell of `cells` counts as: its label where reviewed, else the prediction.

        For cells that were never classified, the label. Empty where there is neither.
        """
        return pd.Series(called_classes(self.cells), index=self.cells.index, name="shown", dtype="str")

    def low_confidence(self) -> pd.Series[bool]:
        """Return whether each cell of `cells` is low-confidence: below the threshold, and not reviewed."""
        return pd.Series(
            low_confidence_cells(self.cells, self.min_probability), index=self.cells.index, name="low_confidence"
        )

    def queue(self, order: str = "least sure", code: str | None = None) -> list[str]:
        """Return cells in the order of a review, those not reviewed yet first.

        Parameters
        ----------
        order : str
            ``"least sure"``: by rising probability; ``"class"``: by class in the taxonomy's order, then by rising
            probability; ``"place"``: from the top of the field to its bottom.
        code : str, optional
            Only cells that count as this class; the empty string for those without a class.

        Returns
        -------
        list of str
            Cell ids.

        Raises
        ------
        FieldError
            If there is no such order.
        TaxonomyError
            If there is no such class.
        """
        return order_queue(self.cells, self.shown_label(), self.taxonomy, order, code)

    def differential(self) -> pd.DataFrame:
        """Count the cells as they are now.

        Returns
        -------
        DataFrame
            One row per class in the taxonomy's order: ``code``, ``name``, ``colour``, ``lineage``, ``count``,
            ``percent`` (of the counted cells, 0 to 100; not a number for classes counted apart), ``low``, ``high``
            (its 95 % interval), ``reviewed`` (number of reviewed cells) and ``low_confidence`` (low-confidence cells).
        """
        return differential_by_class(self.cells, self.shown_label(), self.taxonomy, self.summary())

    def summary(self) -> Summary:
        """Return totals, blasts and the myeloid:erythroid ratio with their intervals, as `Differential.overall`.

        Per cent are of ``summary().counted`` cells; ``.blasts.share`` and ``.ratio.value`` may be None.
        """
        return summarize(self.cells, self.taxonomy, self.min_probability)

    # --- changing -----------------------------------------------------------------------------------------------------

    def on_change(self, callback: OnChange) -> None:
        """Call `callback(kind, cell_ids)` after each change.

        ``kind`` is ``"label"``, ``"confirm"``, ``"delete"``, ``"add"`` or ``"append"``. Undoing has the same kinds:
        ``"add"`` for a deletion, ``"delete"`` for an addition.
        """
        self._changed.append(callback)

    def append(self, cells: pd.DataFrame) -> None:
        """Append newly classified cells while a job runs. This is not a correction and cannot be undone.

        The journal's corrections are applied to them.

        Raises
        ------
        FieldError
            If a cell is already in the table.
        """
        if not len(cells):
            return
        appended = self._cells.append(complete_cells(cells))
        self.cells = self._cells.shown()
        self._notify("append", appended)

    def refresh(self) -> list[Correction]:
        """Apply the lines that others have written into the journal, and return those about these cells.

        Every change does it first. A viewer calls it regularly, to show the changes of others.

        Raises
        ------
        StoreError
            If the journal is damaged; nothing has changed then.
        """
        return self._apply_others(self._journal.read())

    def correct(self, cell_ids: Sequence[str], code: str) -> None:
        """Give cells a class. Cells that have it already are confirmed.

        Parameters
        ----------
        cell_ids : sequence of str
        code : str
            Of `taxonomy`.

        Raises
        ------
        TaxonomyError
            If there is no such class.
        FieldError
            If there is no such cell.
        StoreError
            If the journal cannot be written; nothing has changed then.
        """
        name = self.taxonomy[code]
        rows, ids = self._rows(cell_ids)
        self._edit("label", rows, ids, [name.code] * len(ids), f"{_some_cells(ids)} to {name.name}")

    def confirm(self, cell_ids: Sequence[str]) -> None:
        """Confirm the class of cells. Those without a class are left out.

        Raises
        ------
        FieldError
            If there is no such cell, or none of them has a class.
        StoreError
            If the journal cannot be written; nothing has changed then.
        """
        rows, ids = self._rows(cell_ids)
        shown = called_classes(self._cells.all.iloc[rows])
        known = np.flatnonzero(shown != "")
        if len(ids) and not len(known):
            raise FieldError(f"{_some_cells(ids)} has no class to confirm; give it one")
        rows, ids = rows[known], [ids[number] for number in known]
        self._edit("confirm", rows, ids, shown[known].tolist(), f"{_some_cells(ids)} confirmed")

    def delete(self, cell_ids: Sequence[str]) -> None:
        """Delete cells.

        Raises
        ------
        FieldError
            If there is no such cell.
        StoreError
            If the journal cannot be written; nothing has changed then.
        """
        rows, ids = self._rows(cell_ids)
        self._edit("delete", rows, ids, [""] * len(ids), f"{_some_cells(ids)} deleted")

    def add(self, cell: pd.DataFrame) -> str:
        """Add a missed cell, as `hematokit.pipelines.interactive.classify_one` makes it.

        Parameters
        ----------
        cell : DataFrame
            One row of a cells table.

        Returns
        -------
        str
            Its id: that of the row, with a number appended if another cell has it.

        Raises
        ------
        FieldError
            If it is not one row with a centre and a box.
        StoreError
            If the journal cannot be written; nothing has changed then.
        """
        new = _one_row(cell)
        self.refresh()
        cell_id = _free_id(str(new["cell_id"].iloc[0]) or f"{self.field_id or 'cell'}-added", self._cells)
        new = new.assign(cell_id=cell_id, field_id=self.field_id or str(new["field_id"].iloc[0]))
        entry = _addition(new, self.who)
        others = self._journal.append([entry])
        self._cells.extend(new, added=True)
        self._show(_Edit(entry.edit, "add", [cell_id], f"{_some_cells([cell_id])} added"), others)
        return cell_id

    def undo(self) -> str | None:
        """Undo the last change. The journal gets another line; nothing in it is erased.

        Returns
        -------
        str or None
            Description of what was undone; None if there is nothing.

        Raises
        ------
        StoreError
            If the journal cannot be written; nothing has changed then.
        """
        if not self._done:
            return None
        edit = self._done[-1]
        others = self._turn(edit, "undo")
        self._undone.append(self._done.pop())
        self._apply_and_notify(edit.ids, {"add": "delete", "delete": "add"}.get(edit.kind, edit.kind))
        self._apply_others(others)
        return edit.words

    def redo(self) -> str | None:
        """Redo the change that was undone last, unless something else was changed since.

        Returns
        -------
        str or None
            Description of what was redone; None if there is nothing.

        Raises
        ------
        StoreError
            If the journal cannot be written; nothing has changed then.
        """
        if not self._undone:
            return None
        edit = self._undone[-1]
        others = self._turn(edit, "redo")
        self._done.append(self._undone.pop())
        self._apply_and_notify(edit.ids, edit.kind)
        self._apply_others(others)
        return edit.words

    def export(self, path: str | Path) -> None:
        """Write the cells as CSV, GeoJSON (QuPath) or Parquet, by the file's ending, with reviewer and time.

        Raises
        ------
        FieldError
            If the ending is another, or the file cannot be written; an old file then stays.
        """
        decided = [self._journal.decision(str(name), "label", "confirm", "add") for name in self.cells["cell_id"]]
        _save(path, self.cells, decided, self.taxonomy, self.pixel_size_um)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _rows(self, cell_ids: Iterable[str]) -> tuple[npt.NDArray[np.int64], list[str]]:
        """Return the rows of cells in the table of all cells, each once, and their ids."""
        self.refresh()
        ids = list(dict.fromkeys([cell_ids] if isinstance(cell_ids, str) else cell_ids))
        missing = next((name for name in ids if not self._cells.is_present(name)), None)
        if missing is not None:
            raise _no_cell(missing, self._journal.decision(str(missing), "delete"), self.who)
        return self._cells.rows(ids), ids

    def _edit(self, kind: str, rows: npt.NDArray[np.int64], ids: list[str], codes: list[str], words: str) -> None:
        if not ids:
            return
        entries = _decisions(kind, self._cells.all.loc[rows], ids, codes, self.who)
        # The journal first: a change that cannot be saved must not be shown.
        others = self._journal.append(entries)
        self._show(_Edit(entries[0].edit, kind, ids, words), others)

    def _turn(self, edit: _Edit, kind: str) -> list[Correction]:
        self.refresh()
        return self._journal.append([Correction(kind, new_edit(), utc_now(), self.who, of=edit.name)])

    def _show(self, edit: _Edit, others: list[Correction]) -> None:
        self._done.append(edit)
        self._undone.clear()
        self._apply_and_notify(edit.ids, edit.kind)
        self._apply_others(others)

    def _apply_and_notify(self, ids: list[str], kind: str) -> None:
        self._cells.apply(ids)
        self.cells = self._cells.shown()
        self._notify(kind, ids)

    def _apply_others(self, news: list[Correction]) -> list[Correction]:
        """Apply lines of others, and return those about these cells."""
        touched = {name for entry in news for name in self._journal.cells_of(entry)}
        if not touched:
            return []
        before = {name for name in touched if self._cells.is_present(name)}
        ids = self._cells.apply(sorted(touched))
        self.cells = self._cells.shown()
        now = {name for name in ids if self._cells.is_present(name)}
        for kind, names in (("delete", before - now), ("add", now - before), ("label", now & before)):
            if names:
                self._notify(kind, sorted(names))
        return [entry for entry in news if not set(ids).isdisjoint(self._journal.cells_of(entry))]

    def _notify(self, kind: str, ids: list[str]) -> None:
        for callback in list(self._changed):
            callback(kind, list(ids))


def _decisions(
    kind: str, cells: pd.DataFrame, cell_ids: Sequence[str], codes: Sequence[str], who: str
) -> list[Correction]:
    """Return the journal's lines of one edit that gives cells, rows of a cells table, these classes."""
    old = called_classes(cells).tolist()
    edit, when = new_edit(), utc_now()
    # A cell that is given the class it has is confirmed.
    kinds = ["confirm" if kind == "label" and was == code else kind for was, code in zip(old, codes, strict=True)]
    lines = zip(kinds, cell_ids, cells["field_id"].tolist(), old, codes, strict=True)
    return [Correction(said, edit, when, who, name, field, *pair) for said, name, field, *pair in lines]


def _addition(cell: pd.DataFrame, who: str) -> Correction:
    """Return the journal's line that adds a cell, a row of a cells table with its id and its field's."""
    row = {str(name): value for name, value in cell.iloc[0].to_dict().items()}
    return Correction(
        "add",
        new_edit(),
        utc_now(),
        who,
        str(row.pop("cell_id")),
        str(row.pop("field_id")),
        "",
        str(called_classes(cell)[0]),
        row,
    )


def _one_row(cell: pd.DataFrame) -> pd.DataFrame:
    """Return a row of a cells table with all columns that a review needs.

    Raises
    ------
    FieldError
        If it is not one row with a centre and a box.
    """
    row = complete_cells(cell)
    if len(row) != 1 or not np.isfinite(row.reindex(columns=_PLACE).to_numpy(np.float64)).all():
        raise FieldError("one cell with y, x, y0, x0, height and width is added at a time; give such a row")
    return row


def _free_id(wanted: str, taken: Container[str]) -> str:
    """Return the wanted id, with a number appended if a cell has it already."""
    cell_id, number = wanted, 2
    while cell_id in taken:
        cell_id, number = f"{wanted}-{number}", number + 1
    return cell_id


def _no_cell(cell_id: object, gone: Correction | None, who: str) -> FieldError:
    """Return the error for a missing cell; `gone` is the line that deleted it."""
    shown = printable(str(cell_id))
    if gone is not None and gone.who != who:
        return FieldError(f"cell {shown} was deleted by {printable(gone.who) or 'somebody else'}; choose another")
    return FieldError(f"there is no cell {shown}; it may have been deleted: undo that first")


def _some_cells(cell_ids: Sequence[Any]) -> str:
    """Return the name of one cell, or the number of several."""
    return f"cell {printable(str(cell_ids[0]))}" if len(cell_ids) == 1 else f"{len(cell_ids):,} cells"


def _save(
    path: str | Path,
    cells: pd.DataFrame,
    decided: Sequence[Correction | None],
    taxonomy: Taxonomy,
    pixel_size_um: float | None,
) -> None:
    """Write cells to a file, with the last decision on each of them; see `Review.export`."""
    path = Path(path)
    ending = path.suffix.lower()
    if ending not in _ENDINGS:
        raise FieldError(
            f"{printable(str(path))}: cells are written to {', '.join(_ENDINGS)}; give a name with one of these endings"
        )
    signed = {
        name: pd.Series([getattr(entry, name, "") for entry in decided], index=cells.index, dtype="str")
        for name in ("who", "when")
    }
    table = order_columns(cells.assign(**signed))
    with one_line_write_errors(path.parent, FieldError, "choose another folder, or free disk space"):
        if ending == ".csv":
            write_csv(path, table)
        elif ending == ".parquet":
            write_parquet(path, table)
        else:
            write_geojson(path, table, taxonomy, pixel_size_um=pixel_size_um)
