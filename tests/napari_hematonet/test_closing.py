"""The viewer is closed while it works; in a process of its own, so that an abort is seen."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

SCRIPT = """
import sys, threading, time
import napari
from qtpy.QtWidgets import QApplication
from hematokit.synthetic import synthesize_field
from napari_hematonet import jobs
from napari_hematonet.state import cells_layers

model = jobs.get_model(sys.argv[1], "cpu")
asked = threading.Event()

class Slow:
    def __getattr__(self, name):
        return getattr(model, name)
    def predict(self, patches, batch_size=64):
        asked.set()
        time.sleep(0.2)
        return model.predict(patches, batch_size)

jobs.get_model = lambda *_: Slow()
viewer = napari.Viewer(show_welcome_screen=False)
viewer.add_image(synthesize_field(600, 800, cells=24, seed=5).pixels, name="field")
form = viewer.window.add_plugin_dock_widget("hematokit", "Classify field")[1]
viewer.window.add_plugin_dock_widget("hematokit", "Legend and differential")
viewer.window.add_plugin_dock_widget("hematokit", "Why")
form.model.choose(sys.argv[1])
form.run_button.click()
shown = lambda: any(len(cells.data) for cells in cells_layers(viewer))
wanted = asked.is_set if sys.argv[2] == "before" else shown
end = time.monotonic() + 60
while not wanted() and time.monotonic() < end:
    QApplication.processEvents()
    time.sleep(0.005)
assert wanted() and form.running
viewer.close()
end = time.monotonic() + 1.0
while time.monotonic() < end:
    QApplication.processEvents()
    time.sleep(0.005)
print("closed")
"""


def test_closing_the_viewer_while_it_works_ends_the_program_well(qapp: Any, tiny_run: Path, tmp_path: Path) -> None:
    # Our own application keeps the X server, which ends with its last program.
    for when in ("before", "after"):
        environment = {**os.environ, "NAPARI_CONFIG": str(tmp_path / "settings.yaml"), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", SCRIPT, str(tiny_run), when],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, (when, done.returncode, done.stderr[-2000:])
        assert done.stdout.split()[-1:] == ["closed"], when
        assert "Traceback" not in done.stdout + done.stderr, (when, done.stderr[-2000:])
