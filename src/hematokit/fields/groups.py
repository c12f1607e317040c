"""Which classes of a taxonomy a differential counts, and which are myeloid, erythroid and blasts.

The rules follow the ICSH guideline for bone-marrow reports: per cent are of all nucleated haemopoietic cells; smudge
cells, megakaryocytes, macrophages, cells of bone and stroma, artefacts and what cannot be told are left out of them.
They are derived from lineages and names, so that a laboratory's own taxonomy is counted alike; the codes that came
out are written into every differential, because definitions differ between laboratories, above all that of M:E.

References
----------
Lee SH, Erber WN, Porwit A, Tomonaga M, Peterson LC; International Council for Standardization in Hematology (2008).
ICSH guidelines for the standardization of bone marrow specimens and reports. International Journal of Laboratory
Hematology 30, 349-364.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

from hematokit.taxonomy import CellClass, Taxonomy

__all__ = ["CountingGroups", "counting_groups"]

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
        "Per cent are of the nucleated haemopoietic cells that the classifier is sure of. Reject classes, smudge "
        "cells, megakaryocytes, macrophages, bone and stroma cells, platelets and red cells are counted apart, "
        "after the ICSH guideline for bone-marrow reports (Lee et al. 2008, Int J Lab Hematol 30:349-364)."
    ),
    "myeloid": (
        "M of M:E: granulocytes and their precursors (lineages granulopoiesis, eosinophil, basophil). Blasts, "
        "monocytes, lymphoid and plasma cells are in neither M nor E; laboratories differ in this."
    ),
    "erythroid": "E of M:E: nucleated cells of erythropoiesis.",
    "blasts": (
        "Classes of the lineage 'blast', or named so; faggot cells of matek-21 are among them as equivalents of "
        "blasts. Erythroid precursors are not."
    ),
}


@dataclass(frozen=True, slots=True)
class CountingGroups:
    """Class codes by their part in a differential, each in the taxonomy's order.

    Attributes
    ----------
    counted : tuple of str
        In the denominator of per cent.
    apart : tuple of str
        Counted, but in no per cent.
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
        """Codes and the rule that chose them, for JSON."""
        return {
            "counted": {"codes": list(self.counted), "rule": _RULES["counted"]},
            "counted_apart": {"codes": list(self.apart)},
            "myeloid": {"codes": list(self.myeloid), "rule": _RULES["myeloid"]},
            "erythroid": {"codes": list(self.erythroid), "rule": _RULES["erythroid"]},
            "blasts": {"codes": list(self.blasts), "rule": _RULES["blasts"]},
        }


def counting_groups(taxonomy: Taxonomy) -> CountingGroups:
    """Tell the classes of a taxonomy apart for counting.

    Parameters
    ----------
    taxonomy : Taxonomy
        Any; lineages and names in English are understood.

    Returns
    -------
    CountingGroups
        A group for which the taxonomy has no class is empty.
    """
    counted = [entry for entry in taxonomy if _is_counted(entry)]
    blasts = [entry for entry in counted if _is_blast(entry)]
    # A "basophilic erythroblast" is erythroid: the lineage speaks first, the name only where there is none.
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
    # "Erythroblast" is one word and does not match; a lineage of that name settles it in any case.
    return not _ERYTHROID.search(entry.lineage) and bool(_BLAST.search(entry.lineage) or _BLAST.search(entry.name))
