"""What a file says of one cell, before it is checked."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hematokit.errors import ImageError
from hematokit.imaging.reading import printable

__all__ = ["Mark", "MarkFile", "finite_number", "unusable"]


@dataclass(slots=True)
class Mark:
    """One marked cell, as it stands in a file.

    Attributes
    ----------
    where : str
        Its place in the file, for messages: ``"line 3"``, ``"object 2"``.
    name : str
        Name of its class as written; empty for none.
    y, x : float or None
        Centre, where the file states one.
    box : tuple of float, or None
        ``(y0, x0, y1, x1)``, half-open; None where the file has a centre only.
    contour : ndarray (n, 2), or None
        Outline as ``(y, x)``.
    problem : tuple of str, or None
        Reason and message, where the file alone shows that the mark cannot be used.
    label_source, smear_id, patient_id : str
        As a table states them.
    """

    where: str
    name: str = ""
    y: float | None = None
    x: float | None = None
    box: tuple[float, float, float, float] | None = None
    contour: npt.NDArray[np.float32] | None = None
    problem: tuple[str, str] | None = None
    label_source: str = ""
    smear_id: str = ""
    patient_id: str = ""


@dataclass(frozen=True, slots=True)
class MarkFile:
    """The marks of one field.

    Attributes
    ----------
    shown : str
        The file they are from, fit to be printed.
    kind : str
        ``"csv"``, ``"geojson"``, ``"voc"`` or ``"yolo"``; the cells' ``label_source``.
    marks : list of Mark
    size : tuple of int, or None
        Height and width of the image that they were made on, where the file says so.
    """

    shown: str
    kind: str
    marks: list[Mark]
    size: tuple[int, int] | None = None


def finite_number(text: object) -> float:
    """Return a number that is finite.

    Raises
    ------
    ValueError
        If it is none; the message says what stood there.
    """
    try:
        value = float(text)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise ValueError(f"{printable(str(text))!r} is no number") from None
    if not math.isfinite(value):
        raise ValueError(f"{printable(str(text))!r} is no finite number")
    return value


def unusable(shown: str, what: str) -> ImageError:
    """The error of a file of known cells that cannot be used at all."""
    return ImageError("unreadable-cells", f"{shown} {what}")
