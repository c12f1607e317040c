"""The classes that a differential counts, and the number of cells of each class in each field.

The rules follow the ICSH guideline for bone-marrow reports: percentages refer to all nucleated haemopoietic cells.
Smudge cells, megakaryocytes, macrophages, bone and stroma cells, artefacts and unidentifiable cells are excluded from
the percentages. The rules match lineages and class names, so they also apply to a laboratory's own taxonomy. The
resulting codes are written into every differential, because definitions differ between laboratories, above all the
definition of M:E.

Counts of different fields can be merged, so thousands of fields can be counted one at a time.

References
----------
Lee SH, Erber WN, Porwit A, Tomonaga M, Peterson LC; International Council for Standardization in Hematology (2008).
ICSH guidelines for the standardization of bone marrow specimens and reports. International Journal of Laboratory
Hematology 30, 349-364.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from hematokit.annotations.cells import MIN_PROBABILITY, called_classes, low_confidence_cells, text_column
from hematokit.errors import FieldError, printable
from hematokit.taxonomy import CellClass, Taxonomy

__all__ = [
    "CellCounts",
    "CountingGroups",
    "count_cells",
    "counting_groups",
]

_NOT_COUNTED: Final = re.compile(
    r"smudge|gumprecht|megakaryocyt|macrophage|osteoblast|osteoclast|stroma|platelet|thrombocyt|\berythrocyt|red cell"
    r"|red blood cell|arte?fact|debris|background",
    re.IGNORECASE,
)
_BLAST: Final = re.compile(r"\b(myelo|mono|lympho)?blasts?\b", re.IGNORECASE)
_GRANULOCYTIC: Final = re.compile(r"\bgranulo|neutrophil|eosinophil|basophil|\bmyeloid\b|\bmyelopoie", re.IGNORECASE)
_ERYTHROID: Final = re.compile(r"\berythro(?!cyt)|normoblast", re.IGNORECASE)
_MONOCYTIC: Final = re.compile(r"\b(pro)?mono(cyt|blast)", re.IGNORECASE)

_RULES: Final = {
    "counted": (
        "Percentages refer to the nucleated haemopoietic cells that are not low-confidence. Reject classes, smudge "
        "cells, megakaryocytes, macrophages, bone and stroma cells, platelets and red cells are counted separately, "
        "following the ICSH guideline for bone-marrow reports (Lee et al. 2008, Int J Lab Hematol 30:349-364)."
    ),
    "myeloid": (
        "M of M:E: granulocytes and their precursors (lineages granulopoiesis, eosinophil, basophil). Blasts, "
        "monocytes, lymphoid and plasma cells belong to neither M nor E; laboratories differ in this."
    ),
    "erythroid": "E of M:E: nucleated cells of erythropoiesis.",
    "blasts": (
        "Classes of the lineage 'blast' or with 'blast' in their name; includes the faggot cells of matek-21 as blast "
        "equivalents. Erythroid precursors are excluded."
    ),
}


@dataclass(frozen=True, slots=True)
class CountingGroups:
    """Class codes by their role in a differential, each in the taxonomy's order.

    Attributes
    ----------
    counted : tuple of str
        Classes in the denominator of the percentages.
    apart : tuple of str
        Classes that are counted separately and excluded from the percentages.
    myeloid, erythroid : tuple of str
        The two sides of M:E.
    blasts : tuple of str
        Blasts and their equivalents.
    """

    counted: tuple[str, ...]
    apart: tuple[str, ...]
    myeloid: tuple[str, ...]
    erythroid: tuple[str, ...]
    blasts: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the codes and the rules that chose them, for JSON."""
        return {
            "counted": {"codes": list(self.counted), "rule": _RULES["counted"]},
            "counted_apart": {"codes": list(self.apart)},
            "myeloid": {"codes": list(self.myeloid), "rule": _RULES["myeloid"]},
            "erythroid": {"codes": list(self.erythroid), "rule": _RULES["erythroid"]},
            "blasts": {"codes": list(self.blasts), "rule": _RULES["blasts"]},
        }


def counting_groups(taxonomy: Taxonomy) -> CountingGroups:
    """Return the classes of a taxonomy by their role in a differential.

    Parameters
    ----------
    taxonomy : Taxonomy
        Classes are recognised by English lineages and names.

    Returns
    -------
    CountingGroups
        A group is empty if the taxonomy has no class for it.
    """
    counted = [entry for entry in taxonomy if _is_counted(entry)]
    blasts = [entry for entry in counted if _is_blast(entry)]
    # A "basophilic erythroblast" is erythroid, not a basophil: the name is used only where the lineage is empty.
    erythroid = [entry for entry in counted if entry not in blasts and _ERYTHROID.search(entry.lineage or entry.name)]
    myeloid = [
        entry
        for entry in counted
        if entry not in blasts
        and entry not in erythroid
        and _GRANULOCYTIC.search(entry.lineage or entry.name)
        and not _MONOCYTIC.search(entry.name)
    ]
    codes = {entry.code for entry in counted}
    return CountingGroups(
        counted=tuple(entry.code for entry in counted),
        apart=tuple(code for code in taxonomy.codes if code not in codes),
        myeloid=tuple(entry.code for entry in myeloid),
        erythroid=tuple(entry.code for entry in erythroid),
        blasts=tuple(entry.code for entry in blasts),
    )


def _is_counted(entry: CellClass) -> bool:
    if entry.reject or _NOT_COUNTED.search(entry.lineage):
        return False
    return not _NOT_COUNTED.search(entry.name)


def _is_blast(entry: CellClass) -> bool:
    # The word boundaries in _BLAST exclude "erythroblast"; an erythroid lineage excludes any other name with "blast".
    return not _ERYTHROID.search(entry.lineage) and bool(_BLAST.search(entry.lineage) or _BLAST.search(entry.name))


@dataclass(frozen=True, eq=False)
class CellCounts:
    """Number of cells of each class in each field.

    Attributes
    ----------
    fields : tuple of (field_id, smear_id, patient_id)
        Smear and patient are empty strings where unknown.
    sure, low_confidence : ndarray (fields, classes), int
        Cells at or above, and below the probability threshold, by the class that they count as, in the taxonomy's
        order.
    unclassified : ndarray (fields,), int
        Cells without a class.
    border : ndarray (fields,), int
        Cells cut by the border of the field. If border cells are excluded, the other arrays do not include them.
    """

    fields: tuple[tuple[str, str, str], ...]
    sure: npt.NDArray[np.int64]
    low_confidence: npt.NDArray[np.int64]
    unclassified: npt.NDArray[np.int64]
    border: npt.NDArray[np.int64]

    @classmethod
    def merge(cls, parts: Sequence[CellCounts], classes: int) -> CellCounts:
        """Concatenate counts of different fields.

        Raises
        ------
        FieldError
            If a field occurs in more than one of the parts.
        """
        fields = tuple(entry for part in parts for entry in part.fields)
        names = pd.Series([entry[0] for entry in fields], dtype=object)
        if names.duplicated().any():
            twice = printable(str(names[names.duplicated()].iloc[0]))
            raise FieldError(f"field {twice!r} would be counted twice; give each field once")
        none = np.zeros((0, classes), np.int64)
        flat = np.zeros(0, np.int64)
        return cls(
            fields,
            np.concatenate([none, *(part.sure for part in parts)]),
            np.concatenate([none, *(part.low_confidence for part in parts)]),
            np.concatenate([flat, *(part.unclassified for part in parts)]),
            np.concatenate([flat, *(part.border for part in parts)]),
        )


def count_cells(
    cells: pd.DataFrame,
    taxonomy: Taxonomy,
    *,
    min_probability: float = MIN_PROBABILITY,
    exclude_border: bool = False,
    fields: Iterable[tuple[str, str, str]] | None = None,
) -> CellCounts:
    """Count the cells of each class in each field.

    Parameters
    ----------
    cells : DataFrame
        Cells table of one or more fields, with ``field_id``, ``predicted`` and ``probability``; ``smear_id``,
        ``patient_id``, ``touches_border``, ``reviewed`` and ``label`` are used where present.
    taxonomy : Taxonomy
        The model's classes.
    min_probability : float
        Probability below which a cell is low-confidence, 0 to 1.
    exclude_border : bool
        Exclude cells that are cut by the border of the field.
    fields : iterable of (field_id, smear_id, patient_id), optional
        All fields, including those without cells.

    Returns
    -------
    CellCounts

    Raises
    ------
    FieldError
        If a column is missing, a class is not in the taxonomy, or the threshold is not a probability.
    """
    if not 0 <= min_probability <= 1:
        raise FieldError(f"min_probability is {min_probability}, not a probability; give a number from 0 to 1")
    for column in ("field_id", "predicted", "probability"):
        if column not in cells.columns:
            raise FieldError(f"the cells have no column {column!r}; classify them before counting them")
    place = {code: index for index, code in enumerate(taxonomy.codes)}
    called = called_classes(cells)
    index = np.array([place.get(code, -1) for code in called], np.int64)
    unknown = np.flatnonzero((index < 0) & (called != ""))
    if len(unknown):
        code = printable(str(called[unknown[0]]))
        raise FieldError(
            f"cell class {code!r} is not in taxonomy {taxonomy.name!r}; count with the taxonomy of the model that "
            "classified these cells"
        )
    known = {entry[0]: entry for entry in fields or ()}
    names = text_column(cells, "field_id")
    smears, patients = text_column(cells, "smear_id"), text_column(cells, "patient_id")
    for row in np.flatnonzero(~pd.Series(names, dtype=object).duplicated().to_numpy()):
        known.setdefault(str(names[row]), (str(names[row]), str(smears[row]), str(patients[row])))
    order = {name: number for number, name in enumerate(known)}
    where = np.array([order[str(name)] for name in names], np.int64)
    touching = (
        cells["touches_border"].to_numpy(bool) if "touches_border" in cells.columns else np.zeros(len(cells), bool)
    )
    taken = ~touching if exclude_border else np.ones(len(cells), bool)
    low_confidence = low_confidence_cells(cells, min_probability)

    def counted(which: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        # One bincount over (field, class) pairs encoded as one number each.
        flat = np.bincount(where[which] * len(place) + index[which], minlength=len(order) * len(place))
        return flat.astype(np.int64).reshape(len(order), len(place))

    def by_field(which: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        return np.bincount(where[which], minlength=len(order)).astype(np.int64)

    classified = index >= 0
    return CellCounts(
        tuple(known.values()),
        counted(taken & classified & ~low_confidence),
        counted(taken & classified & low_confidence),
        by_field(taken & ~classified),
        by_field(touching),
    )
