"""Tables of cells put one behind the other, whatever columns and types each of them has."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

__all__ = ["join_cells"]


def join_cells(cells: pd.DataFrame, more: pd.DataFrame) -> pd.DataFrame:
    """Put rows behind a cells table; texts that are missing are empty, flags false, numbers not a number.

    Parameters
    ----------
    cells, more : DataFrame
        Columns that only one of them has are kept.

    Returns
    -------
    DataFrame
        Index 0 to n - 1.
    """
    if not len(cells) and set(cells.columns) <= set(more.columns):
        # The order of columns, too, is that of the first table with rows.
        return more.reset_index(drop=True)
    names = [*cells.columns, *(name for name in more.columns if name not in cells.columns)]
    kinds = {name: _kind(cells, more, name) for name in names}
    parts = [_as(table, kinds) for table in (cells, more)]
    # Without rows, a table has nothing to say of types: an empty column of objects would make all of them objects.
    filled = [part for part in parts if len(part)] or parts[:1]
    return pd.concat(filled, ignore_index=True)


def _kind(cells: pd.DataFrame, more: pd.DataFrame, name: str) -> Any:
    """The type of a column: the first table's, unless it has only objects there, as of numbers that are all missing."""
    kinds = [table[name].dtype for table in (cells, more) if name in table.columns]
    return next((kind for kind in kinds if not pd.api.types.is_object_dtype(kind)), kinds[0])


def _as(table: pd.DataFrame, kinds: dict[str, Any]) -> pd.DataFrame:
    """A table with columns of these types; itself if it has them, since taking a wide table apart takes its time."""
    if dict(table.dtypes) == kinds and list(table.columns) == list(kinds):
        return table
    return pd.DataFrame({name: _fitted(table, name, kind) for name, kind in kinds.items()})


def _fitted(table: pd.DataFrame, name: str, kind: Any) -> pd.Series[Any]:
    """A column of a table in a type, or what stands for a missing one."""
    if name not in table.columns:
        missing: Any = None
        if pd.api.types.is_bool_dtype(kind):
            missing = False
        elif pd.api.types.is_numeric_dtype(kind):
            missing, kind = math.nan, np.dtype(np.float64)
        elif pd.api.types.is_string_dtype(kind):
            missing = ""
        filled: pd.Series[Any] = pd.Series([missing] * len(table), index=table.index, dtype=kind)
        return filled
    column: pd.Series[Any] = table[name]
    if not len(column) or column.dtype == kind:
        return column
    if pd.api.types.is_bool_dtype(kind):
        return column.isin([True])
    if pd.api.types.is_numeric_dtype(kind):
        numbers: pd.Series[Any] = pd.to_numeric(column, errors="coerce")
        fits = not pd.api.types.is_integer_dtype(kind) or bool((numbers % 1 == 0).all())
        fitted: pd.Series[Any] = numbers.astype(kind if fits else np.float64)
        return fitted
    if isinstance(kind, pd.StringDtype):
        column = column.where(column.map(lambda value: isinstance(value, str)), "").astype(kind)
    return column
