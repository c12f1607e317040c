"""Writing small files so that a crash leaves the old one or the new one, never half of either."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from hematokit.errors import StoreError

__all__ = ["disk_errors", "remove_leftovers", "replace_file", "sync_folder", "write_json"]

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_TEMPORARY_PREFIX = ".writing-"


def replace_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Replace `path` by what `write` puts into a file object, atomically and durably.

    The new content goes to a temporary file in the same folder, is flushed to the disk, and takes the name over in
    one step. If anything fails, the old file stays and the temporary one is removed.
    """
    temporary = path.with_name(f"{_TEMPORARY_PREFIX}{path.name}-{secrets.token_hex(8)}")
    try:
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Replace a JSON file in one step."""
    data = json.dumps(document, indent=2, ensure_ascii=False).encode()

    def write(file: BinaryIO) -> None:
        file.write(data)

    replace_file(path, write)


def sync_folder(folder: Path) -> None:
    """Flush a folder's list of names to the disk, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of writers that were killed. Only the holder of the store's lock may call this."""
    for pattern in (f"{_TEMPORARY_PREFIX}*", ".*.tmp"):
        for path in folder.glob(pattern):
            with contextlib.suppress(OSError):
                path.unlink()


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
    return f"store {store} cannot be written ({detail}); {safe}: mend that and run the same command again"
