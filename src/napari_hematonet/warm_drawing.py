"""Having OpenGL's programs for points made before the first cells come.

The first points of a session take half a second to draw where the processor draws, two on a machine that has never
drawn any: each kind of mark is a program that is compiled then. One mark that nobody can see, drawn while the user
still looks at the form, takes most of that out of the classification. What is left is made part by part.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from napari_hematonet.later import later

if TYPE_CHECKING:
    from collections.abc import Callable

    import napari
    from napari.layers import Layer

__all__ = ["parts_to_draw", "warm_drawing"]

_log = logging.getLogger("napari_hematonet")

_DONE: Final = "_hematokit_warm"
_DRAWN: Final = 500
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

    later(canvas.native, _DRAWN, take_away)


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
