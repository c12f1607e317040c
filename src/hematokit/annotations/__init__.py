"""The cells table of a field: read from annotation files, and written as Parquet, CSV and GeoJSON.

Modules
-------
cells
    The columns of the table, and the class that each cell counts as.
formats
    Pascal VOC, YOLO and GeoJSON (QuPath) files of one field.
files
    The annotations of each of several fields: one file, a folder of files, or a CSV table.
checking
    Cells with class codes from these annotations, and a reason for each annotation that cannot be used.
writing
    The table as Parquet, CSV and GeoJSON.
"""

from __future__ import annotations

from hematokit.annotations.checking import (
    AnnotatedCells,
    ClassNames,
    check_annotations,
    load_class_map,
    read_annotations,
)
from hematokit.annotations.files import AnnotationFiles, read_class_names

__all__ = [
    "AnnotatedCells",
    "AnnotationFiles",
    "ClassNames",
    "check_annotations",
    "load_class_map",
    "read_annotations",
    "read_class_names",
]
