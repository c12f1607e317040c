"""Cells that somebody marked already: CSV, GeoJSON (QuPath), Pascal VOC and YOLO files, instead of detection.

`formats` and `tables` read files into marks as they stand there; `files` finds the marks of each field; `classes` turns
names of classes into codes; `checking` makes cells of the marks that can be used, and says of the others why not.
"""

from __future__ import annotations

from hematokit.annotations.checking import ClassNames, KnownCells, check_marks, load_class_map, read_known_cells
from hematokit.annotations.files import KnownCellFiles, read_class_names

__all__ = [
    "ClassNames",
    "KnownCellFiles",
    "KnownCells",
    "check_marks",
    "load_class_map",
    "read_class_names",
    "read_known_cells",
]
