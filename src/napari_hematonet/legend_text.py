"""The differential in words and tables, as the legend shows, copies and exports it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pandas as pd

from hematokit.errors import FieldError
from hematokit.files import one_line_write_errors, write_atomically, write_json
from hematokit.imaging.reading import printable

if TYPE_CHECKING:
    from hematokit.differential.summary import Ratio, Share, Summary
    from hematokit.review.session import Review
    from hematokit.taxonomy import Taxonomy

__all__ = ["COLUMNS", "Counted", "as_text", "headline", "row_texts", "write_differential"]

COLUMNS: Final = ("Class", "Cells", "%", "95 % interval", "Unsure", "Reviewed")


def row_texts(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the cells of a row of the legend: one of `Review.differential`, as a dict."""
    return (
        printable(str(entry["name"])),
        f"{entry['count']:,}",
        _number(entry["percent"]),
        "" if _missing(entry["low"]) else f"{entry['low']:.1f} – {entry['high']:.1f}",
        f"{entry['unsure']:,}" if entry["unsure"] else "",
        f"{entry['reviewed']:,}" if entry["reviewed"] else "",
    )


def _missing(value: float | None) -> bool:
    return value is None or math.isnan(value)


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.1f}"


@dataclass(frozen=True)
class Counted:
    """The differential of the cells as they were at one moment.

    Attributes
    ----------
    summary : Summary
        Totals, blasts and M:E.
    table : DataFrame
        As `Review.differential`.
    reviewed : int
        Cells that a person has looked at.
    """

    summary: Summary
    table: pd.DataFrame
    reviewed: int

    @classmethod
    def of(cls, cells: pd.DataFrame, taxonomy: Taxonomy, unsure_below: float) -> Counted:
        """Count cells.

        A review never changes the table that it has shown once as its ``cells``, so that this may be done in another
        thread.
        """
        from hematokit.annotations.cells import called_classes
        from hematokit.review.table import count_by_class, summarize

        summary = summarize(cells, taxonomy, unsure_below)
        shown = pd.Series(called_classes(cells), index=cells.index)
        table = count_by_class(cells, shown, taxonomy, summary)
        return cls(summary, table, int(cells["reviewed"].to_numpy(bool).sum()))


def headline(counted: Counted) -> str:
    """Return the figures above the table: cells, blasts, M:E."""
    entry = counted.summary
    parts = [f"{entry.cells:,} cells: {entry.counted:,} counted"]
    parts += [f"{entry.unsure:,} unsure"] if entry.unsure else []
    parts += [f"{entry.apart:,} counted apart"] if entry.apart else []
    parts += [f"{counted.reviewed:,} reviewed"] if counted.reviewed else []
    return "\n".join([", ".join(parts), f"Blasts {_share(entry.blasts)}", f"M:E {_ratio(entry.ratio)}"])


def _share(share: Share | None) -> str:
    if share is None or share.share is None:
        return "not defined"
    low, high = share.interval or (math.nan, math.nan)
    return f"{100 * share.share:.1f} % ({100 * low:.1f} – {100 * high:.1f})"


def _ratio(ratio: Ratio) -> str:
    if ratio.value is None:
        return f"not defined: {ratio.reason}"
    if ratio.interval is None:
        return f"{ratio.value:.2g}"
    low, high = ratio.interval
    return f"{ratio.value:.2g} ({low:.2g} – {'∞' if high is None else f'{high:.2g}'})"


def as_text(counted: Counted) -> str:
    """Return the differential for a spreadsheet: tab-separated, with a headline."""
    lines = [headline(counted), "", "\t".join(("Code", *COLUMNS))]
    rows = counted.table.to_dict("records")
    lines += ["\t".join((str(entry["code"]), *row_texts({str(key): entry[key] for key in entry}))) for entry in rows]
    return "\n".join([*lines, "", "For research use only"])


def write_differential(review: Review, path: str | Path) -> None:
    """Write the differential of the cells that are shown to a person, as CSV or JSON.

    Parameters
    ----------
    review : Review
    path : path
        Ending in ``.csv`` (the table by class) or ``.json`` (also totals, blasts and M:E with their intervals).

    Raises
    ------
    FieldError
        If the ending is another, or the file cannot be written; an old file then stays.
    """
    from hematokit.annotations.writing import csv_text

    path = Path(path)
    ending = path.suffix.lower()
    if ending not in (".csv", ".json"):
        raise FieldError(f"{printable(str(path))}: the differential is written to .csv or .json; end the name so")
    table = review.differential()
    with one_line_write_errors(path.parent, FieldError, "choose another folder, or make room"):
        if ending == ".csv":
            write_atomically(path, csv_text(table))
        else:
            summary = {**review.summary().to_dict(), "reviewed": int(review.cells["reviewed"].sum())}
            write_json(path, {"kind": "hematokit differential of a review", "research_use_only": True, **summary})
