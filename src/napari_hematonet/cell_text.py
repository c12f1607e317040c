"""Class codes beside the cells: where the user wants them, and only once few enough cells are in view.

napari lays out the text of all points whenever the view moves: with 1,000 cells, half a second and more. So the layer
gets texts for the cells in view only, a moment after the camera has come to rest.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from napari_hematonet.napari_versions import camera_of
from napari_hematonet.state import guarded

if TYPE_CHECKING:
    import napari
    from napari.layers import Points

__all__ = ["attach_text", "refresh_text", "text_options"]

MOST_IN_VIEW: Final = 150
"""Cells in view up to which their codes are written."""

_REST_MS: Final = 150  # after which the camera is taken to have stopped
_COLOUR: Final = "white"  # it stands on the nucleus, the darkest thing in a smear
_NONE: Final = {"constant": ""}


def text_options(*, shown: bool = False) -> dict[str, Any]:
    """Return the ``text`` of a new layer of cells; `shown`: whether napari's tick "display text" is set at first."""
    return {"string": _NONE, "size": 10, "color": _COLOUR, "anchor": "center", "visible": shown}


def attach_text(viewer: napari.Viewer, layer: Points) -> None:
    """Let napari's tick "display text" of a layer of cells show the codes of the cells in view.

    Parameters
    ----------
    viewer : napari.Viewer
    layer : Points
        Made with `text_options`, with a feature ``label``.
    """
    from qtpy.QtCore import QTimer

    timer = QTimer()
    timer.setSingleShot(True)
    timer.setInterval(_REST_MS)
    owner = weakref.ref(layer)

    @guarded
    def wait(event: object = None) -> None:
        if owner() is not None:
            timer.start()

    @guarded
    def write() -> None:
        seen = owner()
        if seen is not None and seen in viewer.layers:
            refresh_text(seen)

    @guarded
    def stop(event: object = None) -> None:
        if owner() is None or owner() not in viewer.layers:
            timer.stop()
            for emitter in (camera_of(viewer).events.zoom, camera_of(viewer).events.center):
                emitter.disconnect(wait)
            viewer.layers.events.removed.disconnect(stop)

    timer.timeout.connect(write)
    for emitter in (camera_of(viewer).events.zoom, camera_of(viewer).events.center):
        emitter.connect(wait)
    viewer.layers.events.removed.connect(stop)
    layer.text.events.visible.connect(wait)
    layer.events.features.connect(wait)
    if layer.text.visible:
        wait()


def refresh_text(layer: Points) -> None:
    """Write the codes of the cells in view; none if these are more than `MOST_IN_VIEW`, or text is not wanted."""
    inside = _in_view(layer) if layer.text.visible else np.zeros(len(layer.data), bool)
    if not 0 < int(inside.sum()) <= MOST_IN_VIEW:
        if np.asarray(layer.text.values).ndim:
            layer.text.string = _NONE
        return
    label = layer.features["label"].astype(object)
    codes = np.where(inside & layer.shown, label.where(label.notna(), ""), "").astype(str)
    if not np.array_equal(np.asarray(layer.text.values), codes):
        layer.text.string = list(codes)


def _in_view(layer: Points) -> npt.NDArray[np.bool_]:
    """Tell which cells of a layer the canvas shows, as far as a box in the layer's own coordinates can."""
    low, high = np.asarray(layer.corner_pixels, np.float64)[:, -2:] + ((-1,), (1,))  # they are rounded
    at = layer.data[:, -2:]
    return np.asarray(((at >= low) & (at <= high)).all(axis=1))
