"""The process that computes: it loads torch and the models, and runs the jobs that the viewer asks for.

torch is never imported where napari draws. Its import stops the window several times for 150 to 500 ms, and triton,
which it brings along, ends the process where Mesa draws: each has an LLVM of its own.

The viewer opens one connection for each job, sends the function and its arguments, and receives what the function
yields. A job whose connection is closed stops at its next step. Pixels are read in the viewer, where they are: they may
be an array of a layer.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from hematokit.errors import HematokitError, ImageError, describe_error, describe_missing_module
from hematokit.imaging.fieldfiles import Field
from hematokit.imaging.geometry import Box

__all__ = ["FIELD_ATTRIBUTES", "Note", "StoppedError", "answer", "main", "reason_of"]

_log = logging.getLogger("napari_hematonet")

_RETRY: Final = 0.1
"""Seconds until the next attempt after the system refused a connection."""

_NICENESS: Final = 10
"""Lower priority than the window, so that the window stays responsive."""

FIELD_ATTRIBUTES: Final = (
    *("path", "name", "height", "width", "orientation", "pixel_size_um", "pixel_size_source", "notes"),
)
"""Attributes of a field that are sent to a job."""


@dataclass(frozen=True)
class Note:
    """Message for the user; the job continues."""

    text: str


class StoppedError(KeyboardInterrupt):
    """Raised inside a job whose result is no longer needed; all functions of hematokit end cleanly on it."""


def reason_of(error: Exception) -> str:
    """Return one line on why a job failed; an unexpected error is logged with its traceback."""
    if isinstance(error, HematokitError):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        return describe_missing_module(error)
    if isinstance(error, MemoryError):
        return "there is not enough memory for this; close other programs, or work on a smaller region"
    _log.error("background job failed", exc_info=error)
    return f"this failed unexpectedly ({describe_error(error)}); please report it"


class _Link:
    """Worker's end of the connection of one job, for all threads of the job."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def send(self, kind: str, what: object) -> None:
        """Send a message: ``"step"``, ``"progress"``, ``"failed"`` or ``"end"``, and its content.

        Raises
        ------
        StoppedError
            If the viewer has closed the connection.
        """
        with self._lock:
            self._send(kind, what)

    def _send(self, kind: str, what: object) -> None:
        try:
            self._connection.send((kind, what))
        except OSError:
            raise StoppedError from None

    def tell(self, done: int, total: int | None, message: str) -> None:
        """Report the progress of the job; a `Progress`."""
        self.send("progress", (done, total, message))

    def ask(self, method: str, argument: object) -> Any:
        """Call a method of the job's field in the viewer.

        Raises
        ------
        ImageError
            If that fails.
        StoppedError
            If the viewer has closed the connection.
        """
        with self._lock:
            self._send("ask", (method, argument))
            try:
                value, failed = self._connection.recv()
            except (OSError, EOFError):
                raise StoppedError from None
        if failed:
            raise ImageError("unreadable", failed)
        return value


class _RemoteField(Field):
    """A field that is open in the viewer."""

    def __init__(self, attributes: dict[str, Any], link: _Link) -> None:
        self.__dict__.update(attributes)
        self._shown = str(self.path)
        self._link = link

    def read(self, box: Box) -> npt.NDArray[np.uint8]:
        """Read a box; see `Field.read`."""
        pixels: npt.NDArray[np.uint8] = self._link.ask("read", box)
        return pixels

    def thumbnail(self, longest: int) -> tuple[npt.NDArray[np.uint8], float]:
        """Return the field, downsampled; see `Field.thumbnail`."""
        made: tuple[npt.NDArray[np.uint8], float] = self._link.ask("thumbnail", longest)
        return made

    def close(self) -> None:
        """Do nothing: the field belongs to the viewer."""


def answer(connection: Connection) -> None:
    """Run the job received over a connection and send the values it yields; return when the job has ended.

    Parameters
    ----------
    connection : Connection
        Sends the function (a generator), its positional arguments, and the attributes of its field or None. The
        function also gets ``tell``, its `Progress`, and ``field`` if there is one.
    """
    link = _Link(connection)
    with connection, suppress(StoppedError, EOFError):
        function, arguments, attributes = connection.recv()
        given = {} if attributes is None else {"field": _RemoteField(attributes, link)}
        try:
            steps: Iterator[object] = function(*arguments, tell=link.tell, **given)
            for step in steps:
                link.send("step", step)
        except Exception as error:
            link.send("failed", reason_of(error))
        link.send("end", None)


def main() -> None:
    """Run jobs for the parent process until it ends.

    A key comes in by the standard input, which the other process keeps open; the address goes out by the standard
    output.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C in the terminal is for napari
    if hasattr(os, "nice"):
        os.nice(_NICENESS)
    key = bytes.fromhex(sys.stdin.readline())
    folder = tempfile.mkdtemp(prefix="hematokit-")
    # On Windows a named pipe, whose name the system chooses.
    with Listener(None if sys.platform == "win32" else str(Path(folder) / "jobs"), authkey=key) as listener:
        print(listener.address, flush=True)
        with suppress(OSError):  # the stream may be missing
            os.dup2(2, 1)  # output of plugins must not be read as the address
        threading.Thread(target=_accept, args=(listener,), daemon=True).start()
        sys.stdin.read()
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)  # results of running jobs are no longer needed


def _accept(listener: Listener) -> None:
    while True:
        try:
            threading.Thread(target=answer, args=(listener.accept(),), daemon=True).start()
        except (AuthenticationError, EOFError, ConnectionError):
            continue
        except OSError:  # too many open files, for example: other jobs will end and close theirs
            time.sleep(_RETRY)
