"""A first, coarse look at a field: what level of the nucleus map is a nucleus, and how many pixels a micrometre has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.morphology import remove_small_holes

from hematokit.imaging.staining import StainMaps

__all__ = ["Levels", "estimate_scale", "find_levels"]

RED_CELL_UM: Final = 6.3
"""Diameter of a red cell as it is measured here: 7.2 um, less what thresholds and neighbours take."""

NUCLEUS_UM: Final = 8.0
"""Typical width of a nucleus as it is measured here."""

_STAINED: Final = 0.12
"""Density of green above which a pixel holds something."""

_FLOOR: Final = 0.2
"""No nucleus is paler on the nucleus map, whatever the rest of the field looks like."""

_CEILING: Final = 0.38
"""Nuclei above this need not stand out from one another: a dark field does not raise the threshold further."""

_SURE: Final = 0.7
"""Mean of the nucleus map that only nuclei reach, never red cells."""

_APART: Final = 3.2
"""How many times darker than the rest nuclei have to be where they are not that dark."""


_MOSTLY: Final = 0.6
"""Share of all that is clearly stained, above which what stands out may be red cells,"""

_RED_OVER_BLUE: Final = 0.22
"""unless it absorbs that much more of red than of blue, as a share of the green: red cells absorb more blue."""


@dataclass(frozen=True)
class Levels:
    """What separates nuclei from the rest of a field on the nucleus map.

    Attributes
    ----------
    threshold : float
        Nuclei are above.
    nuclei, others : float
        Mean of what is stained and above, and of what is stained and below.
    """

    threshold: float
    nuclei: float
    others: float


def find_levels(maps: StainMaps) -> Levels | None:
    """Divide what is stained into nuclei and the rest.

    Parameters
    ----------
    maps : StainMaps
        Of the whole field, smoothed by a pixel.

    Returns
    -------
    Levels or None
        None if there are no two populations: nothing is stained, or all that is looks alike and pale.
    """
    stained = maps.stain > _STAINED
    values, violet, stain = maps.nuclei[stained], maps.violet[stained], maps.stain[stained]
    if len(values) < 16:
        return None
    dense = max(float((stain > threshold_otsu(stain)).sum()), 1.0) if stain.min() < stain.max() else len(stain)
    for _ in range(2):
        if values.min() == values.max():
            return None
        divide = max(float(threshold_otsu(values)), _FLOOR)
        above = values > divide
        if not above.any():
            return None
        high = float(values[above].mean())
        low = float(values[~above].mean()) if not above.all() else 0.0
        # Most of what is stained: nuclei of a marrow, or all the red cells of a violet smear.
        red, blue = values[above] ** 2 / np.maximum(violet[above], 1e-3), stain[above] - violet[above]
        red_cells = above.sum() > _MOSTLY * dense and (red - blue).sum() < _RED_OVER_BLUE * stain[above].sum()
        if high >= _SURE or (high >= max(_APART * low, 1.3 * _FLOOR) and not red_cells):
            return Levels(min(divide, _CEILING), high, low)
        # Nuclei beside such red cells would be darker still.
        values, violet, stain = values[above], violet[above], stain[above]
        if len(values) < 16 or np.percentile(values, 99.5) < _SURE:
            return None
    return None


def estimate_scale(maps: StainMaps, levels: Levels | None) -> tuple[float, float]:
    """Estimate the scale of a field from the width of its red cells and of its nuclei.

    Widths are those of inscribed circles, so that clumps count as what they are made of; medians are weighted by
    area, so that specks and platelets count little. Red cells count by how much of the stained area is theirs. Spots
    much smaller than the red cells are platelets, and say nothing.

    Parameters
    ----------
    maps : StainMaps
    levels : Levels or None

    Returns
    -------
    scale : float
        Pixels per micrometre; 0 if nothing tells.
    sureness : float
        From 0 (a single nucleus) to 1 (many red cells).
    """
    dark = (
        maps.nuclei > max(levels.threshold, 0.55 * levels.nuclei) if levels else np.zeros(maps.nuclei.shape, np.bool_)
    )
    dark = ndimage.binary_opening(dark)
    from_nuclei = _width(dark, closing=True)[0] / NUCLEUS_UM
    away = ~ndimage.binary_dilation(dark, iterations=3)
    from_red, red_share, alone = 0.0, 0.0, False
    if away.any():
        rest = maps.stain[away]
        cut = float(np.clip(threshold_otsu(rest), 0.06, 0.5)) if rest.min() < rest.max() else 0.5
        red = ndimage.binary_opening(away & (maps.stain > cut))
        red_share = float(red.mean())
        if red_share > 0.02:
            width, alone = _width(red, closing=False)
            from_red = width / RED_CELL_UM
            if not alone and from_nuclei > 0:
                # Clumps of red cells look like huge ones.
                from_red = min(from_red, 2.5 * from_nuclei)
    if from_red <= 0 or from_nuclei <= 0:
        return (from_red or from_nuclei), (0.7 if from_red else 0.0)
    if from_nuclei < 0.28 * from_red:
        return from_red, 0.7
    dark_share = float(dark.mean())
    weight = min(max(6.0 * dark_share / (dark_share + red_share), 0.25), 0.6 if alone else 0.9)
    if from_nuclei < from_red:
        # Lobes are narrower than a nucleus; nothing makes many red cells look wider.
        weight *= 0.6
    elif from_red < 0.8 * from_nuclei:
        weight = max(weight, 0.75)
    return float(from_nuclei**weight * from_red ** (1 - weight)), 1.0


def _width(mask: NDArray[np.bool_], *, closing: bool) -> tuple[float, bool]:
    """Typical diameter in pixels of a mask's parts, and whether it is that of parts that stand alone.

    It is that of inscribed circles where too few stand alone, or if gaps are to be closed.
    """
    depth, peaks = _inscribed(mask)
    if not peaks.any():
        return 0.0, False
    radius = _middle(depth[peaks], 0.5)
    if closing:
        steps = max(1, int(radius / 4))
        pad = steps + 1
        mask = ndimage.binary_closing(np.pad(mask, pad, mode="edge"), iterations=steps)[pad:-pad, pad:-pad]
    # Pale centres of red cells and gaps of chromatin count as filled, gaps between cells do not.
    filled = remove_small_holes(mask, max_size=int((3.5 if closing else 8.0) * radius * radius) + 1)
    depth, peaks = _inscribed(filled)
    if not peaks.any():
        return 0.0, False
    # Inscribed circles of overlapping red cells are too large, those of cells that stand alone are right.
    parts, count = ndimage.label(filled)
    index = np.arange(1, count + 1)
    deepest = np.zeros(count + 1, np.float32)
    np.maximum.at(deepest, parts[filled], depth[filled])
    deepest = deepest[1:]
    areas = np.bincount(parts.ravel(), minlength=count + 1)[1:]
    cut = np.unique(np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]]))
    alone = (np.pi * deepest**2 >= 0.55 * areas) & (deepest > 2.0) & ~np.isin(index, cut)
    inscribed = _middle(depth[peaks], 0.5 if closing else 0.25)
    if closing:
        return 2 * inscribed, False
    alone &= deepest > 0.6 * min(inscribed, 3.0 * radius)
    return (2 * _middle(deepest[alone], 0.5), True) if alone.sum() >= 2 else (2 * inscribed, False)


def _inscribed(mask: NDArray[np.bool_]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return the distance to the edge of a mask, and where it is largest around."""
    # Cells go on beyond the border, so that the border is no edge of theirs.
    depth = ndimage.distance_transform_edt(np.pad(mask, 1, mode="edge"))[1:-1, 1:-1].astype(np.float32)
    smooth = ndimage.gaussian_filter(depth, 1.0)
    return depth, (smooth == ndimage.maximum_filter(smooth, size=5)) & (depth > 1.5)


def _middle(radii: NDArray[np.float32], share: float) -> float:
    """Quantile of radii, weighted by area."""
    ordered = np.sort(radii)
    areas = np.cumsum(ordered.astype(np.float64) ** 2)
    return float(ordered[np.searchsorted(areas, areas[-1] * share)])
