"""The differential of a set of fields (one field, a smear, a patient, or all): shares with their intervals.

A differential is one draw from a multinomial distribution, and the cells of one field resemble each other more than
cells of different fields do. `simultaneous_intervals` hold for all classes together; `Clustering` measures how much
smaller the effective number of cells is because they come in fields.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.stats import chi2, norm
from scipy.stats import t as student_t

from hematokit.differential.counts import CellCounts, CountingGroups
from hematokit.evaluation.intervals import LEVEL, Interval, effective_count_of_sums, wilson_interval
from hematokit.taxonomy import Taxonomy

__all__ = [
    "Clustering",
    "Ratio",
    "Share",
    "Summarizer",
    "Summary",
    "as_percent",
    "as_percents",
    "cells_needed",
    "grouped_interval",
    "simultaneous_intervals",
]

HALF_WIDTH: Final = 0.02
"""Half the width of the interval that `cells_needed` aims at."""


@dataclass(frozen=True, slots=True, eq=False)
class Clustering:
    """Resemblance of the cells of one field, over all classes.

    Attributes
    ----------
    groups : int
        Number of fields with a counted cell.
    design_effect : float
        Variance of the shares between fields over their multinomial variance, averaged over the classes; at least 1.
    class_effects : ndarray (classes,), float
        The same for each class, never below the average: few fields show little of a rare class's variance.
    degrees : int
        Degrees of freedom of that estimate, ``(groups - 1) (classes - 1)``.

    References
    ----------
    Rao JNK, Scott AJ (1981). The analysis of categorical data from complex sample surveys: chi-squared tests for
    goodness of fit and independence in two-way tables. JASA 76, 221-230.
    Thomas DR, Rao JNK (1987). Small-sample comparisons of level and power for simple goodness-of-fit statistics under
    cluster sampling. JASA 82, 630-636 (degrees of freedom).
    """

    groups: int
    design_effect: float
    class_effects: npt.NDArray[np.float64]
    degrees: int

    @classmethod
    def of(cls, counts: npt.NDArray[np.integer]) -> Clustering | None:
        """Return the clustering of counts (fields, classes).

        ``None`` with fewer than two fields or two classes that have cells. Where every field has one cell, the design
        effect is 1.
        """
        table = counts[counts.sum(axis=1) > 0].astype(np.float64)
        groups, seen = len(table), table.sum(axis=0) > 0
        classes = int(seen.sum())
        if groups < 2 or classes < 2:
            return None
        sizes = table.sum(axis=1)
        total = float(sizes.sum())
        if groups == total:
            return cls(groups, 1.0, np.ones(len(seen)), 10**9)
        share = table.sum(axis=0) / total
        between = groups / (groups - 1) * ((table - np.outer(sizes, share)) ** 2).sum(axis=0) / total**2
        # The mean over classes of (1 - p) times each class's design effect, which is V / (p (1 - p) / n).
        average = max(1.0, total / (classes - 1) * float((between[seen] / share[seen]).sum()))
        own = np.zeros(len(seen))
        own[seen] = between[seen] / (share[seen] * (1 - share[seen]) / total)
        return cls(groups, average, np.maximum(own, average), (groups - 1) * (classes - 1))

    def worth(self, level: float = LEVEL) -> float:
        """Return the factor on a number of cells for estimating the design effect, in an interval of that level."""
        tail = 0.5 + level / 2
        return (float(norm.ppf(tail)) / float(student_t.ppf(tail, self.degrees))) ** 2


def simultaneous_intervals(
    counts: npt.NDArray[np.integer], clustering: Clustering | None = None
) -> list[Interval] | None:
    """Return 95 % intervals that hold for all shares of a multinomial count together.

    They are Goodman's: score intervals at the Bonferroni level ``1 - 0.05 / k``.

    Parameters
    ----------
    counts : ndarray (k,), int
        Cells of each class.
    clustering : Clustering, optional
        Of the same classes; the intervals are then on the effective number of cells of each class.

    Returns
    -------
    list of k pairs, or None
        Lower and upper bound of each share, within 0 and 1; ``None`` where there is no cell or fewer than two classes.

    References
    ----------
    Goodman LA (1965). On simultaneous confidence intervals for multinomial proportions. Technometrics 7, 247-254.
    """
    total, classes = int(counts.sum()), len(counts)
    if not total or classes < 2:
        return None
    level = 1 - (1 - LEVEL) / classes
    quantile = float(chi2.ppf(level, 1))
    size = np.full(classes, float(total))
    if clustering is not None:
        size *= clustering.worth(level) / clustering.class_effects
    hits = counts / total * size
    # The score interval of each, at that size.
    root = np.sqrt(quantile * (quantile + 4 * hits * (size - hits) / size))
    low = (quantile + 2 * hits - root) / (2 * (size + quantile))
    high = (quantile + 2 * hits + root) / (2 * (size + quantile))
    share = counts / total
    # Rounding must not push a bound past a share of exactly 0 or 1.
    low, high = np.minimum(np.maximum(low, 0.0), share), np.maximum(np.minimum(high, 1.0), share)
    return list(zip(low.tolist(), high.tolist(), strict=True))


def grouped_interval(
    hits: npt.NDArray[np.integer], sizes: npt.NDArray[np.integer], clustering: Clustering | None
) -> Interval | None:
    """Return the Wilson interval of one share on the effective number of cells, with cells grouped by field.

    The design effect is the share's own, but at least the average over all classes, whose degrees of freedom are
    used: with few fields, all classes together estimate the differences between fields better than one.

    Parameters
    ----------
    hits, sizes : ndarray (fields,), int
        Cells of the class or group of classes, and of all that are counted, in each field.
    clustering : Clustering or None
        Of all classes. Where it is ``None``, the cells of a field are assumed to agree always.

    Returns
    -------
    tuple of float, or None
        ``None`` with fewer than two fields that have cells.
    """
    total, found = int(sizes.sum()), int(hits.sum())
    if np.count_nonzero(sizes) < 2:
        return None
    own = Clustering.of(np.stack([hits, sizes - hits], axis=1))
    if clustering is None:
        count = effective_count_of_sums(hits.astype(np.float64), sizes.astype(np.float64))
    else:
        effect = max(clustering.design_effect, 1.0 if own is None else own.design_effect)
        count = total / effect * clustering.worth()
    return wilson_interval(found / total, count)


def _ratio_interval(bounds: Interval | None) -> tuple[float, float | None] | None:
    """Return the interval of ``M / E`` from that of ``M / (M + E)``; an upper bound of ``None`` is infinity."""
    if bounds is None:
        return None
    low, high = bounds
    return low / (1 - low) if low < 1 else 0.0, high / (1 - high) if high < 1 else None


def cells_needed(share: float, *, classes: int = 1, design_effect: float = 1.0, half_width: float = HALF_WIDTH) -> int:
    """Return the number of cells at which a 95 % interval of a share is no wider than twice `half_width`.

    Parameters
    ----------
    share : float
        The expected share, 0 to 1.
    classes : int
        Number of classes for which the intervals hold together (Goodman); 1 for a single one (Wilson).
    design_effect : float
        Factor for cells that are not independent because they come in fields.
    half_width : float
        0.02 for "plus or minus 2 %".

    Returns
    -------
    int
        The score interval has that width exactly at this number.
    """
    quantile = float(chi2.ppf(1 - (1 - LEVEL) / classes, 1))
    variance, square = share * (1 - share), half_width**2
    # The width of the score interval, set to 2 half_width and solved for n.
    excess = variance - 2 * square
    count = quantile * (excess + math.sqrt(excess**2 + square * (1 - 4 * square))) / (2 * square)
    return math.ceil(round(count * design_effect, 6))


@dataclass(frozen=True, slots=True)
class Share:
    """A share of the counted cells; shares and bounds are from 0 to 1, ``to_dict`` has per cent.

    Attributes
    ----------
    count, low_confidence : int
        Counted cells, and low-confidence cells.
    share : float or None
        Share of the counted cells; ``None`` where there are none, and for classes that are counted apart.
    interval, grouped, simultaneous : pair of float or None
        95 % intervals: of this share alone, the same with cells grouped by field, and for all classes together.
    cells_needed : int or None
        For an interval of +-2 %.
    """

    count: int
    low_confidence: int
    share: float | None = None
    interval: Interval | None = None
    grouped: Interval | None = None
    simultaneous: Interval | None = None
    cells_needed: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain data with per cent."""
        return {
            "count": self.count,
            "low_confidence": self.low_confidence,
            "percent": as_percent(self.share),
            "interval": as_percents(self.interval),
            "interval_grouped": as_percents(self.grouped),
            "interval_simultaneous": as_percents(self.simultaneous),
            "cells_needed": self.cells_needed,
        }


@dataclass(frozen=True, slots=True)
class Ratio:
    """The myeloid:erythroid ratio; an upper bound of ``None`` is infinity.

    Attributes
    ----------
    myeloid, erythroid : int
        Numbers of cells.
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
        Ids; empty where they do not apply.
    fields : int
        Number of fields, with or without cells.
    cells, counted, apart, low_confidence : int
        All cells; those that per cent are of; those of classes counted apart; low-confidence ones and those without a
        class.
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
        Factor on the number of cells needed because they come in fields; ``None`` with one field.
    notes : tuple of str
        Warnings.
    """

    level: str
    patient_id: str
    smear_id: str
    field_id: str
    fields: int
    cells: int
    counted: int
    apart: int
    low_confidence: int
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
        """Id of the field, smear or patient, or ``"all fields"``."""
        if self.level == "all":
            return "all fields"
        return {"patient": self.patient_id, "smear": self.smear_id, "field": self.field_id}[self.level]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data; of a single field, the counts only."""
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
            "low_confidence": self.low_confidence,
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
    """Return a share (0 to 1) in per cent, to 4 decimals."""
    return None if share is None else round(100 * float(share), 4)


def as_percents(bounds: Interval | None) -> list[float] | None:
    """Return the bounds of an interval (0 to 1) in per cent, to 4 decimals."""
    return None if bounds is None else [round(100 * float(bound), 4) for bound in bounds]


class Summarizer:
    """Computation of the summaries of sets of fields, with one taxonomy.

    Parameters
    ----------
    taxonomy : Taxonomy
        The one that the cells were counted with.
    groups : CountingGroups
        Its classes by their role.
    """

    def __init__(self, taxonomy: Taxonomy, groups: CountingGroups) -> None:
        self.codes = taxonomy.codes
        self.groups = groups
        self.counted = np.isin(self.codes, groups.counted)
        lineages = dict.fromkeys(entry.lineage for entry in taxonomy if entry.code in groups.counted)
        self.lineages = {
            name or "no lineage": self._mask(
                [entry.code for entry in taxonomy if entry.lineage == name and entry.code in groups.counted]
            )
            for name in lineages
        }
        self.blasts, self.myeloid, self.erythroid = map(self._mask, (groups.blasts, groups.myeloid, groups.erythroid))

    def _mask(self, codes: Sequence[str]) -> npt.NDArray[np.bool_]:
        return np.isin(self.codes, list(codes))

    def summary(
        self,
        counts: CellCounts,
        rows: npt.NDArray[np.int64],
        level: str,
        *,
        patient_id: str = "",
        smear_id: str = "",
        field_id: str = "",
    ) -> Summary:
        """Return the summary of the fields at `rows` of the counts."""
        sure, low_confidence = counts.sure[rows], counts.low_confidence[rows]
        sizes = sure[:, self.counted].sum(axis=1)
        total = int(sizes.sum())
        clustering = Clustering.of(sure[:, self.counted]) if level != "field" else None
        together = simultaneous_intervals(sure[:, self.counted].sum(axis=0), clustering) if level != "field" else None
        bounds = iter(together or [])
        classes = {}
        for index, code in enumerate(self.codes):
            if self.counted[index]:
                share = self._share(sure, low_confidence, np.arange(len(self.codes)) == index, sizes, clustering, level)
                classes[code] = replace(share, simultaneous=next(bounds, None))
            else:
                # Not a share of the counted cells; there may even be more of them.
                classes[code] = Share(int(sure[:, index].sum()), int(low_confidence[:, index].sum()))
        doubtful = int(low_confidence.sum() + counts.unclassified[rows].sum())
        effect = None if clustering is None else clustering.design_effect
        needed = None
        if total and level != "field":
            needed = max(
                cells_needed(share.share, classes=len(self.groups.counted), design_effect=effect or 1.0)
                for share in classes.values()
                if share.share is not None
            )
        return Summary(
            level=level,
            patient_id=patient_id,
            smear_id=smear_id,
            field_id=field_id,
            fields=len(rows),
            cells=int(sure.sum() + low_confidence.sum() + counts.unclassified[rows].sum()),
            counted=total,
            apart=int(sure[:, ~self.counted].sum()),
            low_confidence=doubtful,
            border=int(counts.border[rows].sum()),
            classes=classes,
            lineages={
                name: self._share(sure, low_confidence, mask, sizes, clustering, level)
                for name, mask in self.lineages.items()
            },
            blasts=(
                self._share(sure, low_confidence, self.blasts, sizes, clustering, level) if self.blasts.any() else None
            ),
            ratio=self._ratio(sure, clustering),
            cells_needed=needed,
            design_effect=effect,
            notes=_notes(total, doubtful, int((sizes > 0).sum())) if level != "field" else (),
        )

    def _share(
        self,
        sure: npt.NDArray[np.int64],
        low_confidence: npt.NDArray[np.int64],
        mask: npt.NDArray[np.bool_],
        sizes: npt.NDArray[np.int64],
        clustering: Clustering | None,
        level: str,
    ) -> Share:
        hits = sure[:, mask].sum(axis=1)
        count, total = int(hits.sum()), int(sizes.sum())
        doubtful = int(low_confidence[:, mask].sum())
        if not total:
            return Share(count, doubtful)
        interval = wilson_interval(count / total, total)
        if level == "field":
            return Share(count, doubtful, count / total, interval)
        return Share(
            count,
            doubtful,
            count / total,
            interval,
            grouped_interval(hits, sizes, clustering),
            None,
            cells_needed(count / total, design_effect=1.0 if clustering is None else clustering.design_effect),
        )

    def _ratio(self, sure: npt.NDArray[np.int64], clustering: Clustering | None) -> Ratio:
        by_field = sure[:, self.myeloid].sum(axis=1), sure[:, self.erythroid].sum(axis=1)
        myeloid, erythroid = int(by_field[0].sum()), int(by_field[1].sum())
        for mask, what in ((self.myeloid, "granulocytic"), (self.erythroid, "erythroid")):
            if not mask.any():
                return Ratio(myeloid, erythroid, None, reason=f"the taxonomy has no {what} class")
        if not myeloid + erythroid:
            return Ratio(0, 0, None, reason="no granulocytic and no erythroid cell was counted")
        sizes = by_field[0] + by_field[1]
        return Ratio(
            myeloid,
            erythroid,
            myeloid / erythroid if erythroid else None,
            _ratio_interval(wilson_interval(myeloid / (myeloid + erythroid), myeloid + erythroid)),
            _ratio_interval(grouped_interval(by_field[0], sizes, clustering)),
            "" if erythroid else "no erythroid cell was counted",
        )


def _notes(counted: int, low_confidence: int, fields: int) -> tuple[str, ...]:
    """Return warnings of few cells, many low-confidence ones, or few fields."""
    asked = "the ICSH guideline asks for 500 nucleated cells"
    if not counted:
        return ("no cell was counted, so there are no per cent",)
    notes = []
    if counted < 100:
        notes.append(f"only {counted} cells counted: far too few for per cent to mean much; {asked}")
    elif counted < 200:
        notes.append(f"only {counted} cells counted: per cent are rough; {asked}")
    elif counted < 500:
        notes.append(f"{counted} cells counted; {asked} where the exact per cent of a class matters")
    if low_confidence > 0.1 * (counted + low_confidence):
        share = low_confidence / (counted + low_confidence)
        notes.append(
            f"{100 * share:.0f} % of the cells are low-confidence: per cent are of the others, which may be unlike them"
        )
    if fields < 2:
        notes.append("all cells are from one field: intervals cannot tell how much fields differ")
    elif fields < 5:
        notes.append(f"cells are from {fields} fields only: how much fields differ is known poorly")
    return tuple(notes)
