"""Rules for detectors: what fields, tiles and the viewer rely on."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from hematokit.annotations.cells import check_detections
from hematokit.conformance.packages import PluginUnderTest, builds, spec
from hematokit.conformance.rules import Rule, RuleBroken, RuleWarning

__all__ = ["RULES", "DetectorUnderTest"]

Pixels = npt.NDArray[np.uint8]


class DetectorUnderTest(PluginUnderTest):
    """A detector, made once, and a drawn field."""

    registry = "detectors"

    @cached_property
    def detector(self) -> Any:
        """The detector."""
        return self.make().value

    @cached_property
    def drawn(self) -> Any:
        """A drawn field of ten cells, with the truth."""
        from hematokit.synthetic import synthesize_field

        return synthesize_field(700, 900, cells=10, seed=1)

    def run(self, pixels: Pixels, pixel_size_um: float | None = None) -> pd.DataFrame:
        """Detect, and hold what comes back against the contract."""
        found = self.detector.detect(pixels, pixel_size_um)
        return check_detections(found, pixels.shape[0], pixels.shape[1], self.name)


def table(plugin: DetectorUnderTest) -> str:
    """A field (H, W, 3) uint8 gives a table with centres, boxes and scores inside it, with or without a pixel size."""
    counts = [len(plugin.run(plugin.drawn.pixels, size)) for size in (None, plugin.drawn.pixel_size_um)]
    return f"{counts[0]} cells without a pixel size, {counts[1]} with it"


def finds(plugin: DetectorUnderTest) -> str:
    """It detects cells: most of ten drawn ones."""
    cells = plugin.run(plugin.drawn.pixels, plugin.drawn.pixel_size_um)
    truth = plugin.drawn.table()[["y", "x"]].to_numpy(float)
    if not len(cells):
        raise RuleWarning(f"none of {len(truth)} drawn cells was found")
    apart = np.linalg.norm(truth[:, None] - cells[["y", "x"]].to_numpy(float)[None], axis=2).min(axis=1)
    found = int((apart < 40).sum())
    if found < len(truth) / 2:
        raise RuleWarning(f"{found} of {len(truth)} drawn cells were found")
    return f"{found} of {len(truth)} drawn cells, {len(cells)} detections"


def determinism(plugin: DetectorUnderTest) -> str:
    """The same field gives the same cells."""
    first, again = plugin.run(plugin.drawn.pixels), plugin.run(plugin.drawn.pixels)
    columns = ["y", "x", "y0", "x0", "height", "width", "score"]
    if not first[columns].equals(again[columns]):
        raise RuleBroken(f"two calls gave {len(first)} and {len(again)} cells, or other places; seed what is random")
    return "repeated exactly"


def input_(plugin: DetectorUnderTest) -> str:
    """It changes no pixel of its field, and takes one that is read-only or a part of a larger one."""
    pixels = plugin.drawn.pixels[:500, 100:700]
    copy, view = pixels.copy(), pixels.view()
    view.flags.writeable = False
    count = len(plugin.run(view))
    if count != len(plugin.run(copy)):
        raise RuleBroken("a part of a larger field gave other cells than a copy of it")
    if not np.array_equal(pixels, copy):
        raise RuleBroken("it changed the field's pixels; work on a copy")
    return "read-only parts of a field"


def empty(plugin: DetectorUnderTest) -> str:
    """An empty field, a black one and a tiny one raise nothing."""
    blank = np.full((300, 400, 3), 235, np.uint8)
    counts = [len(plugin.run(pixels)) for pixels in (blank, np.zeros_like(blank), blank[:24, :24])]
    if counts[0]:
        raise RuleWarning(f"{counts[0]} cells were found in an empty field")
    return "no cells where there are none"


RULES: Final[Sequence[Rule]] = (
    spec, builds, table, finds, determinism, input_, empty,
)  # fmt: skip
