"""The demonstration's model: trained on drawn cells, here, by one click; loaded the next time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from napari_hematonet._libraries import keep_triton_out

if TYPE_CHECKING:
    from napari_hematonet.classify_job import Background

__all__ = ["DEMO_NAME", "demo_folder", "find_demo_model", "make_demo_model"]

DEMO_NAME: Final = "demo model (drawn cells)"


def demo_folder() -> Path:
    """Where the demonstration is kept; need not exist."""
    from hematokit.models.runtimes import cache_folder

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
        As `hematokit.demo.run_demo`.
    """
    made = find_demo_model()
    if made is None:
        keep_triton_out()
        from hematokit.demo import run_demo

        stage = ["drawing cells"]

        def log(line: str) -> None:
            stage[0] = line

        def tell(done: int, total: int | None, message: str) -> None:
            background.tell(done, total, stage[0])

        background.tell(0, None, stage[0])
        made = run_demo(demo_folder(), device=device, progress=tell, log=log).run
    yield made
