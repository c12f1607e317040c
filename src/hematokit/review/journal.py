"""What people decided on cells, as a review knows it: the lines of its journal, and which of them count for a cell.

Several programs may correct the same field at the same time. Each appends lines of its own and reads those of the
others; what counts for a cell follows from the lines alone, so that all of them show the same in the end.

Where the corrections of a picture are kept that belongs to no store and to no folder of results.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hematokit.errors import StoreError
from hematokit.files import one_line_write_errors, user_folder
from hematokit.imaging.geometry import Box
from hematokit.store.corrections import OF_EDITS, Correction, append_corrections, read_corrections_from

if TYPE_CHECKING:
    from hematokit.imaging.fieldfiles import Field

__all__ = ["ReviewJournal", "data_folder", "journal_of"]

_WINDOW: Final = 256
_ACROSS: Final = 4
"""Windows along each side that tell one picture from another: a slide of gigabytes must not be read for it."""


def data_folder() -> Path:
    """Where a person's work is kept: ``HEMATOKIT_DATA``, else ``hematokit`` in the user's data folder.

    Returns
    -------
    Path
        Need not exist.
    """
    return user_folder(
        "HEMATOKIT_DATA", "XDG_DATA_HOME", ".local/share", "Library/Application Support", "AppData/Local"
    )


def journal_of(field: Field, field_id: str) -> Path:
    """Return the journal of a picture's corrections: the same for the same pixels, wherever their file lies.

    Parameters
    ----------
    field : Field
        Small windows of it are read.
    field_id : str
        Part of the ids of its cells, so that a picture under another name has a journal of its own.

    Returns
    -------
    Path
        ``corrections/<field_id>-<hash>.jsonl`` in `data_folder`; the folder has been made.

    Raises
    ------
    ImageError
        If the field cannot be read.
    StoreError
        If nothing can be written there.
    """
    folder = data_folder() / "corrections"
    with one_line_write_errors(folder, StoreError, "mend that, or set HEMATOKIT_DATA to another folder"):
        folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise StoreError(f"{folder} cannot be written; mend the permissions, or set HEMATOKIT_DATA to another folder")
    told = hashlib.sha256(f"{field_id}\n{field.height}x{field.width}\n".encode())
    for y0 in _starts(field.height):
        for x0 in _starts(field.width):
            box = Box(y0, x0, min(_WINDOW, field.height - y0), min(_WINDOW, field.width - x0))
            told.update(field.read(box).tobytes())
    return folder / f"{field_id[:80]}-{told.hexdigest()[:16]}.jsonl"


def _starts(side: int) -> list[int]:
    """Where windows begin along a side: spread evenly, each place once."""
    last = max(0, side - _WINDOW)
    return sorted({round(last * number / (_ACROSS - 1)) for number in range(_ACROSS)})


class ReviewJournal:
    """Corrections by cell, in the order in which they were made.

    Parameters
    ----------
    path : Path or None
        A ``corrections.jsonl``; None keeps the lines in memory only.

    Raises
    ------
    StoreError
        If the file is damaged or cannot be read.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._position = 0
        self._file: tuple[int, int] | None = None
        self._known: set[bytes] = set()
        self._of_cell: dict[str, list[Correction]] = {}
        self._cells_of_edit: dict[str, list[str]] = {}
        self._undone: dict[str, bool] = {}
        self.read()

    def read(self) -> list[Correction]:
        """Take what the file has that is not known yet, and return it.

        What is known is never forgotten: lines are only ever added to such a file, so one that is gone is on a drive
        that went away, and one that is shorter than it was is damaged or an older copy.

        Raises
        ------
        StoreError
            If the file is damaged, cut short or cannot be read; nothing was taken then.
        """
        if self.path is None:
            return []
        try:
            state = self.path.stat()
        except OSError:
            state = None
        if state is None and self._file is not None:
            return []
        if state is not None:
            file = (state.st_dev, state.st_ino)
            if file == self._file and state.st_size == self._position:
                return []
            if file != self._file or state.st_size < self._position:
                self._file, self._position = file, 0
        entries, self._position = read_corrections_from(self.path, self._position)
        return self._take(entries)

    def append(self, entries: Sequence[Correction]) -> list[Correction]:
        """Write lines, then take them; return those of others that got in between.

        Raises
        ------
        StoreError
            If they cannot be written; nothing was taken then.
        """
        if self.path is None:
            self._take(entries)
            return []
        append_corrections(self.path, entries)
        try:
            news = self.read()
        except StoreError:
            news = []  # what was written is written; what is wrong with the lines of others is said at the next look
        self._take(entries)
        own = {entry.edit for entry in entries}
        return [entry for entry in news if entry.edit not in own]

    def _take(self, entries: Iterable[Correction]) -> list[Correction]:
        new = []
        for entry in entries:
            line = entry.to_line()
            if line in self._known:
                continue
            self._known.add(line)
            new.append(entry)
            if entry.kind in OF_EDITS:
                self._undone[entry.of] = entry.kind == "undo"
            else:
                self._of_cell.setdefault(entry.cell_id, []).append(entry)
                self._cells_of_edit.setdefault(entry.edit, []).append(entry.cell_id)
        return new

    def cells_of(self, entry: Correction) -> list[str]:
        """Return the cells that a line is about: for an undo or redo, those of the edit that it names."""
        return self._cells_of_edit.get(entry.of, []) if entry.kind in OF_EDITS else [entry.cell_id]

    def cell_ids(self) -> list[str]:
        """Return every cell that a line speaks of."""
        return list(self._of_cell)

    def standing(self, cell_id: str) -> list[Correction]:
        """Return the corrections of a cell that count, in order: without those that were undone."""
        return [entry for entry in self._of_cell.get(cell_id, ()) if not self._undone.get(entry.edit, False)]

    def added(self, cell_id: str) -> Correction | None:
        """Return the line that adds a cell, if one counts; of several, the first."""
        return next((entry for entry in self.standing(cell_id) if entry.kind == "add"), None)

    def decision(self, cell_id: str, *kinds: str) -> Correction | None:
        """Return the last line on a cell that counts, of these kinds."""
        return next((entry for entry in reversed(self.standing(cell_id)) if entry.kind in kinds), None)
