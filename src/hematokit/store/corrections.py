"""Corrections of cells by people: an append-only file of JSON lines, beside a store's cells or a field's results.

Each line is one correction of one cell: who, when, from which class to which. Nothing in the file is ever changed or
removed; taking something back is another line, which names the edit that no longer counts. The cells table stays as
it was written, and readers apply the corrections to it.

A changed byte is noticed by the checksum of its line. A tail that was cut off or overwritten is noticed by the size
that every writer notes in a small file beside the journal, after the lines are on the disk; readers read it first.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from filelock import FileLock, Timeout

from hematokit.errors import StoreError, printable
from hematokit.files import sync_folder

__all__ = [
    "CONFIRMED",
    "CORRECTED",
    "CORRECTIONS_FILE",
    "Correction",
    "OF_CELLS",
    "OF_EDITS",
    "append_corrections",
    "apply_corrections",
    "corrections_table",
    "join_cells",
    "lay_over",
    "move_corrections",
    "new_edit",
    "read_corrections",
    "read_corrections_from",
    "standing_corrections",
    "utc_now",
]

CORRECTIONS_FILE: Final = "corrections.jsonl"
CORRECTED: Final = "corrected"
"""``label_source`` of a label that a person changed."""
CONFIRMED: Final = "confirmed"
"""``label_source`` of a label that a person looked at and left as it was."""

OF_CELLS: Final = ("label", "confirm", "delete", "add")
OF_EDITS: Final = ("undo", "redo")
SOURCES: Final = {"label": CORRECTED, "confirm": CONFIRMED}
"""``label_source`` after a correction, by its kind."""

_LOCK_SECONDS: Final = 10.0
_BLOCK: Final = 1 << 16  # bytes read at a time from the end of a file
_GEOMETRY: Final = ("y", "x", "y0", "x0", "height", "width")
_WHOLE: Final = ("y0", "x0", "height", "width")
_LONGEST_LINE: Final = 1 << 20
"""Bytes; an outline of a nucleus takes a few thousand."""


@dataclass(frozen=True, slots=True)
class Correction:
    """One line of the file.

    Attributes
    ----------
    kind : str
        Of a cell: ``"label"`` (another class), ``"confirm"`` (looked at, the class is right), ``"delete"`` (no cell)
        or ``"add"`` (a missed cell). Of an edit: ``"undo"`` or ``"redo"``.
    edit : str
        Name of the edit that the line is part of: what is undone together.
    when : str
        UTC, ISO 8601.
    who : str
        Empty where unknown.
    cell_id, field_id : str
        The cell and its field; empty for an undo or redo.
    before, after : str
        Class codes, ``from`` and ``to`` in the file; empty for none.
    cell : mapping, optional
        Of an added cell: its row of the cells table, at least ``y, x, y0, x0, height, width`` in pixels of the field.
    of : str
        The edit that an undo takes back, or a redo brings back.
    """

    kind: str
    edit: str
    when: str
    who: str = ""
    cell_id: str = ""
    field_id: str = ""
    before: str = ""
    after: str = ""
    cell: Mapping[str, Any] | None = None
    of: str = ""

    def to_line(self) -> bytes:
        """The line, with its end."""
        said: dict[str, Any] = {"when": self.when, "who": self.who, "kind": self.kind, "edit": self.edit}
        if self.kind in OF_EDITS:
            said["of"] = self.of
        else:
            said |= {"cell_id": self.cell_id, "field_id": self.field_id, "from": self.before, "to": self.after}
            if self.cell is not None:
                said["cell"] = {name: _plain(value) for name, value in self.cell.items()}
        # A lone surrogate (from a file name) has no UTF-8; escaped, it is kept.
        said["crc32"] = _checksum(said)
        return json.dumps(said, ensure_ascii=True, allow_nan=False).encode("ascii") + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Correction:
        """Read a line.

        Raises
        ------
        ValueError
            If it is none; the message says what is wrong.
        """
        if len(line) > _LONGEST_LINE:
            raise ValueError(f"it is longer than {_LONGEST_LINE} bytes")
        try:
            said = json.loads(line.decode("utf-8"))
        except RecursionError:
            raise ValueError("it is nested too deeply") from None
        if not isinstance(said, dict):
            raise ValueError("it is no JSON object")
        stated = said.pop("crc32", None)  # lines of earlier versions have none
        if stated is not None and stated != _checksum(said):
            raise ValueError("it is not as it was written: its checksum differs")
        kind = said.get("kind")
        if kind not in (*OF_CELLS, *OF_EDITS):
            raise ValueError(f"its kind {printable(repr(kind))[:40]} is none that this hematokit knows")
        names = ("edit", "when", "who", "cell_id", "field_id", "from", "to", "of")
        texts = {name: said.get(name, "") for name in names}
        strange = next((name for name, value in texts.items() if not isinstance(value, str)), None)
        needed = ("edit", "of") if kind in OF_EDITS else ("edit", "cell_id", *(("to",) if kind == "label" else ()))
        strange = strange or next((name for name in needed if not texts[name]), None)
        if strange is not None:
            raise ValueError(f"its {strange!r} is missing or no text")
        cell = said.get("cell")
        if kind == "add":
            _check_geometry(cell)
        before, after = texts.pop("from"), texts.pop("to")
        return cls(kind=kind, before=before, after=after, cell=cell if kind == "add" else None, **texts)


def _checksum(said: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(said, ensure_ascii=True).encode('ascii')):08x}"


def _plain(value: Any) -> Any:
    """Make a value of a cells table fit for strict JSON: what is not a finite number is null."""
    if isinstance(value, np.ndarray):
        return [_plain(item) for item in value.tolist()]
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | bool) else None


def _check_geometry(cell: object) -> None:
    if not isinstance(cell, dict):
        raise ValueError("it adds a cell but says nothing of it")
    for name in _GEOMETRY:
        value = cell.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"the cell's {name!r} is no number")
        if name in _WHOLE and not isinstance(value, int):
            raise ValueError(f"the cell's {name!r} is no whole number")
    if cell["height"] < 1 or cell["width"] < 1:
        raise ValueError("the cell's box is empty")


def utc_now() -> str:
    """Return the time as corrections state it: UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def new_edit() -> str:
    """Return a name for an edit that no other has, on whatever machine it is made."""
    return secrets.token_hex(8)


# --- the file ---------------------------------------------------------------------------------------------------------


def append_corrections(path: str | Path, corrections: Sequence[Correction]) -> None:
    """Add lines to a file of corrections, which is made if need be, and flush them to the disk.

    Several processes may append at the same time; each waits for the others. A partial line left by a killed writer is
    removed: it was never acknowledged.

    Parameters
    ----------
    path : str or Path
        The file, called ``corrections.jsonl`` by habit.
    corrections : sequence of Correction

    Raises
    ------
    StoreError
        If it cannot be written, is cut short, or another process holds it for more than ten seconds; the file is then
        as before.
    """
    path = Path(path)
    if not corrections:
        return
    data = b"".join(correction.to_line() for correction in corrections)
    shown = printable(str(path))
    try:
        path.parent.stat()  # the lock would make the folder
        with FileLock(path.with_name(f".{path.name}.lock"), timeout=_LOCK_SECONDS):
            is_new = not path.exists()
            if is_new:
                _size_file(path).unlink(missing_ok=True)
            noted = _noted_size(path)
            with path.open("x+b" if is_new else "r+b") as file:
                size = _append(file.fileno(), data, lambda whole: _check_size(path, whole, noted))
            if is_new:
                sync_folder(path.parent)
            _note_size(path, size - 1)  # an editor may drop the end of the last line
    except Timeout as error:
        raise StoreError(f"{shown} is held by another process; the correction was not saved: repeat it") from error
    except OSError as error:
        raise StoreError(
            f"corrections cannot be written to {shown} ({error.strerror or error}); nothing was changed: make room or "
            "mend the permissions, and repeat the correction"
        ) from error


def _size_file(path: Path) -> Path:
    return path.with_name(f".{path.name}.size")


def _noted_size(path: Path) -> int:
    """Bytes that the file is known to have had; 0 where that was not noted, as by earlier versions."""
    try:
        digits, checksum = _size_file(path).read_bytes().split()
        return int(digits) if int(checksum, 16) == zlib.crc32(digits) else 0
    except (OSError, ValueError):
        return 0


def _note_size(path: Path, size: int) -> None:
    """Record the length of the file. It may be too small, if this fails or is lost, but never too large."""
    digits = b"%020d" % size
    # Always as many bytes, in one write over the old ones: there is no moment without a size.
    with contextlib.suppress(OSError):
        descriptor = os.open(_size_file(path), os.O_WRONLY | os.O_CREAT, 0o666)
        with os.fdopen(descriptor, "wb") as file:
            file.write(b"%b %08x\n" % (digits, zlib.crc32(digits)))


def _check_size(path: Path, size: int, noted: int) -> None:
    if size < noted:
        raise StoreError(
            f"{printable(str(path))} is {'cut short' if size else 'missing or empty'}: {noted - size} bytes of "
            "corrections that were saved are not there; restore it from a copy, or, to go on without them, delete "
            f"{_size_file(path).name} beside it"
        )


def _append(file: int, data: bytes, check: Callable[[int], None]) -> int:
    """Write after the last complete line, if `check` accepts its position, and return the new size."""
    size = _whole_lines(file)
    os.lseek(file, max(0, size - _BLOCK), os.SEEK_SET)
    tail = os.read(file, min(size, _BLOCK))
    check(size - len(tail) + len(tail.rstrip()))
    try:
        os.lseek(file, size, os.SEEK_SET)
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(file, rest) :]
        os.ftruncate(file, size + len(data))
        os.fsync(file)
    except BaseException:
        with contextlib.suppress(OSError):
            os.ftruncate(file, size)
        raise
    return size + len(data)


def _whole_lines(file: int) -> int:
    """Return the position of new lines, after the last complete one; completes a last line that lacks only its end."""
    size = os.lseek(file, 0, os.SEEK_END)
    tail, start = b"", size
    while start > 0 and b"\n" not in tail:
        step = min(start, _BLOCK)
        start -= step
        os.lseek(file, start, os.SEEK_SET)
        block = b""
        while len(block) < step:
            block += os.read(file, step - len(block))
        tail = block + tail
    last = tail[tail.rfind(b"\n") + 1 :]
    if not last:
        return size
    try:
        Correction.from_line(last)
    except ValueError:
        return size - len(last)
    # Whole, as an editor leaves a file without an end of its last line.
    os.lseek(file, 0, os.SEEK_END)
    os.write(file, b"\n")
    return size + 1


def move_corrections(path: Path, target: Path) -> None:
    """Give a file of corrections another name in its folder, with the note of its size.

    Raises
    ------
    OSError
        If it cannot be renamed.
    """
    with contextlib.suppress(FileNotFoundError):  # files of earlier versions have no note
        _size_file(path).rename(_size_file(target))
    path.rename(target)


def read_corrections(path: str | Path) -> list[Correction]:
    """Read a file of corrections.

    A last line that was not finished is left out: its writer was killed, or is at work.

    Parameters
    ----------
    path : str or Path
        The file; without it, there are no corrections.

    Returns
    -------
    list of Correction
        In the order of the file, with what was undone and the lines that undid it; see `standing_corrections`.

    Raises
    ------
    StoreError
        If it cannot be read, a line other than an unfinished last one is damaged, or lines that were saved are missing
        at its end.
    """
    return read_corrections_from(path, 0)[0]


def read_corrections_from(path: str | Path, position: int) -> tuple[list[Correction], int]:
    """Read what was appended to a file of corrections since it was last read.

    Parameters
    ----------
    path : str or Path
    position : int
        Where the last reading ended, in bytes; 0 reads all.

    Returns
    -------
    list of Correction
        As of `read_corrections`.
    int
        Position after the last complete line read.

    Raises
    ------
    StoreError
        As of `read_corrections`.
    """
    path = Path(path)
    shown = printable(str(path))
    noted = _noted_size(path)
    try:
        with path.open("rb") as file:
            file.seek(position)
            data = file.read()
    except FileNotFoundError:
        _check_size(path, position, noted)
        return [], position
    except OSError as error:
        raise StoreError(f"{shown} cannot be read ({error.strerror or error}); mend that, or move it away") from error
    *lines, last = data.split(b"\n")
    read = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            read.append(Correction.from_line(line))
        except ValueError as error:
            detail = printable(" ".join(str(error).split()))[:200]
            place = number + _lines_before(path, position)
            raise StoreError(
                f"{shown}, line {place} is no correction ({detail}); restore the file from a copy, or, to go on "
                f"without that line, remove it, and {_size_file(path).name} beside the file"
            ) from error
    end = position + len(data) - len(last)
    with contextlib.suppress(ValueError):
        read.append(Correction.from_line(last))
        end += len(last)
    _check_size(path, position + len(data[: end - position].rstrip()), noted)
    return read, end


def _lines_before(path: Path, position: int) -> int:
    with path.open("rb") as file:
        return file.read(position).count(b"\n")


# --- applied to cells -------------------------------------------------------------------------------------------------


def standing_corrections(corrections: Iterable[Correction]) -> list[Correction]:
    """Return the corrections of cells that count: without those that were undone and not brought back, in order."""
    every = list(corrections)
    undone = {entry.of: entry.kind == "undo" for entry in every if entry.kind in OF_EDITS}
    return [entry for entry in every if entry.kind in OF_CELLS and not undone.get(entry.edit, False)]


def corrections_table(corrections: Iterable[Correction]) -> pd.DataFrame:
    """Return corrections of cells as a table for people, in order.

    Columns: ``when``, ``who``, ``kind``, ``cell_id``, ``field_id``, ``before``, ``after``, and ``undone``.
    """
    every = list(corrections)
    standing = {id(entry) for entry in standing_corrections(every)}
    names = ["when", "who", "kind", "cell_id", "field_id", "before", "after"]
    rows = [
        {**{name: printable(getattr(entry, name)) for name in names}, "undone": id(entry) not in standing}
        for entry in every
        if entry.kind in OF_CELLS
    ]
    return pd.DataFrame(rows, columns=[*names, "undone"]).astype({"undone": bool})


def apply_corrections(
    cells: pd.DataFrame, corrections: Iterable[Correction], *, add: Callable[[Correction], bool] | None = None
) -> pd.DataFrame:
    """Apply corrections to a cells table.

    A corrected cell has the new class in ``label``, ``"corrected"`` in ``label_source`` (``"confirmed"`` where a
    person left the class as it was) and True in ``reviewed``, where the table has that column. Deleted cells are left
    out. Corrections of cells that the table does not have change nothing.

    Parameters
    ----------
    cells : DataFrame
        With ``cell_id``, ``label`` and ``label_source``; not changed.
    corrections : iterable of Correction
        As `read_corrections` gives them.
    add : callable, optional
        Says of a correction that adds a cell whether the table gets it; by default none, as a store has no patch of
        such a cell.

    Returns
    -------
    DataFrame
        Rows in the order of `cells`, added cells behind them; index 0 to n - 1. `cells` itself if nothing applies.
    """
    corrected, kept = lay_over(cells, corrections, add=add)
    return corrected if kept.all() else corrected[kept].reset_index(drop=True)


def lay_over(
    cells: pd.DataFrame, corrections: Iterable[Correction], *, add: Callable[[Correction], bool] | None = None
) -> tuple[pd.DataFrame, npt.NDArray[np.bool_]]:
    """As `apply_corrections`, but the deleted cells stay; the array (n,) is False for them.

    The last line on a cell decides: a cell that is labelled after it was deleted is a cell again.
    """
    standing = standing_corrections(corrections)
    if add is not None:
        cells = _with_added(cells, [entry for entry in standing if entry.kind == "add" and add(entry)])
    kept = np.ones(len(cells), bool)
    place = {cell_id: row for row, cell_id in enumerate(cells["cell_id"].tolist())}
    changed = [entry for entry in standing if entry.kind != "add" and entry.cell_id in place]
    if not changed:
        return cells, kept
    label, source = cells["label"].tolist(), cells["label_source"].tolist()
    reviewed = cells["reviewed"].tolist() if "reviewed" in cells.columns else None
    for entry in changed:
        row = place[entry.cell_id]
        kept[row] = entry.kind != "delete"
        if entry.kind == "delete":
            continue
        label[row] = entry.after or label[row]
        # Confirming a corrected label leaves it corrected.
        source[row] = CORRECTED if CORRECTED in (source[row], SOURCES[entry.kind]) else CONFIRMED
        if reviewed is not None:
            reviewed[row] = True
    columns: dict[str, Any] = {"label": label, "label_source": source}
    if reviewed is not None:
        columns["reviewed"] = reviewed
    return cells.assign(**columns).reset_index(drop=True), kept


def _with_added(cells: pd.DataFrame, added: Sequence[Correction]) -> pd.DataFrame:
    there = set(cells["cell_id"].tolist())
    # Two people who add the same missed cell at the same time add one cell, that of the first line.
    first = {entry.cell_id: entry for entry in reversed(added) if entry.cell_id not in there}
    rows = list(_rows(entry for entry in added if entry is first.get(entry.cell_id)))
    if not rows:
        return cells
    frame = pd.DataFrame(rows)
    if "contour" in frame.columns:
        frame["contour"] = pd.Series([_contour(value) for value in frame["contour"]], dtype=object)
    return join_cells(cells, frame)


def _rows(added: Iterable[Correction]) -> Iterator[dict[str, Any]]:
    for entry in added:
        row = {**(entry.cell or {}), "cell_id": entry.cell_id}
        yield {**row, "field_id": entry.field_id} if entry.field_id else row


def _contour(value: object) -> Any:
    try:
        points = np.asarray(value, np.float32)
    except (TypeError, ValueError):
        return None
    return points if points.ndim == 2 and points.shape[1] == 2 and np.isfinite(points).all() else None


# --- tables with added cells ------------------------------------------------------------------------------------------


def join_cells(cells: pd.DataFrame, more: pd.DataFrame) -> pd.DataFrame:
    """Put rows behind a cells table, with whatever columns and types each has.

    Missing texts are empty, missing flags false, missing numbers not a number.

    Parameters
    ----------
    cells, more : DataFrame
        Columns that only one of them has are kept.

    Returns
    -------
    DataFrame
        Index 0 to n - 1.
    """
    if not len(cells) and set(cells.columns) <= set(more.columns):
        # The order of columns, too, is that of the first table with rows.
        return more.reset_index(drop=True)
    names = [*cells.columns, *(name for name in more.columns if name not in cells.columns)]
    kinds = {name: _kind(cells, more, name) for name in names}
    parts = [_as(table, kinds) for table in (cells, more)]
    # A table without rows does not decide types: its empty columns of objects would make all of them objects.
    filled = [part for part in parts if len(part)] or parts[:1]
    return pd.concat(filled, ignore_index=True)


def _kind(cells: pd.DataFrame, more: pd.DataFrame, name: str) -> Any:
    """Return the type of a column: the first table's, unless that is object, as of numbers that are all missing."""
    kinds = [table[name].dtype for table in (cells, more) if name in table.columns]
    return next((kind for kind in kinds if not pd.api.types.is_object_dtype(kind)), kinds[0])


def _as(table: pd.DataFrame, kinds: dict[str, Any]) -> pd.DataFrame:
    """Return a table with columns of these types; itself if it has them, since taking a wide table apart is slow."""
    if dict(table.dtypes) == kinds and list(table.columns) == list(kinds):
        return table
    return pd.DataFrame({name: _fitted(table, name, kind) for name, kind in kinds.items()})


def _fitted(table: pd.DataFrame, name: str, kind: Any) -> pd.Series[Any]:
    """Return a column of a table in a type, filled with what means missing if the table does not have it."""
    if name not in table.columns:
        missing: Any = None
        if pd.api.types.is_bool_dtype(kind):
            missing = False
        elif pd.api.types.is_numeric_dtype(kind):
            missing, kind = math.nan, np.dtype(np.float64)
        elif pd.api.types.is_string_dtype(kind):
            missing = ""
        filled: pd.Series[Any] = pd.Series([missing] * len(table), index=table.index, dtype=kind)
        return filled
    column: pd.Series[Any] = table[name]
    if not len(column) or column.dtype == kind:
        return column
    if pd.api.types.is_bool_dtype(kind):
        return column.isin([True])
    if pd.api.types.is_numeric_dtype(kind):
        numbers: pd.Series[Any] = pd.to_numeric(column, errors="coerce")
        fits = not pd.api.types.is_integer_dtype(kind) or bool((numbers % 1 == 0).all())
        fitted: pd.Series[Any] = numbers.astype(kind if fits else np.float64)
        return fitted
    if isinstance(kind, pd.StringDtype):
        column = column.where(column.map(lambda value: isinstance(value, str)), "").astype(kind)
    return column
