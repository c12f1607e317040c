"""Sample data: a drawn field of a smear, with and without its true cells."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pandas as pd

from hematokit.annotations.cells import name_cells
from hematokit.imaging.fieldfiles import Field
from hematokit.imaging.fieldfiles.field import ArrayLevel, Source
from hematokit.imaging.fieldfiles.pixelsize import PixelSize
from hematokit.review.session import Review
from hematokit.synthetic import PIXEL_SIZE_UM, SyntheticField, synthesize_field
from hematokit.taxonomy import MATEK_21
from napari_hematonet.cells_layer import cells_layer_data, watch_current_viewer
from napari_hematonet.state import FieldState

if TYPE_CHECKING:
    from napari.types import LayerData

__all__ = ["SAMPLE_NAME", "sample_field", "sample_field_with_truth"]

SAMPLE_NAME: Final = "marrow smear (drawn)"
_CELLS: Final = 120
_SEED: Final = 7

_drawn: dict[int, SyntheticField] = {}


def _draw() -> SyntheticField:
    # Drawing takes some seconds; the same field serves both samples.
    if _SEED not in _drawn:
        _drawn[_SEED] = synthesize_field(cells=_CELLS, seed=_SEED)
    return _drawn[_SEED]


def _placement() -> dict[str, Any]:
    return {"scale": (PIXEL_SIZE_UM, PIXEL_SIZE_UM), "units": ("micrometer", "micrometer")}


def sample_field() -> list[LayerData]:
    """Draw a field of 2452x2056 px, as a camera on a microscope takes it."""
    return [(_draw().pixels, {"name": SAMPLE_NAME, "rgb": True, **_placement()}, "image")]


def sample_field_with_truth() -> list[LayerData]:
    """Draw the same field, with a layer of its cells and their true classes."""
    watch_current_viewer()
    field = _draw()
    return [*sample_field(), cells_layer_data(_true_state(field), name="true cells", placement=_placement())]


def _true_state(drawn: SyntheticField) -> FieldState:
    source = Source((ArrayLevel(drawn.pixels),), PixelSize(PIXEL_SIZE_UM))
    review = Review(_true_cells(drawn), MATEK_21, field_id="sample", pixel_size_um=PIXEL_SIZE_UM)
    return FieldState(
        review,
        image_layer_name=SAMPLE_NAME,
        field=Field(Path(SAMPLE_NAME), SAMPLE_NAME, source),
        detector="truth",
        pixel_size_um=PIXEL_SIZE_UM,
    )


def _true_cells(drawn: SyntheticField) -> pd.DataFrame:
    truth = drawn.table().rename(columns={"nucleus_area": "area"})
    outlines = [max(cell.contours, key=len, default=None) for cell in drawn.cells]
    truth["contour"] = pd.Series(outlines, index=truth.index, dtype=object)
    truth = truth.assign(score=1.0, label_source="drawn")
    return name_cells(truth, "sample", SAMPLE_NAME, smear_id=drawn.smear_id, patient_id=drawn.patient_id)
