"""The cells table while it is reviewed: completed, counted, and put into an order to go through."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from hematokit.errors import FieldError
from hematokit.fields.differential import count_differential
from hematokit.fields.summary import Summary, as_percent, as_percents
from hematokit.imaging.reading import printable
from hematokit.store.corrections import CONFIRMED, CORRECTED
from hematokit.taxonomy import MATEK_21, Taxonomy

__all__ = [
    "QUEUE_ORDERS",
    "complete_cells",
    "count_by_class",
    "counted_taxonomy",
    "order_queue",
    "summarize",
    "whole_taxonomy",
]

QUEUE_ORDERS: Final = ("least sure", "class", "place")
"""How `Review.queue` can be sorted."""

_TEXTS: Final = ("cell_id", "field_id", "label", "label_source")


def whole_taxonomy(taxonomy: Taxonomy) -> Taxonomy:
    """Return the classes that a person may give: a model of some of the 21 classes is corrected with all of them.

    Parameters
    ----------
    taxonomy : Taxonomy
        A model's.

    Returns
    -------
    Taxonomy
        `MATEK_21` if the model's classes are some of its, as they are there; else `taxonomy`.
    """
    theirs = {(entry.code, entry.name, entry.colour) for entry in taxonomy}
    ours = {(entry.code, entry.name, entry.colour) for entry in MATEK_21}
    return MATEK_21 if theirs <= ours else taxonomy


def complete_cells(cells: pd.DataFrame) -> pd.DataFrame:
    """A copy that has the columns that a review writes, and texts where texts are expected."""
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
    """Return the classes to count cells by: the model's, or all that a person may give if one of them was given."""
    reviewed = cells["reviewed"].isin([True]).to_numpy(bool)
    given = set(cells["label"].to_numpy(object)[reviewed]) - {""}
    return taxonomy if given <= set(taxonomy.codes) else whole_taxonomy(taxonomy)


def order_queue(
    cells: pd.DataFrame, shown: pd.Series[str], taxonomy: Taxonomy, order: str, code: str | None
) -> list[str]:
    """See `hematokit.fields.review.Review.queue`."""
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
    # A cell without a probability is as unsure as can be.
    sorted_rows = table.sort_values(["reviewed", *keys], kind="stable", na_position="first").index
    return [str(cell_id) for cell_id in cells["cell_id"].iloc[sorted_rows].tolist()]


def count_by_class(cells: pd.DataFrame, shown: pd.Series[str], taxonomy: Taxonomy, summary: Summary) -> pd.DataFrame:
    """See `hematokit.fields.review.Review.differential`."""
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
                "unsure": share.unsure,
            }
        )
    return pd.DataFrame(rows).astype(dict.fromkeys(("percent", "low", "high"), "float64"))


def summarize(cells: pd.DataFrame, taxonomy: Taxonomy, unsure_below: float) -> Summary:
    """See `hematokit.fields.review.Review.summary`."""
    if "predicted" not in cells.columns:
        cells = cells.assign(predicted="", probability=np.nan)
    # Classes that the taxonomy does not have (of a model that was exchanged, say) are counted as none.
    known = {*taxonomy.codes, ""}
    strange = [name for name in ("label", "predicted") if not set(cells[name]) <= known]
    if strange:
        cells = cells.assign(**{name: cells[name].where(cells[name].isin(list(known)), "") for name in strange})
    return count_differential(cells, taxonomy, unsure_below=unsure_below).overall


def _numbers(cells: pd.DataFrame, name: str) -> npt.NDArray[np.float64]:
    if name not in cells.columns:
        return np.full(len(cells), np.nan)
    return cells[name].to_numpy(np.float64, na_value=np.nan)
