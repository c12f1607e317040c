"""Cells that are shown while a field is being classified, a few times a second, however fast they come."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pandas as pd

from hematokit.review.session import Review, whole_taxonomy
from napari_hematonet.cells_layer import add_cells_layer
from napari_hematonet.settings import reviewer
from napari_hematonet.state import FieldState, cells_layers, guarded, later, notify, state_of

if TYPE_CHECKING:
    import napari
    from napari.layers import Image, Points
    from qtpy.QtCore import QObject

    from hematokit.detection.windows import Examination
    from hematokit.imaging.fieldfiles import Field
    from napari_hematonet.jobs import ClassifyRequest
    from napari_hematonet.models import ModelInfo

__all__ = ["ComingCells", "cells_message", "no_cells_message"]


def cells_message(layer: Points, count: int, examination: Examination | None) -> str:
    """Return a message with the number of cells, the runtime and warnings.

    Parameters
    ----------
    layer : Points
        The cells.
    count : int
    examination : Examination or None
        What was found about the field.
    """
    state = state_of(layer)
    low_confidence = 0 if state is None else int(state.review.low_confidence().sum())
    text = f"{count:,} cells, {low_confidence:,} of them low-confidence"
    if state is not None and state.classifier is not None:
        # The current device: the model may have been moved from the GPU to the CPU.
        text += f"; {state.classifier.computed_by}"
    text += "."
    if examination is not None and examination.quality.flag != "ok":
        text += f" Warning: {'; '.join(examination.quality.reasons) or examination.quality.flag}."
    if state is None or state.field is None:
        return text
    if state.classifier is not None:
        from hematokit.models.field_cells import model_pixel_size, scale_warnings

        warnings = scale_warnings(
            model_pixel_size(state.classifier, state.model_pixel_size_um),
            state.field.pixel_size_um is None,
            field_option="Pixel size above",
            model_option="Model's pixel size above",
        )
        text += "".join(f" Warning: {warning}." for warning in warnings)
    return text + _remarks(state.field.notes)


def no_cells_message(field: Field, region: bool) -> tuple[str, str]:
    """Say that no cell was found: as a line that stays, and as a notification that says what may help."""
    reason = f"no cells were detected in {'the region' if region else 'this image'}"
    question = "is it a stained smear, in focus?"
    if field.pixel_size_um is not None:
        question = f"is it a stained smear, in focus, and is a pixel {field.pixel_size_um:.3g} µm?"
    return (
        f"{reason[:1].upper()}{reason[1:]}.{_remarks(field.notes)}",
        f"{reason}; {question} Another detector may help",
    )


def _remarks(notes: tuple[str, ...]) -> str:
    """How the pixels were read, where there were several ways."""
    return "".join(f" {note[:1].upper()}{note[1:]}." for note in notes)


_SHARE: Final = 6.0
"""Times as long as showing cells took, they are gathered before the next are shown: the viewer stays with the user."""

_LONGEST: Final = 1.0
"""Seconds that cells wait at most."""

_DRAWN: Final = 30
"""Milliseconds after which what was just built is on the screen."""


class ComingCells:
    """Layer of cells of one classification, filled as cells are classified.

    Parameters
    ----------
    viewer : napari.Viewer
    image : Image layer
    field : Field
        Its pixels.
    request : ClassifyRequest
    min_probability : float
    owner : QObject
        The form; when it goes, nothing more is shown.

    Attributes
    ----------
    layer : Points or None
        None until cells have been found.
    count : int
        Cells classified so far, shown or about to be.
    """

    def __init__(
        self,
        viewer: napari.Viewer,
        image: Image,
        field: Field,
        request: ClassifyRequest,
        min_probability: float,
        owner: QObject,
    ) -> None:
        self.image = image
        self.field = field
        self.layer: Points | None = None
        self.count = 0
        self._viewer = viewer
        self._active_at_first = viewer.layers.selection.active
        self._owner = owner
        self._request = request
        self._min_probability = min_probability
        self._model: ModelInfo | None = None
        self._journal: Path | None = None
        self._earlier = 0
        self._waiting: list[pd.DataFrame] = []
        self._next = 0.0
        self._covered = True
        self._first = True

    def set_model(self, model: ModelInfo, journal: Path | None = None, earlier: int = 0) -> None:
        """Set the model and the file for corrections.

        Parameters
        ----------
        model : ModelInfo
            Its classes are those of the cells.
        journal : Path, optional
            Corrections are written there; what it holds already is laid over the cells.
        earlier : int
            Cells that it speaks of already.
        """
        self._model, self._journal, self._earlier = model, journal, earlier

    def go_on_with(self, model: ModelInfo) -> None:
        """Say that a copy of the model classifies the rest, on another device."""
        self._model = model
        if self.layer is not None:
            self.layer.metadata["hematokit"].classifier = model

    def add(self, cells: pd.DataFrame) -> None:
        """Take some more cells, and show them if it is time to."""
        self._waiting.append(cells)
        self.count += len(cells)
        if time.perf_counter() >= self._next:
            self.show()

    def prepare(self) -> None:
        """Add the layer, empty and hidden, before the first cells are classified; show it a moment later.

        Building the layer, its controls and the first cells in one go would be seen as a stall.
        """
        if self.layer is None:
            self.layer = self._empty()
            later(self._owner, _DRAWN, guarded(self._reveal))

    def _reveal(self) -> None:
        """Show the layer if its image is shown; it becomes the active one, unless the user has gone on to another."""
        layer, covered, self._covered = self.layer, self._covered, False
        if layer is None or not covered or not self.image.visible or layer not in self._viewer.layers:
            return
        layers = self._viewer.layers
        selected, first = set(layers.selection), self._active_at_first
        gone_on = layers.selection.active not in (first, self.image) and (first is None or first in layers)
        layer.visible = True
        layers.selection = {layer} if not gone_on else selected

    def show(self) -> None:
        """Show all cells that are here."""
        if not self._waiting:
            return
        cells = pd.concat(self._waiting, ignore_index=True)
        self._waiting.clear()
        begun = time.perf_counter()
        if self.layer is None:
            self.layer = self._empty()
        if self._first:
            self._first = False
            self._put_away_earlier(self.layer)
            self._reveal()
        self.layer.metadata["hematokit"].review.append(cells)
        took = time.perf_counter() - begun
        self._next = time.perf_counter() + min(_SHARE * took, _LONGEST)

    def finish(self) -> None:
        """Show what is still waiting; nothing more comes. A layer without cells is not left behind."""
        if self.image in self._viewer.layers:
            self.show()
        self._reveal()
        if self.layer is not None and not self.count:
            layer, self.layer = self.layer, None
            if layer in self._viewer.layers:
                self._viewer.layers.remove(layer)
        elif self.layer is not None and self._earlier:
            notify(
                f"{self._earlier:,} earlier corrections of this image are applied again; they are in {self._journal}"
            )
            self._earlier = 0

    def _empty(self) -> Points:
        field, model = self.field, self._model
        assert model is not None  # the job loads it before it detects cells
        review = Review(
            pd.DataFrame(),
            whole_taxonomy(model.taxonomy),
            field_id=self._request.field_id,
            who=reviewer(),
            min_probability=self._min_probability,
            pixel_size_um=field.pixel_size_um,
            journal=self._journal,
        )
        review.on_change(_Saved(self._journal))
        state = FieldState(
            review,
            image_layer_name=self.image.name,
            field=field,
            model_path=self._request.model_path,
            classifier=model,
            detector=self._request.detector,
            pixel_size_um=field.pixel_size_um,
            model_pixel_size_um=self._request.model_pixel_size_um,
            plane=getattr(field, "plane", ()),
        )
        return add_cells_layer(self._viewer, review, image=self.image, state=state, name=self._name, visible=False)

    @property
    def _name(self) -> str:
        return f"cells of {self.image.name}"

    def _put_away_earlier(self, new: Points) -> None:
        """Of an earlier classification of the image, hide what a person has worked on and remove the rest."""
        state: FieldState = new.metadata["hematokit"]
        for layer in cells_layers(self._viewer):
            earlier: FieldState = layer.metadata["hematokit"]
            same = earlier.plane == state.plane and earlier.is_of(self.image, self._viewer)
            if layer is new or not same or not earlier.model_path:
                continue
            if earlier.review.cells["reviewed"].any():
                layer.visible = False
            else:
                self._viewer.layers.remove(layer)
        if self._name not in self._viewer.layers:
            new.name = self._name  # napari appended a number while the earlier layer existed


class _Saved:
    """Says once, at a review's first correction, where corrections are kept."""

    def __init__(self, journal: Path | None) -> None:
        self._journal = journal

    def __call__(self, kind: str, cell_ids: list[str]) -> None:
        if kind != "append" and self._journal is not None:
            notify(f"corrections are saved as you make them, in {self._journal}")
            self._journal = None
