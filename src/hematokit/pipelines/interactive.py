"""Cells for an interactive viewer: those of a field or region, piece by piece, and single cells.

The steps are those of `hematokit.pipelines.field_run`, in small pieces that can be shown and stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final, cast

import numpy as np
import numpy.typing as npt
import pandas as pd

from hematokit.annotations.cells import DETECTION_COLUMNS, empty_detections, name_cells, order_columns
from hematokit.detection.windows import Examination, examine_field
from hematokit.errors import FieldError
from hematokit.imaging.geometry import Box, patch_box
from hematokit.models.field_cells import classify_cells, classify_in_batches, field_patch_side
from hematokit.plugins import MadeDetector
from hematokit.progress import Progress, no_log, no_progress

if TYPE_CHECKING:
    from hematokit.imaging.fieldfiles import Field
    from hematokit.models.model import Model

__all__ = ["FieldPart", "classify_live", "classify_one", "in_polygons", "is_out_of_memory", "usual_side"]

Polygon = npt.NDArray[np.float64]

_MARGIN: Final = 384
"""Pixels around a region that the detector gets too, so that cells at its edge are complete."""

_FIRST_BATCH: Final = 8
"""Fewer at a time than this are no quicker: most of the time of a call is spent on starting it."""

_SHORT: Final = 0.3
_LONG: Final = 1.0
"""Seconds a batch should take: cells appear soon, stopping is quick, and little time is spent on starting batches."""


@dataclass(frozen=True)
class FieldPart:
    """A rectangle of a field, read like a whole field.

    Attributes
    ----------
    field : Field
    box : Box
        Inside the field.
    """

    field: Field
    box: Box

    @property
    def height(self) -> int:
        """Rows of the part."""
        return self.box.height

    @property
    def width(self) -> int:
        """Columns of the part."""
        return self.box.width

    @property
    def pixel_size_um(self) -> float | None:
        """Side of a pixel in micrometres."""
        return self.field.pixel_size_um

    def read(self, box: Box) -> npt.NDArray[np.uint8]:
        """Read a box in pixels of the part, shape (box.height, box.width, 3)."""
        return self.field.read(replace(box, y0=box.y0 + self.box.y0, x0=box.x0 + self.box.x0))


def in_polygons(points: npt.ArrayLike, polygons: Sequence[npt.ArrayLike]) -> npt.NDArray[np.bool_]:
    """Return which points (n, 2) are inside at least one polygon; all are ``(y, x)`` in the same units."""
    from skimage.measure import points_in_poly

    places = np.asarray(points, np.float64).reshape(-1, 2)
    inside = np.zeros(len(places), np.bool_)
    for polygon in polygons:
        inside |= points_in_poly(places, np.asarray(polygon, np.float64))
    return inside


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of any runtime means that a device ran out of memory; imports none of them."""
    return type(error).__name__ == "OutOfMemoryError" or (
        isinstance(error, RuntimeError) and "out of memory" in str(error).lower()
    )


def classify_live(
    field: Field,
    detector: MadeDetector,
    model: Model,
    *,
    field_id: str,
    source: str = "",
    region: Sequence[npt.ArrayLike] = (),
    model_pixel_size_um: float | None = None,
    largest_batch: int = 64,
    progress: Progress = no_progress,
    note: Callable[[str], None] = no_log,
    moved: Callable[[Model], None] = lambda model: None,
) -> Iterator[Examination | pd.DataFrame]:
    """Detect the cells of a field, or of regions of it, and classify them piece by piece.

    Batches begin small and grow while they are quick. Where the memory of a graphics processor does not suffice,
    smaller batches are tried, then the CPU.

    Parameters
    ----------
    field : Field
        The opened field.
    detector : MadeDetector
        From `make_detector`.
    model : Model
        From `hematokit.load_model`.
    field_id, source : str
        Identity and path of the field; the cells' ids are made from the first.
    region : sequence of array_like (n, 2)
        Polygons, ``(y, x)`` in pixel corners of the field: only cells with their centre in one of them. Empty: all.
    model_pixel_size_um : float, optional
        As for `classify_cells`.
    largest_batch : int
        Patches classified at a time at most.
    progress : Progress
        Called with the number of windows examined, then of cells classified. Raising from it ends the work.
    note : callable
        Called with a line if the memory of the device is too small.
    moved : callable
        Called with the copy of the model that continues on the CPU; `model` itself stays on its device.

    Yields
    ------
    Examination, then DataFrame
        First the detections (rows of `cells` not yet named); then, batch by batch, rows as `classify_cells` returns
        them. Nothing more if no cell was detected.

    Raises
    ------
    FieldError
        If the region is outside the field, or the pixel sizes do not fit.
    ImageError, ModelError, PluginError
        If the field cannot be read, or model or detector fail.

    Examples
    --------
    >>> from hematokit import load_model, open_field
    >>> from hematokit.detection.windows import make_detector
    >>> with open_field("fields/field0.png") as field:
    ...     examined, *batches = classify_live(field, make_detector(), load_model("runs/coatnet"), field_id="field0")
    >>> len(pd.concat(batches)) == len(examined.cells)
    True
    """
    examined = _examine(field, detector, region, progress)
    cells = name_cells(examined.cells, field_id, source)
    yield examined
    batches = _Batches(model, largest_batch, note, moved)
    start = 0
    while start < len(cells):
        rows = cells.iloc[start : start + batches.size].reset_index(drop=True)
        predictions = batches.run(partial(_predictions, field, rows, model_pixel_size_um))
        start += len(rows)
        yield order_columns(pd.concat([rows, predictions], axis=1).assign(reviewed=False))
        progress(start, len(cells), "classifying cells")


def _predictions(
    field: Field, rows: pd.DataFrame, model_pixel_size_um: float | None, model: Model, batch_size: int
) -> pd.DataFrame:
    pairs = classify_in_batches(field, rows, model, model_pixel_size_um=model_pixel_size_um, batch_size=batch_size)
    return pd.concat([part for _, part in pairs], ignore_index=True)


def _examine(field: Field, detector: MadeDetector, region: Sequence[npt.ArrayLike], progress: Progress) -> Examination:
    def report(done: int, total: int | None, message: str) -> None:
        progress(done, total, "looking for cells")

    if not len(region):
        return examine_field(field, detector, progress=report)
    box = _around([np.asarray(polygon, np.float64) for polygon in region], field)
    examined = examine_field(cast("Field", FieldPart(field, box)), detector, progress=report)
    found = examined.cells
    found = found.assign(y=found["y"] + box.y0, x=found["x"] + box.x0, y0=found["y0"] + box.y0, x0=found["x0"] + box.x0)
    shift = np.array([box.y0, box.x0], np.float32)
    moved = [None if outline is None else np.asarray(outline) + shift for outline in found["contour"]]
    found["contour"] = pd.Series(moved, index=found.index, dtype=object)
    # The border of the examined part is not the border of the field.
    at_edge = (found["y0"] <= 1) | (found["x0"] <= 1)
    at_edge |= found["y0"] + found["height"] >= field.height - 1
    at_edge |= found["x0"] + found["width"] >= field.width - 1
    found["touches_border"] = found["touches_border"] & at_edge
    kept = found[in_polygons(found[["y", "x"]], region)].reset_index(drop=True)
    return Examination(kept, examined.quality)


def _around(polygons: Sequence[Polygon], field: Field) -> Box:
    """Return the part of the field that the detector needs for these regions."""
    points = np.concatenate(polygons)
    low = np.maximum(np.floor(points.min(axis=0)).astype(int) - _MARGIN, 0)
    high = np.minimum(np.ceil(points.max(axis=0)).astype(int) + _MARGIN, [field.height, field.width])
    inside = (points.max(axis=0) > 0).all() and (points.min(axis=0) < [field.height, field.width]).all()
    if not inside:
        raise FieldError("the region is outside the field; draw it on the image")
    return Box(int(low[0]), int(low[1]), int(high[0] - low[0]), int(high[1] - low[1]))


def _some(cells: int) -> str:
    return "one cell" if cells == 1 else f"{cells} cells"


class _Batches:
    """Number of cells to classify at a time, adapted to the time taken and the memory available."""

    def __init__(
        self,
        model: Model,
        largest: int,
        note: Callable[[str], None],
        moved: Callable[[Model], None],
    ) -> None:
        self.size = min(_FIRST_BATCH, largest)
        self._model = model
        self._largest = largest
        self._note = note
        self._moved = moved

    def run(self, work: Callable[[Model, int], pd.DataFrame]) -> pd.DataFrame:
        while True:
            begun = time.perf_counter()
            try:
                result = work(self._model, self.size)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self._make_do(error)
                continue
            took = time.perf_counter() - begun
            if took < _SHORT:
                self.size = min(2 * self.size, self._largest)
            elif took > _LONG:
                self.size = max(self.size // 2, min(self.size, _FIRST_BATCH))
            return result

    def _make_do(self, error: Exception) -> None:
        """Continue in smaller batches, then on the CPU; raise `error` if neither is possible."""
        if self.size > 1:
            self.size = self._largest = max(self.size // 4, 1)
            self._note(f"GPU memory is full: continuing with {_some(self.size)} at a time")
            return
        if str(self._model.device).startswith("cpu"):
            raise error
        # A copy, as the model is shared and the next field may fit into memory.
        self._model = self._model.on_cpu()
        self._moved(self._model)
        self.size = self._largest = _FIRST_BATCH
        self._note("GPU memory is full: continuing on the CPU, which is slower")


_CELL_UM: Final = 12.0
"""Side in micrometres of a box around the nucleus of a white cell, where there is no other cell to measure."""


def usual_side(cells: pd.DataFrame | None, pixel_size_um: float | None, patch_size: int) -> int:
    """Return the side in pixels of the box of a cell of which only the centre is known.

    Parameters
    ----------
    cells : DataFrame or None
        Other cells of the field: the median of their boxes is taken.
    pixel_size_um : float or None
        Micrometres per pixel; without other cells, the box is 12 um wide.
    patch_size : int
        Side of a patch in pixels of the field; without the others, the box is a third of it.
    """
    if cells is not None and len(cells):
        sides = np.sqrt(cells["height"].to_numpy(np.float64) * cells["width"].to_numpy(np.float64))
        return max(1, round(float(np.median(sides))))
    if pixel_size_um is not None:
        return max(1, round(_CELL_UM / pixel_size_um))
    return max(1, patch_size // 3)


def classify_one(
    field: Field,
    model: Model,
    y: float,
    x: float,
    *,
    cells: pd.DataFrame | None = None,
    side: int | None = None,
    field_id: str = "",
    model_pixel_size_um: float | None = None,
) -> pd.DataFrame:
    """Classify a cell that the detector missed, at a given place.

    Parameters
    ----------
    field : Field
        The opened field, or anything with its ``read``, ``height``, ``width`` and ``pixel_size_um``.
    model : Model
        From `hematokit.load_model`.
    y, x : float
        Centre of the cell in pixels of the field; integers are corners of pixels.
    cells : DataFrame, optional
        The other cells of the field, from which the usual size of a cell, source, smear and patient are taken.
    side : int, optional
        Side of the cell's box in pixels, instead of `usual_side`.
    field_id : str
        Of the new row.
    model_pixel_size_um : float, optional
        Pixel size that the model was trained at, instead of what its configuration records.

    Returns
    -------
    DataFrame
        One row of a cells table, classified, for `Review.add`.

    Raises
    ------
    FieldError
        If the place is outside the field.
    ImageError, ModelError
        If the field cannot be read or the model cannot compute.
    """
    if not (0 <= y < field.height and 0 <= x < field.width):
        raise FieldError(
            f"y {y:g}, x {x:g} is outside the field of {field.width}x{field.height} px; point at a cell inside"
        )
    if side is None:
        patch = field_patch_side(field, model, model_pixel_size_um)
        side = usual_side(cells, field.pixel_size_um, patch)
    box = patch_box(y, x, side).clipped(field.height, field.width)
    assert box is not None  # the centre is inside
    values = {
        **{"y": float(y), "x": float(x), "y0": box.y0, "x0": box.x0, "height": box.height, "width": box.width},
        **{"score": 1.0, "area": np.nan, "contour": None},
        "touches_border": box.height < side or box.width < side,
    }
    found = pd.DataFrame({name: [values[name]] for name in DETECTION_COLUMNS})
    found = found.astype({name: kind for name, kind in empty_detections().dtypes.items() if name != "contour"})
    smear, patient = (_first(cells, name) for name in ("smear_id", "patient_id"))
    row = name_cells(found, field_id, _first(cells, "source") or field.name, smear_id=smear, patient_id=patient)
    return classify_cells(field, row, model, model_pixel_size_um=model_pixel_size_um)


def _first(cells: pd.DataFrame | None, column: str) -> str:
    if cells is None or not len(cells) or column not in cells.columns:
        return ""
    value = cells[column].iloc[0]
    return value if isinstance(value, str) else ""
