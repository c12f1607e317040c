"""Errors that a user can cause and correct, and the form of names and paths in messages.

Every message is one line that says what is wrong, in which file, and what to do. The command line prints it
and exits with code 2; in Python it is an ordinary exception.
"""

from __future__ import annotations

import re
import shlex
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

__all__ = [
    "BusyError",
    "EvaluationError",
    "ExplanationError",
    "FieldError",
    "HematokitError",
    "ImageError",
    "ModelError",
    "PluginError",
    "ServingError",
    "StoreError",
    "TaxonomyError",
    "TrainingError",
    "describe_error",
    "describe_missing_module",
    "naming",
    "printable",
    "shell_word",
    "some_of",
]


def printable(text: str) -> str:
    r"""Return `text` as one line of UTF-8: control characters and undecodable bytes are escaped.

    File names may contain newlines, terminal escape sequences and bytes that are not UTF-8.

    Examples
    --------
    >>> printable("a\nb.jpg")
    'a\\nb.jpg'
    """
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(
        char if char.isprintable() or char == " " else char.encode("unicode_escape").decode() for char in text
    )


def some_of(names: Sequence[str], count: int = 3) -> str:
    """Return the first names, and the number of the others.

    Examples
    --------
    >>> some_of(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")


def shell_word(path: object) -> str:
    """Write a path so that a shell takes it as one word, for commands in messages.

    Examples
    --------
    >>> print(shell_word("marrow.zarr"), shell_word("my cells.zarr"))
    marrow.zarr 'my cells.zarr'
    """
    return shlex.quote(str(path))


def describe_error(error: BaseException) -> str:
    """Return one line about an error of third-party code: its type and text, at most 300 characters in all."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


_DISTRIBUTIONS: Final = {
    "bioimageio": "bioimageio-core",
    "PIL": "pillow",
    "skimage": "scikit-image",
    "yaml": "pyyaml",
}
"""Distributions of our dependencies whose name is not that of their module."""

_DEVELOPER_EXTRAS: Final = ("test", "docs", "dev", "bench")
"""Extras that are not for users."""

_REQUIREMENT: Final = re.compile(r"([\w.-]+)(?:.*\bextra == ['\"]([\w-]+)['\"])?")


def describe_missing_module(error: ModuleNotFoundError) -> str:
    """Say in one line which module is missing, who needs it, and what to install where that is known.

    Parameters
    ----------
    error : ModuleNotFoundError
        As it was raised.
    """
    from importlib import metadata

    module = error.name or "a module"
    top = module.partition(".")[0]
    name = _DISTRIBUTIONS.get(top, top)
    try:
        wanted = [_REQUIREMENT.match(line) for line in metadata.requires("hematokit") or []]
    except metadata.PackageNotFoundError:
        wanted = []
    ours = [found for found in wanted if found and _same_name(found[1], name) and found[2] not in _DEVELOPER_EXTRAS]
    if module == top and ours:
        name, extra = ours[0][1], None if any(found[2] is None for found in ours) else ours[0][2]
        what = f"'hematokit[{extra}]'" if extra else name
        return f"this needs {name}, which is not installed; run: pip install {what}"
    providers = metadata.packages_distributions()
    if top in providers:
        package = providers[top][0]
        return f"the installed {package} {metadata.version(package)} has no module {module}; install another version"
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        importer = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if importer in providers:
            return (
                f"module {module} is missing, which package {providers[importer][0]} needs; see what that package's "
                "documentation says to install"
            )
    return f"module {module} is missing; install the package that provides it"


def _same_name(one: str, other: str) -> bool:
    return re.sub(r"[-_.]+", "-", one).lower() == re.sub(r"[-_.]+", "-", other).lower()


@contextmanager
def naming(who: str) -> Iterator[None]:
    """Turn any error of third-party code into one line that names the code.

    Lack of memory goes through as it is: callers have means against it.

    Parameters
    ----------
    who : str
        ``"augmenter 'stain' of package hematokit-stain"``.

    Raises
    ------
    PluginError
        For any exception of the block that is not a `HematokitError` already.
    """
    try:
        yield
    except (HematokitError, MemoryError):
        raise
    except Exception as error:
        # torch's, by name: this module does not import it.
        if type(error).__name__ == "OutOfMemoryError":
            raise
        raise PluginError(f"{who} failed: {describe_error(error)}") from error


class HematokitError(Exception):
    """Base of all errors that a user can correct."""


class ImageError(HematokitError):
    """An image file that cannot be used.

    Parameters
    ----------
    reason : str
        Short machine-readable reason: ``"unreadable"``, ``"not-rgb"``, ``"too-large"``, ``"wrong-size"``, ...
    message : str
        The line for a person.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class TaxonomyError(HematokitError):
    """An unknown class code, or a taxonomy file that is not one."""


class StoreError(HematokitError):
    """A patch store that is missing, damaged, locked, or of a schema this version does not know."""


class PluginError(HematokitError):
    """A plugin or an option of a plugin that does not exist or failed to load."""


class ModelError(HematokitError):
    """A bundle, a run or a weights file that cannot be loaded."""


class EvaluationError(HematokitError):
    """An evaluation or a comparison that is not possible with these runs, cells or files."""


class ExplanationError(HematokitError):
    """An explanation that is not possible for these cells or classes, or a folder of results that cannot be used."""


class TrainingError(HematokitError):
    """A training that cannot start or continue with these data and settings."""


class FieldError(HematokitError):
    """A set of fields, a file of known cells or smears, or a folder of results that cannot be used."""


class ServingError(HematokitError):
    """A server that cannot start, or a request that it does not take.

    Parameters
    ----------
    message : str
        The line for a person.
    reason : str
        Short machine-readable reason: ``"unauthorised"``, ``"too-large"``, ``"busy"``, ...
    status : int
        Status of the HTTP answer.
    """

    def __init__(self, message: str, reason: str = "bad-request", status: int = 400) -> None:
        super().__init__(message)
        self.reason = reason
        self.status = status


class BusyError(ServingError):
    """More work waits than a server takes; the same request may be taken in a moment."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "busy", 503)
