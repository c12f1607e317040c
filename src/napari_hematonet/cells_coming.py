"""Cells that are shown while a field is being classified, a few times a second, however fast they come."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pandas as pd

from hematokit.review.session import Review, whole_taxonomy
from napari_hematonet._settings import reviewer
from napari_hematonet.cells_layer import add_cells_layer
from napari_hematonet.later import later
from napari_hematonet.state import FieldState, cells_layers, guarded, notify
from napari_hematonet.warm_drawing import parts_to_draw

if TYPE_CHECKING:
    import napari
    from napari.layers import Image, Points
    from qtpy.QtCore import QObject

    from hematokit.imaging.fieldfiles import Field
    from napari_hematonet.classify_job import ClassifyRequest

__all__ = ["ComingCells"]

_SHARE: Final = 6.0
"""Times as long as showing cells took, they are gathered before the next are shown: the viewer stays with the user."""

_LONGEST: Final = 1.0
"""Seconds that cells wait at most."""

_DRAWN: Final = 30
"""Milliseconds after which what was just built is on the screen."""


class ComingCells:
    """The layer of cells of one classification, from the first cells to the last.

    Parameters
    ----------
    viewer : napari.Viewer
    image : Image layer
    request : ClassifyRequest
    unsure_below : float
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
        self, viewer: napari.Viewer, image: Image, request: ClassifyRequest, unsure_below: float, owner: QObject
    ) -> None:
        self.image = image
        self.layer: Points | None = None
        self.count = 0
        self._viewer = viewer
        self._active_at_first = viewer.layers.selection.active
        self._owner = owner
        self._request = request
        self._unsure_below = unsure_below
        self._model: Any = None
        self._journal: Path | None = None
        self._earlier = 0
        self._waiting: list[pd.DataFrame] = []
        self._next = 0.0
        self._unseen: list[Callable[[], object]] = []
        self._first = True

    def set_model(self, model: Any, journal: Path | None = None, earlier: int = 0) -> None:
        """Say which model classifies, and where corrections go.

        Parameters
        ----------
        model : Classifier or OnnxClassifier
            Its classes are those of the cells.
        journal : Path, optional
            Corrections are written there; what it holds already is laid over the cells.
        earlier : int
            Cells that it speaks of already.
        """
        self._model, self._journal, self._earlier = model, journal, earlier

    def go_on_with(self, model: Any) -> None:
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

    def prepare(self, ready: Callable[[], object]) -> None:
        """Make the layer, empty and unseen, before the first cells are there; show it a moment later.

        Building the layer, its controls, its OpenGL programs, and the first cells in one go would be seen as a stall.

        Parameters
        ----------
        ready : callable
            Called when all is drawn, or the layer has gone.
        """
        if self.layer is not None:
            ready()
            return
        self.layer = layer = self._empty()
        self._unseen = [lambda: self._uncover(layer), *parts_to_draw(self._viewer, layer)]

        @guarded
        def step() -> None:
            if self._unseen and self.layer is layer:
                self._unseen.pop(0)()
                later(self._owner, _DRAWN, step)
            else:
                ready()

        later(self._owner, _DRAWN, step)

    def _uncover(self, layer: Points) -> None:
        """Show the layer if its image is shown; it becomes the active one, unless the user has gone on to another."""
        if not self.image.visible or layer not in self._viewer.layers:
            return
        layers = self._viewer.layers
        selected, first = set(layers.selection), self._active_at_first
        gone_on = layers.selection.active not in (first, self.image) and (first is None or first in layers)
        layer.visible = True
        layers.selection = {layer} if not gone_on else selected

    def _reveal(self) -> None:
        """Show what is still hidden of the layer."""
        while self._unseen:
            self._unseen.pop(0)()

    def show(self) -> None:
        """Show all cells that are here."""
        if not self._waiting:
            return
        cells = pd.concat(self._waiting, ignore_index=True)
        self._waiting.clear()
        begun = time.perf_counter()
        if self.layer is None:
            self.layer = layer = self._empty()
            self._unseen = [lambda: self._uncover(layer)]
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
                f"{self._earlier:,} corrections made to this image before hold again; they are kept in {self._journal}"
            )
            self._earlier = 0

    def _empty(self) -> Points:
        field: Field = self._request.field
        review = Review(
            pd.DataFrame(),
            whole_taxonomy(self._model.taxonomy),
            field_id=self._request.field_id,
            who=reviewer(),
            unsure_below=self._unsure_below,
            pixel_size_um=field.pixel_size_um,
            journal=self._journal,
        )
        review.on_change(_Saved(self._journal))
        state = FieldState(
            review,
            image_layer_name=self.image.name,
            field=field,
            model_path=self._request.model_path,
            classifier=self._model,
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
            new.name = self._name  # while the earlier one was there, napari put a number behind it


class _Saved:
    """Says once, at a review's first correction, where corrections are kept."""

    def __init__(self, journal: Path | None) -> None:
        self._journal = journal

    def __call__(self, kind: str, cell_ids: list[str]) -> None:
        if kind != "append" and self._journal is not None:
            notify(f"corrections are saved as you make them, in {self._journal}")
            self._journal = None
