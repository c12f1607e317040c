"""The differential of a run of fields: counts and shares with intervals, by field, smear, patient and overall."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import pandas as pd

from hematokit.annotations.cells import MIN_PROBABILITY
from hematokit.commands import CommandResult
from hematokit.differential.counts import (
    CellCounts,
    CountingGroups,
    count_cells,
    counting_groups,
)
from hematokit.differential.summary import Share, Summarizer, Summary, as_percent, as_percents
from hematokit.taxonomy import Taxonomy

__all__ = [
    "DIFFERENTIAL_VERSION",
    "Differential",
    "count_differential",
    "summarize_counts",
]

DIFFERENTIAL_VERSION: Final = 1
"""Version of ``differential.json``, raised when a name or meaning in it changes."""

_METHODS: Final = {
    "interval": "Wilson score interval, 95 %, of one share; assumes independent cells.",
    "interval_grouped": (
        "Wilson score interval, 95 %, for the effective number of cells: the number of cells divided by the design "
        "effect between fields of this share, at least the average over classes (Rao & Scott 1981), with quantiles of "
        "Student's t (degrees of freedom from Thomas & Rao 1987)."
    ),
    "interval_simultaneous": (
        "Goodman's (1965) simultaneous 95 % intervals for all classes together, for the effective number of cells "
        "(design effect between fields of each class, at least the average over classes, Rao & Scott 1981; degrees of "
        "freedom from Thomas & Rao 1987). With one field, cells are assumed to be independent."
    ),
    "myeloid_erythroid": "Ratio M / E; its intervals are the intervals of M / (M + E), transformed by p / (1 - p).",
    "cells_needed": (
        "Number of cells at which a 95 % interval of the observed share is at most 4 percentage points wide (+-2 %): "
        "Wilson for one class, Goodman for all classes together; multiplied by the average design effect between "
        "fields where known."
    ),
}


@dataclass(frozen=True)
class Differential(CommandResult):
    """Differentials of a run of fields, at every level.

    Attributes
    ----------
    taxonomy : Taxonomy
        The model's classes.
    groups : CountingGroups
        Classes by their role.
    min_probability : float
        Cells with a lower probability are low-confidence.
    border_excluded : bool
        Whether cells cut by the border of their field were excluded.
    overall : Summary
        All fields.
    patients, smears, fields : tuple of Summary
        Summaries by patient and smear (empty where unknown) and by field, in the order given.
    notes : tuple of str
        Warnings that concern the whole differential.
    """

    taxonomy: Taxonomy
    groups: CountingGroups
    min_probability: float
    border_excluded: bool
    overall: Summary
    patients: tuple[Summary, ...] = ()
    smears: tuple[Summary, ...] = ()
    fields: tuple[Summary, ...] = ()
    notes: tuple[str, ...] = ()

    def summaries(self, level: str) -> tuple[Summary, ...]:
        """Return all summaries of a level: ``"all"``, ``"patient"``, ``"smear"`` or ``"field"``."""
        return {"all": (self.overall,), "patient": self.patients, "smear": self.smears, "field": self.fields}[level]

    def to_dict(self) -> dict[str, Any]:
        """Return the content of ``differential.json``: strict JSON, percentages 0 to 100, ``null`` where undefined."""
        return {
            "kind": "hematokit differential",
            "schema_version": DIFFERENTIAL_VERSION,
            "research_use_only": (
                "For research use only. Not a medical device: not for diagnosis, treatment or any decision about a "
                "patient."
            ),
            "taxonomy": self.taxonomy.to_dict(),
            "min_probability": self.min_probability,
            "border_cells": "left out" if self.border_excluded else "counted",
            "rules": self.groups.to_dict(),
            "methods": dict(_METHODS),
            "notes": list(self.notes),
            "all": self.overall.to_dict(),
            "patients": [entry.to_dict() for entry in self.patients],
            "smears": [entry.to_dict() for entry in self.smears],
            "fields": [entry.to_dict() for entry in self.fields],
        }

    def table(self, level: str = "all") -> pd.DataFrame:
        """Return one row per class, for every summary of a level.

        Columns: ``level, patient_id, smear_id, field_id, kind`` ("class"), ``code, name, lineage, in_percent, count,
        low_confidence, percent, low, high, grouped_low, grouped_high, simultaneous_low, simultaneous_high,
        cells_needed``.
        """
        rows = [
            {
                **_place(entry),
                "kind": "class",
                "code": code,
                "name": self._names[code],
                "lineage": self._lineages[code],
                "in_percent": code in self._counted,
                **_figures(share),
            }
            for entry in self.summaries(level)
            for code, share in entry.classes.items()
        ]
        return _frame(rows)

    def lineages(self, level: str = "all") -> pd.DataFrame:
        """Return one row per lineage, and one for the blasts, with the columns of `table`."""
        rows = []
        for entry in self.summaries(level):
            parts = [("lineage", name, share) for name, share in entry.lineages.items()]
            parts += [("blasts", "blasts", entry.blasts)] if entry.blasts is not None else []
            rows += [
                {
                    **_place(entry),
                    "kind": kind,
                    "code": "",
                    "name": name,
                    "lineage": name if kind == "lineage" else "",
                    "in_percent": True,
                    **_figures(share),
                }
                for kind, name, share in parts
            ]
        return _frame(rows)

    def rows(self) -> pd.DataFrame:
        """Return classes and lineages of every level in one table, as in ``differential.csv``."""
        parts = [part(level) for level in ("all", "patient", "smear") for part in (self.table, self.lineages)]
        kept = [part for part in [*parts, self.table("field")] if len(part)]
        return pd.concat(kept, ignore_index=True) if kept else pd.DataFrame(columns=list(_TABLE))

    def lines(self) -> list[str]:
        """Return the main figures and the warnings as lines of text."""
        entry = self.overall
        numbers = [f"{entry.counted:,} cells counted"]
        if entry.low_confidence:
            numbers.append(f"{entry.low_confidence:,} low-confidence (below {self.min_probability:g})")
        if entry.apart:
            numbers.append(f"{entry.apart:,} counted separately (artefacts and similar)")
        lines = ["Differential: " + ", ".join(numbers)]
        seen = sorted(
            ((share.share or 0.0, code) for code, share in entry.classes.items() if share.count and share.share),
            reverse=True,
        )
        if seen:
            lines.append(", ".join(f"{code} {100 * share:.1f} %" for share, code in seen[:8]))
        if entry.blasts is not None and entry.blasts.share is not None and entry.blasts.interval is not None:
            low, high = (100 * bound for bound in entry.blasts.grouped or entry.blasts.interval)
            lines.append(f"Blasts {100 * entry.blasts.share:.1f} % (95 % interval {low:.1f} to {high:.1f})")
        if entry.ratio.value is not None:
            lines.append(f"Myeloid:erythroid {entry.ratio.value:.2g}")
        else:
            lines.append(f"Myeloid:erythroid not defined: {entry.ratio.reason}")
        return [*lines, *(f"Warning: {note}" for note in (*entry.notes, *self.notes))]

    def _repr_html_(self) -> str:
        """Return the summary and a table of all classes as HTML, for notebooks.

        Intervals are grouped by field where there are several fields, as in `lines`.
        """
        table = self.table()
        low, high = (table[f"grouped_{bound}"].fillna(table[bound]) for bound in ("low", "high"))
        shown = pd.DataFrame(
            {
                "code": table["code"],
                "class": table["name"],
                "count": table["count"],
                "low-confidence": table["low_confidence"],
                "percent": [_shown("{:.1f}", percent) for percent in table["percent"]],
                "95 % interval": [_shown("{:.1f} to {:.1f}", *bounds) for bounds in zip(low, high, strict=True)],
            }
        )
        # pandas would cut long names of classes.
        with pd.option_context("display.max_colwidth", None):
            rows: str = shown.to_html(index=False, escape=True, border=0)
        return f"{super()._repr_html_()}\n{rows}"

    @cached_property
    def _names(self) -> dict[str, str]:
        return {entry.code: entry.name for entry in self.taxonomy}

    @cached_property
    def _lineages(self) -> dict[str, str]:
        return {entry.code: entry.lineage for entry in self.taxonomy}

    @cached_property
    def _counted(self) -> frozenset[str]:
        return frozenset(self.groups.counted)


_TABLE: Final = (
    *("level", "patient_id", "smear_id", "field_id", "kind", "code", "name", "lineage", "in_percent"),
    *("count", "low_confidence", "percent", "low", "high", "grouped_low", "grouped_high"),
    *("simultaneous_low", "simultaneous_high", "cells_needed"),
)


def _shown(template: str, *values: float) -> str:
    """Return formatted numbers, or an empty text if one is missing."""
    return "" if any(map(math.isnan, values)) else template.format(*values)


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=list(_TABLE))
    # Nullable integers: whole numbers with gaps would become floats, "281.0" in a spreadsheet.
    shares = list(_TABLE[_TABLE.index("percent") : -1])
    return table.astype({"cells_needed": "Int64", **dict.fromkeys(shares, "float64")})


def _place(entry: Summary) -> dict[str, str]:
    return {
        "level": entry.level,
        "patient_id": entry.patient_id,
        "smear_id": entry.smear_id,
        "field_id": entry.field_id,
    }


def _figures(share: Share) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "count": share.count,
        "low_confidence": share.low_confidence,
        "percent": as_percent(share.share),
    }
    for name, bounds in (("", share.interval), ("grouped_", share.grouped), ("simultaneous_", share.simultaneous)):
        low, high = as_percents(bounds) or (None, None)
        figures |= {f"{name}low": low, f"{name}high": high}
    return {**figures, "cells_needed": share.cells_needed}


def count_differential(
    cells: pd.DataFrame,
    taxonomy: Taxonomy,
    *,
    min_probability: float = MIN_PROBABILITY,
    exclude_border: bool = False,
    fields: Iterable[tuple[str, str, str]] | None = None,
) -> Differential:
    """Return the differential of classified cells.

    Low-confidence cells are counted separately. Reviewed cells are never low-confidence and count as their label.
    Cells cut by the border of their field are counted unless `exclude_border` is true.

    Parameters
    ----------
    cells, taxonomy, min_probability, exclude_border, fields
        As for `count_cells`.

    Returns
    -------
    Differential

    Raises
    ------
    FieldError
        As for `count_cells`.
    """
    counts = count_cells(cells, taxonomy, min_probability=min_probability, exclude_border=exclude_border, fields=fields)
    return summarize_counts(counts, taxonomy, min_probability=min_probability, exclude_border=exclude_border)


def summarize_counts(
    counts: CellCounts, taxonomy: Taxonomy, *, min_probability: float = MIN_PROBABILITY, exclude_border: bool = False
) -> Differential:
    """Return the differential of counts.

    A smear is identified by its patient and smear id together, because two patients may each have a smear "1".

    Parameters
    ----------
    counts : CellCounts
        From `count_cells`, merged or not.
    taxonomy, min_probability, exclude_border
        As given to `count_cells`.
    """
    groups = counting_groups(taxonomy)
    made = Summarizer(taxonomy, groups)
    patients: dict[str, list[int]] = {}
    smears: dict[tuple[str, str], list[int]] = {}
    for row, (_, smear, patient) in enumerate(counts.fields):
        if patient:
            patients.setdefault(patient, []).append(row)
        if smear:
            smears.setdefault((patient, smear), []).append(row)
    overall = made.summary(counts, np.arange(len(counts.fields)), "all")
    return Differential(
        taxonomy=taxonomy,
        groups=groups,
        min_probability=float(min_probability),
        border_excluded=exclude_border,
        overall=overall,
        patients=tuple(
            made.summary(counts, np.array(rows), "patient", patient_id=patient) for patient, rows in patients.items()
        ),
        smears=tuple(
            made.summary(counts, np.array(rows), "smear", patient_id=patient, smear_id=smear)
            for (patient, smear), rows in smears.items()
        ),
        fields=tuple(
            made.summary(counts, np.array([row]), "field", patient_id=patient, smear_id=smear, field_id=name)
            for row, (name, smear, patient) in enumerate(counts.fields)
        ),
        notes=_overall_notes(counts, groups, len(patients), len(smears), exclude_border),
    )


def _overall_notes(
    counts: CellCounts, groups: CountingGroups, patients: int, smears: int, exclude_border: bool
) -> tuple[str, ...]:
    notes = []
    if not groups.counted:
        notes.append("the taxonomy has only classes that are counted separately; percentages are not defined")
    units = (patients, "patients") if patients > 1 else (smears, "smears")
    if units[0] > 1:
        notes.append(
            f"the overall differential pools the cells of {units[0]} {units[1]}; its intervals do not include the "
            f"variation between {units[1]}"
        )
    unassigned = sum(1 for _, smear, patient in counts.fields if not (smear or patient))
    if exclude_border and counts.border.any():
        notes.append(f"{int(counts.border.sum()):,} cells cut by the border of their field are excluded")
    if (patients or smears) and unassigned:
        notes.append(
            f"{unassigned} of {len(counts.fields)} fields have no smear or patient and count in the overall "
            "differential only"
        )
    return tuple(notes)
