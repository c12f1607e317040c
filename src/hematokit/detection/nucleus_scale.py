"""Threshold of the nucleus map and scale of a field, both estimated on a downsampled copy of the field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.morphology import remove_small_holes

from hematokit.imaging.staining import StainMaps

__all__ = ["COARSE_SIDE", "STAINED", "Levels", "estimate_scale", "find_levels"]

COARSE_SIDE: Final = 640
"""Longer side in pixels of the downsampled copy."""

STAINED: Final = 0.12
"""Density of green above which a pixel is stained."""

RED_CELL_UM: Final = 6.3
"""Diameter in um of a red cell as measured by `_width`: smaller than the true 7.2, because of thresholds and
neighbouring cells."""

NUCLEUS_UM: Final = 8.0
"""Typical width in um of a nucleus as measured by `_width`."""

_FLOOR: Final = 0.2
"""Smallest threshold of the nucleus map."""

_CEILING: Final = 0.38
"""Largest threshold of the nucleus map: a dark field does not raise it further."""

_SURE: Final = 0.7
"""Mean of the nucleus map that nuclei may reach but red cells never do."""

_APART: Final = 3.2
"""Factor by which nuclei paler than `_SURE` must be darker than the rest."""

_MOSTLY: Final = 0.6
"""Share of the clearly stained area above which the darker population may be red cells."""

_RED_OVER_BLUE: Final = 0.22
"""Density of red less that of blue, relative to green, from which that population is nuclei; red cells are below."""


@dataclass(frozen=True)
class Levels:
    """Levels of the nucleus map in a field.

    Attributes
    ----------
    threshold : float
        Value above which a pixel belongs to a nucleus.
    nuclei, others : float
        Means of the nucleus map over the stained pixels above and below the threshold.
    """

    threshold: float
    nuclei: float
    others: float


def find_levels(maps: StainMaps) -> Levels | None:
    """Return the levels that separate nuclei from the other stained pixels of a field.

    The threshold is Otsu's. Where the darker class turns out to be the red cells of a violet smear, the threshold is
    computed again among its pixels.

    Parameters
    ----------
    maps : StainMaps
        Maps of the whole field, smoothed by one pixel.

    Returns
    -------
    Levels or None
        None if there are no two populations: nothing is stained, or all stained pixels are similar and pale.

    References
    ----------
    Otsu N (1979). A threshold selection method from gray-level histograms. IEEE Trans. Syst. Man Cybern. 9, 62-66.
    """
    stained = maps.stain > STAINED
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
        # A class with most of the stained area is the nuclei of a marrow, or all red cells of a violet smear. The
        # densities of red and blue, recovered from the maps (sqrt(red * violet), green less blue), distinguish them.
        red, blue = values[above] ** 2 / np.maximum(violet[above], 1e-3), stain[above] - violet[above]
        red_cells = above.sum() > _MOSTLY * dense and (red - blue).sum() < _RED_OVER_BLUE * stain[above].sum()
        if high >= _SURE or (high >= max(_APART * low, 1.3 * _FLOOR) and not red_cells):
            return Levels(min(divide, _CEILING), high, low)
        # These are red cells; nuclei in the same field are darker and are looked for among these pixels.
        values, violet, stain = values[above], violet[above], stain[above]
        if len(values) < 16 or np.percentile(values, 99.5) < _SURE:
            return None
    return None


def estimate_scale(maps: StainMaps, levels: Levels | None) -> tuple[float, float]:
    """Estimate the scale of a field from the width of its red cells and of its nuclei.

    Widths are diameters of inscribed circles, so that the cells of a clump count individually. Medians are weighted by
    area, so that dirt and platelets have little influence. The two estimates are combined by a weighted geometric
    mean, with weights that depend on the areas of nuclei and red cells. Dark objects much smaller than the red cells
    are platelets and are ignored.

    Parameters
    ----------
    maps : StainMaps
        Maps of the whole field, smoothed by one pixel.
    levels : Levels or None
        Levels from `find_levels`.

    Returns
    -------
    scale : float
        Pixels per micrometre; 0 if it cannot be estimated.
    certainty : float
        0 (from nuclei only), 0.7 (from red cells only) or 1 (from both).
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
                # The inscribed circles of clumps of red cells are too large.
                from_red = min(from_red, 2.5 * from_nuclei)
    if from_red <= 0 or from_nuclei <= 0:
        return (from_red or from_nuclei), (0.7 if from_red else 0.0)
    # Such small dark objects are platelets.
    if from_nuclei < 0.28 * from_red:
        return from_red, 0.7
    dark_share = float(dark.mean())
    weight = min(max(6.0 * dark_share / (dark_share + red_share), 0.25), 0.6 if alone else 0.9)
    if from_nuclei < from_red:
        # Lobes of segmented nuclei make nuclei look narrower, whereas many red cells rarely look wider than they are.
        weight *= 0.6
    elif from_red < 0.8 * from_nuclei:
        weight = max(weight, 0.75)
    return float(from_nuclei**weight * from_red ** (1 - weight)), 1.0


def _width(mask: NDArray[np.bool_], *, closing: bool) -> tuple[float, bool]:
    """Return the typical diameter in pixels of the parts of a mask, and whether it is from isolated parts.

    With `closing`, or if fewer than two parts are isolated, it is from the inscribed circles of all parts.
    """
    depth, peaks = _inscribed(mask)
    if not peaks.any():
        return 0.0, False
    radius = _middle(depth[peaks], 0.5)
    if closing:
        steps = max(1, int(radius / 4))
        pad = steps + 1
        mask = ndimage.binary_closing(np.pad(mask, pad, mode="edge"), iterations=steps)[pad:-pad, pad:-pad]
    # Fill the pale centres of red cells and gaps in chromatin, but not the gaps between cells.
    filled = remove_small_holes(mask, max_size=int((3.5 if closing else 8.0) * radius * radius) + 1)
    depth, peaks = _inscribed(filled)
    if not peaks.any():
        return 0.0, False
    # Inscribed circles of overlapping red cells are too large; those of isolated cells are correct. An isolated cell
    # fills most of its own part of the mask and is not cut by the border.
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
    """Return the distance to the edge of a mask, and its local maxima."""
    # Cells continue beyond the border, so the border does not count as an edge.
    depth = ndimage.distance_transform_edt(np.pad(mask, 1, mode="edge"))[1:-1, 1:-1].astype(np.float32)
    smooth = ndimage.gaussian_filter(depth, 1.0)
    return depth, (smooth == ndimage.maximum_filter(smooth, size=5)) & (depth > 1.5)


def _middle(radii: NDArray[np.float32], share: float) -> float:
    """Return a quantile of radii, weighted by area."""
    ordered = np.sort(radii)
    areas = np.cumsum(ordered.astype(np.float64) ** 2)
    return float(ordered[np.searchsorted(areas, areas[-1] * share)])
