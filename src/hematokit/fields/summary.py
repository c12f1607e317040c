"""The differential of one field, smear, patient or of all: shares with their intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hematokit.evaluation.intervals import Interval

__all__ = ["Ratio", "Share", "Summary", "as_percent", "as_percents"]


@dataclass(frozen=True, slots=True)
class Share:
    """A part of the counted cells. Shares and bounds run from 0 to 1; ``to_dict`` writes per cent.

    Attributes
    ----------
    count, unsure : int
        Cells that are sure, and cells called so but unsure.
    share : float or None
        Of the counted cells; ``None`` where there is none, and of classes that are counted apart.
    interval, grouped, simultaneous : pair of float or None
        95 % intervals: of this share alone, the same with cells grouped by field, and for all classes together.
    cells_needed : int or None
        For an interval of +-2 %.
    """

    count: int
    unsure: int
    share: float | None = None
    interval: Interval | None = None
    grouped: Interval | None = None
    simultaneous: Interval | None = None
    cells_needed: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain data with per cent."""
        return {
            "count": self.count,
            "unsure": self.unsure,
            "percent": as_percent(self.share),
            "interval": as_percents(self.interval),
            "interval_grouped": as_percents(self.grouped),
            "interval_simultaneous": as_percents(self.simultaneous),
            "cells_needed": self.cells_needed,
        }


@dataclass(frozen=True, slots=True)
class Ratio:
    """The myeloid:erythroid ratio; an upper bound of ``None`` has no limit.

    Attributes
    ----------
    myeloid, erythroid : int
        Cells.
    value : float or None
        ``None`` where it is not defined; `reason` says why.
    """

    myeloid: int
    erythroid: int
    value: float | None
    interval: tuple[float, float | None] | None = None
    grouped: tuple[float, float | None] | None = None
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "myeloid": self.myeloid,
            "erythroid": self.erythroid,
            "ratio": _rounded(self.value),
            "interval": None if self.interval is None else [_rounded(bound) for bound in self.interval],
            "interval_grouped": None if self.grouped is None else [_rounded(bound) for bound in self.grouped],
            "reason": self.reason or None,
        }


@dataclass(frozen=True)
class Summary:
    """The differential of some fields.

    Attributes
    ----------
    level : str
        ``"all"``, ``"patient"``, ``"smear"`` or ``"field"``.
    patient_id, smear_id, field_id : str
        Which; empty where it does not apply.
    fields : int
        Fields looked at, with or without cells.
    cells, counted, apart, unsure : int
        All cells; those that per cent are of; those of classes counted apart; those that are unsure or without a class.
    border : int
        Cells cut by the border of their field.
    classes, lineages : dict of str to Share
        By code in the taxonomy's order, and by lineage.
    blasts : Share or None
        ``None`` where the taxonomy has no blasts.
    ratio : Ratio
        Myeloid:erythroid.
    cells_needed : int or None
        For intervals of +-2 % that hold for all classes together.
    design_effect : float or None
        How many times more cells are needed for their coming in fields; ``None`` with one field.
    notes : tuple of str
        What to mind.
    """

    level: str
    patient_id: str
    smear_id: str
    field_id: str
    fields: int
    cells: int
    counted: int
    apart: int
    unsure: int
    border: int
    classes: Mapping[str, Share]
    lineages: Mapping[str, Share]
    blasts: Share | None
    ratio: Ratio
    cells_needed: int | None
    design_effect: float | None
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        """How a person calls it."""
        if self.level == "all":
            return "all fields"
        return {"patient": self.patient_id, "smear": self.smear_id, "field": self.field_id}[self.level]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data; a single field is told in short."""
        about: dict[str, Any] = {"level": self.level}
        about |= {
            key: value
            for key, value in (
                ("patient_id", self.patient_id),
                ("smear_id", self.smear_id),
                ("field_id", self.field_id),
            )
            if value
        }
        numbers = {
            "cells": self.cells,
            "counted": self.counted,
            "counted_apart": self.apart,
            "unsure": self.unsure,
            "touching_border": self.border,
        }
        if self.level == "field":
            seen = {code: share.count for code, share in self.classes.items() if share.count}
            return {**about, **numbers, "counts": seen}
        return {
            **about,
            "fields": self.fields,
            **numbers,
            "blasts": None if self.blasts is None else self.blasts.to_dict(),
            "myeloid_erythroid": self.ratio.to_dict(),
            "cells_needed_for_all_classes": self.cells_needed,
            "design_effect": _rounded(self.design_effect),
            "classes": [{"code": code, **share.to_dict()} for code, share in self.classes.items()],
            "lineages": [{"lineage": name, **share.to_dict()} for name, share in self.lineages.items()],
            "notes": list(self.notes),
        }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), 4)


def as_percent(share: float | None) -> float | None:
    return None if share is None else round(100 * float(share), 4)


def as_percents(bounds: Interval | None) -> list[float] | None:
    return None if bounds is None else [round(100 * float(bound), 4) for bound in bounds]
