"""One cell that the detector missed, classified where a person points at it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd

from hematokit.annotations.cells import DETECTION_COLUMNS, empty_detections, name_cells
from hematokit.errors import FieldError
from hematokit.imaging.geometry import patch_box
from hematokit.models.field_cells import classify_cells, field_patch_side

if TYPE_CHECKING:
    from hematokit.imaging.fieldfiles import Field
    from hematokit.models.model import Model

__all__ = ["classify_one", "usual_side"]

_CELL_UM: Final = 12.0
"""Side in micrometres of a white cell's nucleus with a little around it, where no other cell tells."""


def usual_side(cells: pd.DataFrame | None, pixel_size_um: float | None, patch_size: int) -> int:
    """Return the side in pixels of the box of a cell that is known by its centre only.

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
    classifier: Model,
    y: float,
    x: float,
    *,
    cells: pd.DataFrame | None = None,
    side: int | None = None,
    field_id: str = "",
    source: str = "",
    model_pixel_size_um: float | None = None,
) -> pd.DataFrame:
    """Classify a cell that the detector missed, where a person pointed at it.

    Parameters
    ----------
    field : Field
        The opened field, or anything with its ``read``, ``height``, ``width`` and ``pixel_size_um``.
    classifier : Model
        From `hematokit.load_model`.
    y, x : float
        The cell's centre in pixels of the field, pixel corners on the whole numbers.
    cells : DataFrame, optional
        The field's other cells, which say how large a cell usually is, and its smear and patient.
    side : int, optional
        Side of the cell's box in pixels, instead of `usual_side`.
    field_id, source : str
        For the row.
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
        patch = field_patch_side(field, classifier, model_pixel_size_um)
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
    row = name_cells(found, field_id, source or _first(cells, "source"), smear_id=smear, patient_id=patient)
    return classify_cells(field, row, classifier, model_pixel_size_um=model_pixel_size_um)


def _first(cells: pd.DataFrame | None, column: str) -> str:
    if cells is None or not len(cells) or column not in cells.columns:
        return ""
    value = cells[column].iloc[0]
    return value if isinstance(value, str) else ""
