"""Doing something a moment later, unless the window has gone by then."""

from __future__ import annotations

from collections.abc import Callable

from qtpy.QtCore import QObject, QTimer

__all__ = ["later"]


def later(owner: QObject, milliseconds: int, slot: Callable[[], object]) -> None:
    """Call something once, after a while.

    Parameters
    ----------
    owner : QObject
        What it is done for; if it is deleted before, nothing is called. ``QTimer.singleShot`` calls all the same.
    milliseconds : int
    slot : callable
        Must not raise: wrap it in `napari_hematonet.state.guarded`.
    """
    timer = QTimer(owner)
    timer.setSingleShot(True)
    timer.timeout.connect(slot)
    timer.timeout.connect(timer.deleteLater)
    timer.start(milliseconds)
