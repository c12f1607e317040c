"""What a review computes in the background: the class of a cell that was missed, and a training set."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hematokit.errors import FieldError

if TYPE_CHECKING:
    import pandas as pd

    from hematokit.imaging.fieldfiles import Field
    from hematokit.progress import Progress
    from napari_hematonet.state import FieldState

__all__ = ["Added", "Stored", "classified_cell", "stored_cells"]

_LARGEST: Final = 200_000_000
"""Pixels of an image without a file that are written for the store."""


@dataclass(frozen=True)
class Added:
    """A missed cell with its class: one row of a cells table."""

    state: FieldState
    row: pd.DataFrame


@dataclass(frozen=True)
class Stored:
    """A store has been written; what is said of it."""

    message: str


def classified_cell(state: FieldState, y: float, x: float) -> Iterator[Added]:
    """Make a cell at a place, in pixels of the field, and classify it at once.

    Raises
    ------
    FieldError
        If the image or the model has gone, or the place is outside the image.
    ModelError
        If the model cannot be loaded.
    """
    from hematokit.fields.one_cell import classify_one
    from napari_hematonet.classify_job import get_model

    if state.field is None:
        raise FieldError("the image of these cells is not there; open the image again")
    if state.classifier is None and state.model_path:
        state.classifier = get_model(state.model_path)
    model = state.classifier
    if model is None:
        raise FieldError("these cells come without a model, so a missed one cannot be classified; classify the field")
    config = getattr(model, "config", None)
    row = classify_one(
        state.field,
        model,
        y,
        x,
        cells=state.review.cells,
        field_id=state.review.field_id,
        model_pixel_size_um=getattr(config, "pixel_size_um", None),
    )
    yield Added(state, row)


def stored_cells(state: FieldState, store: Path, tell: Progress) -> Iterator[Stored]:
    """Write the reviewed cells of a field to a store.

    Raises
    ------
    FieldError, ImageError, StoreError
        As `hematokit.fields.corrected.store_corrected`.
    """
    from hematokit.fields.corrected import store_corrected

    if state.field is None:
        raise FieldError("the image of these cells is not there; open the image again")
    with tempfile.TemporaryDirectory(prefix="hematokit-") as folder:
        summary = store_corrected(
            state.review,
            _file_of(state.field, state.plane, Path(folder)),
            store,
            pixel_size_um=state.pixel_size_um,
            patch_size=None if store.exists() else getattr(state.classifier, "patch_size", None),
            progress=tell,
        )
    notes = "".join(f"; {note}" for note in summary.notes)
    yield Stored(f"{summary.added} cells added to {store}{notes}. Train with: hematokit train {store}")


def _file_of(field: Field, plane: tuple[int, ...], folder: Path) -> Path:
    """The file of a field; of one that has none, because it was made in the viewer or is a plane of a stack, a copy.

    The copy has the same bytes each time, by which the store knows the field again.
    """
    from PIL import Image

    from hematokit.fields.naming import safe_name
    from hematokit.imaging.fieldfiles import field_name
    from hematokit.imaging.geometry import whole_image_box

    path = Path(field.path)
    if path.exists() and not plane and (path.is_file() or field_name(path) == field.name):
        return path
    if field.height * field.width > _LARGEST:
        raise FieldError(f"{field.name} has no file of its own and is too large to copy; save the image, and open that")
    copy = folder / f"{safe_name(field.name)}.png"
    Image.fromarray(field.read(whole_image_box(field.height, field.width))).save(copy, compress_level=3)
    return copy
