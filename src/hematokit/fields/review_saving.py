"""Reviewed cells as a file: CSV, GeoJSON or Parquet, with who decided on each cell and when."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pandas as pd

from hematokit.errors import FieldError
from hematokit.fields.cells import order_columns
from hematokit.fields.exports import write_csv, write_geojson, write_parquet
from hematokit.files import one_line_write_errors
from hematokit.imaging.reading import printable
from hematokit.store.corrections import Correction
from hematokit.taxonomy import Taxonomy

__all__ = ["save_reviewed"]

_ENDINGS: Final = (".csv", ".geojson", ".parquet")


def save_reviewed(
    path: str | Path,
    cells: pd.DataFrame,
    told: Sequence[Correction | None],
    taxonomy: Taxonomy,
    pixel_size_um: float | None,
) -> None:
    """See `hematokit.fields.review.Review.export`; `told` is what was decided last on each of the cells."""
    path = Path(path)
    ending = path.suffix.lower()
    if ending not in _ENDINGS:
        raise FieldError(f"{printable(str(path))}: cells are written to {', '.join(_ENDINGS)}; end the name so")
    signed = {
        name: pd.Series([getattr(entry, name, "") for entry in told], index=cells.index, dtype="str")
        for name in ("who", "when")
    }
    table = order_columns(cells.assign(**signed))
    with one_line_write_errors(path.parent, FieldError, "choose another folder, or make room"):
        if ending == ".csv":
            write_csv(path, table)
        elif ending == ".parquet":
            write_parquet(path, table)
        else:
            write_geojson(path, table, taxonomy, pixel_size_um=pixel_size_um)
