"""Work beside the window: one piece of it in a thread, how far it is, and how it is stopped."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from superqt.utils import GeneratorWorker

from hematokit.errors import HematokitError, describe_error, describe_missing_module

__all__ = ["Background", "Failed", "Note", "StoppedError"]

_log = logging.getLogger("napari_hematonet")


@dataclass(frozen=True)
class Note:
    """Something that the user should know; the work goes on."""

    text: str


@dataclass(frozen=True)
class Failed:
    """The work has ended early, for a reason in one line."""

    reason: str


class StoppedError(KeyboardInterrupt):
    """Raised inside the work when nobody waits for it any more; everything in hematokit ends cleanly on it."""


class _Worker(GeneratorWorker):  # type: ignore[misc] # Qt has no types here
    """A worker that napari waits for when it closes, as for its own, and that ends silently when nobody is left.

    superqt's own way to run exchanges the handling of warnings of the whole program meanwhile. Two workers that overlap
    leave it with one that sends warnings to the first of them; when that has gone, any warning anywhere is a traceback.
    """

    def run(self) -> None:
        """Do the work; called by Qt, in the thread."""
        _step_back()
        # RuntimeError: the window has closed, and has taken the signals along.
        with contextlib.suppress(RuntimeError):
            self.started.emit()
            self._running = True
            self.work()
        self._running = False
        with contextlib.suppress(RuntimeError):
            self.finished.emit()
            self._finished.emit(self)


def _step_back() -> None:
    """Let the window go first where both want a processor: this thread, and those that compute for it, come second.

    Linux only, where each thread has a priority of its own that the threads it starts inherit.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


@dataclass
class Background:
    """One piece of work in a thread.

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
    _worker: Any = field(default=None, repr=False)
    _may_go_on: threading.Event = field(default_factory=threading.Event, repr=False)

    def wait(self) -> None:
        """Let the windows have the processor until they call `go_on`, or for `_PATIENCE`.

        Called by the work, right after a step that has much built in the window: side by side, both take twice as long.

        Raises
        ------
        StoppedError
            If the work has been stopped.
        """
        self._may_go_on.wait(_PATIENCE)
        if self.stopped:
            raise StoppedError

    def go_on(self) -> None:
        """End a `wait`, one to come too."""
        self._may_go_on.set()

    def tell(self, done: int, total: int | None, message: str) -> None:
        """Keep how far the work is; the `Progress` that is given to it.

        Raises
        ------
        StoppedError
            If the work has been stopped.
        """
        self.progress = (done, total, message)
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

        def guarded_work() -> Iterator[object]:
            try:
                with _giving_way():
                    yield from stoppable()
            except StoppedError:
                return
            except HematokitError as error:
                yield Failed(str(error))
            except ModuleNotFoundError as error:
                yield Failed(describe_missing_module(error))
            except MemoryError:
                yield Failed("there is not enough memory for this; close other programs, or work on a smaller region")
            except Exception as error:
                _log.exception("work in the background failed")
                yield Failed(f"this failed unexpectedly ({describe_error(error)}); please report it")

        def stoppable() -> Iterator[object]:
            for step in work():
                if self.stopped:
                    return
                yield step

        worker = _Worker(guarded_work)
        worker.yielded.connect(on_step)
        worker.finished.connect(on_end)
        self._worker = worker
        worker.start()

    def stop(self) -> None:
        """Stop: nothing more is heard of the work, which ends by itself at its next chance."""
        self.stopped = True
        self._may_go_on.set()
        # Called when windows are going, too: signals and their receivers may be gone already.
        with contextlib.suppress(RuntimeError, TypeError):
            self._worker.quit()
            self._worker.yielded.disconnect()
            self._worker.finished.disconnect()


_PATIENCE: Final = 2.0
"""Seconds that work waits for the windows at most."""

_GIVE_WAY: Final = 0.0005
_NICENESS: Final = 10
_INTERVAL: Final = threading.Lock()
_busy: Final[list[float]] = []


@contextlib.contextmanager
def _giving_way() -> Iterator[None]:
    """Let the thread of the windows have the interpreter back soon while work goes on beside it.

    Drawing gives the interpreter away at each of its hundreds of calls to OpenGL, and Python lets another thread keep
    it for 5 ms by default: a second for one picture.
    """
    with _INTERVAL:
        _busy.append(sys.getswitchinterval())
        sys.setswitchinterval(min(_GIVE_WAY, _busy[-1]))
    try:
        yield
    finally:
        with _INTERVAL:
            before = max(_busy)
            _busy.pop()
            if not _busy:
                sys.setswitchinterval(before)
