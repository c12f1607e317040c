"""Whether a model's files are those that were saved: sizes compared with the header, contents with hashes.

``SHA256SUMS`` has the form of the program of that name, so that ``sha256sum -c SHA256SUMS`` checks a bundle, too. It
detects damage and careless changes; to know that a bundle is from a certain author, compare the file itself with
one received another way. The model card is left out: users may add to it.

An ONNX file carries its hash itself, as the last entry of its metadata: it is the SHA-256 of all bytes before it. The
entry is plain protobuf, so other programs read the file as before.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from hematokit.errors import ModelError, printable
from hematokit.files import one_line_read_errors, write_atomically

__all__ = [
    "MANIFEST",
    "SEAL_KEY",
    "check_seal",
    "check_tensors",
    "file_sha256",
    "is_sealed",
    "read_file",
    "read_onnx",
    "seal_onnx",
    "sha256",
    "verify_manifest",
    "write_manifest",
]

MANIFEST: Final = "SHA256SUMS"
SEAL_KEY: Final = "hematokit.sha256"
"""Name of the metadata entry that holds an ONNX file's hash."""

_LINE: Final = re.compile(r"([0-9a-f]{64}) [ *]([^/\\\x00]{1,255})")
_LARGEST_HEADER: Final = 100_000_000
"""What safetensors itself allows."""

_LARGEST_ONNX: Final = 2**31
"""Bytes; no ONNX file is larger without keeping its weights in other files."""

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


def sha256(content: bytes) -> str:
    """Hash bytes; 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def read_file(path: Path) -> bytes:
    """Read a file of a bundle.

    Raises
    ------
    ModelError
        If it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} is missing or damaged ({error.strerror or error}); {_AGAIN}") from error


def write_manifest(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write the hashes of a folder's files, by name."""
    lines = [f"{sha256(content)}  {name}\n" for name, content in contents.items()]
    write_atomically(folder / MANIFEST, "".join(lines))


def verify_manifest(folder: Path, hashes: Mapping[str, str]) -> None:
    """Compare files with the hashes that were written with them.

    Parameters
    ----------
    folder : Path
    hashes : mapping of str to str
        Name of a file to the hash of its content; each must be listed and unchanged. Other entries are ignored.

    Raises
    ------
    ModelError
        If the list is missing or no such list, or a file is missing or not what it was.
    """
    path = folder / MANIFEST
    try:
        with one_line_read_errors(path, ModelError):
            text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        said = (isinstance(error, OSError) and error.strerror) or " ".join(str(error).split())[:120]
        raise ModelError(f"{path} is missing or damaged ({said}); {_AGAIN}") from error
    stated = {}
    for line in filter(None, text.splitlines()):
        found = _LINE.fullmatch(line)
        if found is None:
            raise ModelError(f"{path} is no list of SHA-256 sums; {_AGAIN}")
        stated[found[2]] = found[1]
    for name, found_hash in hashes.items():
        if name not in stated:
            raise ModelError(f"{path} does not list {name}; {_AGAIN}")
        if found_hash != stated[name]:
            raise ModelError(
                f"{folder / name} is not the file that was saved: its SHA-256 differs from {MANIFEST}; {_AGAIN}, or, "
                f"if you changed it yourself, run in that folder: sha256sum {' '.join(hashes)} > {MANIFEST}"
            )


def check_tensors(path: Path, content: bytes) -> None:
    """Compare the size of a safetensors file with its header.

    Parameters
    ----------
    path : Path
        Its name, for errors.
    content : bytes

    Raises
    ------
    ModelError
        If it is no such file, or is shorter or longer than its header says.
    """
    size = len(content)
    length = int.from_bytes(content[:8], "little")
    if size < 8 or length > min(_LARGEST_HEADER, size - 8):
        raise ModelError(
            f"{path} is missing or damaged (a header of {length:,} bytes in a file of {size:,}): cut off, or "
            f"no safetensors file; {_AGAIN}"
        )
    try:
        header = json.loads(content[8 : 8 + length])
        ends = [int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path} is missing or damaged (its header cannot be read); {_AGAIN}") from error
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        raise ModelError(f"{path} is missing or damaged ({size:,} bytes where its header says {expected:,}); {_AGAIN}")


def read_onnx(path: Path) -> bytes:
    """Read an ONNX file.

    Raises
    ------
    ModelError
        If it cannot be read, is empty, or larger than such a file can be.
    """
    try:
        size = path.stat().st_size
        content = path.read_bytes() if 0 < size < _LARGEST_ONNX else b""
    except OSError as error:
        raise ModelError(
            f"{printable(str(path))} cannot be read ({error.strerror or error}); check the path and its permissions"
        ) from error
    if not content:
        raise ModelError(f"{printable(str(path))} has {size:,} bytes, which is no ONNX file's size; copy it again")
    return content


def _string_field(number: int, content: bytes) -> bytes:
    """A protobuf field of at most 127 bytes."""
    return bytes([number << 3 | 2, len(content)]) + content


def _seal(digest: str) -> bytes:
    """The entry `metadata_props` (field 14) of a ModelProto with this key and value."""
    return _string_field(14, _string_field(1, SEAL_KEY.encode()) + _string_field(2, digest.encode()))


_SEAL_LENGTH: Final = len(_seal("0" * 64))


def seal_onnx(content: bytes) -> bytes:
    """Return an ONNX file with the hash of its content as its end; nothing may be changed in it afterwards."""
    content = content[:-_SEAL_LENGTH] if is_sealed(content) else content
    return content + _seal(sha256(content))


def is_sealed(content: bytes) -> bool:
    """Whether an ONNX file ends with a hash; it is not compared."""
    return content[-_SEAL_LENGTH:-64] == _seal("0" * 64)[:-64]


def check_seal(content: bytes, what: str) -> None:
    """Compare an ONNX file with the hash that it carries; one without, as older versions wrote them, passes.

    Parameters
    ----------
    content : bytes
    what : str
        Its name, for errors.

    Raises
    ------
    ModelError
        If a byte differs.
    """
    if is_sealed(content) and not content.endswith(_seal(sha256(content[:-_SEAL_LENGTH]))):
        raise ModelError(f"{what} is damaged: its content differs from the SHA-256 that it carries; copy it again")
