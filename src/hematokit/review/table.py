"""The cells table during a review: its rows with corrections applied, its order and its counts."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from hematokit.differential.differential import count_differential
from hematokit.differential.summary import Summary, as_percent, as_percents
from hematokit.errors import FieldError, printable
from hematokit.review.journal import ReviewJournal
from hematokit.store.corrections import CONFIRMED, CORRECTED, join_cells, lay_over
from hematokit.taxonomy import MATEK_21, Taxonomy

__all__ = [
    "QUEUE_ORDERS",
    "ReviewCells",
    "complete_cells",
    "differential_by_class",
    "counted_taxonomy",
    "order_queue",
    "summarize",
    "whole_taxonomy",
]

QUEUE_ORDERS: Final = ("least sure", "class", "place")
"""Orders of `Review.queue`."""

_TEXTS: Final = ("cell_id", "field_id", "label", "label_source")


def whole_taxonomy(taxonomy: Taxonomy) -> Taxonomy:
    """Return the classes of corrections: all 21 for a model of some of them.

    Parameters
    ----------
    taxonomy : Taxonomy
        A model's.

    Returns
    -------
    Taxonomy
        `MATEK_21` if it has all of the model's classes under the same names and colours; else `taxonomy`.
    """
    theirs = {(entry.code, entry.name, entry.colour) for entry in taxonomy}
    ours = {(entry.code, entry.name, entry.colour) for entry in MATEK_21}
    return MATEK_21 if theirs <= ours else taxonomy


def complete_cells(cells: pd.DataFrame) -> pd.DataFrame:
    """Return a copy of a cells table with the columns that a review writes, and text in the columns of text."""
    table = cells.reset_index(drop=True)
    if len(table) and "cell_id" not in table.columns:
        raise FieldError("the cells have no column 'cell_id'; give a cells table")
    texts = {}
    for name in _TEXTS:
        column = table[name] if name in table.columns else pd.Series([""] * len(table), dtype="str")
        texts[name] = column.astype(object).where(column.notna(), "").astype("str")
    if "reviewed" in table.columns:
        flags = table["reviewed"].isin([True])
    else:
        flags = texts["label_source"].isin([CORRECTED, CONFIRMED])
    return table.assign(**texts, reviewed=flags.astype(bool))


def counted_taxonomy(cells: pd.DataFrame, taxonomy: Taxonomy) -> Taxonomy:
    """Return the classes to count cells by: the model's, or those of corrections if one of the others was given."""
    reviewed = cells["reviewed"].isin([True]).to_numpy(bool)
    given = set(cells["label"].to_numpy(object)[reviewed]) - {""}
    return taxonomy if given <= set(taxonomy.codes) else whole_taxonomy(taxonomy)


def order_queue(
    cells: pd.DataFrame, shown: pd.Series[str], taxonomy: Taxonomy, order: str, code: str | None
) -> list[str]:
    """Return cell ids in an order; see `Review.queue`."""
    if order not in QUEUE_ORDERS:
        raise FieldError(f"no order {printable(order)!r} of a review; choose one of {', '.join(QUEUE_ORDERS)}")
    if code:
        code = taxonomy[code].code
    number = {name: place for place, name in enumerate(taxonomy.codes)}
    table = pd.DataFrame(
        {
            "reviewed": cells["reviewed"].to_numpy(bool),
            "class": shown.map(number).fillna(len(number)),
            "probability": _numbers(cells, "probability"),
            "y": _numbers(cells, "y"),
            "x": _numbers(cells, "x"),
        }
    )
    keys = {"least sure": ["probability"], "class": ["class", "probability"], "place": ["y", "x"]}[order]
    if code is not None:
        table = table[(shown == code).to_numpy(bool)]
    # A missing probability is the lowest.
    sorted_rows = table.sort_values(["reviewed", *keys], kind="stable", na_position="first").index
    return [str(cell_id) for cell_id in cells["cell_id"].iloc[sorted_rows].tolist()]


def differential_by_class(
    cells: pd.DataFrame, shown: pd.Series[str], taxonomy: Taxonomy, summary: Summary
) -> pd.DataFrame:
    """Return the differential by class; see `Review.differential`."""
    reviewed = shown[cells["reviewed"].to_numpy(bool)].value_counts()
    rows = []
    for entry in taxonomy:
        share = summary.classes[entry.code]
        low, high = as_percents(share.interval) or (None, None)
        rows.append(
            {
                "code": entry.code,
                "name": entry.name,
                "colour": entry.colour,
                "lineage": entry.lineage,
                "count": share.count,
                "percent": as_percent(share.share),
                "low": low,
                "high": high,
                "reviewed": int(reviewed.get(entry.code, 0)),
                "low_confidence": share.low_confidence,
            }
        )
    return pd.DataFrame(rows).astype(dict.fromkeys(("percent", "low", "high"), "float64"))


def summarize(cells: pd.DataFrame, taxonomy: Taxonomy, min_probability: float) -> Summary:
    """Return the summary of cells, classified or not; see `Review.summary`."""
    if "predicted" not in cells.columns:
        cells = cells.assign(predicted="", probability=np.nan)
    # Classes missing from the taxonomy (after a change of the model) are counted as no class.
    known = {*taxonomy.codes, ""}
    strange = [name for name in ("label", "predicted") if not set(cells[name]) <= known]
    if strange:
        cells = cells.assign(**{name: cells[name].where(cells[name].isin(list(known)), "") for name in strange})
    return count_differential(cells, taxonomy, min_probability=min_probability).overall


def _numbers(cells: pd.DataFrame, name: str) -> npt.NDArray[np.float64]:
    if name not in cells.columns:
        return np.full(len(cells), np.nan)
    return cells[name].to_numpy(np.float64, na_value=np.nan)


_TOUCHED: Final = ("label", "label_source", "reviewed")


class ReviewCells:
    """Rows of cells with the journal's corrections applied; deleted cells keep their rows.

    Parameters
    ----------
    table : DataFrame
        From `complete_cells`; not changed.
    journal : ReviewJournal
    field_id : str
        The field whose added cells are read from the journal; empty for all.

    Attributes
    ----------
    all : DataFrame
        Every row as it is now.
    present : ndarray of bool
        Which rows count as cells.

    Raises
    ------
    FieldError
        If a cell is in the table twice.
    """

    def __init__(self, table: pd.DataFrame, journal: ReviewJournal, field_id: str) -> None:
        _check_ids(table)
        self._journal = journal
        self._field_id = field_id
        self._added: set[str] = set()
        # The table without corrections. Copies are lazy: columns are copied when they change.
        self._base = table
        self.all = table.copy(deep=False)
        self.present = np.ones(len(table), bool)
        self._place = {str(cell_id): row for row, cell_id in enumerate(table["cell_id"])}
        self.apply(journal.cell_ids())

    def __contains__(self, cell_id: object) -> bool:
        return cell_id in self._place

    def shown(self) -> pd.DataFrame:
        """Return the rows that count, index 0 to n - 1."""
        return self.all.copy(deep=False) if self.present.all() else self.all[self.present].reset_index(drop=True)

    def rows(self, cell_ids: Sequence[str]) -> npt.NDArray[np.int64]:
        """Return the numbers of rows."""
        return np.array([self._place[name] for name in cell_ids], np.int64)

    def is_present(self, cell_id: str) -> bool:
        """Return whether there is such a cell, and it counts."""
        return cell_id in self._place and bool(self.present[self._place[cell_id]])

    def extend(self, new: pd.DataFrame, *, added: bool = False) -> None:
        """Append rows; `added` ones are from the journal."""
        start = len(self.all)
        self._base, self.all = join_cells(self._base, new), join_cells(self.all, new)
        self.present = np.append(self.present, np.ones(len(new), bool))
        self._place |= {str(cell_id): start + row for row, cell_id in enumerate(new["cell_id"])}
        if added:
            self._added |= set(new["cell_id"])

    def append(self, new: pd.DataFrame) -> list[str]:
        """Append detected cells, and return the ids of those that count and did not before.

        Raises
        ------
        FieldError
            If a cell is already in the table and was not added by a person.
        """
        # A cell that a person added and a detector detects at the same pixel is one cell, which undo does not remove.
        again = [name for name in new["cell_id"].tolist() if name in self._added]
        rest = new[~new["cell_id"].isin(again)].reset_index(drop=True)
        _check_ids(rest, self._place)
        there = {name for name in again if self.is_present(name)}
        self._added -= set(again)
        self.extend(rest)
        ids = [*again, *rest["cell_id"].tolist()]
        self.apply(ids)
        return [name for name in ids if self.is_present(name) and name not in there]

    def apply(self, cell_ids: Iterable[str]) -> list[str]:
        """Apply the journal's corrections to cells, and return those of the cells that are in this table."""
        ids = list(dict.fromkeys(cell_ids))
        missing = [entry for name in ids if name not in self and (entry := self._journal.added(name)) is not None]
        ours = [entry for entry in missing if not self._field_id or entry.field_id in ("", self._field_id)]
        if ours:
            table, _ = lay_over(self._base, ours, add=lambda entry: True)
            self.extend(complete_cells(table.iloc[len(self._base) :]), added=True)
        ids = [name for name in ids if name in self]
        if not ids:
            return []
        rows = self.rows(ids)
        standing = [entry for name in ids for entry in self._journal.standing(name)]
        laid, kept = lay_over(self._base.iloc[rows].reset_index(drop=True), standing)
        for name in _TOUCHED:
            self.all.loc[rows, name] = laid[name].to_numpy()
        gone = [name in self._added and self._journal.added(name) is None for name in ids]
        self.present[rows] = kept & ~np.array(gone, bool)
        return ids


def _check_ids(table: pd.DataFrame, there: Container[str] = ()) -> None:
    ids = table["cell_id"]
    # One by one: a small batch of a running classification is compared with all cells.
    known = next((name for name in ids.tolist() if name in there), None)
    if known is not None:
        raise FieldError(f"cell {printable(str(known))} is already in the table; give each cell once")
    twice = ids[ids.duplicated()]
    if len(twice):
        raise FieldError(f"cell {printable(str(twice.iloc[0]))} appears twice in the table; give each cell once")
