"""Checks of smear and patient identifiers: what lets cells of one patient get to several sides of a split."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import pandas as pd

__all__ = ["id_warnings", "some_of"]


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
        A line each: patients known for some only, identifiers that differ by case, spaces or the form of accents only,
        and smears with several patients.
    """
    table = pd.DataFrame({"smear": list(smears), "patient": list(patients)}, dtype=object)
    lines = []
    unknown = int((table["patient"] == "").sum())
    if 0 < unknown < len(table):
        lines.append(f"{unknown} of {len(table)} {what} have no patient, though the others have one")
    pairs = table.drop_duplicates()
    for name in ("patient", "smear"):
        ids = pairs.loc[pairs[name] != "", name].drop_duplicates().sort_values()
        alike = [list(group) for _, group in ids.groupby(ids.map(_essence)) if len(group) > 1]
        if alike:
            listed = some_of([" and ".join(map(repr, group)) for group in alike])
            lines.append(
                f"{name}s {listed} differ only by case or spaces and count as different {name}s; write each in one way"
            )
    known = pairs[(pairs["smear"] != "") & (pairs["patient"] != "")]
    several = [
        f"{smear!r} of {' and '.join(map(repr, sorted(group)))}"
        for smear, group in known.groupby("smear")["patient"]
        if len(group) > 1
    ]
    if several:
        lines.append(f"a smear is of one patient, but these have several: {some_of(several)}")
    return lines


def _essence(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())
