"""How long work tells what it has done, without knowing who shows it."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Progress", "no_progress"]


class Progress(Protocol):
    """Called with what is done; raising from it (``KeyboardInterrupt``, say) cancels the work cleanly."""

    def __call__(self, done: int, total: int | None, message: str) -> None:
        """Report `done` of `total` items (``None``: unknown) and a few words on what is going on."""


def no_progress(done: int, total: int | None, message: str) -> None:
    """Show nothing."""
