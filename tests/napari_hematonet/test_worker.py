"""The process that computes: what it is asked, how it is stopped, and what napari's process is spared."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from fieldkit import wait_for

from hematokit.errors import FieldError, HematokitError
from hematokit.imaging.fieldfiles import Field
from hematokit.imaging.fieldfiles.field import ArrayLevel, Source
from hematokit.imaging.fieldfiles.pixelsize import PixelSize
from hematokit.imaging.geometry import Box
from hematokit.progress import Progress
from napari_hematonet.background import WORKER, Background, WorkerProcess
from napari_hematonet.worker import StoppedError


def look(box: Box, *, field: Field, tell: Progress) -> Iterator[object]:
    tell(1, 2, "reading")
    yield field.read(box)
    yield field.thumbnail(10)[0].shape, field.name, field.pixel_size_um


def fail(error: Exception, *, tell: Progress) -> Iterator[object]:
    yield "before"
    raise error


def go_on(path: str, *, tell: Progress) -> Iterator[object]:
    for number in range(10_000):
        Path(path).write_text(str(number))
        tell(number, None, "")
        time.sleep(0.005)
    yield "done"


def process_id(*, tell: Progress) -> Iterator[object]:
    yield os.getpid()


@pytest.fixture
def field() -> Field:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    return Field(Path("a.png"), "a", Source((ArrayLevel(pixels),), PixelSize(0.2)))


def test_a_job_reads_the_field_of_the_viewer(field: Field) -> None:
    work = Background()
    pixels, said = work.compute(look, Box(5, 7, 20, 30), field=field)
    np.testing.assert_array_equal(pixels, field.read(Box(5, 7, 20, 30)))
    assert said == ((7, 10, 3), "a", 0.2)
    assert work.progress == (1, 2, "reading")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FieldError("no cells; classify first"), "no cells; classify first"),
        (ZeroDivisionError("oops"), "failed unexpectedly (ZeroDivisionError: oops); please report"),
        (MemoryError(), "not enough memory"),
    ],
)
def test_what_a_job_raises_is_one_line(error: Exception, said: str) -> None:
    steps = Background().compute(fail, error)
    assert next(steps) == "before"
    with pytest.raises(HematokitError) as caught:
        next(steps)
    assert said in str(caught.value)


def test_a_box_outside_the_field_is_an_error_of_the_job(field: Field) -> None:
    with pytest.raises(HematokitError, match="is not inside a field of 60x40 px"):
        list(Background().compute(look, Box(0, 0, 100, 100), field=field))


def test_a_job_that_is_stopped_ends(tmp_path: Path) -> None:
    work, file = Background(), tmp_path / "number"
    ended = threading.Event()

    def run() -> None:
        with pytest.raises(StoppedError):
            list(work.compute(go_on, str(file)))
        ended.set()

    threading.Thread(target=run).start()
    wait_for(file.exists)
    work.stop()
    assert ended.wait(10)
    wait_for(lambda: (lambda before: (time.sleep(0.1), before == file.read_text())[1])(file.read_text()))


def test_the_process_is_started_again_and_ends_with_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = WorkerProcess()
    monkeypatch.setattr(WORKER, "connect", worker.connect)
    (first,) = Background().compute(process_id)
    (second,) = Background().compute(process_id)
    assert first == second != os.getpid()
    psutil.Process(first).kill()
    wait_for(lambda: not psutil.pid_exists(first) or psutil.Process(first).status() == psutil.STATUS_ZOMBIE)
    (third,) = Background().compute(process_id)
    assert third not in (first, os.getpid())
    assert psutil.Process(third).nice() > psutil.Process().nice() or sys.platform == "win32"
    assert worker._process is not None
    worker._process.stdin.close()  # as the operating system does when this process ends
    assert worker._process.wait(10) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="pipes have no folder there")
def test_a_killed_process_leaves_no_folder_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = WorkerProcess()
    monkeypatch.setattr(WORKER, "connect", worker.connect)
    list(Background().compute(process_id))
    assert worker._process is not None
    first, folder = worker._process, Path(worker._address).parent
    worker.tidy()
    assert folder.exists()  # it is still in use
    first.kill()
    first.wait(10)
    list(Background().compute(process_id))
    assert not folder.exists()
    second = Path(worker._address).parent
    worker._process.kill()
    worker._process.wait(10)
    worker.tidy()
    assert not second.exists()


def test_a_process_that_dies_while_it_computes_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = WorkerProcess()
    monkeypatch.setattr(WORKER, "connect", worker.connect)
    file = tmp_path / "number"

    def kill() -> None:
        wait_for(file.exists)
        assert worker._process is not None
        worker._process.kill()

    threading.Thread(target=kill).start()
    with pytest.raises(HematokitError, match="ended unexpectedly"):
        list(Background().compute(go_on, str(file)))


SCRIPT = """
import sys, time
import numpy as np
import napari
from qtpy.QtWidgets import QApplication
from hematokit.synthetic import synthesize_field
from napari_hematonet.following import select_cells
from napari_hematonet.state import WHY_KEY, cells_layers

def wait(condition):
    end = time.monotonic() + 100
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        QApplication.processEvents()
        time.sleep(0.005)

viewer = napari.Viewer(show_welcome_screen=False)
viewer.add_image(synthesize_field(600, 800, cells=24, seed=5).pixels, name="field")
form = viewer.window.add_plugin_dock_widget("hematokit", "Classify field")[1]
why = viewer.window.add_plugin_dock_widget("hematokit", "Why")[1]
form.model.choose(sys.argv[1])
form.run_button.click()
wait(lambda: not form.running)
(layer,) = cells_layers(viewer)
select_cells(viewer, layer, [str(layer.features["cell_id"].iloc[0])])
why.explain_button.click()
wait(lambda: any(WHY_KEY in other.metadata for other in viewer.layers))
print(len(layer.data), "torch" in sys.modules, "triton" in sys.modules, flush=True)
viewer.close()
"""


@pytest.mark.slow
def test_cells_are_classified_and_explained_without_torch_in_the_process_of_napari(
    qapp: Any, tiny_run: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, str(tiny_run)],
        env={**os.environ, "NAPARI_CONFIG": str(tmp_path / "settings.yaml"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    cells, torch, triton = done.stdout.split()[-3:]
    assert int(cells) > 10
    assert (torch, triton) == ("False", "False")
    assert "Traceback" not in done.stderr
