"""What a review computes in the background: the class of a cell that was missed, and a training set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hematokit.errors import FieldError
from hematokit.files import shell_word

if TYPE_CHECKING:
    import pandas as pd

    from hematokit.imaging.fieldfiles import Field
    from hematokit.progress import Progress
    from napari_hematonet.state import FieldState

__all__ = ["Added", "Stored", "classified_cell", "stored_cells"]


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
    from hematokit.pipelines.classify_one import classify_one
    from napari_hematonet.classify_job import get_model

    if state.field is None:
        raise FieldError("the image of these cells is not there; open the image again")
    if state.classifier is None and state.model_path:
        state.classifier = get_model(state.model_path, identity=state.model_identity)
    model = state.classifier
    if model is None:
        raise FieldError("these cells come without a model, so a missed one cannot be classified; classify the field")
    row = classify_one(
        state.field,
        model,
        y,
        x,
        cells=state.review.cells,
        field_id=state.review.field_id,
        model_pixel_size_um=state.model_pixel_size_um,
    )
    yield Added(state, row)


def stored_cells(state: FieldState, store: Path, tell: Progress) -> Iterator[Stored]:
    """Write the reviewed cells of a field to a store.

    Raises
    ------
    FieldError, ImageError, StoreError
        As `hematokit.pipelines.store_corrected.store_corrected`.
    """
    from hematokit.pipelines.store_corrected import store_corrected

    if state.field is None:
        raise FieldError("the image of these cells is not there; open the image again")
    summary = store_corrected(
        state.review,
        _image_of(state.field, state.plane),
        store,
        pixel_size_um=state.pixel_size_um,
        patch_size=None if store.exists() else getattr(state.classifier, "patch_size", None),
        progress=tell,
    )
    # What the command line says of pixel sizes names an option that nobody has here.
    said = [note for note in summary.notes if "--pixel-size" not in note]
    if len(said) < len(summary.notes):
        said.append("without a pixel size, as nobody knows it")
    said += [warning for warning in summary.warnings if "set-pixel-size" not in warning]
    notes = "".join(f"; {note}" for note in said)
    count = "1 cell" if summary.added == 1 else f"{summary.added:,} cells"
    name = shell_word(store)
    yield Stored(
        f"{count} added to {store.name}{notes}. "
        f"Next, in a terminal: hematokit split {name}, then hematokit train {name} --output runs/corrected"
    )


def _image_of(field: Field, plane: tuple[int, ...]) -> Path | Field:
    """The file of a field; the field itself if it has none, is one of a stack, or is shown in another orientation."""
    from hematokit.imaging.fieldfiles import field_name, file_orientation

    path = Path(field.path)
    own = path.exists() and not plane and (path.is_file() or field_name(path) == field.name)
    own = own and file_orientation(path) == field.orientation
    return path if own else field
