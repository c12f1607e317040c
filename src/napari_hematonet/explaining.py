"""Requests for explanations, and the image layer that shows the attribution map over its cells."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
from qtpy.QtCore import QObject, Signal

from hematokit.errors import ExplanationError
from hematokit.imaging.geometry import Box
from napari_hematonet.background import Background, Failed
from napari_hematonet.cell_points import placement_of
from napari_hematonet.jobs import Doing, ExplainRequest, explained_cells
from napari_hematonet.models import WantedModel
from napari_hematonet.state import WHY_KEY, guarded
from napari_hematonet.worker import Note

if TYPE_CHECKING:
    import napari
    from napari.layers import Image, Points

    from hematokit.explanation.at_cells import ExplainedCell
    from napari_hematonet.state import FieldState

__all__ = ["Crop", "MapLayer", "Reason", "Request", "WHY_LAYER", "WhyJob"]

_KEPT: Final = 256
"""Number of maps kept; one of 250 px in float32 takes 250 kB."""


@dataclass(frozen=True)
class Request:
    """Request to explain cells for classes."""

    state: FieldState
    cell_ids: tuple[str, ...]
    targets: tuple[str, ...]
    method: str

    def covers(self, other: Request) -> bool:
        """Return whether the map of this request includes all cells of another request."""
        if self.state is not other.state or self.method != other.method:
            return False
        there = set(zip(self.cell_ids, self.targets, strict=True))
        return there.issuperset(zip(other.cell_ids, other.targets, strict=True))


@dataclass(frozen=True)
class Crop:
    """Patch of a cell, (P, P, 3) uint8; sent before its map is computed."""

    cell_id: str
    patch: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class _Done:
    """Number of cells explained, and of all cells requested."""

    done: int
    total: int


@dataclass(frozen=True)
class Reason:
    """Result of a request, ready to be shown.

    Attributes
    ----------
    request : Request
    box : Box
        The part of the field that the map covers.
    map : ndarray of float32, shape (box.height, box.width)
        Relative attributions.
    patch, picture : ndarray of uint8, shape (P, P, 3)
        The first cell as the model saw it, and its map as reports draw it.
    seconds : float
        What it took; 0 where all of it was kept from before.
    """

    request: Request
    box: Box
    map: npt.NDArray[np.float32]
    patch: npt.NDArray[np.uint8]
    picture: npt.NDArray[np.uint8]
    seconds: float


class WhyJob(QObject):  # type: ignore[misc] # Qt has no types here
    """Computes explanations in a separate thread.

    Signals
    -------
    cropped (Crop), answered (Reason), failed (str), noted (str)
        What there is to show. Only the newest request is answered.
    progressed (int, int)
        Cells done, of how many.
    doing (str)
        What takes its time.
    busy_changed (bool)
        Whether something is computed.
    """

    cropped = Signal(object)
    answered = Signal(object)
    failed = Signal(str)
    noted = Signal(str)
    progressed = Signal(int, int)
    doing = Signal(str)
    busy_changed = Signal(bool)

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._kept: OrderedDict[tuple[Any, ...], ExplainedCell] = OrderedDict()
        self._running: list[Background] = []
        self._waiting: Request | None = None
        # Closing the viewer deletes this object; the thread must end then.
        self.destroyed.connect(_stopper(self._running))

    @property
    def busy(self) -> bool:
        """Whether an explanation is being computed."""
        return bool(self._running)

    def ask(self, request: Request) -> None:
        """Compute a request; cancel the current one."""
        self._waiting = request
        self._give_up()
        if not self._running:
            self._start()

    def cancel(self) -> None:
        """Cancel the current request; maps already computed are kept."""
        self._waiting = None
        self._give_up()

    def _give_up(self) -> None:
        # Not `Background.stop`, which also discards the end of the job: the next request starts there.
        for background in self._running:
            background.stopped = True

    def _start(self) -> None:
        request, self._waiting = self._waiting, None
        if request is None:
            return
        background = Background()
        self._running.append(background)
        background.start(lambda: _work(self, request, background), self._tell, self._over)
        self.busy_changed.emit(True)

    @guarded
    def _tell(self, step: object) -> None:
        if any(background.stopped for background in self._running):
            return
        if isinstance(step, Crop):
            self.cropped.emit(step)
        elif isinstance(step, Reason):
            self.answered.emit(step)
        elif isinstance(step, Failed):
            self.failed.emit(step.reason)
        elif isinstance(step, Note):
            self.noted.emit(step.text)
        elif isinstance(step, _Done):
            self.progressed.emit(step.done, step.total)
        elif isinstance(step, Doing):
            self.doing.emit(step.text)

    @guarded
    def _over(self) -> None:
        self._running.clear()
        if self._waiting is not None:
            self._start()
        else:
            self.busy_changed.emit(False)

    # The functions below run in the thread, one at a time.

    def _known(self, key: tuple[Any, ...]) -> ExplainedCell | None:
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
        return found

    def _keep(self, key: tuple[Any, ...], explained: ExplainedCell) -> None:
        self._kept[key] = explained
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)


def _key(request: Request, cell_id: str, target: str) -> tuple[Any, ...]:
    # The review itself, not its id, which a later object might have again.
    return request.state.review, request.state.model_path, cell_id, target, request.method


def _stopper(running: list[Background]) -> Callable[..., None]:
    def stop(*_: object) -> None:
        for background in running:
            background.stop()

    return stop


def _work(job: WhyJob, request: Request, background: Background) -> Iterator[object]:
    from hematokit.explanation.at_cells import ExplainedCell, cell_crop, joined_map
    from hematokit.reports.attributions import map_picture

    started = time.monotonic()
    state = request.state
    if state.field is None:
        raise ExplanationError("the image of these cells is not open, so they cannot be explained; open the image")
    table = state.review.cells.set_index("cell_id", drop=False)
    pairs = [pair for pair in zip(request.cell_ids, request.targets, strict=True) if pair[0] in table.index]
    if not pairs:
        return
    keys = [_key(request, *pair) for pair in pairs]
    found = {key: known for key in keys if (known := job._known(key)) is not None}
    missing = [(key, pair) for key, pair in zip(keys, pairs, strict=True) if key not in found]
    if keys[0] not in found:
        one = table.loc[[pairs[0][0]]]
        scale = state.model_pixel_size_um
        yield Crop(pairs[0][0], cell_crop(state.field, one, state.classifier, model_pixel_size_um=scale))
    if missing:
        asked = ExplainRequest(
            WantedModel.of(state),
            table.loc[[pair[0] for _, pair in missing]],
            tuple(pair[1] for _, pair in missing),
            request.method,
            state.model_pixel_size_um,
        )
        waiting = [key for key, _ in missing]
        for step in background.compute(explained_cells, asked, field=state.field):
            if not isinstance(step, ExplainedCell):
                yield step
                continue
            key = waiting.pop(0)
            job._keep(key, step)
            found[key] = step
            yield _Done(len(found), len(pairs))
    answers = [found[key] for key in keys]
    box, joined = joined_map(answers, state.field.height, state.field.width)
    patch = answers[0].patch
    picture = map_picture(request.method, answers[0].patch_map, patch)
    yield Reason(request, box, joined, patch, picture, time.monotonic() - started if missing else 0.0)


WHY_LAYER: Final = "why"
"""Name of the layer."""


@cache
def _colormap() -> Any:
    """Return the colour map of the reports, transparent at low values, so that the cell stays visible."""
    from napari.utils.colormaps import Colormap

    from hematokit.reports.attributions import HEAT

    shares = np.linspace(0.0, 1.0, 64)
    colours = HEAT(shares)
    colours[:, 3] = np.clip(0.85 * shares, 0.0, 0.7)
    return Colormap(colours, name="hematokit heat")


class MapLayer:
    """Layer of the current map; made with the first map, and again if it was removed.

    Parameters
    ----------
    viewer : napari.Viewer

    Attributes
    ----------
    layer : Image or None
    """

    def __init__(self, viewer: napari.Viewer) -> None:
        self.viewer = viewer
        self.layer: Image | None = None

    def show(self, reason: Reason, cells: Points) -> None:
        """Show a map with the transform of the layer of cells."""
        from napari.utils.transforms import Affine

        plane = reason.request.state.plane
        place = placement_of(cells)
        data = reason.map.reshape((1,) * len(plane) + reason.map.shape)
        # In napari the centre of a pixel has integer coordinates, so the map begins at the first pixel of its box.
        corner = np.array([*plane, reason.box.y0, reason.box.x0], np.float64)
        stretched = Affine(**{name: place[name] for name in ("scale", "rotate", "shear", "translate")})
        place["translate"] = np.asarray(stretched(corner))
        meaning = {WHY_KEY: _meaning(reason.request)}
        layer, layers = self.layer, self.viewer.layers
        if layer is not None and layer in layers:
            layer.data = data
            for name in ("scale", "rotate", "shear", "translate", "affine"):
                setattr(layer, name, place[name])
            layer.metadata.update(meaning)
            layer.visible = True
            return
        selected = list(layers.selection)
        # The metadata are set at creation, so that lists of images omit the layer.
        layer = self.layer = self.viewer.add_image(
            data,
            name=WHY_LAYER,
            colormap=_colormap(),
            contrast_limits=(0.0, 1.0),
            blending="translucent_no_depth",
            metadata=meaning,
            **place,
        )
        layer.bounding_box.visible = True
        layer.bounding_box.points = False
        layer.bounding_box.line_color = "white"
        layers.move(layers.index(layer), layers.index(cells))
        # A new layer becomes active and would receive the keys.
        layers.selection = {each for each in selected if each in layers}

    def shows(self, request: Request) -> bool:
        """Return whether the map of a request is shown."""
        if self.layer is None or self.layer not in self.viewer.layers:
            return False
        return bool(self.layer.metadata.get(WHY_KEY) == _meaning(request))

    def remove(self) -> None:
        """Remove the layer."""
        layer, self.layer = self.layer, None
        if layer is not None and layer in self.viewer.layers:
            self.viewer.layers.remove(layer)


def _meaning(request: Request) -> dict[str, Any]:
    return {"cells": list(request.cell_ids), "targets": list(request.targets), "method": request.method}
