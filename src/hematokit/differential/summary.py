"""The differential of a set of fields (one field, a smear, a patient, or all): shares with their intervals.

A differential is a sample from a multinomial distribution, and cells of the same field resemble each other more than
cells of different fields do. `simultaneous_intervals` returns intervals that hold for all classes together.
`Clustering` estimates how much this resemblance reduces the effective number of cells.
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
"""Default half-width of the interval in `cells_needed`."""


@dataclass(frozen=True, slots=True, eq=False)
class Clustering:
    """Resemblance of the cells of one field, over all classes.

    Attributes
    ----------
    groups : int
        Number of fields with a counted cell.
    design_effect : float
        Variance of the shares between fields divided by their multinomial variance, averaged over the classes; at
        least 1.
    class_effects : ndarray (classes,), float
        The same for each class, but at least the average: a few fields underestimate the variance of a rare class.
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

        ``None`` if fewer than two fields or fewer than two classes have cells. The design effect is 1 if every field
        has one cell.
        """
        table = counts[counts.sum(axis=1) > 0].astype(np.float64)
        groups, seen = len(table), table.sum(axis=0) > 0
        classes = int(seen.sum())
        if groups < 2 or classes < 2:
            return None
        sizes = table.sum(axis=1)
        total = float(sizes.sum())
        # One cell per field: cells are not clustered, and the normal quantile applies (unlimited degrees of freedom).
        if groups == total:
            return cls(groups, 1.0, np.ones(len(seen)), 10**9)
        share = table.sum(axis=0) / total
        # Variance of each share as a ratio estimator, with fields as clusters drawn with replacement: the residuals
        # are the counts less those expected from the size of the field.
        between = groups / (groups - 1) * ((table - np.outer(sizes, share)) ** 2).sum(axis=0) / total**2
        # Rao and Scott's first-order correction: with V the variance between fields, the design effect of a class is
        # V / (p (1 - p) / n); the average over classes is weighted by (1 - p).
        average = max(1.0, total / (classes - 1) * float((between[seen] / share[seen]).sum()))
        own = np.zeros(len(seen))
        own[seen] = between[seen] / (share[seen] * (1 - share[seen]) / total)
        return cls(groups, average, np.maximum(own, average), (groups - 1) * (classes - 1))

    def worth(self, level: float = LEVEL) -> float:
        """Return the factor on the number of cells that accounts for the uncertainty of the design effect.

        Parameters
        ----------
        level : float
            Level of the interval, 0 to 1.

        Returns
        -------
        float
            At most 1.
        """
        # The width of an interval is proportional to quantile / sqrt(n): dividing n by (t / z)^2 widens an interval
        # with the normal quantile z to one with Student's t.
        tail = 0.5 + level / 2
        return (float(norm.ppf(tail)) / float(student_t.ppf(tail, self.degrees))) ** 2


def simultaneous_intervals(
    counts: npt.NDArray[np.integer], clustering: Clustering | None = None
) -> list[Interval] | None:
    """Return 95 % intervals that hold simultaneously for all shares of a multinomial count.

    These are Goodman's intervals: score intervals at the Bonferroni level ``1 - 0.05 / k``.

    Parameters
    ----------
    counts : ndarray (k,), int
        Cells of each class.
    clustering : Clustering, optional
        Clustering of the same classes; the intervals then use the effective number of cells of each class.

    Returns
    -------
    list of k pairs, or None
        Lower and upper bound of each share, 0 to 1; ``None`` without cells or with fewer than two classes.

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
    # Score interval of each share at the effective number of cells (Goodman 1965): the roots of a quadratic equation.
    root = np.sqrt(quantile * (quantile + 4 * hits * (size - hits) / size))
    low = (quantile + 2 * hits - root) / (2 * (size + quantile))
    high = (quantile + 2 * hits + root) / (2 * (size + quantile))
    share = counts / total
    # Rounding errors must not exclude a share of exactly 0 or 1 from its interval.
    low, high = np.minimum(np.maximum(low, 0.0), share), np.maximum(np.minimum(high, 1.0), share)
    return list(zip(low.tolist(), high.tolist(), strict=True))


def grouped_interval(
    hits: npt.NDArray[np.integer], sizes: npt.NDArray[np.integer], clustering: Clustering | None
) -> Interval | None:
    """Return the Wilson interval of one share for the effective number of cells, with cells grouped by field.

    The design effect is that of the share, but at least the average over all classes. The degrees of freedom are
    those of all classes: with few fields, all classes together estimate the variation between fields better than one
    class does.

    Parameters
    ----------
    hits, sizes : ndarray (fields,), int
        Cells of the class or group of classes, and all counted cells, in each field.
    clustering : Clustering or None
        Clustering of all classes. If ``None`` (fewer than two classes have cells), the cells of a field are assumed,
        conservatively, to agree always.

    Returns
    -------
    tuple of float, or None
        ``None`` if fewer than two fields have cells.
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
    """Return the interval of ``M / E`` from that of ``M / (M + E)``; an upper bound of ``None`` means infinity."""
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
        Number of classes for which the intervals hold simultaneously (Goodman); 1 for a single class (Wilson).
    design_effect : float
        Factor for the clustering of cells in fields.
    half_width : float
        0.02 for "plus or minus 2 %".

    Returns
    -------
    int
        The smallest number of cells at which the score interval is no wider.
    """
    quantile = float(chi2.ppf(1 - (1 - LEVEL) / classes, 1))
    variance, square = share * (1 - share), half_width**2
    # Setting the width of the score interval to 2 half_width gives a quadratic equation in n; this is its larger root.
    excess = variance - 2 * square
    count = quantile * (excess + math.sqrt(excess**2 + square * (1 - 4 * square))) / (2 * square)
    return math.ceil(round(count * design_effect, 6))


@dataclass(frozen=True, slots=True)
class Share:
    """A share of the counted cells. Shares and bounds are 0 to 1 here, and percentages in ``to_dict``.

    Attributes
    ----------
    count, low_confidence : int
        Numbers of counted cells and of low-confidence cells.
    share : float or None
        Share of the counted cells; ``None`` without counted cells and for classes that are counted separately.
    interval, grouped, simultaneous : pair of float or None
        95 % intervals: of this share alone, the same with cells grouped by field, and for all classes together.
    cells_needed : int or None
        Number of cells needed for an interval of +-2 %.
    """

    count: int
    low_confidence: int
    share: float | None = None
    interval: Interval | None = None
    grouped: Interval | None = None
    simultaneous: Interval | None = None
    cells_needed: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-serialisable values, with percentages."""
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
    """The myeloid:erythroid ratio; an upper bound of ``None`` means infinity.

    Attributes
    ----------
    myeloid, erythroid : int
        Numbers of cells.
    value : float or None
        ``None`` if undefined.
    interval, grouped : pair of float or None
        95 % intervals, without and with cells grouped by field.
    reason : str
        Why the ratio is undefined; empty otherwise.
    """

    myeloid: int
    erythroid: int
    value: float | None
    interval: tuple[float, float | None] | None = None
    grouped: tuple[float, float | None] | None = None
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-serialisable values."""
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
        Ids; empty at levels to which they do not apply.
    fields : int
        Number of fields, with or without cells.
    cells, counted, apart, low_confidence : int
        Numbers of all cells; of cells in the denominator of the percentages; of cells of classes that are counted
        separately; and of low-confidence cells, including cells without a class.
    border : int
        Cells cut by the border of their field.
    classes, lineages : dict of str to Share
        Shares by class code, in the taxonomy's order, and by lineage.
    blasts : Share or None
        ``None`` if the taxonomy has no blasts.
    ratio : Ratio
        Myeloid:erythroid ratio.
    cells_needed : int or None
        Number of cells needed for intervals of +-2 % that hold for all classes together.
    design_effect : float or None
        Average design effect of the clustering of cells in fields; ``None`` with one field.
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
        """Return JSON-serialisable values; for a single field, only the counts."""
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
    """Return a share (0 to 1) as a percentage with 4 decimals."""
    return None if share is None else round(100 * float(share), 4)


def as_percents(bounds: Interval | None) -> list[float] | None:
    """Return the bounds of an interval (0 to 1) as percentages with 4 decimals."""
    return None if bounds is None else [round(100 * float(bound), 4) for bound in bounds]


class Summarizer:
    """Computes the summaries of sets of fields for one taxonomy.

    Parameters
    ----------
    taxonomy : Taxonomy
        The taxonomy with which the cells were counted.
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
                # Not in the denominator: there may be more of these than counted cells.
                classes[code] = Share(int(sure[:, index].sum()), int(low_confidence[:, index].sum()))
        low_count = int(low_confidence.sum() + counts.unclassified[rows].sum())
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
            low_confidence=low_count,
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
            notes=_notes(total, low_count, int((sizes > 0).sum())) if level != "field" else (),
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
        low_count = int(low_confidence[:, mask].sum())
        if not total:
            return Share(count, low_count)
        interval = wilson_interval(count / total, total)
        if level == "field":
            return Share(count, low_count, count / total, interval)
        return Share(
            count,
            low_count,
            count / total,
            interval,
            grouped_interval(hits, sizes, clustering),
            None,
            cells_needed(count / total, design_effect=1.0 if clustering is None else clustering.design_effect),
        )

    def _ratio(self, sure: npt.NDArray[np.int64], clustering: Clustering | None) -> Ratio:
        by_field = sure[:, self.myeloid].sum(axis=1), sure[:, self.erythroid].sum(axis=1)
        myeloid, erythroid = int(by_field[0].sum()), int(by_field[1].sum())
        for mask, side in ((self.myeloid, "granulocytic"), (self.erythroid, "erythroid")):
            if not mask.any():
                return Ratio(myeloid, erythroid, None, reason=f"the taxonomy has no {side} class")
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
    """Return warnings about few cells, many low-confidence cells, and few fields."""
    required = "the ICSH guideline requires 500 nucleated cells"
    if not counted:
        return ("no cell was counted; percentages are not defined",)
    notes = []
    if counted < 100:
        notes.append(f"only {counted} cells counted: too few for meaningful percentages; {required}")
    elif counted < 200:
        notes.append(f"only {counted} cells counted: percentages are rough; {required}")
    elif counted < 500:
        notes.append(f"{counted} cells counted; {required} where the exact percentage of a class matters")
    if low_confidence > 0.1 * (counted + low_confidence):
        share = low_confidence / (counted + low_confidence)
        notes.append(
            f"{100 * share:.0f} % of the cells are low-confidence: percentages refer to the other cells, which may "
            "differ from them"
        )
    if fields < 2:
        notes.append("all cells are from one field: intervals do not include the variation between fields")
    elif fields < 5:
        notes.append(f"cells are from only {fields} fields: the variation between fields is estimated poorly")
    return tuple(notes)
