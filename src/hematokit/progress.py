"""How long work reports what it has done, without knowing who shows it."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Progress", "no_log", "no_progress", "part_of"]


class Progress(Protocol):
    """Called with the progress; raising from it (``KeyboardInterrupt``, say) cancels the work cleanly."""

    def __call__(self, done: int, total: int | None, message: str) -> None:
        """Report `done` of `total` items (``None``: unknown) and a short text."""


def no_progress(done: int, total: int | None, message: str) -> None:
    """Show nothing."""


def no_log(line: str) -> None:
    """Show nothing: the default where work reports in lines of text."""


def part_of(progress: Progress, before: int, total: int, message: str) -> Progress:
    """Return the progress function of one part of the work.

    Parameters
    ----------
    progress : Progress
        Of the whole.
    before : int
        Items done before this part.
    total : int
        Items of the whole.
    message : str
        Shown while the part is done.
    """
    return lambda done, _total, _message: progress(before + done, total, message)
