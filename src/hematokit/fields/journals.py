"""Where the corrections of a picture are kept that belongs to no store and to no folder of results."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hematokit.errors import StoreError
from hematokit.files import one_line_write_errors, user_folder
from hematokit.imaging.geometry import Box

if TYPE_CHECKING:
    from hematokit.imaging.fieldfiles import Field

__all__ = ["data_folder", "journal_of"]

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
