"""Where the cells of a field come from when it is tiled: a detector, or files of known cells."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from hematokit.errors import ImageError, PluginError
from hematokit.fields.known import ClassNames, KnownCellFiles, check_marks
from hematokit.fields.tile_summary import TileTally
from hematokit.imaging.reading import printable
from hematokit.progress import Progress
from hematokit.registry import load_plugins

if TYPE_CHECKING:
    from hematokit.imaging.fieldfiles import Field

__all__ = ["CellSource", "FieldCells", "detected_cells", "given_cells", "same_cells"]


@dataclass(frozen=True, slots=True)
class FieldCells:
    """The cells of one field.

    Attributes
    ----------
    identity : dict
        What has to be equal for the cells to be the same again.
    find : callable
        Given progress, returns them.
    rejects : list of tuple of str
        Reason and message of each known cell that cannot be used.
    """

    identity: dict[str, Any]
    find: Callable[[Progress], pd.DataFrame]
    rejects: list[tuple[str, str]]


CellSource = Callable[["Field", TileTally], FieldCells]
"""Given an opened field and the tally, says what its cells are; raises `ImageError` where that cannot be said."""


def detected_cells(name: str, options: Mapping[str, object] | None) -> CellSource:
    """Return what finds the cells of an opened field with a registered detector.

    Raises
    ------
    PluginError
        If there is no such detector, or an option does not fit.
    """
    from hematokit.fields.detection import detect_cells, make_detector

    made = make_detector(name, options)

    def cells(opened: Field, tally: TileTally) -> FieldCells:
        def find(progress: Progress) -> pd.DataFrame:
            try:
                return detect_cells(opened, made, progress=progress)
            except PluginError as error:
                raise ImageError("detector-failed", f"{printable(str(opened.path))}: {error}") from error

        return FieldCells({"detector": made.identity(), "pixel_size_um": opened.pixel_size_um}, find, [])

    return cells


def given_cells(
    files: KnownCellFiles, classes: ClassNames, only: Collection[str] | None, point_side: int
) -> CellSource:
    def cells(opened: Field, tally: TileTally) -> FieldCells:
        marks = files.of_field(opened.path, opened.height, opened.width)
        known = check_marks(marks, opened.height, opened.width, classes, only, point_side)
        tally.left_out.update(known.left_out)
        tally.cut_boxes += known.cut
        places = known.cells[["y", "x", "y0", "x0", "height", "width", "label"]]
        digest = hashlib.sha256(places.to_csv(index=False).encode()).hexdigest()
        return FieldCells({"known_cells": digest, "kind": marks.kind}, lambda progress: known.cells, known.rejects)

    return cells


def same_cells(one: Mapping[str, Any], two: Mapping[str, Any]) -> bool:
    """Tell whether cells would be the same; a new version of a detector is no reason to refuse what is there."""

    def essence(identity: Mapping[str, Any]) -> dict[str, Any]:
        detector = identity.get("detector")
        if not isinstance(detector, Mapping):
            return {"known_cells": identity.get("known_cells")}
        detector = load_plugins().detectors.update_identity(str(detector.get("name")), detector)
        return {
            "detector": {key: value for key, value in detector.items() if key != "version"},
            "pixel_size_um": identity.get("pixel_size_um"),
        }

    return essence(one) == essence(two)
