"""Errors that a user can cause and mend.

Every message is one line that says what is wrong, in which file, and what to do. The command line prints it
and exits with code 2; in Python it is an ordinary exception.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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
    "naming",
]


def describe_error(error: BaseException) -> str:
    """Say in one line what a stranger's code raised: its type, and at most 300 characters in all."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


@contextmanager
def naming(who: str) -> Iterator[None]:
    """Turn what a stranger's code raises into one line that names it.

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
    """Base of all errors that are a user's to mend."""


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
    """A training that cannot start or go on with these data and settings."""


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
