"""Whether a bundle's files are those that were saved: sizes held against the header, contents against hashes.

``SHA256SUMS`` has the form of the program of that name, so that ``sha256sum -c SHA256SUMS`` checks a bundle, too. It
tells damage and careless changes; who wants to know that a bundle is from whom it says compares the file itself with
one received another way. The model card is left out: it is there to be added to.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from hematokit.errors import ModelError
from hematokit.files import write_atomically

__all__ = ["MANIFEST", "check_tensors", "file_sha256", "verify_manifest", "write_manifest"]

MANIFEST: Final = "SHA256SUMS"

_LINE: Final = re.compile(r"([0-9a-f]{64}) [ *]([^/\\\x00]{1,255})")
_LARGEST_HEADER: Final = 100_000_000
"""What safetensors itself allows."""

_AGAIN: Final = "copy the bundle again"


def file_sha256(path: Path) -> str:
    """Hash a file's content.

    Returns
    -------
    str
        64 hexadecimal digits.

    Raises
    ------
    ModelError
        If it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{path} is missing or damaged ({error.strerror or error}); {_AGAIN}") from error


def write_manifest(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write the hashes of a folder's files, by name."""
    lines = [f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in contents.items()]
    write_atomically(folder / MANIFEST, "".join(lines))


def verify_manifest(folder: Path, names: tuple[str, ...]) -> None:
    """Hold files against the hashes that were written with them.

    Parameters
    ----------
    folder : Path
    names : tuple of str
        Files that must be listed and unchanged; what else is listed is not looked at.

    Raises
    ------
    ModelError
        If the list is missing or no such list, or a file is missing or not what it was.
    """
    path = folder / MANIFEST
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} is missing or damaged ({' '.join(str(error).split())[:120]}); {_AGAIN}") from error
    stated = {}
    for line in filter(None, text.splitlines()):
        found = _LINE.fullmatch(line)
        if found is None:
            raise ModelError(f"{path} is no list of SHA-256 sums; {_AGAIN}")
        stated[found[2]] = found[1]
    for name in names:
        if name not in stated:
            raise ModelError(f"{path} does not list {name}; {_AGAIN}")
        if file_sha256(folder / name) != stated[name]:
            raise ModelError(
                f"{folder / name} is not the file that was saved: its SHA-256 differs from {MANIFEST}; {_AGAIN}, or, "
                f"if you changed it yourself, run in that folder: sha256sum {' '.join(names)} > {MANIFEST}"
            )


def check_tensors(path: Path) -> None:
    """Hold the size of a safetensors file against its header.

    Raises
    ------
    ModelError
        If it cannot be read, is no such file, or is shorter or longer than its header says.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(_LARGEST_HEADER, size - 8):
                raise ModelError(
                    f"{path} is missing or damaged (a header of {length:,} bytes in a file of {size:,}): cut off, or "
                    f"no safetensors file; {_AGAIN}"
                )
            header = json.loads(file.read(length))
        ends = [int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__"]
    except OSError as error:
        raise ModelError(f"{path} is missing or damaged ({error.strerror or error}); {_AGAIN}") from error
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path} is missing or damaged (its header cannot be read); {_AGAIN}") from error
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        raise ModelError(f"{path} is missing or damaged ({size:,} bytes where its header says {expected:,}); {_AGAIN}")
