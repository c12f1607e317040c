"""What every verb shares: progress bars, output for machines, and option types."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from hematokit.errors import PluginError
from hematokit.yaml_text import typed_text

if TYPE_CHECKING:
    from hematokit.progress import Progress

__all__ = ["JsonOption", "echo", "plugin_options", "print_json", "print_result", "progress_bar", "recorded_command"]

GIVEN: ContextVar[tuple[str, ...]] = ContextVar("GIVEN", default=())
"""The words of the command that is running."""


JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object to standard output, for machines.")]


def echo(line: str = "") -> None:
    """Print one line to standard output."""
    typer.echo(line)


def recorded_command() -> list[str]:
    """Return the running command as it is written into runs and bundles; empty where there is none.

    Of absolute paths only the last part is kept: the folders of a laboratory are nobody else's business.
    """
    return ["hematokit", *("=".join(map(_last_part, word.split("="))) for word in GIVEN.get())] if GIVEN.get() else []


def _last_part(text: str) -> str:
    if PurePosixPath(text).is_absolute():
        return PurePosixPath(text).name or text
    return PureWindowsPath(text).name if PureWindowsPath(text).is_absolute() else text


def print_json(data: Mapping[str, Any] | list[Any]) -> None:
    """Print data as one JSON document to standard output; not-a-number becomes null, as JSON has none."""
    typer.echo(json.dumps(_finite(data), indent=2, default=str, allow_nan=False))


class _Result(Protocol):
    def to_dict(self) -> dict[str, Any]: ...

    def lines(self) -> list[str]: ...


def print_result(result: _Result, as_json: bool) -> None:
    """Print what a command did: for machines, or as lines for people."""
    if as_json:
        print_json(result.to_dict())
    else:
        for line in result.lines():
            echo(line)


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

    # The first line waits too: work that ends within ten seconds needs no running commentary.
    last = time.monotonic()

    def report(done: int, total: int | None, message: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= 10:
            last = now
            of = f"/{total}" if total is not None else ""
            print(f"{description}: {done}{of} {unit} {message}".rstrip(), file=sys.stderr, flush=True)

    return report


def plugin_options(assignments: Sequence[str], kind: str) -> dict[str, Any]:
    """Return the options of a plugin from ``--set``: ``{"min_diameter_um": "5"}`` for ``detector.min_diameter_um=5``.

    Parameters
    ----------
    assignments : sequence of str
        The values of ``--set``.
    kind : str
        The type of plugin whose options may be given: ``"detector"``.

    Returns
    -------
    dict of str to str
        Text by name; the option's declared type decides its value later.

    Raises
    ------
    PluginError
        If one is not ``KIND.NAME=VALUE``.
    """
    options: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        head, dot, name = key.strip().replace("-", "_").partition(".")
        if not equals or head != kind or not dot or not name:
            raise PluginError(f"--set {assignment!r} is not {kind}.NAME=VALUE; 'hematokit plugins' lists the options")
        options[name] = typed_text(text)
    return options
