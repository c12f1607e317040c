"""Rules for detectors: what fields, tiles and the viewer rely on."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from hematokit.annotations.cells import check_detections
from hematokit.conformance.rules import Broken, Caution, Rule, rule
from hematokit.conformance.specs import check_spec
from hematokit.detection.windows import make_detector
from hematokit.plugins import load_plugins

__all__ = ["RULES", "DetectorSubject"]

RULES: Final[list[Rule]] = []

Pixels = npt.NDArray[np.uint8]


class DetectorSubject:
    """A detector under trial, with a drawn field.

    Parameters
    ----------
    name : str
        As registered.
    options : mapping
        Its options.
    """

    def __init__(self, name: str, options: Mapping[str, object]) -> None:
        self.name, self.options = name, dict(options)
        self.spec = load_plugins().detectors.get(name)

    @cached_property
    def detector(self) -> Any:
        """Made once."""
        return make_detector(self.name, self.options).value

    @cached_property
    def drawn(self) -> Any:
        """A drawn field of ten cells, with the truth."""
        from hematokit.synthetic import synthesize_field

        return synthesize_field(700, 900, cells=10, seed=1)

    def run(self, pixels: Pixels, pixel_size_um: float | None = None) -> pd.DataFrame:
        """Detect, and hold what comes back against the contract."""
        found = self.detector.detect(pixels, pixel_size_um)
        return check_detections(found, pixels.shape[0], pixels.shape[1], self.name)


@rule(RULES, "spec", first=True)
def _spec(subject: DetectorSubject) -> str:
    """Its description and options are complete and agree with each other."""
    return check_spec(subject.spec)


@rule(RULES, "builds", first=True)
def _builds(subject: DetectorSubject) -> str:
    """It is made from its options, without the network."""
    return type(subject.detector).__name__


@rule(RULES, "table", first=True)
def _table(subject: DetectorSubject) -> str:
    """A field (H, W, 3) uint8 gives a table with centres, boxes and scores inside it, with or without a pixel size."""
    counts = [len(subject.run(subject.drawn.pixels, size)) for size in (None, subject.drawn.pixel_size_um)]
    return f"{counts[0]} cells without a pixel size, {counts[1]} with it"


@rule(RULES, "finds")
def _finds(subject: DetectorSubject) -> str:
    """It finds cells: of ten drawn ones, most."""
    cells = subject.run(subject.drawn.pixels, subject.drawn.pixel_size_um)
    truth = subject.drawn.table()[["y", "x"]].to_numpy(float)
    if not len(cells):
        raise Caution(f"none of {len(truth)} drawn cells was found")
    apart = np.linalg.norm(truth[:, None] - cells[["y", "x"]].to_numpy(float)[None], axis=2).min(axis=1)
    found = int((apart < 40).sum())
    if found < len(truth) / 2:
        raise Caution(f"{found} of {len(truth)} drawn cells were found")
    return f"{found} of {len(truth)} drawn cells, {len(cells)} detections"


@rule(RULES, "determinism")
def _determinism(subject: DetectorSubject) -> str:
    """The same field gives the same cells."""
    first, again = subject.run(subject.drawn.pixels), subject.run(subject.drawn.pixels)
    columns = ["y", "x", "y0", "x0", "height", "width", "score"]
    if not first[columns].equals(again[columns]):
        raise Broken(f"two calls gave {len(first)} and {len(again)} cells, or other places; seed what is random")
    return "repeated exactly"


@rule(RULES, "input")
def _input(subject: DetectorSubject) -> str:
    """It changes no pixel of its field, and takes one that is read-only or a part of a larger one."""
    pixels = subject.drawn.pixels[:500, 100:700]
    copy, view = pixels.copy(), pixels.view()
    view.flags.writeable = False
    count = len(subject.run(view))
    if count != len(subject.run(copy)):
        raise Broken("a part of a larger field gave other cells than a copy of it")
    if not np.array_equal(pixels, copy):
        raise Broken("it changed the field's pixels; work on a copy")
    return "read-only parts of a field"


@rule(RULES, "empty")
def _empty(subject: DetectorSubject) -> str:
    """An empty field, a black one and a tiny one raise nothing."""
    blank = np.full((300, 400, 3), 235, np.uint8)
    counts = [len(subject.run(pixels)) for pixels in (blank, np.zeros_like(blank), blank[:24, :24])]
    if counts[0]:
        raise Caution(f"{counts[0]} cells were found in an empty field")
    return "no cells where there are none"
