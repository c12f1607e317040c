"""Make the pictures of the viewer's tutorial: ``python docs/make_screenshots.py MODEL``, in docs/_static/viewer.

MODEL is a run, bundle or ONNX file; without it, the demonstration's model is trained first, which takes some minutes.
Needs an X server; on a machine without a screen put ``xvfb-run -s "-screen 0 1600x1000x24"`` before it.
The user's settings of napari are neither read nor changed.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["NAPARI_CONFIG"] = str(Path(tempfile.mkdtemp()) / "settings.yaml")

import napari
from PIL import Image
from qtpy.QtWidgets import QApplication

FOLDER = Path(__file__).parent / "_static" / "viewer"
SIZE = (1440, 900)
LONGEST = 1800  # seconds for a step; the training of the demonstration is one


def wait(until: Callable[[], object], longest: float = LONGEST) -> None:
    """Let the viewer work until something is so."""
    end = time.monotonic() + longest
    while not until():
        if time.monotonic() > end:
            raise SystemExit("a step took too long")
        QApplication.processEvents()
        time.sleep(0.01)


def settle(seconds: float = 1.0) -> None:
    """Let the viewer draw what it has to."""
    end = time.monotonic() + seconds
    wait(lambda: time.monotonic() > end)


def picture(viewer: napari.Viewer, name: str) -> None:
    """Save the window."""
    settle()
    FOLDER.mkdir(parents=True, exist_ok=True)
    pixels = viewer.screenshot(canvas_only=False, flash=False)
    # Pictures of cells in PNG are ten times as large.
    Image.fromarray(pixels).convert("RGB").save(FOLDER / f"{name}.jpg", quality=82, optimize=True)
    print(f"{name}.jpg")


def dock(viewer: napari.Viewer, name: str, **options: Any) -> Any:
    """Open one of our docks from the menu."""
    return viewer.window.add_plugin_dock_widget("hematokit", name, **options)[1]


def main(model: str | None) -> None:
    """Make the pictures."""
    viewer = napari.Viewer(show_welcome_screen=False)
    viewer.window._qt_window.resize(*SIZE)
    viewer.open_sample("hematokit", "field")
    form = dock(viewer, "Classify field")
    settle(3)
    if model is None:
        form.model.demo_button.click()
        wait(lambda: not form.running)
    else:
        form.model.choose(model)
    picture(viewer, "1-form")
    form.run_button.click()
    wait(lambda: len(viewer.layers) > 1 or not form.running)
    picture(viewer, "2-running")
    wait(lambda: not form.running)
    picture(viewer, "3-classified")
    legend = dock(viewer, "Legend and differential")
    settle()
    picture(viewer, "4-legend")
    rows = [legend.tree.topLevelItem(number) for number in range(legend.tree.topLevelItemCount())]
    legend.tree.itemClicked.emit(max(rows, key=lambda row: int(row.text(1).replace(",", ""))), 0)
    picture(viewer, "5-one-lineage")
    viewer.close()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
