"""The calling convention of commands: what they take, and what they return.

Every command is a function ``command(inputs, [model,] output, *, settings=None, progress=..., **overrides)``.
``inputs`` are one path or several (`as_paths`); what comes back is a `CommandResult`.
"""

from __future__ import annotations

import html
from abc import ABC, abstractmethod
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

__all__ = ["CommandResult", "Inputs", "as_paths"]

Inputs = str | PathLike[str] | Sequence[str | PathLike[str]]
"""One path, or several."""


def as_paths(inputs: Inputs) -> list[Path]:
    """Return one path or several as a list of paths.

    Parameters
    ----------
    inputs : path or sequence of path
        A string is one path, not a sequence of letters.

    Returns
    -------
    list of Path
    """
    return [Path(inputs)] if isinstance(inputs, str | PathLike) else [Path(path) for path in inputs]


class CommandResult(ABC):
    """What a command returns: its main figures as text, as JSON and, in a notebook, as HTML."""

    @abstractmethod
    def lines(self) -> list[str]:
        """Return the main figures and the paths of the files, one line of text each."""

    def summary(self) -> str:
        """Return the lines as one text, as the command line prints it."""
        return "\n".join(self.lines())

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON-serialisable values, as the command line prints them with ``--json``."""

    def _repr_html_(self) -> str:
        """Return the summary as HTML, for notebooks."""
        return f"<pre>{html.escape(self.summary())}</pre>"
