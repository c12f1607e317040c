"""The pixel size of a store's cells: what is known of it, and stating it for cells that are in the store already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hematokit.errors import StoreError
from hematokit.imaging.fieldfiles.pixelsize import check_given, is_same_size
from hematokit.imaging.reading import printable
from hematokit.store.patchstore import open_store

__all__ = ["PixelSizeChange", "PixelSizes", "field_pixel_sizes", "set_pixel_size", "summarize_pixel_sizes"]


@dataclass(frozen=True)
class PixelSizes:
    """Pixel sizes of the patches of some cells, in micrometres.

    Attributes
    ----------
    cells, unknown : int
        All cells, and those of unknown pixel size.
    smallest, median, largest : float or None
        Of the others; None where there are none.
    """

    cells: int
    unknown: int
    smallest: float | None
    median: float | None
    largest: float | None

    @property
    def common(self) -> float | None:
        """The median, if the known pixel sizes differ by less than 2 %; else None."""
        if self.smallest is None or self.largest is None:
            return None
        return self.median if is_same_size(self.largest, self.smallest) else None

    @property
    def text(self) -> str:
        """The known pixel sizes: ``"0.09 um"``, ``"0.09 to 0.25 um"``, ``"not known"``."""
        if self.common is not None:
            return f"{self.common:.4g} um"
        return "not known" if self.smallest is None else f"{self.smallest:.4g} to {self.largest:.4g} um"

    def problem(self, cells: str = "cells") -> str:
        """Say in a few words what is unknown or differs; empty if nothing does.

        Parameters
        ----------
        cells : str
            What to call the cells.
        """
        parts = []
        if self.unknown:
            count = "" if self.unknown == self.cells else f"{self.unknown:,} of {self.cells:,} "
            parts.append(f"the pixel size of {count or 'the '}{cells} is not known")
        if self.common is None and self.smallest is not None:
            parts.append(f"the {cells} have different pixel sizes, {self.text}")
        return "; ".join(parts)

    def mismatch(self, model_um: float | None, *, unknown: bool = True) -> str:
        """Say in one line why the cells may not have the scale that a model was trained at; empty if they have it.

        Parameters
        ----------
        model_um : float or None
            Pixel size that the model was trained at.
        unknown : bool
            Say so where one of the two is not known, too.
        """
        known = [size for size in (self.smallest, self.largest) if size is not None]
        if model_um is not None and not all(is_same_size(model_um, size) for size in known):
            return (
                f"the cells have a pixel size of {self.text}, the model was trained at {model_um:.4g} um: crops are "
                "not rescaled, so the model sees them at the wrong scale; give crops of its pixel size"
            )
        if unknown and model_um is None:
            return "the pixel size that the model was trained at is not known: make sure that the cells have its scale"
        if unknown and self.unknown:
            return f"{self.problem()}: make sure that they have the scale of the model, {model_um:.4g} um per pixel"
        return ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def summarize_pixel_sizes(cells: pd.DataFrame) -> PixelSizes:
    """Summarise the pixel sizes of cells.

    Parameters
    ----------
    cells : DataFrame
        Rows of a store's table.
    """
    sizes = cells["pixel_size_um"].to_numpy(np.float64, na_value=np.nan)
    known = sizes[np.isfinite(sizes)]
    if not len(known):
        return PixelSizes(len(sizes), len(sizes), None, None, None)
    return PixelSizes(
        len(sizes), len(sizes) - len(known), float(known.min()), float(np.median(known)), float(known.max())
    )


def field_pixel_sizes(cells: pd.DataFrame) -> dict[str, float]:
    """Return the pixel size of each field by id, as its cells have it: the median of those that are known."""
    known = cells.dropna(subset="pixel_size_um")
    return {str(name): float(size) for name, size in known.groupby("field_id")["pixel_size_um"].median().items()}


@dataclass(frozen=True)
class PixelSizeChange:
    """What `set_pixel_size` did.

    Attributes
    ----------
    store : str
        The store's folder.
    pixel_size_um : float
    changed : int
        Cells whose pixel size was set.
    kept : int
        Cells that have another known pixel size and keep it.
    """

    store: str
    pixel_size_um: float
    changed: int
    kept: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The same for a person, one statement per line."""
        lines = [f"{self.store}: pixel size of {self.changed:,} cells set to {self.pixel_size_um:g} um"]
        if self.kept:
            lines.append(f"Warning: {self.kept:,} cells have another pixel size and keep it; --force replaces it")
        return lines


def set_pixel_size(
    store: str | Path, pixel_size_um: float, *, cell_ids: Sequence[str] | None = None, force: bool = False
) -> PixelSizeChange:
    """State the pixel size of cells that are in a store already.

    Neither the patches nor the store's content hash change. Models that are trained on the store afterwards record it.

    Parameters
    ----------
    store : str or Path
        Folder of the store.
    pixel_size_um : float
        Side of a pixel of the patches in micrometres.
    cell_ids : sequence of str, optional
        The cells; all by default.
    force : bool
        Replace a pixel size that is known, too.

    Returns
    -------
    PixelSizeChange

    Raises
    ------
    ImageError
        If the pixel size is not a finite number above 0.
    StoreError
        If there is no store, it is damaged or being written, or lacks one of the cells.

    Examples
    --------
    >>> set_pixel_size("marrow.zarr", 0.086).changed  # doctest: +SKIP
    5759
    """
    check_given(pixel_size_um)
    with open_store(store).writer() as writer:
        cells = writer.cells
        chosen = np.ones(len(cells), bool)
        if cell_ids is not None:
            wanted = [cell_ids] if isinstance(cell_ids, str) else list(cell_ids)
            absent = sorted(set(wanted) - set(cells["cell_id"]))
            if absent:
                raise StoreError(
                    f"store {store} has no cell {printable(str(absent[0]))!r}; the column 'cell_id' of its cells lists "
                    "them"
                )
            chosen = cells["cell_id"].isin(wanted).to_numpy()
        sizes = cells["pixel_size_um"].to_numpy(np.float64, na_value=np.nan)
        other = chosen & (sizes != pixel_size_um)
        changed = other if force else other & np.isnan(sizes)
        if changed.any():
            writer.replace_cells(cells.assign(pixel_size_um=np.where(changed, pixel_size_um, sizes)))
    return PixelSizeChange(str(store), pixel_size_um, int(changed.sum()), int((other & ~changed).sum()))
