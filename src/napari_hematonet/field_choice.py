"""Which image, and which part of it: two lists that follow the layers of the viewer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
from magicgui.widgets import ComboBox
from napari.layers import Image, Shapes
from qtpy.QtCore import QObject, Signal

from hematokit.imaging.reading import printable
from napari_hematonet.images import is_field_image
from napari_hematonet.map_layer import WHY_KEY
from napari_hematonet.regions import draw_region, region_of
from napari_hematonet.state import METADATA_KEY, guarded, notify

if TYPE_CHECKING:
    import napari
    from napari.layers import Layer

__all__ = ["FieldChoice"]

_WHOLE, _DRAW = "", "\n"  # choices of the region that are no layer's name
_LONGEST: Final = 60
"""Characters of a layer's name in the lists."""


class FieldChoice(QObject):  # type: ignore[misc] # Qt has no types here
    """The lists "Image" and "Region" of a form.

    Parameters
    ----------
    viewer : napari.Viewer
    parent : QObject, optional

    Attributes
    ----------
    image, region : ComboBox
        Their values are names of layers. What is chosen stays chosen when its layer is renamed.
    drawing : signal
        A layer has been made, and the user is to draw in it.
    """

    drawing = Signal()

    def __init__(self, viewer: napari.Viewer, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._viewer = viewer
        self._chosen: dict[str, Layer | None] = {"image": None, "region": None}
        self.image = ComboBox(name="image", label="Image", choices=self._images, tooltip="The field")
        self.region = ComboBox(
            name="region", label="Region", choices=self._regions, tooltip="All of the field, or inside what you draw"
        )
        self.image.changed.connect(self._image_chosen)
        self.region.changed.connect(self._region_chosen)
        for layer in viewer.layers:
            layer.events.name.connect(self._refresh)
        viewer.layers.events.inserted.connect(self._inserted)
        viewer.layers.events.removed.connect(self._refresh)
        viewer.layers.selection.events.active.connect(self._follow)
        self._follow()

    @property
    def layer(self) -> Layer | None:
        """The image chosen; None if there is none."""
        return self._named(self.image.value)

    def outlines(self, image: Layer) -> tuple[npt.NDArray[np.float64], ...]:
        """Return the areas chosen as `region_of` does; empty for the whole of the image."""
        shapes = self._named(self.region.value)
        return () if shapes is None else region_of(shapes, image)

    def _named(self, name: object) -> Layer | None:
        return self._viewer.layers[name] if name and name in self._viewer.layers else None

    def _images(self, widget: object = None) -> list[tuple[str, str]]:
        return [
            (_shown(layer), layer.name)
            for layer in self._viewer.layers
            if isinstance(layer, Image) and not _ours(layer)
        ]

    def _regions(self, widget: object = None) -> list[tuple[str, str]]:
        drawn = [layer for layer in self._viewer.layers if isinstance(layer, Shapes)]
        inside = [(f"inside '{_shown(layer)}'", layer.name) for layer in drawn]
        return [("whole image", _WHOLE), *inside, ("draw one…", _DRAW)]

    @guarded
    def _inserted(self, event: Any) -> None:
        event.value.events.name.connect(self._refresh)
        self._refresh()

    @guarded
    def _refresh(self, event: object = None) -> None:
        """List the layers by the names that they have now; the same ones stay chosen."""
        before = dict(self._chosen)
        for kind, choice in (("image", self.image), ("region", self.region)):
            with choice.changed.blocked():
                choice.reset_choices()
                layer = before[kind]
                if layer is not None and layer in self._viewer.layers:
                    choice.value = layer.name
            self._chosen[kind] = self._named(choice.value)

    @guarded
    def _follow(self, event: object = None) -> None:
        """Follow the active image if it is shown; else a colour image, preferably one that is shown."""
        self._refresh()
        active = self._viewer.layers.selection.active
        if active is not None and active.visible and active.name in self.image.choices:
            self.image.value = active.name
        elif not is_field_image(self.layer):
            colour = [name for name in self.image.choices if is_field_image(self._viewer.layers[name])]
            shown = [name for name in colour if self._viewer.layers[name].visible]
            if colour:
                self.image.value = (shown or colour)[-1]

    @guarded
    def _image_chosen(self, value: object) -> None:
        self._chosen["image"] = self._named(value)

    @guarded
    def _region_chosen(self, value: str) -> None:
        if value != _DRAW:
            self._chosen["region"] = self._named(value)
            return
        image = self.layer
        self.region.value = _WHOLE
        if image is None:
            notify("no image is open to draw on; open a field first", "warning")
            return
        layer = draw_region(self._viewer, image)
        self._refresh()
        self.region.value = layer.name
        self.image.value = image.name
        self.drawing.emit()


def _shown(layer: Layer) -> str:
    """A layer's name as one line of a list."""
    name = printable(layer.name)
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"


def _ours(layer: Layer) -> bool:
    """Whether an image layer is one that HematoNet made to explain a cell."""
    return METADATA_KEY in layer.metadata or WHY_KEY in layer.metadata
