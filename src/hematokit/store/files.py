"""What the store's writers share: leftovers of killed ones and full disks."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from hematokit.errors import StoreError
from hematokit.files import TEMPORARY_PREFIX
from hematokit.imaging.reading import printable

__all__ = ["cannot_read", "disk_errors", "remove_leftovers"]

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of writers that were killed. Only the holder of the store's lock may call this."""
    for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
        with contextlib.suppress(OSError):
            path.unlink()


def cannot_read(path: Path, error: OSError) -> str:
    """Say in one line that the operating system refuses to read something of a store, which is no damage."""
    reason = error.strerror or error
    file = f", {printable(str(error.filename))}" if error.filename and str(error.filename) != str(path) else ""
    return f"store {printable(str(path))} cannot be read ({reason}{file}); correct that and run the same command again"


@contextlib.contextmanager
def disk_errors(store: Path, committed: Callable[[], int]) -> Iterator[None]:
    """Turn a full disk and other failures to write into one-line store errors.

    Parameters
    ----------
    store : Path
        The store, named in the message.
    committed : callable
        Returns the number of cells that are safe.
    """
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(_message(store, committed(), error.errno in _FULL, error.strerror or str(error))) from error
    except ValueError as error:
        # tensorstore reports failures of the operating system as ValueError, with its text in the message.
        text = str(error)
        if not any(sign in text for sign in ("local file", "OS error", "directory")):
            raise
        full = any(os.strerror(code) in text for code in _FULL)
        raise StoreError(_message(store, committed(), full, " ".join(text.split()))) from error


def _message(store: Path, committed: int, full: bool, detail: str) -> str:
    safe = f"its {committed} committed cells are safe"
    if full:
        return f"no space left on the disk of store {store}; {safe}: free some space and run the same command again"
    return f"store {store} cannot be written ({detail}); {safe}: correct that and run the same command again"
