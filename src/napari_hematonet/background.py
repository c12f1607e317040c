"""Work beside the window: one piece of it in a thread or in the process that computes, and how it is stopped."""

from __future__ import annotations

import atexit
import contextlib
import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from qtpy.QtCore import QObject, Signal

from hematokit.errors import HematokitError
from napari_hematonet.worker import FIELD_ATTRIBUTES, StoppedError, reason_of

if TYPE_CHECKING:
    from hematokit.imaging.fieldfiles import Field

__all__ = ["WORKER", "Background", "Failed", "WorkerProcess"]

_LOOK: Final = 0.1
"""Seconds after which a thread that waits for the worker notices that it has been stopped."""

_ENDED: Final = "the background process ended unexpectedly (its output may show the reason); try again"


@dataclass(frozen=True)
class Failed:
    """The work has ended early, for a reason in one line."""

    reason: str


class WorkerProcess:
    """Process that runs `napari_hematonet.worker`; started with the first job, and again if it has ended.

    It ends by itself when this process does.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._address = ""
        self._key = b""

    def connect(self) -> Connection:
        """Open a connection for one job; may take a second.

        Raises
        ------
        HematokitError
            If the process cannot be started.
        """
        with self._lock:
            if self._process is not None and self._process.poll() is None:
                # It may be about to end.
                with contextlib.suppress(OSError, EOFError):
                    return Client(self._address, authkey=self._key)
                self._process.kill()
                self._process.wait()
            self.tidy()
            self._start()
            try:
                return Client(self._address, authkey=self._key)
            except (OSError, EOFError) as error:
                raise HematokitError(_ENDED) from error

    def _start(self) -> None:
        self._key = secrets.token_bytes(32)
        # The same import path as here: a script, a test or napari's bundle may have extended it.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-P", "-c", "from napari_hematonet.worker import main; main()"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write(f"{self._key.hex()}\n")
            self._process.stdin.flush()
        self._address = self._process.stdout.readline().strip()
        if not self._address:
            raise HematokitError(_ENDED)

    def tidy(self) -> None:
        """Remove the socket and the folder of a process that was killed; one that ends does so itself."""
        if self._process is None or self._process.poll() is None or not self._address or sys.platform == "win32":
            return
        socket = Path(self._address)
        with contextlib.suppress(OSError):
            socket.unlink(missing_ok=True)
            socket.parent.rmdir()


WORKER: Final = WorkerProcess()


class _Signals(QObject):  # type: ignore[misc] # Qt has no types here
    """Carries what a thread says to the thread of the windows."""

    stepped = Signal(object)
    ended = Signal()
    over = Signal()

    def __init__(self, background: Background) -> None:
        super().__init__()
        self._background = background
        self.over.connect(self._forget)

    def _forget(self) -> None:
        _RUNNING.discard(self._background)


_RUNNING: Final[set[Background]] = set()
"""Work whose thread may still send signals."""


@atexit.register
def _stop_all() -> None:
    for background in list(_RUNNING):
        background.stopped = True
    for background in list(_RUNNING):
        background.join(1.0)
    WORKER.tidy()


@dataclass(eq=False)
class Background:
    """One job in a thread.

    The work is a generator; what it yields comes to `on_step` in the thread of the windows. It tells how far it is
    through `tell`, which costs nothing: the form looks at `progress` when it likes.

    Attributes
    ----------
    progress : tuple of (int, int or None, str)
        Done, of how many, doing what.
    stopped : bool
        Whether the user has stopped it. What it yields is dropped from then on.
    """

    progress: tuple[int, int | None, str] = (0, None, "")
    stopped: bool = False
    _signals: Any = field(default=None, repr=False)
    _thread: threading.Thread | None = field(default=None, repr=False)

    def tell(self, done: int, total: int | None, message: str) -> None:
        """Record the progress of the job; passed to it as its `Progress`.

        Raises
        ------
        StoppedError
            If the work has been stopped.
        """
        self.progress = (done, total, message)
        if self.stopped:
            raise StoppedError

    def compute(
        self, function: Callable[..., Iterator[object]], *arguments: object, field: Field | None = None
    ) -> Iterator[object]:
        """Run a function of `napari_hematonet.jobs` in the worker process; called by the job.

        Parameters
        ----------
        function : callable
            A generator of a module; it also gets ``tell``, its `Progress`, and ``field`` if there is one.
        *arguments : object
            What can be pickled.
        field : Field, optional
            Read here.

        Yields
        ------
        object
            What the function yields.

        Raises
        ------
        HematokitError
            In one line, what the function raised, or that the process has ended.
        StoppedError
            If the work has been stopped.
        """
        attributes = None if field is None else {name: getattr(field, name) for name in FIELD_ATTRIBUTES}
        with WORKER.connect() as connection:
            try:
                connection.send((function, arguments, attributes))
                while True:
                    while not connection.poll(_LOOK):
                        self._go_on()
                    kind, what = connection.recv()
                    self._go_on()
                    if kind == "step":
                        yield what
                    elif kind == "progress":
                        self.progress = what
                    elif kind == "ask":
                        connection.send(_read(field, *what))
                    elif kind == "failed":
                        raise HematokitError(what)
                    else:
                        return
            except (OSError, EOFError) as error:
                raise HematokitError(_ENDED) from error

    def _go_on(self) -> None:
        if self.stopped:
            raise StoppedError

    def start(
        self,
        work: Callable[[], Iterator[object]],
        on_step: Callable[[object], object],
        on_end: Callable[[], object],
    ) -> None:
        """Begin.

        Parameters
        ----------
        work : callable
            Makes the generator.
        on_step : callable
            Takes what it yields, and `Failed` if it raises. A method of a widget, so that it is forgotten with it.
        on_end : callable
            Called once, whatever happened; not after `stop`.
        """
        signals = self._signals = _Signals(self)
        signals.stepped.connect(on_step)
        signals.ended.connect(on_end)
        _RUNNING.add(self)

        def run() -> None:
            try:
                for step in work():
                    if self.stopped:
                        break
                    _emit(signals.stepped, step)
            except StoppedError:
                pass
            except Exception as error:
                _emit(signals.stepped, Failed(reason_of(error)))
            _emit(signals.ended)
            _emit(signals.over)

        self._thread = threading.Thread(target=run, name="HematoNet", daemon=True)
        self._thread.start()

    def join(self, seconds: float) -> None:
        """Wait for the end of the thread."""
        if self._thread is not None:
            self._thread.join(seconds)

    def stop(self) -> None:
        """Stop: nothing more is heard of the work, which ends by itself at its next chance."""
        self.stopped = True
        # Also called while windows are closed: signals and receivers may already be deleted.
        with contextlib.suppress(RuntimeError, TypeError, AttributeError):
            self._signals.stepped.disconnect()
            self._signals.ended.disconnect()


def _emit(signal: Any, *values: object) -> None:
    # RuntimeError: the window was closed and its signals deleted.
    with contextlib.suppress(RuntimeError):
        signal.emit(*values)


def _read(field: Field | None, method: str, argument: object) -> tuple[object, str]:
    """Call a method of a field for the worker: its value, or why there is none."""
    try:
        return getattr(field, method)(argument), ""
    except Exception as error:
        return None, reason_of(error)
