"""Cells that are shown while a field is being classified, a few times a second, however fast they come."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import pandas as pd
from qtpy.QtCore import QTimer

from hematokit.fields.review import Review, whole_taxonomy
from napari_hematonet._settings import reviewer
from napari_hematonet.cells_layer import add_cells_layer
from napari_hematonet.state import FieldState, cells_layers, guarded

if TYPE_CHECKING:
    import napari
    from napari.layers import Image, Points

    from hematokit.imaging.fieldfiles import Field
    from napari_hematonet.classify_job import ClassifyRequest

__all__ = ["ComingCells"]

_SHARE: Final = 6.0
"""Times as long as showing cells took, they are gathered before the next are shown: the viewer stays with the user."""

_LONGEST: Final = 1.0
"""Seconds that cells wait at most."""

_CONTROLS_DRAWN: Final = 50
"""Milliseconds after which the controls of a new layer are on the screen."""


class ComingCells:
    """The layer of cells of one classification, from the first cells to the last.

    Parameters
    ----------
    viewer : napari.Viewer
    image : Image layer
    request : ClassifyRequest
    unsure_below : float

    Attributes
    ----------
    layer : Points or None
        None until cells have been found.
    count : int
        Cells classified so far, shown or about to be.
    """

    def __init__(self, viewer: napari.Viewer, image: Image, request: ClassifyRequest, unsure_below: float) -> None:
        self.image = image
        self.layer: Points | None = None
        self.count = 0
        self._viewer = viewer
        self._request = request
        self._unsure_below = unsure_below
        self._model: Any = None
        self._waiting: list[pd.DataFrame] = []
        self._next = 0.0
        self._unseen = False

    def set_model(self, model: Any) -> None:
        """Say which model classifies: its classes are those of the cells."""
        self._model = model

    def add(self, cells: pd.DataFrame) -> None:
        """Take some more cells, and show them if it is time to."""
        self._waiting.append(cells)
        self.count += len(cells)
        if time.perf_counter() >= self._next:
            self.show()

    def prepare(self) -> None:
        """Make the layer, empty and unseen, before the first cells are there; show it a moment later.

        Building the layer, its controls, its OpenGL programs, and the first cells in one go would be seen as a stall.
        """
        if self.layer is None:
            self.layer = self._empty()
            self.layer.visible, self._unseen = False, True
            QTimer.singleShot(_CONTROLS_DRAWN, self._reveal)

    @guarded
    def _reveal(self) -> None:
        if self._unseen and self.layer is not None:
            self._unseen = False
            self.layer.visible = True

    def show(self) -> None:
        """Show all cells that are here."""
        if not self._waiting:
            return
        cells = pd.concat(self._waiting, ignore_index=True)
        self._waiting.clear()
        begun = time.perf_counter()
        if self.layer is None:
            self.layer = self._empty()
        if not len(self.layer.data):
            self._put_away_earlier(self.layer)
            self._reveal()
        self.layer.metadata["hematokit"].review.append(cells)
        took = time.perf_counter() - begun
        self._next = time.perf_counter() + min(_SHARE * took, _LONGEST)

    def finish(self) -> None:
        """Show what is still waiting; nothing more comes. A layer without cells is not left behind."""
        if self.image in self._viewer.layers:
            self.show()
        if self.layer is not None and not self.count:
            layer, self.layer = self.layer, None
            if layer in self._viewer.layers:
                self._viewer.layers.remove(layer)

    def _empty(self) -> Points:
        field: Field = self._request.field
        review = Review(
            pd.DataFrame(),
            whole_taxonomy(self._model.taxonomy),
            field_id=self._request.field_id,
            who=reviewer(),
            unsure_below=self._unsure_below,
            pixel_size_um=field.pixel_size_um,
        )
        state = FieldState(
            review,
            image_layer_name=self.image.name,
            field=field,
            model_path=self._request.model_path,
            classifier=self._model,
            detector=self._request.detector,
            pixel_size_um=field.pixel_size_um,
            unsure_below=self._unsure_below,
            plane=getattr(field, "plane", ()),
        )
        return add_cells_layer(self._viewer, review, image=self.image, state=state, name=self._name)

    @property
    def _name(self) -> str:
        return f"cells of {self.image.name}"

    def _put_away_earlier(self, new: Points) -> None:
        """Of an earlier classification of the image, hide what a person has worked on and remove the rest."""
        state: FieldState = new.metadata["hematokit"]
        for layer in cells_layers(self._viewer):
            earlier: FieldState = layer.metadata["hematokit"]
            same = (earlier.image_layer_name, earlier.plane) == (state.image_layer_name, state.plane)
            if layer is new or not same or not earlier.model_path:
                continue
            if earlier.review.cells["reviewed"].any():
                layer.visible = False
            else:
                self._viewer.layers.remove(layer)
        if self._name not in self._viewer.layers:
            new.name = self._name  # while the earlier one was there, napari put a number behind it
