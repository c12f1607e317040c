"""Synthetic bone-marrow smears from a seed: cells, single-cell crops and whole fields with their ground truth.

A `Cell` is geometry and stain; `draw_cell` draws it on a `Canvas` of optical densities; `develop` converts the canvas
to the image of a camera. The images are for demonstrations and tests, not for training a model for real cells.

Modules
-------
anatomy
    `Cell` and its parts.
recipes, classes
    A random cell of each class: intact cells; then smudges, artefacts and others.
canvas
    Stains, noise, and the canvas of optical densities.
drawing
    Cells, red cells, platelets and debris on a canvas.
smears
    Light and stain of a smear; `develop`.
scenes
    Crops and fields with their ground truth.
sample
    The built-in sample as files.
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
