"""What a classification has come to, in a sentence or two."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from napari_hematonet.classify_job import computed_by
from napari_hematonet.state import state_of

if TYPE_CHECKING:
    from napari.layers import Points

    from hematokit.detection.windows import Examination
    from napari_hematonet.classify_job import ClassifyRequest

__all__ = ["cell_words", "cells_words", "nothing_words"]


def cell_words(row: Any, shown: str, scores: list[tuple[str, float]], count: int, unsure: bool) -> str:
    """Say what a cell is.

    Parameters
    ----------
    row : DataFrame
        Its row of the cells table.
    shown : str
        The class that counts.
    scores : list of (str, float)
        Classes and probabilities by the model, the likeliest first.
    count : int
        Cells selected with it.
    unsure : bool
    """
    cell_id = str(row["cell_id"].iloc[0])
    text = f"{cell_id}: {shown or 'no class'}"
    if scores and shown == scores[0][0]:
        text += f", {100 * scores[0][1]:.0f} %"
    if bool(row["reviewed"].iloc[0]):
        text += f", reviewed (model: {scores[0][0]})" if scores and shown != scores[0][0] else ", reviewed"
    elif unsure:
        text += ", unsure"
    return text + (f"   (first of {count})" if count > 1 else "")


def cells_words(layer: Points, count: int, examination: Examination | None) -> str:
    """Say how many cells there are, what computed them, and what to mind.

    Parameters
    ----------
    layer : Points
        The cells.
    count : int
    examination : Examination or None
        What was found about the field.
    """
    state = state_of(layer)
    unsure = 0 if state is None else int(state.review.unsure().sum())
    said = f"{count:,} cells, {unsure:,} of them unsure"
    if state is not None and state.classifier is not None:
        # As it is now: it may have had to go from the GPU to the CPU.
        said += f"; {computed_by(state.classifier)}"
    said += "."
    if examination is not None and examination.quality.flag != "ok":
        said += f" Warning: {'; '.join(examination.quality.reasons) or examination.quality.flag}."
    if state is None or state.field is None:
        return said
    if state.classifier is not None:
        from hematokit.models.field_cells import model_pixel_size, scale_warnings

        warnings = scale_warnings(
            model_pixel_size(state.classifier, state.model_pixel_size_um),
            state.field.pixel_size_um is None,
            field_option="Pixel size above",
            model_option="Model's pixel size above",
        )
        said += "".join(f" Warning: {warning}." for warning in warnings)
    return said + _remarks(state.field.notes)


def nothing_words(request: ClassifyRequest) -> tuple[str, str]:
    """Say that no cell was found: as a line that stays, and as a notification that says what may help."""
    said = f"no cells were found in {'the region' if request.region else 'this image'}"
    asked = "is it a stained smear, in focus?"
    if request.field.pixel_size_um is not None:
        asked = f"is it a stained smear, in focus, and is a pixel {request.field.pixel_size_um:.3g} µm?"
    return f"{said[:1].upper()}{said[1:]}.{_remarks(request.field.notes)}", f"{said}; {asked} Another detector may help"


def _remarks(notes: tuple[str, ...]) -> str:
    """How the pixels were read, where there were several ways."""
    return "".join(f" {note[:1].upper()}{note[1:]}." for note in notes)
