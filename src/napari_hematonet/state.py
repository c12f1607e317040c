"""State of a classified image in the viewer, and messages to the user."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import logging
import math
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

from qtpy.QtCore import QObject, QTimer

from hematokit.errors import HematokitError, describe_error, describe_missing_module, printable

if TYPE_CHECKING:
    import napari
    from napari.layers import Layer, Points

    from hematokit.imaging.fieldfiles import Field
    from hematokit.review.session import Review

__all__ = [
    "FieldState",
    "METADATA_KEY",
    "WHY_KEY",
    "camera_of",
    "cells_layers",
    "current_layer",
    "current_state",
    "guarded",
    "is_shown",
    "later",
    "nothing_shown",
    "notify",
    "scale_bar_of",
    "selected_cells",
    "state_of",
    "unwrapped",
]

METADATA_KEY: Final = "hematokit"
"""Key of the state of a field in the ``metadata`` of its layer of cells."""

WHY_KEY: Final = "hematokit_why"
"""Key in the ``metadata`` of the layer of a map: the cells, the classes explained, and the explainer."""

_log = logging.getLogger("napari_hematonet")
_meant: Final[weakref.WeakKeyDictionary[Any, weakref.ref[Any]]] = weakref.WeakKeyDictionary()
"""Layer of cells that the docks of each viewer act on while no other is chosen."""

_MESSAGE: Final = 400  # longest notification, in characters

P = ParamSpec("P")
R = TypeVar("R")


@dataclasses.dataclass
class FieldState:
    """Classified image: its cells, its pixels, and its model.

    Attributes
    ----------
    review : Review
        The cells and what a person has done to them.
    image_layer_name : str
        Name of the image layer when the cells were made; it may have been renamed or removed since.
    field : Field or None
        The pixels; None where the image of a results folder has gone.
    model_path : str
        Model that classified the cells; empty if they were read from a file.
    classifier : ModelInfo or Model, optional
        The model that classified the cells: what is known of one that the worker process has loaded, or one that
        somebody has loaded in this process.
    detector : str
        Name of the detector that found the cells.
    pixel_size_um : float or None
        Micrometres per pixel of the field.
    model_pixel_size_um : float or None
        Pixel size of the model that was given instead of what the model records.
    plane : tuple of int
        Which plane of a stack the field is; empty for a plain image.
    model_identity : str
        Which model classified the cells, as `hematokit.models.bundle.bundle_identity` gives it; empty where
        `classifier` says it, or nobody knows.
    """

    review: Review
    image_layer_name: str = ""
    field: Field | None = None
    model_path: str = ""
    classifier: Any | None = None
    detector: str = ""
    pixel_size_um: float | None = None
    model_pixel_size_um: float | None = None
    plane: tuple[int, ...] = ()
    model_identity: str = ""
    image: weakref.ref[Layer] | None = dataclasses.field(default=None, repr=False)
    """Image layer, once it is known; it keeps its cells when it is renamed."""
    updating: bool = dataclasses.field(default=False, repr=False)
    """Whether a layer is being updated from its review; points moved meanwhile were not moved by the user."""
    unseen: set[str] = dataclasses.field(default_factory=set, repr=False)
    """Cells that were hidden before the last removal of points."""
    put_back_at: float = dataclasses.field(default=-math.inf, repr=False)
    """Time (`time.monotonic`) at which moved cells were last put back."""
    linked: set[int] = dataclasses.field(default_factory=set, repr=False)
    """``id`` of the layers that already follow the review."""

    @property
    def min_probability(self) -> float:
        """Probability of the review below which an unreviewed cell is low-confidence, and drawn hollow."""
        return self.review.min_probability

    def is_of(self, layer: Layer, viewer: napari.Viewer) -> bool:
        """Return whether a layer is the image of these cells; compare names if the layer is unknown or removed."""
        known = None if self.image is None else self.image()
        if known is not None and known in viewer.layers:
            return known is layer
        return bool(layer.name == self.image_layer_name)

    def __deepcopy__(self, memo: dict[int, Any]) -> FieldState:
        """Return the state itself: a duplicated layer shows the same cells, and a model is not copied."""
        return self


def unwrapped(viewer: napari.Viewer) -> napari.Viewer:
    """Return the viewer itself; napari gives plugins a proxy, which warns about private access to layers."""
    return getattr(viewer, "__wrapped__", viewer)


def state_of(layer: Layer | None) -> FieldState | None:
    """Return the state of a layer of cells; None for any other layer."""
    state = None if layer is None else layer.metadata.get(METADATA_KEY)
    return state if isinstance(state, FieldState) else None


def cells_layers(viewer: napari.Viewer) -> list[Points]:
    """Return the layers of cells of the viewer, lowest first."""
    return [layer for layer in viewer.layers if isinstance(layer.metadata.get(METADATA_KEY), FieldState)]


def is_shown(layer: Points, viewer: napari.Viewer) -> bool:
    """Return whether a layer of cells is shown: it is visible, and its plane of a stack is displayed."""
    if not layer.visible:
        return False
    plane = layer.metadata[METADATA_KEY].plane
    if not plane:
        return True
    first = viewer.dims.ndim - layer.ndim
    at = layer.world_to_data(viewer.dims.point)
    return all(first + axis in viewer.dims.displayed or round(at[axis]) == number for axis, number in enumerate(plane))


def current_layer(viewer: napari.Viewer) -> Points | None:
    """Return the layer of cells that the docks act on; it is always one that is shown.

    The active layer, if it is one; else the one whose image is active; else the one that was meant before, whatever
    layer is active or added; else the newest.
    """
    viewer = unwrapped(viewer)
    layers = [layer for layer in cells_layers(viewer) if is_shown(layer, viewer)]
    if not layers:
        return None
    before = _meant[viewer]() if viewer in _meant else None
    active = viewer.layers.selection.active
    if active in layers:
        meant = active
    else:
        of_image = [
            layer for layer in layers if active is not None and layer.metadata[METADATA_KEY].is_of(active, viewer)
        ]
        candidates = of_image or layers
        meant = before if before in candidates else candidates[-1]
    _meant[viewer] = weakref.ref(meant)
    return meant


def current_state(viewer: napari.Viewer) -> FieldState | None:
    """Return the state of `current_layer`; None where no classified field is shown."""
    return state_of(current_layer(viewer))


def selected_cells(layer: Points | None) -> list[str]:
    """Return the ids of the selected cells of a layer, in the order of its rows, without cells of hidden classes."""
    if layer is None or "cell_id" not in layer.features:
        return []
    ids = layer.features["cell_id"].to_numpy(object)
    return [str(ids[row]) for row in sorted(layer.selected_data) if row < len(ids) and layer.shown[row]]


def nothing_shown(viewer: napari.Viewer) -> str:
    """Return a message on why there is no `current_layer`, with the remedy."""
    layers = cells_layers(viewer)
    if not layers:
        return "No cells yet: classify a field first, with Plugins > HematoNet > Classify field."
    if any(layer.visible for layer in layers):
        return "The cells are on another plane: move the slider to it."
    return "The cells are hidden: click the eye of their layer to show them."


def notify(message: object, kind: str = "info") -> None:
    """Show a message of one line in a notification of napari.

    Parameters
    ----------
    message : str or exception
        What to say. Characters that do not print are shown as escapes.
    kind : str
        ``"info"``, ``"warning"`` or ``"error"``.
    """
    from napari.utils import notifications

    text = printable(" ".join(str(message).split()))[:_MESSAGE]
    show = {"info": notifications.show_info, "warning": notifications.show_warning, "error": notifications.show_error}
    show[kind](text)


def guarded(function: Callable[P, R]) -> Callable[P, R | None]:
    """Wrap a function for a Qt slot or an event of napari, so that errors become notifications.

    A `HematokitError` is shown as it is; anything else is a fault of this program, which is shown in one line and
    logged with its traceback. An exception that leaves a slot ends the whole program with PyQt6.

    Arguments that a signal sends and the function does not take (``checked`` of a button) are left out.
    """
    takes = _positional(function)

    @functools.wraps(function)
    def slot(*args: P.args, **kwargs: P.kwargs) -> R | None:
        try:
            return function(*args[:takes], **kwargs)  # type: ignore[arg-type]
        except HematokitError as error:
            notify(error, "error")
        except ModuleNotFoundError as error:
            notify(describe_missing_module(error), "error")
        except Exception as error:
            _log.exception("%s failed", getattr(function, "__qualname__", function))
            notify(f"HematoNet could not do this ({describe_error(error)}); please report it", "error")
        return None

    # Qt and psygnal choose the arguments by the signature.
    slot.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    return slot


def _positional(function: Callable[..., Any]) -> int | None:
    """Return the number of positional arguments of a function; None for any number."""
    kinds = [parameter.kind for parameter in inspect.signature(function).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        return None
    return sum(kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD) for kind in kinds)


def later(owner: QObject, milliseconds: int, slot: Callable[[], object]) -> None:
    """Call a function once, after a delay.

    Parameters
    ----------
    owner : QObject
        What it is done for; if it is deleted before, nothing is called. ``QTimer.singleShot`` calls all the same.
    milliseconds : int
    slot : callable
        Must not raise: wrap it in `napari_hematonet.state.guarded`.
    """
    timer = QTimer(owner)
    timer.setSingleShot(True)
    timer.timeout.connect(slot)
    timer.timeout.connect(timer.deleteLater)
    timer.start(milliseconds)


def camera_of(viewer: napari.Viewer) -> Any:
    """Return the camera of the viewer; since napari 0.9 it belongs to the scene."""
    return viewer.scene.camera if hasattr(viewer, "scene") else viewer.camera


def scale_bar_of(viewer: napari.Viewer) -> Any:
    """Return the scale bar of the viewer; since napari 0.9 it is an overlay of the canvas."""
    canvas = getattr(viewer, "canvas", None)
    return viewer.scale_bar if canvas is None else canvas.overlays.scale_bar
