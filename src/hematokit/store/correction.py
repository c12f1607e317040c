"""One line of a file of corrections: who corrected which cell of what into what, and when."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from hematokit.imaging.reading import printable

__all__ = ["OF_CELLS", "OF_EDITS", "Correction"]

OF_CELLS: Final = ("label", "confirm", "delete", "add")
OF_EDITS: Final = ("undo", "redo")

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
