"""From 16 bits per channel to 8, by one rule for a whole field."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hematokit.imaging.fieldfiles.levels import Level
from hematokit.imaging.geometry import Box

__all__ = ["DEPTHS", "choose_depth", "lookup_table", "sample_maximum"]

DEPTHS = (8, 10, 12, 14, 16)
"""Bits that cameras deliver inside of 16."""

_SAMPLE_PIXELS = 4_000_000  # a level of up to this size is looked at whole
_SAMPLE_GRID, _SAMPLE_SIDE = 8, 128  # of a larger one: 8 x 8 boxes of 128 px


def choose_depth(maximum: int, significant_bits: int | None) -> int:
    """Return how many of 16 bits the camera used.

    Parameters
    ----------
    maximum : int
        Largest value seen.
    significant_bits : int or None
        What the metadata state. 16 says nothing: programs write it for every image of 16 bits.

    Returns
    -------
    int
        The stated number, if it is below 16 and holds the maximum; else the smallest of `DEPTHS` that does.
    """
    if significant_bits is not None and 8 <= significant_bits < 16 and maximum < 1 << significant_bits:
        return significant_bits
    return next(depth for depth in DEPTHS if maximum < 1 << depth)


def lookup_table(depth: int) -> npt.NDArray[np.uint8]:
    """Return what each value of 16 bits becomes: 0 stays 0, ``2 ** depth - 1`` and above become 255, rounded."""
    white = (1 << depth) - 1
    values = np.minimum(np.arange(1 << 16, dtype=np.uint32), white)
    return ((values * 255 + white // 2) // white).astype(np.uint8)


def sample_maximum(levels: Sequence[Level]) -> int:
    """Return the largest value of a field's smallest level, or of boxes spread evenly over it where that is large."""
    level = levels[-1]
    if level.height * level.width <= _SAMPLE_PIXELS:
        return _maximum(level.read(Box(0, 0, level.height, level.width)))
    height, width = min(_SAMPLE_SIDE, level.height), min(_SAMPLE_SIDE, level.width)
    rows = np.linspace(0, level.height - height, _SAMPLE_GRID).round().astype(int).tolist()
    columns = np.linspace(0, level.width - width, _SAMPLE_GRID).round().astype(int).tolist()
    return max(_maximum(level.read(Box(y, x, height, width))) for y in rows for x in columns)


def _maximum(pixels: npt.NDArray[Any]) -> int:
    return int(pixels.max())
