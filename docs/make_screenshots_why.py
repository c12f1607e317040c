"""Take the pictures of the docks Why and Review for these pages.

Needs a screen (``xvfb-run -a python docs/make_screenshots_why.py MODEL``) and a run or bundle. The field is drawn, so
no patient's image is in a picture.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import napari
from qtpy.QtCore import QPoint, Qt
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication

from hematokit.fields.cells import name_cells
from hematokit.fields.classifying import classify_cells
from hematokit.fields.detection import examine_field, make_detector
from hematokit.fields.review import Review, whole_taxonomy
from hematokit.imaging.synthetic import PIXEL_SIZE_UM, synthesize_field
from hematokit.models import load_model
from napari_hematonet._libraries import keep_triton_out
from napari_hematonet.cells_layer import add_cells_layer
from napari_hematonet.following import select_cells
from napari_hematonet.images import field_of
from napari_hematonet.map_layer import WHY_KEY, WHY_LAYER
from napari_hematonet.review_widget import ReviewWidget
from napari_hematonet.state import FieldState
from napari_hematonet.why_widget import WhyWidget

OUTPUT = Path(__file__).parent / "_static" / "viewer"
SIZE = (1500, 950)


def wait(condition: Callable[[], object] = lambda: False, seconds: float = 60.0) -> None:
    """Let the viewer work until something holds, or for a while."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not condition():
        QApplication.processEvents()
        time.sleep(0.005)


def open_field(viewer: napari.Viewer, model: Path, cells: int) -> tuple[Any, FieldState]:
    """Open a drawn field with its classified cells."""
    pixels = synthesize_field(cells=cells, seed=7).pixels
    unit = {"scale": (PIXEL_SIZE_UM, PIXEL_SIZE_UM), "units": ("micrometer", "micrometer")}
    image = viewer.add_image(pixels, name="marrow smear (drawn)", **unit)
    field, classifier = field_of(image, viewer=viewer), load_model(model)
    found = examine_field(field, make_detector("nuclei")).cells
    table = classify_cells(field, name_cells(found, "smear", "smear.png"), classifier)
    review = Review(table, whole_taxonomy(classifier.taxonomy), field_id="smear", pixel_size_um=PIXEL_SIZE_UM)
    state = FieldState(review, image.name, field, str(model), classifier, "nuclei", PIXEL_SIZE_UM)
    layer = add_cells_layer(viewer, review, image=image, state=state)
    viewer.reset_view()
    return layer, state


def take(viewer: napari.Viewer, output: Path, name: str) -> None:
    """Save the window."""
    wait(seconds=0.8)
    viewer.screenshot(str(output / f"{name}.png"), canvas_only=False, flash=False)


def pictures_of_why(viewer: napari.Viewer, layer: Any, state: FieldState, output: Path) -> None:
    """A cell, another class, several cells."""
    why = WhyWidget(viewer)
    viewer.window.add_dock_widget(why, name="Why", area="right")
    cells = state.review.cells
    sure = cells[~cells["touches_border"]].sort_values("probability", ascending=False)
    chosen = str(sure["cell_id"].iloc[0])
    select_cells(viewer, layer, [chosen], look=True)
    wait(lambda: WHY_LAYER in viewer.layers and not why.job.busy)
    take(viewer, output, "why")
    other = why.bars.bars[1].code
    QTest.mouseClick(why.bars, Qt.MouseButton.LeftButton, pos=QPoint(30, why.bars.row_centre(other)))
    wait(lambda: viewer.layers[WHY_LAYER].metadata[WHY_KEY]["targets"] == [other])
    take(viewer, output, "why-not")
    place = cells.set_index("cell_id").loc[chosen]
    near = ((cells["y"] - place["y"]) ** 2 + (cells["x"] - place["x"]) ** 2).sort_values().index[:6]
    select_cells(viewer, layer, cells["cell_id"].loc[near].tolist(), look=True)
    why.explain_button.click()
    wait(lambda: len(viewer.layers[WHY_LAYER].metadata[WHY_KEY]["cells"]) == len(near))
    take(viewer, output, "why-several")
    viewer.window.remove_dock_widget(why)
    viewer.layers.remove(WHY_LAYER)


def pictures_of_review(viewer: napari.Viewer, layer: Any, state: FieldState, output: Path) -> None:
    """The queue, and what decisions leave behind."""
    review = ReviewWidget(viewer)
    viewer.window.add_dock_widget(review, name="Review", area="right")
    canvas = viewer.window._qt_viewer.canvas.native
    review.next_button.click()
    take(viewer, output, "review")
    for key in (Qt.Key.Key_Return, Qt.Key.Key_Return, Qt.Key.Key_Y, Qt.Key.Key_Return):
        QTest.keyClick(canvas, key)
        wait(seconds=0.2)
    viewer.reset_view()
    take(viewer, output, "review-decided")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="a run or bundle")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--cells", type=int, default=120)
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    viewer = napari.Viewer(show_welcome_screen=False)
    viewer.window._qt_window.resize(*SIZE)
    keep_triton_out()  # now that the window is there, and torch is not yet
    layer, state = open_field(viewer, given.model, given.cells)
    pictures_of_why(viewer, layer, state, given.output)
    pictures_of_review(viewer, layer, state, given.output)
    viewer.close()


if __name__ == "__main__":
    main()
