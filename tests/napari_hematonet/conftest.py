"""A virtual screen and viewers for the tests of the plugin.

napari draws on a real X server only. Where ``DISPLAY`` is not set, one is started here (Xvfb) and ended afterwards; on
a machine without it the tests that need a window are skipped and say so, but not in CI.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import napari

# Before napari is imported: the user's own settings are neither read nor changed.
_SETTINGS = Path(tempfile.mkdtemp(prefix="hematokit-napari-"))
os.environ["NAPARI_CONFIG"] = str(_SETTINGS / "settings.yaml")
os.environ.setdefault("LIBGL_ALWAYS_SOFTWARE", "1")
# Two bindings of Qt in one environment do not work together; the tests' extra installs this one.
os.environ.setdefault("QT_API", "pyqt6")


@pytest.fixture(scope="session", autouse=True)
def settings_of_these_tests() -> Iterator[None]:
    """Remove the settings that napari wrote."""
    yield
    shutil.rmtree(_SETTINGS, ignore_errors=True)


@pytest.fixture(scope="session")
def x_server() -> Iterator[str]:
    """A display to draw on: the one that is there, or an Xvfb of our own."""
    display = os.environ.get("DISPLAY")
    if display or not sys.platform.startswith("linux"):
        yield display or ""
        return
    program = shutil.which("Xvfb")
    if program is None:
        reason = "no X server: DISPLAY is not set and Xvfb is not installed (Debian: apt-get install xvfb libegl1)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    reading, writing = os.pipe()
    command = [program, "-displayfd", str(writing), "-screen", "0", "1600x1100x24", "-nolisten", "tcp", "-terminate"]
    server = subprocess.Popen(command, pass_fds=[writing], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        number = pipe.readline().strip()  # it writes the number once it takes connections
    if not number:
        pytest.fail(f"Xvfb ended with code {server.wait()} before it took connections")
    os.environ["DISPLAY"] = f":{number}"
    yield f":{number}"
    from qtpy.QtCore import QCoreApplication

    # Qt ends the process when its server goes. Told to, the server goes when the last program has left, which is this
    # one, at its end.
    if QCoreApplication.instance() is None:
        server.terminate()
        server.wait(10)


@pytest.fixture(scope="session")
def qapp(x_server: str, qapp: Any) -> Any:
    """The application of pytest-qt, on our display."""
    return qapp


@pytest.fixture(autouse=True)
def no_corrections_of_others(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of its own for the corrections of images, which would come back with the next test's image."""
    folder = tmp_path_factory.mktemp("data")
    monkeypatch.setenv("HEMATOKIT_DATA", str(folder))
    return folder


@pytest.fixture(autouse=True)
def jobs_run_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs run in threads of this process, through the same connections, so that tests can replace what they call."""
    from napari_hematonet import background, worker

    def connect() -> Any:
        ours, theirs = multiprocessing.Pipe()
        threading.Thread(target=worker.answer, args=(theirs,), daemon=True).start()
        return ours

    monkeypatch.setattr(background.WORKER, "connect", connect)


@pytest.fixture
def make_viewer(qtbot: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., napari.Viewer]]:
    """Make viewers that are closed, with all that is theirs, when the test ends."""
    import napari
    from napari.settings import get_settings
    from qtpy.QtWidgets import QApplication

    # It looks at layers from a thread of its own, also while the test takes them away.
    monkeypatch.setattr("napari._qt.threads.status_checker.StatusChecker.start", lambda *_: None)
    get_settings().reset()
    made: list[napari.Viewer] = []

    def make(*, show: bool = True, size: tuple[int, int] = (1200, 800)) -> napari.Viewer:
        viewer = napari.Viewer(show=show, show_welcome_screen=False)
        viewer.window._qt_window.resize(*size)
        made.append(viewer)
        if show:
            qtbot.waitExposed(viewer.window._qt_window, timeout=10_000).__enter__()
        QApplication.processEvents()
        return viewer

    yield make
    for viewer in made:
        window = getattr(viewer.window, "_qt_window", None)
        if window is not None:
            monkeypatch.setattr(window, "_save_current_window_settings", lambda: None)
            viewer.close()
    made.clear()
    QApplication.processEvents()
    gc.collect()
    QApplication.processEvents()


@pytest.fixture
def viewer(make_viewer: Callable[..., napari.Viewer]) -> napari.Viewer:
    """A viewer with a window."""
    return make_viewer()


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, str]]]:
    """What the user is told: pairs of severity ("info", "warning", "error") and message, as they come."""
    from napari.utils.notifications import notification_manager

    messages: list[tuple[str, str]] = []

    def listen(notification: Any) -> None:
        messages.append((str(notification.severity), notification.message))

    notification_manager.notification_ready.connect(listen)
    yield messages
    notification_manager.notification_ready.disconnect(listen)
