"""Choices of the forms: model, image and region."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
from magicgui.widgets import ComboBox
from napari.layers import Image, Shapes
from qtpy.QtCore import QObject, Signal
from qtpy.QtWidgets import QComboBox, QFileDialog, QHBoxLayout, QPushButton, QVBoxLayout, QWidget

from hematokit.errors import FieldError, ModelError, printable
from napari_hematonet.cell_points import placement_of
from napari_hematonet.images import is_field_image, to_field
from napari_hematonet.jobs import DEMO_NAME, demo_folder, find_demo_model
from napari_hematonet.settings import setting, store_setting
from napari_hematonet.state import METADATA_KEY, WHY_KEY, guarded, notify

if TYPE_CHECKING:
    from collections.abc import Iterable

    import napari
    from napari.layers import Layer, Shapes


__all__ = [
    "FieldChoice",
    "ModelChoice",
    "recent_models",
    "remember_model",
]


_MOST: Final = 8


def recent_models() -> list[str]:
    """Return the paths of models: that of the preferences, recent ones, and the demo model."""
    demo = find_demo_model()
    paths = [str(setting("model")), *str(setting("recent_models")).splitlines(), *([] if demo is None else [str(demo)])]
    return [path for path in dict.fromkeys(map(str.strip, paths)) if path and _exists(path)]


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False


def remember_model(path: str) -> None:
    """Put a model first in the list of recent models."""
    older = [other for other in str(setting("recent_models")).splitlines() if other.strip() and other != path]
    store_setting("recent_models", "\n".join([path, *older][:_MOST]))


def _named(path: str) -> str:
    """Return the name of a model for display: its folder, and the parent folder in brackets."""
    place = Path(path)
    if place == demo_folder() / "run":
        return DEMO_NAME
    if place.name == "bundle":
        place = place.parent
    return printable(f"{place.name}  ({place.parent.name or place.parent})")


class ModelChoice(QWidget):  # type: ignore[misc] # Qt has no types here
    """List of models with buttons to add one.

    Attributes
    ----------
    changed : signal of str
        Path of the chosen model; empty if there is none.
    demo_wanted : signal
        The user chose the demo model, which is not trained yet.
    """

    changed = Signal(str)
    demo_wanted = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.list = QComboBox()
        self.list.setObjectName("model")
        self.list.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.list.setMinimumContentsLength(16)
        self.list.currentIndexChanged.connect(self._chosen_path)
        row = QHBoxLayout()
        row.setContentsMargins(0, 0, 0, 0)
        self.demo_button = self._button(
            "Demo model",
            "A small model for drawn cells; the first time it is trained here, which takes some minutes",
            row,
        )
        self.folder_button = self._button(
            "Folder…", "Choose the folder of a run or bundle written by hematokit train", row
        )
        self.file_button = self._button("ONNX…", "Choose an ONNX file written by hematokit export", row)
        self.demo_button.clicked.connect(self._use_demo)
        self.folder_button.clicked.connect(self._ask_folder)
        self.file_button.clicked.connect(self._ask_file)
        box = QVBoxLayout(self)
        box.setContentsMargins(0, 0, 0, 0)
        box.setSpacing(4)
        box.addWidget(self.list)
        box.addLayout(row)
        self.refresh(recent_models())

    def _button(self, text: str, tip: str, row: QHBoxLayout) -> QPushButton:
        button = QPushButton(text)
        button.setToolTip(tip)
        row.addWidget(button)
        return button

    @property
    def path(self) -> str:
        """Path of the chosen model; empty if there is none."""
        return str(self.list.currentData() or "")

    def refresh(self, paths: Iterable[str]) -> None:
        """Show these models and choose the first."""
        self.list.blockSignals(True)
        self.list.clear()
        for path in paths:
            self._append(path)
        if not self.list.count():
            self.list.addItem("no model yet: choose one below", "")
        self.list.setCurrentIndex(0)
        self.list.blockSignals(False)
        self._chosen_path()

    def _append(self, path: str) -> None:
        self.list.addItem(_named(path), path)
        self.list.setItemData(self.list.count() - 1, printable(path), 3)  # 3: the role of tool tips

    def choose(self, path: str | Path) -> None:
        """Choose a model by its path.

        Raises
        ------
        ModelError
            If there is no model at the path.
        """
        from hematokit.models.bundle import find_model

        found = find_model(path)
        # A run is listed with its own path, not with that of its bundle.
        chosen = str((found if found.is_file() else Path(path)).absolute())
        others = [str(self.list.itemData(row)) for row in range(self.list.count()) if self.list.itemData(row)]
        self.refresh([chosen, *(other for other in others if other != chosen)])
        remember_model(chosen)

    @guarded
    def _chosen_path(self) -> None:
        self.list.setToolTip(printable(self.path))
        self.changed.emit(self.path)

    @guarded
    def _use_demo(self) -> None:
        made = find_demo_model()
        if made is None:
            self.demo_wanted.emit()
        else:
            self.choose(made)

    @guarded
    def _ask_folder(self) -> None:
        self._ask(lambda: QFileDialog.getExistingDirectory(self, "Run or bundle", self._beside()))

    @guarded
    def _ask_file(self) -> None:
        self._ask(lambda: QFileDialog.getOpenFileName(self, "ONNX file", self._beside(), "ONNX (*.onnx)")[0])

    def _ask(self, dialog: Callable[[], str]) -> None:
        path = dialog()
        if path:
            self.choose(path)

    def _beside(self) -> str:
        return str(Path(self.path).parent) if self.path else str(Path.home())

    def needed(self) -> str:
        """Return the path of the chosen model.

        Raises
        ------
        ModelError
            If no model is chosen, or it no longer exists.
        """
        if self.path and not _exists(self.path):
            raise ModelError(f"the model is no longer there: {self.path} was moved or deleted; choose another")
        if not self.path:
            raise ModelError(
                "no model is chosen yet: click 'Demo model' to train one on drawn cells, or choose the folder "
                "of a run or bundle, or an ONNX file"
            )
        return self.path


_CORNERS: Final = 48  # of the polygon that approximates an ellipse


def _region_of(shapes: Shapes, image: Layer) -> tuple[npt.NDArray[np.float64], ...]:
    """Return the areas that shapes enclose.

    Parameters
    ----------
    shapes : Shapes layer
        Rectangles, ellipses, polygons, and paths taken as closed; lines enclose nothing.
    image : Image layer
        The image; the transforms of the two layers may differ.

    Returns
    -------
    tuple of ndarray (n, 2)
        ``(y, x)`` in pixels of the field, at least one.

    Raises
    ------
    FieldError
        If no shape encloses an area.
    """
    areas = []
    for corners, shape in zip(shapes.data, shapes.shape_type, strict=True):
        outline = _ellipse(np.asarray(corners)) if shape == "ellipse" else np.asarray(corners, np.float64)
        if shape == "line" or len(outline) < 3:
            continue
        area = to_field(image, [shapes.data_to_world(corner) for corner in outline])
        # A click without a drag makes an empty rectangle.
        if np.ptp(area, axis=0).min() >= 1:
            areas.append(area)
    if not areas:
        raise FieldError(
            f"layer '{printable(shapes.name)}' has no area drawn yet: draw a rectangle, an ellipse or a polygon"
        )
    return tuple(areas)


def _ellipse(corners: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the ellipse in a box (4, d), which may be rotated, as a polygon."""
    centre = corners.mean(axis=0)
    first, second = (corners[1] - corners[0]) / 2, (corners[3] - corners[0]) / 2
    angles = np.linspace(0, 2 * np.pi, _CORNERS, endpoint=False)[:, None]
    return np.asarray(centre + np.cos(angles) * first + np.sin(angles) * second)


def _draw_region(viewer: napari.Viewer, image: Layer) -> Shapes:
    """Add a layer for a region, with the transform of the image and the rectangle tool active."""
    layer = viewer.add_shapes(
        name="region",
        ndim=image.ndim,
        face_color=[1, 1, 1, 0.1],
        edge_color="white",
        edge_width=4,
        **placement_of(image),
    )
    viewer.layers.selection.active = layer
    layer.mode = "add_rectangle"
    return layer


_WHOLE, _DRAW = "", "\n"  # choices of the region that are not names of layers
_LONGEST: Final = 60
"""Longest name of a layer in the lists, in characters."""


class FieldChoice(QObject):  # type: ignore[misc] # Qt has no types here
    """The lists "Image" and "Region" of a form.

    Parameters
    ----------
    viewer : napari.Viewer
    parent : QObject, optional

    Attributes
    ----------
    image, region : ComboBox
        Their values are names of layers. The chosen layer stays chosen when it is renamed.
    drawing : signal
        A layer has been added for the user to draw a region in.
    """

    drawing = Signal()

    def __init__(self, viewer: napari.Viewer, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._viewer = viewer
        self._chosen: dict[str, Layer | None] = {"image": None, "region": None}
        self.image = ComboBox(name="image", label="Image", choices=self._images, tooltip="Image of the field")
        self.region = ComboBox(
            name="region",
            label="Region",
            choices=self._regions,
            tooltip="Detect cells in the whole image, or only inside a region that you draw",
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
        """Chosen image; None if there is none."""
        return self._named(self.image.value)

    def outlines(self, image: Layer) -> tuple[npt.NDArray[np.float64], ...]:
        """Return the areas of the chosen region, as `_region_of`; empty for the whole image."""
        shapes = self._named(self.region.value)
        return () if shapes is None else _region_of(shapes, image)

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
        """List the layers by their current names; the chosen ones stay chosen."""
        before = dict(self._chosen)
        for role, choice in (("image", self.image), ("region", self.region)):
            with choice.changed.blocked():
                choice.reset_choices()
                layer = before[role]
                if layer is not None and layer in self._viewer.layers:
                    choice.value = layer.name
            self._chosen[role] = self._named(choice.value)

    @guarded
    def _follow(self, event: object = None) -> None:
        """Choose the active image if it is shown, else a colour image, preferably one that is shown."""
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
        layer = _draw_region(self._viewer, image)
        self._refresh()
        self.region.value = layer.name
        self.image.value = image.name
        self.drawing.emit()


def _shown(layer: Layer) -> str:
    """Return the name of a layer as one line of a list."""
    name = printable(layer.name)
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"


def _ours(layer: Layer) -> bool:
    """Return whether HematoNet made an image layer, to explain a cell."""
    return METADATA_KEY in layer.metadata or WHY_KEY in layer.metadata
