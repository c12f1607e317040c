"""Checks of smear and patient identifiers, which decide whether cells of one patient stay on one side of a split."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Final

import pandas as pd

__all__ = ["SMEAR_COLUMNS", "composed", "id_warnings", "on_several_sides", "some_of"]

SMEAR_COLUMNS: Final = ("smear_id", "patient_id")
"""Columns of cells and fields that say where they are from."""


def composed(name: str) -> str:
    """Return a name with composed accents: they look the same as decomposed ones, which macOS writes in file names."""
    return unicodedata.normalize("NFC", name)


def some_of(names: Sequence[str], count: int = 3) -> str:
    """List the first names, and say how many more there are.

    Examples
    --------
    >>> some_of(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")


def id_warnings(smears: Sequence[str], patients: Sequence[str], what: str) -> list[str]:
    """Say what is doubtful about the smears and patients of cells or fields.

    Parameters
    ----------
    smears, patients : sequence of str
        One of each for every cell or field; empty where unknown.
    what : str
        What they belong to, for the text: ``"cells"``.

    Returns
    -------
    list of str
        A line each: patients known for some only, identifiers that differ by case or spaces only, and
        smears with several patients.
    """
    # As for groups, composed and decomposed accents are equal.
    table = pd.DataFrame({"smear": list(map(composed, smears)), "patient": list(map(composed, patients))}, dtype=object)
    lines = []
    unknown = int((table["patient"] == "").sum())
    if 0 < unknown < len(table):
        lines.append(f"{unknown} of {len(table)} {what} have no patient, though the others have one")
    pairs = table.drop_duplicates()
    for name in ("patient", "smear"):
        known = pairs.loc[pairs[name] != "", name].drop_duplicates().sort_values()
        alike = [list(group) for _, group in known.groupby(known.map(_essence)) if len(group) > 1]
        if alike:
            listed = some_of([" and ".join(map(repr, group)) for group in alike])
            lines.append(
                f"{name}s {listed} differ only by case or spaces and count as different {name}s; write each in one way"
            )
    both = pairs[(pairs["smear"] != "") & (pairs["patient"] != "")]
    several = [
        f"{smear!r} of {' and '.join(map(repr, sorted(group)))}"
        for smear, group in both.groupby("smear")["patient"]
        if len(group) > 1
    ]
    if several:
        lines.append(f"a smear is of one patient, but these have several: {some_of(several)}")
    return lines


def on_several_sides(cells: pd.DataFrame, column: str) -> list[str]:
    """Find the patients, smears or groups whose cells a split divides.

    Parameters
    ----------
    cells : DataFrame
        With ``split``, empty for cells in no split.
    column : str
        ``"patient_id"``, ``"smear_id"`` or ``"group"``; an empty value is none.

    Returns
    -------
    list of str
        Sorted.
    """
    divided = cells[(cells["split"] != "") & (cells[column] != "")]
    sides = divided.groupby(column)["split"].nunique()
    return [str(name) for name in sides.index[sides > 1]]


def _essence(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())
