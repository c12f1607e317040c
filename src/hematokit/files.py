"""Atomic writing of files: a reader sees the old or the complete new file, never a part."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from hematokit.errors import HematokitError

__all__ = [
    "TEMPORARY_PREFIX",
    "one_line_read_errors",
    "one_line_write_errors",
    "replace_file",
    "sync_folder",
    "user_folder",
    "write_atomically",
    "write_json",
]

TEMPORARY_PREFIX = ".writing-"
"""How the names of unfinished files begin; what a killed process left behind is found by it."""


def replace_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Replace `path` by what `write` puts into a file object, atomically and durably.

    The new content goes to a temporary file in the same folder, is flushed to the disk, and takes the name over in
    one step. If anything fails, the old file stays and the temporary one is removed.
    """
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{path.name}-{secrets.token_hex(8)}")
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


def write_atomically(path: Path, data: bytes | str) -> None:
    """Replace `path` by `data`; text is written as UTF-8."""
    content = data.encode("utf-8") if isinstance(data, str) else data

    def write(file: BinaryIO) -> None:
        file.write(content)

    replace_file(path, write)


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Replace a JSON file in one step."""
    write_atomically(path, json.dumps(document, indent=2, ensure_ascii=False))


@contextlib.contextmanager
def one_line_read_errors(path: Path, kind: type[HematokitError]) -> Iterator[None]:
    """Report what the operating system refuses to read in one line, and not as damage.

    A missing file, and a medium that fails to read, raise as they do without this.

    Raises
    ------
    HematokitError
        Of the type `kind`, for other errors of the operating system in the block.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, FileNotFoundError) or error.errno in (None, errno.EIO):
            raise
        raise kind(f"{path} cannot be read ({error.strerror}); correct that and run the same command again") from error


@contextlib.contextmanager
def one_line_write_errors(folder: Path, kind: type[HematokitError], advice: str) -> Iterator[None]:
    """Turn a full disk or missing permission into one line with the path, the reason and the remedy.

    Parameters
    ----------
    folder : Path
        Where the block writes.
    kind : type
        Error to raise.
    advice : str
        Remedy, for the message.

    Raises
    ------
    HematokitError
        Of the type `kind`, for any `OSError` of the block.
    """
    try:
        yield
    except OSError as error:
        raise kind(f"cannot write to {folder} ({error.strerror or error}); {advice}") from error


def sync_folder(folder: Path) -> None:
    """Flush a folder's list of names to the disk, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def user_folder(variable: str, shared_variable: str, unix: str, mac: str, windows: str = "") -> Path:
    """Where something of this user is kept.

    Parameters
    ----------
    variable : str
        Environment variable that names the folder itself.
    shared_variable : str
        That of the XDG base directory specification, whose folder all programs share.
    unix, mac, windows : str
        The folder that all programs share, below the home folder; on Windows as elsewhere where none is given, else
        below it only where ``LOCALAPPDATA`` is not set.

    Returns
    -------
    Path
        Need not exist.
    """
    own = os.environ.get(variable)
    if own:
        return Path(own).expanduser()
    # A relative XDG path is invalid and to be ignored (XDG base directory specification).
    shared = os.environ.get(shared_variable, "")
    if Path(shared).is_absolute():
        return Path(shared) / "hematokit"
    try:
        home = Path.home()
    except RuntimeError:
        # Nobody's home, as in some containers: a place that cannot be written, so that nothing is kept.
        return Path(os.devnull) / "hematokit"
    if windows and sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / windows) / "hematokit"
    return home / (mac if sys.platform == "darwin" else unix) / "hematokit"


def hash_path(path: Path, *, flush: bool = False) -> str:
    """Return the SHA-256, in hexadecimal, of a file, or over a folder's files: their paths, sizes and bytes, by path.

    Parameters
    ----------
    path : Path
    flush : bool
        Flush every file and folder of a folder to the disk as well.

    Raises
    ------
    OSError
        If a file or folder cannot be read.
    """
    if not path.is_dir():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for name, entry in sorted((entry.relative_to(path).as_posix(), entry) for entry in _walk(path) if entry.is_file()):
        with entry.open("rb") as file:
            if flush:
                with contextlib.suppress(OSError):  # where a file open for reading cannot be flushed
                    os.fsync(file.fileno())
            size = os.fstat(file.fileno()).st_size
            digest.update(f"{name}\0{size}\0".encode("utf-8", "surrogateescape"))
            while block := file.read(1 << 20):
                digest.update(block)
    if flush:
        for folder in [path, *(entry for entry in _walk(path) if entry.is_dir())]:
            sync_folder(folder)
    return digest.hexdigest()


def _walk(folder: Path) -> Iterator[Path]:
    """All that is in a folder and those below it; unlike `Path.rglob`, it raises where something cannot be read."""
    for path in folder.iterdir():
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path)
