"""The demonstration's model: trained on drawn cells, here, by one click; loaded the next time."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from napari_hematonet._libraries import keep_triton_out

if TYPE_CHECKING:
    from napari_hematonet.background import Background

__all__ = ["DEMO_NAME", "demo_folder", "find_demo_model", "make_demo_model"]

DEMO_NAME: Final = "demo model (drawn cells)"

_SETTLED: Final = 5.0
"""Seconds after which the pace of a step is known well enough to say when it ends."""


def demo_folder() -> Path:
    """Where the demonstration is kept; need not exist."""
    from hematokit.models.runtimes.choosing import cache_folder

    return cache_folder() / "demo"


def find_demo_model() -> Path | None:
    """Return the run of the demonstration if its training has ended, else None."""
    run = demo_folder() / "run"
    return run if (run / "bundle" / "config.json").is_file() else None


def make_demo_model(background: Background, device: str = "auto") -> Iterator[object]:
    """Train the demonstration's model, or go on where that was stopped.

    Parameters
    ----------
    background : Background
        Told how far it is.
    device : str
        Device to train on.

    Yields
    ------
    Path
        The run.

    Raises
    ------
    HematokitError
        As `hematokit.pipelines.demo.train_demo`.
    """
    made = find_demo_model()
    if made is None:
        keep_triton_out()
        from hematokit.pipelines.demo import train_demo

        going = _Going(background)
        made = train_demo(demo_folder(), device=device, progress=going.tell, step=going.begin)
    yield made


class _Going:
    """Says what is being done, and how long that takes yet."""

    def __init__(self, background: Background) -> None:
        self._background = background
        self.begin("Drawing cells")

    def begin(self, step: str) -> None:
        """Take note of what begins."""
        self._step = step
        self._first: tuple[float, int] | None = None
        self._background.tell(0, None, step)

    def tell(self, done: int, total: int | None, message: str) -> None:
        """Tell how far it is; what the step itself says is for a terminal."""
        now = time.monotonic()
        # A training that goes on does not begin at nothing.
        begun, first = self._first = self._first or (now, done)
        words = self._step
        if total and done > first and now - begun > _SETTLED:
            words = f"{words}, {_left((now - begun) / (done - first) * (total - done))}"
        self._background.tell(done, total, words)


def _left(seconds: float) -> str:
    minutes = math.ceil(seconds / 60)
    return "less than a minute left" if minutes <= 1 else f"some {minutes} minutes left"
