"""Cells that are shown while a field is being classified, a few times a second, however fast they come."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from hematokit.review.session import Review, whole_taxonomy
from napari_hematonet.cells_layer import add_cells_layer
from napari_hematonet.jobs import computed_by
from napari_hematonet.settings import reviewer
from napari_hematonet.state import FieldState, cells_layers, guarded, later, notify, state_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import napari
    from napari.layers import Image, Layer, Points
    from qtpy.QtCore import QObject

    from hematokit.detection.windows import Examination
    from hematokit.imaging.fieldfiles import Field
    from napari_hematonet.jobs import ClassifyRequest

__all__ = ["ComingCells", "cells_words", "nothing_words", "warm_drawing"]

_log = logging.getLogger("napari_hematonet")

_DONE: Final = "_hematokit_warm"
_MARK_DRAWN: Final = 500
"""Milliseconds after which the mark has been drawn; it is taken away then."""


def warm_drawing(viewer: napari.Viewer) -> None:
    """Draw one invisible point, once for a viewer; the list of layers does not change.

    Parameters
    ----------
    viewer : napari.Viewer
        With a window; without one, nothing happens.
    """
    # There is no public way to draw what is no layer; where napari's inside has changed, the first cells come slower.
    try:
        canvas = viewer.window._qt_viewer.canvas
        if getattr(canvas, _DONE, False) or not canvas.native.isVisible():
            return
        setattr(canvas, _DONE, True)
        mark = _mark(canvas)
    except Exception as error:
        _log.debug("the drawing of points could not be prepared: %r", error)
        return

    def take_away() -> None:
        # The window may have closed meanwhile, and all in it with it.
        try:
            mark.node.parent = None
            mark.close()
        except Exception as error:
            _log.debug("the mark could not be taken away: %r", error)

    later(canvas.native, _MARK_DRAWN, take_away)


def _mark(canvas: Any) -> Any:
    from napari._vispy.utils.visual import create_vispy_layer
    from napari.layers import Points

    points = Points(
        np.zeros((1, 2)), size=1, face_color="transparent", border_color="transparent", text={"string": [" "]}
    )
    mark = create_vispy_layer(points, font_info=canvas.font_info())
    mark.node.parent = canvas.view.scene
    canvas.native.update()
    return mark


def parts_to_draw(viewer: napari.Viewer, layer: Layer) -> list[Callable[[], None]]:
    """Hide the parts that a layer is drawn of (its marks, those of selected points, text), to be shown one by one.

    The first drawing of each part takes some ten milliseconds, all at once would be seen as a stall.

    Parameters
    ----------
    viewer : napari.Viewer
    layer : Layer
        Just added.

    Returns
    -------
    list of callable
        Each shows one part. Empty, and nothing hidden, where napari's inside has changed.
    """
    try:
        parts = list(viewer.window._qt_viewer.layer_to_visual[layer].node._subvisuals)
        for part in parts:
            part.visible = False
    except Exception as error:
        _log.debug("the parts of a layer could not be told apart: %r", error)
        return []

    def show(part: Any) -> Callable[[], None]:
        return lambda: setattr(part, "visible", True)

    return [show(part) for part in parts]


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
