"""Parquet files with checksums, which detect damage.

Every page carries its checksum, and the footer a SHA-256 over the whole file, taken with 64 zeros in the place of the
hash itself, so that any changed bit is detected. Any program reads such files; one that writes them again
leaves the hash out, and files without it are read as they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hematokit.errors import HematokitError, printable
from hematokit.files import write_atomically

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["read_table", "table_bytes", "write_table"]

_KEY: Final = "hematokit.sha256"
_BEFORE: Final = _KEY.encode() + b"\x18\x40"
"""What precedes the hash in a file: the key, then the type and the length of the value. Text with the key has no such
bytes behind it."""

_ZEROS: Final = b"0" * 64


def write_table(path: Path, table: pa.Table) -> None:
    """Replace a Parquet file by a table, in one step.

    Raises
    ------
    OSError
        If it cannot be written; the old file then stays.
    """
    write_atomically(path, table_bytes(table))


def table_bytes(table: pa.Table) -> bytes:
    """Return a table as the bytes of a Parquet file, with its checksums."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    stream = pa.BufferOutputStream()
    with pq.ParquetWriter(stream, table.schema, compression="zstd", write_page_checksum=True) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({_KEY: _ZEROS.decode()})
    data: bytes = stream.getvalue().to_pybytes()
    start = data.rindex(_BEFORE) + len(_BEFORE)
    assert data[start : start + 64] == _ZEROS
    return data[:start] + hashlib.sha256(data).hexdigest().encode() + data[start + 64 :]


def read_table(
    path: Path, *, kind: type[HematokitError], advice: str, columns: Sequence[str] | None = None
) -> pa.Table:
    """Read a Parquet file, and check it.

    Parameters
    ----------
    path : Path
        Written by `write_table`, by an earlier version, or by another program.
    kind : type
        Error to raise.
    advice : str
        Remedy for a missing or damaged file, for the error.
    columns : sequence of str, optional
        Those to read, in this order; all by default.

    Returns
    -------
    pyarrow.Table

    Raises
    ------
    HematokitError
        Of the type `kind`, with one line: if the file is missing or damaged, lacks a column, or cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    shown = printable(str(path))
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise kind(f"{shown} does not exist; {advice}") from error
    except OSError as error:
        reason = error.strerror or error
        raise kind(f"{shown} cannot be read ({reason}); correct that and run the same command again") from error
    try:
        _check(data)
        # The memory pool of Arrow: its threads may free memory after Python has ended.
        memory = pa.allocate_buffer(len(data))
        memoryview(memory).cast("B")[:] = data
        with pq.ParquetFile(pa.BufferReader(memory), page_checksum_verification=True) as file:
            names = file.schema_arrow.names
            missing = [name for name in columns or () if name not in names]
            if missing:
                raise ValueError(f"it lacks the columns {missing}")
            table = file.read(columns=columns)
            return table if columns is None else table.select(list(columns))
    except (OSError, pa.ArrowException, ValueError, KeyError) as error:
        detail = printable(" ".join(str(error).split()))[:200]
        raise kind(f"{shown} is damaged ({detail}); {advice}") from error


def _check(data: bytes) -> None:
    found = data.rfind(_BEFORE)
    if found < 0:
        return
    start = found + len(_BEFORE)
    digest = hashlib.sha256(memoryview(data)[:start])
    digest.update(_ZEROS)
    digest.update(memoryview(data)[start + 64 :])
    if data[start : start + 64] != digest.hexdigest().encode():
        raise ValueError("it is not as it was written: its checksum differs")
