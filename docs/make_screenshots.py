"""Make the screenshots of the documentation: ``python docs/make_screenshots.py MODEL``, in docs/_static/viewer.

MODEL is a run, bundle or ONNX file; without it, the demonstration's model is trained first, which takes some minutes.
Needs an X server; on a machine without a screen put ``xvfb-run -s "-screen 0 1600x1000x24"`` before it. The field is
drawn, so no screenshot shows cells of a patient. The user's settings of napari are neither read nor changed.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WORK = Path(tempfile.mkdtemp())
os.environ["NAPARI_CONFIG"] = str(WORK / "settings.yaml")
# Corrections of an earlier run would be loaded.
os.environ["HEMATOKIT_DATA"] = str(WORK / "data")

import napari
from PIL import Image
from qtpy.QtCore import QPoint, Qt
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication, QDockWidget

FOLDER = Path(__file__).parent / "_static" / "viewer"
SIZE = (1440, 900)
SHOWN_AS = "Dr. Ada Person"
LONGEST = 120  # seconds for a step
TRAINING = 1800
LARGEST = 250_000  # bytes of a screenshot


def wait(until: Callable[[], object], longest: float = LONGEST) -> None:
    """Process events until a condition is true."""
    end = time.monotonic() + longest
    while not until():
        if time.monotonic() > end:
            raise SystemExit("a step took too long")
        QApplication.processEvents()
        time.sleep(0.01)


def settle(seconds: float = 1.0) -> None:
    """Process events for some seconds, so that the viewer is drawn."""
    end = time.monotonic() + seconds
    wait(lambda: time.monotonic() > end)


def screenshot(viewer: napari.Viewer, name: str, *, after: float = 1.0) -> None:
    """Save the window as JPEG; as PNG a smear is ten times as large."""
    settle(after)
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{name}.jpg"
    pixels = Image.fromarray(viewer.screenshot(canvas_only=False, flash=False)).convert("RGB")
    for quality in (78, 70, 62, 54):
        pixels.save(path, quality=quality, optimize=True)
        if path.stat().st_size < LARGEST:
            break
    print(f"{path.name}  {path.stat().st_size:,} bytes")


def dock(viewer: napari.Viewer, name: str) -> Any:
    """Open a dock as its menu does, or bring it to the front."""
    from npe2 import PluginManager

    from napari_hematonet.docks import open_dock, show_dock

    made_by = {widget.display_name: widget for widget in PluginManager.instance().iter_widgets()}
    widget = open_dock(viewer, name, made_by[name].get_callable())
    settle(0.3)
    show_dock(widget)
    return widget


def classify(viewer: napari.Viewer, model: str | None) -> Any:
    """Classify the field with the form and return the layer of cells."""
    from napari_hematonet.state import cells_layers

    form = dock(viewer, "Classify field")
    settle(3)
    if model is None:
        form.model.demo_button.click()
        wait(lambda: not form.running, TRAINING)
    else:
        form.model.choose(model)
    screenshot(viewer, "1-form")
    form.run_button.click()
    wait(lambda: any(len(layer.data) for layer in cells_layers(viewer)) or not form.running)
    screenshot(viewer, "2-running", after=0.1)
    wait(lambda: not form.running)
    screenshot(viewer, "3-classified")
    return cells_layers(viewer)[-1]


def count(viewer: napari.Viewer) -> None:
    """Show the legend, and one lineage alone."""
    legend = dock(viewer, "Legend and differential")
    screenshot(viewer, "4-legend")
    rows = [legend.tree.topLevelItem(number) for number in range(legend.tree.topLevelItemCount())]
    legend.tree.itemClicked.emit(max(rows, key=lambda row: int(row.text(1).replace(",", ""))), 0)
    screenshot(viewer, "5-one-lineage")
    legend.show_all()


def ask_why(viewer: napari.Viewer, layer: Any) -> None:
    """Explain a cell, and the same cell for another class."""
    from napari_hematonet.explaining import WHY_LAYER
    from napari_hematonet.following import select_cells
    from napari_hematonet.state import WHY_KEY

    why = dock(viewer, "Why")
    cells = layer.metadata["hematokit"].review.cells
    inside = cells[~cells["touches_border"] & (cells["probability"] > 0.5)]
    # A cell with two likely classes, so that the second one is of interest.
    chosen = str(inside.sort_values("probability")["cell_id"].iloc[0])
    select_cells(viewer, layer, [chosen], look=True)
    wait(lambda: WHY_LAYER in viewer.layers and not why.job.busy)
    screenshot(viewer, "6-why")
    other = why.bars.bars[1].code
    QTest.mouseClick(why.bars, Qt.MouseButton.LeftButton, pos=QPoint(30, why.bars.row_centre(other)))
    wait(lambda: viewer.layers[WHY_LAYER].metadata[WHY_KEY]["targets"] == [other])
    screenshot(viewer, "7-why-not")


def show_all(viewer: napari.Viewer, layer: Any) -> None:
    """Make the image of the front page: the differential, a part of the field, and the explanation of one cell."""
    from napari_hematonet.following import select_cells

    legend, why = dock(viewer, "Legend and differential"), dock(viewer, "Why")
    window = viewer.window._qt_window
    docks = [next(each for each in window.findChildren(QDockWidget) if each.isAncestorOf(w)) for w in (legend, why)]
    sides = [viewer.window._qt_viewer.dockLayerList, viewer.window._qt_viewer.dockLayerControls]
    for side in sides:
        side.hide()
    window.addDockWidget(Qt.DockWidgetArea.LeftDockWidgetArea, docks[0])
    window.resizeDocks(docks, [400, 400], Qt.Orientation.Horizontal)
    cells = layer.metadata["hematokit"].review.cells
    height, width = viewer.layers[0].data.shape[:2]
    central = cells[cells["y"].between(0.35 * height, 0.65 * height) & cells["x"].between(0.35 * width, 0.65 * width)]
    select_cells(viewer, layer, [str(central.sort_values("probability")["cell_id"].iloc[-1])], look=True)
    wait(lambda: not why.job.busy)
    settle()
    viewer.camera.zoom /= 2.2
    screenshot(viewer, "0-front")
    window.addDockWidget(Qt.DockWidgetArea.RightDockWidgetArea, docks[0])
    window.tabifyDockWidget(docks[1], docks[0])
    for side in sides:
        side.show()
    layer.selected_data = set()
    viewer.reset_view()


def correct(viewer: napari.Viewer, layer: Any) -> None:
    """Show the review queue with its keys, and a corrected cell."""
    from napari_hematonet.following import select_cells
    from napari_hematonet.settings import store_setting
    from napari_hematonet.state import selected_cells

    store_setting("reviewer", SHOWN_AS)
    review = dock(viewer, "Review")
    canvas = viewer.window._qt_viewer.canvas.native
    review.next_button.click()
    settle()
    first = selected_cells(layer)
    screenshot(viewer, "8-review")
    taken = str(layer.features["label"].iloc[sorted(layer.selected_data)[0]])
    given = next(code for code in ("MON", "LYT") if code != taken)
    QTest.keyClick(canvas, getattr(Qt.Key, f"Key_{review._key_of[given]}"))
    settle(0.3)
    for _ in range(3):
        QTest.keyClick(canvas, Qt.Key.Key_Return)
        settle(0.3)
    select_cells(viewer, layer, first, look=True)
    screenshot(viewer, "9-corrected")
    store_setting("reviewer", "")


def classify_folder(viewer: napari.Viewer, model: str) -> None:
    """Classify a folder of two small fields."""
    from hematokit.synthetic import PIXEL_SIZE_UM, synthesize_field

    per_inch = 25_400 / PIXEL_SIZE_UM
    fields = WORK / "fields"
    fields.mkdir()
    for name, seed in (("smear 1", 3), ("smear 2", 4)):
        drawn = Image.fromarray(synthesize_field(900, 1200, cells=30, seed=seed).pixels)
        drawn.save(fields / f"{name}.png", dpi=(per_inch, per_inch))
    form = dock(viewer, "Classify folder")
    form.model.choose(model)
    form.folder.value = fields
    form.run_button.click()
    wait(lambda: not form.running)
    viewer.layers.clear()
    form.table.selectRow(0)
    form.open_button.click()
    viewer.reset_view()
    screenshot(viewer, "10-folder")


def main(model: str | None) -> None:
    """Make the screenshots, in the order of the tutorial."""
    viewer = napari.Viewer(show_welcome_screen=False)
    viewer.window._qt_window.resize(*SIZE)
    viewer.open_sample("hematokit", "field")
    cells = classify(viewer, model)
    count(viewer)
    ask_why(viewer, cells)
    show_all(viewer, cells)
    correct(viewer, cells)
    classify_folder(viewer, cells.metadata["hematokit"].model_path)
    viewer.close()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
