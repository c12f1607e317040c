"""Output, progress bars, the recorded command line and memory settings, for all commands."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from hematokit.commands import CommandResult
    from hematokit.progress import Progress

__all__ = [
    "JsonOption",
    "echo",
    "keep_freed_memory",
    "print_json",
    "print_result",
    "progress_bar",
    "recorded_command",
]

GIVEN: ContextVar[tuple[str, ...]] = ContextVar("GIVEN", default=())
"""The arguments of the command that is running."""

# Numbers of mallopt(3), as in glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_MIB = 2**20

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object to standard output, for machines.")]


def echo(line: str = "") -> None:
    """Print one line to standard output."""
    typer.echo(line)


def recorded_command() -> list[str]:
    """Return the running command as runs and bundles record it; empty if there is none.

    Only the last part of absolute paths is kept, as folder names may be private.
    """
    return ["hematokit", *("=".join(map(_last_part, word.split("="))) for word in GIVEN.get())] if GIVEN.get() else []


def _last_part(text: str) -> str:
    if PurePosixPath(text).is_absolute():
        return PurePosixPath(text).name or text
    return PureWindowsPath(text).name if PureWindowsPath(text).is_absolute() else text


def print_json(data: Mapping[str, Any] | list[Any]) -> None:
    """Print data as one JSON document to standard output; NaN and infinity become null."""
    typer.echo(json.dumps(_finite(data), indent=2, default=str, allow_nan=False))


def print_result(result: CommandResult, as_json: bool) -> None:
    """Print the result of a command, as JSON or as text."""
    if as_json:
        print_json(result.to_dict())
    else:
        echo(result.summary())


def _finite(value: Any) -> Any:
    if (isinstance(value, float) and value != value) or value in (float("inf"), float("-inf")):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


@contextmanager
def progress_bar(description: str, unit: str = "cells") -> Iterator[Progress]:
    """Show a progress bar on standard error and yield the callback that moves it.

    Off a terminal, a line is printed at most every ten seconds instead, so that logs stay short.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _line_progress(description, unit)
        return
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
        TextColumn("{task.fields[message]}"),
        console=console,
    ) as bar:
        task = bar.add_task(description, total=None, message="")

        def report(done: int, total: int | None, message: str) -> None:
            bar.update(task, completed=done, total=total, message=message)

        yield report


def _line_progress(description: str, unit: str) -> Progress:
    import time

    # Nothing is printed for work that ends within ten seconds.
    last = time.monotonic()

    def report(done: int, total: int | None, message: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= 10:
            last = now
            of = f"/{total}" if total is not None else ""
            print(f"{description}: {done}{of} {unit} {message}".rstrip(), file=sys.stderr, flush=True)

    return report


def keep_freed_memory() -> bool:
    """Let this process keep freed memory, instead of returning it to the system at once.

    A step of training frees and takes the same few large blocks again. glibc asks the system for each block above 32
    MiB, which then fills it with zeros, page by page: for a CoAtNet on a CPU that took a quarter of the time (see
    ``docs/results.md``). The price is a somewhat higher peak, as what was freed stays with the process.

    For programs only: a library must not decide this for its caller. ``MALLOC_...`` variables in the environment take
    precedence.

    Returns
    -------
    bool
        Whether the setting was applied; only glibc has it.
    """
    if platform.libc_ver()[0] != "glibc" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    import ctypes

    try:
        library = ctypes.CDLL(None)
        blocks = library.mallopt(_MMAP_THRESHOLD, 128 * _MIB)
        return bool(blocks and library.mallopt(_TRIM_THRESHOLD, 512 * _MIB))
    except (OSError, AttributeError):
        return False
