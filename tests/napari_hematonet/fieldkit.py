"""A small field with cells that the tiny model knows, open in a viewer as a classified image is."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from qtpy.QtCore import QPoint, Qt
from qtpy.QtTest import QTest

from hematokit.annotations.cells import name_cells
from hematokit.imaging.geometry import patch_box, to_napari
from hematokit.models import load_model
from hematokit.models.field_cells import classify_cells
from hematokit.review.session import Review, whole_taxonomy
from napari_hematonet.cells_layer import add_cells_layer
from napari_hematonet.images import field_of
from napari_hematonet.state import FieldState
from tinykit import COLOURS

HEIGHT, WIDTH, CELL = 400, 520, 40
MISSED = (330, 450)
"""Centre of a cell that the table does not have."""

CENTRES = [(60, 60), (60, 180), (60, 300), (60, 420), (180, 110), (180, 230), (180, 350), (300, 60), (300, 180)]


def draw_field(seed: int = 0) -> np.ndarray:
    """Squares in the colours of the tiny model's classes on a pale ground."""
    random = np.random.default_rng(seed)
    pixels = np.full((HEIGHT, WIDTH, 3), 225.0) + random.normal(0, 6, (HEIGHT, WIDTH, 3))
    colours = list(COLOURS.values())
    for number, (y, x) in enumerate([*CENTRES, MISSED]):
        box = patch_box(y, x, CELL)
        pixels[box.slices] = np.array(colours[number % 3]) + random.normal(0, 20, (CELL, CELL, 3))
    return pixels.clip(0, 255).astype(np.uint8)


def cells_table(name: str = "field") -> pd.DataFrame:
    """The cells of the field, unclassified."""
    rows = []
    for y, x in CENTRES:
        box = patch_box(y, x, CELL)
        rows.append(
            {
                **{"y": float(y), "x": float(x), "y0": box.y0, "x0": box.x0, "height": CELL, "width": CELL},
                **{"score": 1.0, "area": CELL**2 / 1.0, "touches_border": False, "contour": None},
            }
        )
    return name_cells(pd.DataFrame(rows), name, f"{name}.png")


@dataclass
class Opened:
    """What is open."""

    viewer: Any
    image: Any
    layer: Any
    state: FieldState
    review: Review

    @property
    def canvas(self) -> Any:
        """The widget that draws; what a person clicks on and presses keys over."""
        return self.viewer.window._qt_viewer.canvas.native

    def press(self, key: Qt.Key, modifier: Qt.KeyboardModifier = Qt.KeyboardModifier.NoModifier) -> None:
        """Press a key with the mouse over the picture."""
        QTest.keyClick(self.canvas, key, modifier)

    def click(self, y: float, x: float, modifier: Qt.KeyboardModifier = Qt.KeyboardModifier.NoModifier) -> None:
        """Click on a place, in pixels of the field."""
        world = np.asarray(self.image.data_to_world(to_napari((y, x))))
        view = self.viewer.window._qt_viewer.canvas.view
        place = view.scene.transform.map([world[1], world[0], 0, 1])
        point = QPoint(round(place[0] / place[3]), round(place[1] / place[3]))
        QTest.mouseMove(self.canvas, point)
        QTest.mouseClick(self.canvas, Qt.MouseButton.LeftButton, modifier, point)

    def id_at(self, number: int) -> str:
        """Id of the cell at a place of `CENTRES`."""
        y, x = CENTRES[number]
        return f"{self.review.field_id}-{y:05d}-{x:05d}"


def open_classified(
    viewer: Any, run: Path, folder: Path, *, model: bool = True, name: str = "field", **placement: Any
) -> Opened:
    """Open the field in a viewer with its classified cells; a field of another name has a journal of its own."""
    file = folder / f"{name}.png"
    Image.fromarray(draw_field()).save(file)
    image = viewer.add_image(draw_field(), name=name, **placement)
    field = field_of(image, viewer=viewer)
    field.path = file
    classifier = load_model(run, device="cpu")
    cells = classify_cells(field, cells_table(name), classifier)
    if not model:
        cells = cells.drop(columns=[name for name in cells if name.startswith("p_")])
        cells = cells.drop(columns=["predicted", "probability"])
    journal = folder / ("corrections.jsonl" if name == "field" else f"{name}.jsonl")
    review = Review(cells, whole_taxonomy(classifier.taxonomy), field_id=name, who="", journal=journal)
    state = FieldState(
        review, name, field, str(run) if model else "", classifier if model else None, pixel_size_um=None
    )
    layer = add_cells_layer(viewer, review, image=image, state=state, name=f"cells of {name}")
    viewer.reset_view()
    return Opened(viewer, image, layer, state, review)


def wait_for(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Let the windows work until something holds."""
    from qtpy.QtWidgets import QApplication

    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        QApplication.processEvents()
        time.sleep(0.002)
