"""The journal of a review: its corrections by cell, which of them count, and where it is kept.

Several programs may correct the same field at the same time. Each appends its own lines and reads those of the others;
the state of a cell depends on the lines only, so that all programs show the same state.

An image outside of stores and results folders has its journal in the user's data folder.
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
"""Windows along each side whose pixels identify an image: large slides are not read as a whole."""


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
        """Read the new lines of the file, and return them.

        Lines that were read are never dropped. A journal only grows: a missing file is on a drive that was removed,
        and a shorter one is damaged or an older copy.

        Raises
        ------
        StoreError
            If the file is damaged, cut short or cannot be read; nothing has changed then.
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
        """Write lines, and return those that others wrote meanwhile.

        Raises
        ------
        StoreError
            If they cannot be written; nothing has changed then.
        """
        if self.path is None:
            self._take(entries)
            return []
        append_corrections(self.path, entries)
        try:
            news = self.read()
        except StoreError:
            news = []  # the lines are written; damage in the lines of others is reported by the next read
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
        """Return the cells of a line: for an undo or redo, those of the edit that it names."""
        return self._cells_of_edit.get(entry.of, []) if entry.kind in OF_EDITS else [entry.cell_id]

    def cell_ids(self) -> list[str]:
        """Return the ids of all cells with a line."""
        return list(self._of_cell)

    def standing(self, cell_id: str) -> list[Correction]:
        """Return the corrections of a cell that are not undone, in order."""
        return [entry for entry in self._of_cell.get(cell_id, ()) if not self._undone.get(entry.edit, False)]

    def added(self, cell_id: str) -> Correction | None:
        """Return the first line that adds a cell and is not undone, if any."""
        return next((entry for entry in self.standing(cell_id) if entry.kind == "add"), None)

    def decision(self, cell_id: str, *kinds: str) -> Correction | None:
        """Return the last line of a cell of these kinds that is not undone, if any."""
        return next((entry for entry in reversed(self.standing(cell_id)) if entry.kind in kinds), None)


def data_folder() -> Path:
    """Return the folder of the user's data: ``HEMATOKIT_DATA``, else ``hematokit`` in the system's data folder.

    Returns
    -------
    Path
        The folder need not exist.
    """
    return user_folder(
        "HEMATOKIT_DATA", "XDG_DATA_HOME", ".local/share", "Library/Application Support", "AppData/Local"
    )


def journal_of(field: Field, field_id: str) -> Path:
    """Return the journal of an image's corrections: the same for the same pixels, wherever the file is.

    Parameters
    ----------
    field : Field
        Small windows of it are read.
    field_id : str
        Part of the ids of its cells: an image under another name has another journal.

    Returns
    -------
    Path
        ``corrections/<field_id>-<hash>.jsonl`` in `data_folder`; the folder is created.

    Raises
    ------
    ImageError
        If the field cannot be read.
    StoreError
        If nothing can be written there.
    """
    folder = data_folder() / "corrections"
    with one_line_write_errors(folder, StoreError, "correct this, or set HEMATOKIT_DATA to another folder"):
        folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise StoreError(f"{folder} is not writable; change its permissions, or set HEMATOKIT_DATA to another folder")
    digest = hashlib.sha256(f"{field_id}\n{field.height}x{field.width}\n".encode())
    for y0 in _starts(field.height):
        for x0 in _starts(field.width):
            box = Box(y0, x0, min(_WINDOW, field.height - y0), min(_WINDOW, field.width - x0))
            digest.update(field.read(box).tobytes())
    return folder / f"{field_id[:80]}-{digest.hexdigest()[:16]}.jsonl"


def _starts(side: int) -> list[int]:
    """Return the starts of evenly spread windows along a side, each once."""
    last = max(0, side - _WINDOW)
    return sorted({round(last * number / (_ACROSS - 1)) for number in range(_ACROSS)})
