"""Keeping a stranger's package from doing harm while it loads: a time limit, and one line for whatever goes wrong."""

from __future__ import annotations

import math
import os
import queue
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any, Final, TypeVar

import pluggy

from hematokit._version import __version__
from hematokit.errors import PluginError
from hematokit.plugins import hookspecs

__all__ = [
    "HOOKS_ATTRIBUTE",
    "SECONDS_VARIABLE",
    "TookTooLongError",
    "call_with_limit",
    "declared_hooks",
    "describe_failure",
    "time_limit",
]

SECONDS_VARIABLE: Final = "HEMATOKIT_PLUGIN_SECONDS"
HOOKS_ATTRIBUTE: Final = "HEMATOKIT_HOOKS"
"""What a plugin's module calls the version of the hooks that it needs at least."""

_SECONDS: Final = 30.0
"""Long enough for a large library on a slow disk: a plugin that works must not be lost for being slow once."""

T = TypeVar("T")


class TookTooLongError(Exception):
    """A call that did not end within its limit."""


def time_limit(environment: Mapping[str, str]) -> float:
    """Seconds that a plugin may take to load: what ``HEMATOKIT_PLUGIN_SECONDS`` says, else 30.

    Raises
    ------
    PluginError
        If it is no number above zero.
    """
    word = environment.get(SECONDS_VARIABLE, "").strip()
    if not word:
        return _SECONDS
    try:
        seconds = float(word)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise PluginError(f"{SECONDS_VARIABLE}={word!r} is not a number of seconds above 0; set it to 30, say")
    return seconds


def call_with_limit(call: Callable[[], T], seconds: float) -> T:
    """Call a function and wait for it for so long, and no longer.

    It runs in a thread that is left to itself when time is up: an import cannot be stopped from outside without leaving
    the libraries it was amid in pieces (an alarm signal in the middle of ``import torch`` does). What it prints
    meanwhile, itself or through programs that it starts, goes to standard error, so that ``--json`` stays readable.

    Parameters
    ----------
    call : callable
        Takes nothing.
    seconds : float
        Limit.

    Raises
    ------
    TookTooLongError
        If it has not returned by then.
    BaseException
        Whatever it raises.
    """
    answers: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put((True, call()))
        except BaseException as error:
            answers.put((False, error))

    with _output_to_errors():
        # A daemon: what hangs here must not hold the program back at its end.
        threading.Thread(target=run, daemon=True, name="loading a plugin").start()
        try:
            good, value = answers.get(timeout=seconds)
        except queue.Empty:
            raise TookTooLongError(f"took longer than {seconds:g} s") from None
    if not good:
        raise value
    result: T = value
    return result


@contextmanager
def _output_to_errors() -> Iterator[None]:
    """Send standard output to standard error: that of Python, and that of the process, which its children inherit."""
    with redirect_stdout(sys.stderr):
        try:
            _flush_output()
            kept = os.dup(1)
            os.dup2(2, 1)
        except OSError:
            # A process without standard output has nothing to spoil.
            yield
            return
        try:
            yield
        finally:
            _flush_output()
            os.dup2(kept, 1)
            os.close(kept)


def _flush_output() -> None:
    if sys.__stdout__ is not None and not sys.__stdout__.closed:
        sys.__stdout__.flush()


def declared_hooks(plugin: object, module: str) -> str:
    """Return the version of the hooks that a plugin needs, or an empty text where it does not say.

    Parameters
    ----------
    plugin : object
        What its entry point names.
    module : str
        The entry point's module, looked at where that is an object inside one.

    Raises
    ------
    PluginError
        If it needs another version than this hematokit has.
    """
    found = getattr(plugin, HOOKS_ATTRIBUTE, None) or getattr(sys.modules.get(module), HOOKS_ATTRIBUTE, None)
    if found is None:
        return ""
    if not isinstance(found, str) or not re.fullmatch(r"\d{1,4}\.\d{1,4}", found):
        raise PluginError(f"{HOOKS_ATTRIBUTE} is {found!r}, not a version like {hookspecs.HOOKS!r}; tell its author")
    major, minor = map(int, found.split("."))
    have_major, have_minor = map(int, hookspecs.HOOKS.split("."))
    if (major, minor) > (have_major, have_minor):
        raise PluginError(f"needs hooks {found}; {_newer()}")
    if major < have_major:
        raise PluginError(
            f"is written for hooks {found}; hematokit {__version__} has hooks {hookspecs.HOOKS}; "
            "install a newer version of the plugin"
        )
    return found


def describe_failure(stage: str, error: BaseException, package: str) -> str:
    """Say in one line what a plugin did wrong.

    Parameters
    ----------
    stage : str
        ``"import"``, ``"registration"`` or ``"register_commands"``.
    error : BaseException
        What was raised.
    package : str
        The distribution.
    """
    text = " ".join(str(error).split()) or "no message"
    if isinstance(error, TookTooLongError):
        said = f"{text} and was given up; HEMATOKIT_BLOCK_PLUGINS={package} spares the wait"
    elif isinstance(error, PluginError):
        said = text
    elif isinstance(error, pluggy.PluginValidationError) and "unknown hook" in text:
        hook = re.search(r"unknown hook '(\w+)'", text)
        said = f"implements the hook {hook[1] if hook else '?'}, which is not known here; {_newer()}"
    elif _is_about_hematokit(error):
        said = f"{type(error).__name__}: {text}; {_newer()}"
    else:
        said = f"{type(error).__name__}: {text}"
    return f"{stage}: {said}"[:400]


def _newer() -> str:
    have = f"hematokit {__version__} has hooks {hookspecs.HOOKS}"
    return f"{have}; if the plugin is newer, run: pip install --upgrade hematokit"


def _is_about_hematokit(error: BaseException) -> bool:
    """Whether something is missing from hematokit itself, as when a plugin was written for a later version."""
    if isinstance(error, ImportError):
        name = error.name or ""
    elif isinstance(error, AttributeError):
        name = getattr(error.obj, "__name__", "") if type(error.obj) is type(sys) else ""
    else:
        return False
    return name.split(".")[0] == hookspecs.PROJECT
