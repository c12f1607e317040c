"""From counts by field and class to the summary of a set of fields."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from hematokit.evaluation.intervals import wilson_interval
from hematokit.fields.counting import (
    Clustering,
    cells_needed,
    grouped_interval,
    ratio_interval,
    simultaneous_intervals,
)
from hematokit.fields.groups import CountingGroups
from hematokit.fields.summary import Ratio, Share, Summary
from hematokit.fields.tallies import CellCounts
from hematokit.taxonomy import Taxonomy

__all__ = ["Summarizer"]


class Summarizer:
    """Makes summaries of sets of fields; holds what is the same for all of them."""

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
        """Summarize the fields at `rows`."""
        sure, unsure = counts.sure[rows], counts.unsure[rows]
        sizes = sure[:, self.counted].sum(axis=1)
        total = int(sizes.sum())
        clustering = Clustering.of(sure[:, self.counted]) if level != "field" else None
        together = simultaneous_intervals(sure[:, self.counted].sum(axis=0), clustering) if level != "field" else None
        bounds = iter(together or [])
        classes = {}
        for index, code in enumerate(self.codes):
            if self.counted[index]:
                share = self._share(sure, unsure, np.arange(len(self.codes)) == index, sizes, clustering, level)
                classes[code] = replace(share, simultaneous=next(bounds, None))
            else:
                # Of the counted cells they are no share; there may even be more of them.
                classes[code] = Share(int(sure[:, index].sum()), int(unsure[:, index].sum()))
        doubtful = int(unsure.sum() + counts.unclassified[rows].sum())
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
            cells=int(sure.sum() + unsure.sum() + counts.unclassified[rows].sum()),
            counted=total,
            apart=int(sure[:, ~self.counted].sum()),
            unsure=doubtful,
            border=int(counts.border[rows].sum()),
            classes=classes,
            lineages={
                name: self._share(sure, unsure, mask, sizes, clustering, level) for name, mask in self.lineages.items()
            },
            blasts=(self._share(sure, unsure, self.blasts, sizes, clustering, level) if self.blasts.any() else None),
            ratio=self._ratio(sure, clustering),
            cells_needed=needed,
            design_effect=effect,
            notes=_notes(total, doubtful, int((sizes > 0).sum())) if level != "field" else (),
        )

    def _share(
        self,
        sure: npt.NDArray[np.int64],
        unsure: npt.NDArray[np.int64],
        mask: npt.NDArray[np.bool_],
        sizes: npt.NDArray[np.int64],
        clustering: Clustering | None,
        level: str,
    ) -> Share:
        hits = sure[:, mask].sum(axis=1)
        count, total = int(hits.sum()), int(sizes.sum())
        doubtful = int(unsure[:, mask].sum())
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
            ratio_interval(wilson_interval(myeloid / (myeloid + erythroid), myeloid + erythroid)),
            ratio_interval(grouped_interval(by_field[0], sizes, clustering)),
            "" if erythroid else "no erythroid cell was counted",
        )


def _notes(counted: int, unsure: int, fields: int) -> tuple[str, ...]:
    """What to mind: how few cells, how many unsure ones, and whether the grouping by field could be measured."""
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
    if unsure > 0.1 * (counted + unsure):
        share = unsure / (counted + unsure)
        notes.append(
            f"{100 * share:.0f} % of the cells are unsure: per cent are of the others, which may be unlike them"
        )
    if fields < 2:
        notes.append("all cells are from one field: intervals cannot tell how much fields differ")
    elif fields < 5:
        notes.append(f"cells are from {fields} fields only: how much fields differ is known poorly")
    return tuple(notes)
