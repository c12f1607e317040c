"""A seeded generator of believable bone-marrow smears: cells, single-cell crops and whole fields with exact truth.

A `Cell` is geometry and stain; `draw_cell` draws it on any `Canvas`, at any place; `develop` turns the canvas into the
picture a camera takes. `synthesize_crops`, `synthesize_field` and `write_sample` are made of these. What it can and
cannot stand for is written in the documentation: the pictures are for demonstrations and tests, not for training a
model meant for real cells.
"""

from __future__ import annotations

from hematokit.synthetic.anatomy import Cell
from hematokit.synthetic.canvas import PIXEL_SIZE_UM, Canvas
from hematokit.synthetic.classes import MARROW, make_cell
from hematokit.synthetic.drawing import draw_cell
from hematokit.synthetic.sample import SAMPLE_COUNTS, write_sample
from hematokit.synthetic.scenes import SyntheticCell, SyntheticCrop, SyntheticField, synthesize_crops, synthesize_field
from hematokit.synthetic.smears import Smear, develop, smear_style

__all__ = [
    "MARROW",
    "PIXEL_SIZE_UM",
    "SAMPLE_COUNTS",
    "Canvas",
    "Cell",
    "Smear",
    "SyntheticCell",
    "SyntheticCrop",
    "SyntheticField",
    "develop",
    "draw_cell",
    "make_cell",
    "smear_style",
    "synthesize_crops",
    "synthesize_field",
    "write_sample",
]
