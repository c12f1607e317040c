"""The viewer is closed while it works; in a process of its own, so that an abort is seen."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
from fieldkit import wait_for

SCRIPT = """
import sys, time
import napari
import numpy as np
from qtpy.QtWidgets import QApplication
from hematokit.synthetic import synthesize_field
from napari_hematonet.background import WORKER
from napari_hematonet.state import cells_layers

viewer = napari.Viewer(show_welcome_screen=False)
tile = synthesize_field(600, 800, cells=24, seed=5).pixels
viewer.add_image(np.tile(tile, (7, 7, 1)), name="field")
form = viewer.window.add_plugin_dock_widget("hematokit", "Classify field")[1]
viewer.window.add_plugin_dock_widget("hematokit", "Legend and differential")
viewer.window.add_plugin_dock_widget("hematokit", "Why")
form.model.choose(sys.argv[1])
form.run_button.click()
shown = lambda: any(len(cells.data) for cells in cells_layers(viewer))
started = lambda: WORKER._process is not None
wanted = started if sys.argv[2] == "before" else shown
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
print(WORKER._process.pid, "closed")
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
        worker, closed = done.stdout.split()[-2:]
        assert closed == "closed", when
        wait_for(lambda worker=worker: not psutil.pid_exists(int(worker)))
        assert "Traceback" not in done.stdout + done.stderr, (when, done.stderr[-2000:])
