"""What a person does to cells, as lines of a journal and in words."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd

from hematokit.errors import FieldError
from hematokit.fields.review_table import complete_cells
from hematokit.fields.tallies import called_classes
from hematokit.imaging.reading import printable
from hematokit.store.corrections import Correction, new_edit, utc_now

__all__ = ["Edit", "addition", "decisions", "free_id", "no_cell", "one_cell_row", "some_cells"]

_PLACE: Final = ["y", "x", "y0", "x0", "height", "width"]


@dataclass(frozen=True)
class Edit:
    """One step of `hematokit.fields.review.Review.undo`.

    Attributes
    ----------
    name : str
        As the journal's lines have it.
    kind : str
    ids : list of str
        The cells.
    words : str
        For people.
    """

    name: str
    kind: str
    ids: list[str]
    words: str


def decisions(
    kind: str, cells: pd.DataFrame, cell_ids: Sequence[str], codes: Sequence[str], who: str
) -> list[Correction]:
    """Return the lines of one edit of cells, rows of a cells table, that get these classes."""
    old = called_classes(cells).tolist()
    edit, when = new_edit(), utc_now()
    # Giving a cell the class that it has is looking at it and agreeing.
    kinds = ["confirm" if kind == "label" and was == code else kind for was, code in zip(old, codes, strict=True)]
    told = zip(kinds, cell_ids, cells["field_id"].tolist(), old, codes, strict=True)
    return [Correction(said, edit, when, who, name, field, *pair) for said, name, field, *pair in told]


def addition(cell: pd.DataFrame, who: str) -> Correction:
    """Return the line that adds a cell, a row of a cells table with its id and its field's."""
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


def one_cell_row(cell: pd.DataFrame) -> pd.DataFrame:
    """Return a row of a cells table with all that a review needs.

    Raises
    ------
    FieldError
        If it is not one row with a place and a box.
    """
    row = complete_cells(cell)
    if len(row) != 1 or not np.isfinite(row.reindex(columns=_PLACE).to_numpy(np.float64)).all():
        raise FieldError("one cell with y, x, y0, x0, height and width is added at a time; give such a row")
    return row


def free_id(wanted: str, taken: Container[str]) -> str:
    """Return an id that no cell has: the one wanted, or that with a number behind it."""
    cell_id, number = wanted, 2
    while cell_id in taken:
        cell_id, number = f"{wanted}-{number}", number + 1
    return cell_id


def no_cell(cell_id: object, gone: Correction | None, who: str) -> FieldError:
    """Return what to say of a cell that is not there; `gone` is the line that deleted it."""
    shown = printable(str(cell_id))
    if gone is not None and gone.who != who:
        return FieldError(f"cell {shown} was deleted by {printable(gone.who) or 'somebody else'}; choose another")
    return FieldError(f"there is no cell {shown}; it may have been deleted: undo that first")


def some_cells(cell_ids: Sequence[Any]) -> str:
    """Name one cell, or say how many they are."""
    return f"cell {printable(str(cell_ids[0]))}" if len(cell_ids) == 1 else f"{len(cell_ids):,} cells"
