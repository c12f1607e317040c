"""Quality control (QC) of a field: focus, staining and thickness, measured window by window, and a flag with reasons.

Flags are reported; no field is excluded because of its flag.

- *Focus* is the steepness of edges relative to their contrast. The edge of a cell blurred by a Gaussian of standard
  deviation s has a slope of contrast / (s sqrt(2 pi)). Contrast divided by slope is therefore a width, which depends
  neither on the stain nor, in micrometres, on the magnification. (The usual measure, the energy of a Laplacian, depends
  on the number and darkness of the cells, and on noise.) The sharpest quarter of the edges is used: cells are at
  different heights, but some of them are sharp if the field is in focus.
- *Staining* is the difference between nuclei and the other stained pixels on the nucleus map.
- *Thickness* is the share of the field that is stained.

References
----------
Pertuz S, Puig D, Garcia MA (2013). Analysis of focus measure operators for shape-from-focus. Pattern Recognition 46,
1415-1432 (the usual measures).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from hematokit.detection.nucleus_scale import COARSE_SIDE, STAINED, estimate_scale, find_levels
from hematokit.imaging.staining import background, downsample, image_frame, optical_density, stain_maps

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FieldQuality", "WindowMeasure", "assess_field", "measure_window"]

_FOCUS_SCALE: Final = 5.0
"""Pixels per micrometre at which edges are measured: 0.2 um per pixel, about the resolution of an oil objective."""

_USUAL_SCALE: Final = 6.0
"""Pixels per micrometre assumed where the scale is unknown."""

_SHARP_UM: Final = 0.2
"""Edge width of a field in best focus, where focus is 1."""

_EDGES: Final = np.geomspace(0.05, 10.0, 61)
"""Bins of edge widths in um."""

_BLANK: Final = 0.004
"""Thickness below which a field is blank."""

_THICK: Final = 0.93
"""Thickness above which a field is too thick."""

_BLURRED: Final = 0.35
"""Focus below which a field is out of focus."""

_PALE: Final = 0.2
"""Staining below which a field is poorly stained."""

_BLACK: Final = 12.0
"""Grey value below which a pixel is black."""

_LIT: Final = 40.0
"""Grey value from which a pixel has a usable colour."""

_WHITE: Final = 0.35
"""Saturation of the brightest part of a field above which it is not background."""

_FEWEST_EDGES: Final = 12
"""Number of edges below which focus is not measured."""


@dataclass(frozen=True)
class WindowMeasure:
    """Measures of one window of a field, which can be summed over windows.

    Attributes
    ----------
    pixels, covered, black : int
        Numbers of all, stained and black pixels, at full resolution.
    nuclei, others : tuple of (int, float)
        Number of pixels and sum of the nucleus map, over nuclei and over the other stained pixels.
    edges : tuple of int
        Histogram of edge widths in micrometres.
    """

    pixels: int
    covered: int
    black: int
    nuclei: tuple[int, float]
    others: tuple[int, float]
    edges: tuple[int, ...]


@dataclass(frozen=True)
class FieldQuality:
    """Quality of a field.

    Attributes
    ----------
    focus : float
        0 (no edges) to 1 (as sharp as an oil objective); inversely proportional to the width of edges.
    staining : float
        Difference of the mean nucleus map between nuclei and the other stained pixels, 0 to 1.
    thickness : float
        Share of the field that is stained; 1 without any background.
    flag : str
        The first fault of ``blank``, ``out-of-focus``, ``too-thick``, ``poorly-stained`` and ``no-cells``; ``ok``
        without a fault.
    reasons : tuple of str
        One sentence for each fault.
    """

    focus: float
    staining: float
    thickness: float
    flag: str
    reasons: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-serialisable values."""
        return {**asdict(self), "reasons": list(self.reasons)}


def measure_window(pixels: NDArray[np.uint8], pixel_size_um: float | None) -> WindowMeasure:
    """Measure a window of a field.

    Parameters
    ----------
    pixels : ndarray of uint8, shape (h, w, 3)
        RGB.
    pixel_size_um : float or None
        Micrometres per pixel; if None, it is estimated from the cells in the window.
    """
    nothing = (0, 0.0)
    no_edges = (0,) * (len(_EDGES) - 1)
    frame = image_frame(pixels) if pixels.size else None
    if frame is None or min(frame.height, frame.width) < 8:
        area = pixels.shape[0] * pixels.shape[1]
        black = area if pixels.size and float(pixels.mean()) < _BLACK else 0
        return WindowMeasure(area, 0, black, nothing, nothing, no_edges)
    image = pixels[frame.slices]
    factor = max(1, round(max(image.shape[:2]) / COARSE_SIDE))
    coarse = downsample(image, factor)
    light = background(coarse)
    maps = stain_maps(coarse, light, sigma=1.0)
    covered = maps.stain > STAINED
    colour = np.exp(light.level)
    if colour.max() > _LIT and colour.min() < (1 - _WHITE) * colour.max():
        # No lamp has such a colour: the brightest part is stained too, so there is no background.
        covered[:] = True
    black = coarse.max(axis=2) < _BLACK
    levels = find_levels(maps)
    if levels is None:
        nuclei, others = nothing, _sum(maps.nuclei[covered])
    else:
        dark = maps.nuclei > levels.threshold
        nuclei, others = _sum(maps.nuclei[dark]), _sum(maps.nuclei[covered & ~dark])
    if pixel_size_um is not None:
        scale = 1.0 / pixel_size_um
    else:
        scale = estimate_scale(maps, levels)[0] * factor or _USUAL_SCALE
    fine = max(1, int(scale / _FOCUS_SCALE))
    edges = no_edges
    if min(image.shape[:2]) // fine >= 8:
        density = optical_density(downsample(image, fine), light, 1)
        edges = tuple(int(n) for n in np.histogram(_edge_widths(density, scale / fine), _EDGES)[0])
    # Pixels are counted at full resolution, so that windows of any size can be summed.
    unit = factor * factor
    return WindowMeasure(
        covered.size * unit, int(covered.sum()) * unit, int(black.sum()) * unit,
        (nuclei[0] * unit, nuclei[1] * unit), (others[0] * unit, others[1] * unit), edges,
    )  # fmt: skip


def _sum(values: NDArray[np.float32]) -> tuple[int, float]:
    return len(values), float(values.sum(dtype=np.float64))


def _edge_widths(density: NDArray[np.float32], scale: float) -> NDArray[np.float64]:
    """Return the widths of the edges in a density map (H, W), as the sigma of a blurred step, in micrometres."""
    # Camera noise would look like steep edges. Smooth by less than the resolution of objectives; the variance of this
    # smoothing is subtracted from that of the edges below, because variances of Gaussian blurs add.
    own = max(0.8, 0.12 * scale)
    smooth = ndimage.gaussian_filter(density, own, truncate=3.0)
    # The weights of Sobel's kernel add up to 8 times the difference between neighbouring pixels.
    slope = np.hypot(ndimage.sobel(smooth, 0), ndimage.sobel(smooth, 1)) / 8.0
    # The contrast of an edge is the range of densities within 2 um.
    size = 2 * max(2, round(2.0 * scale)) + 1
    contrast = ndimage.maximum_filter(smooth, size) - ndimage.minimum_filter(smooth, size)
    crest = slope >= ndimage.maximum_filter(slope, size=2 * max(1, round(0.4 * scale)) + 1)
    strong = contrast[crest]
    if not len(strong):
        return np.zeros(0)
    # Use the outlines of cells, which have the most contrast, not the edges of texture within cells and of dust.
    enough = max(0.12, 0.6 * float(np.percentile(strong, 95)))
    chosen = crest & (contrast >= enough) & (slope > 0)
    widths = contrast[chosen].astype(np.float64) / (slope[chosen] * math.sqrt(2 * math.pi))
    return np.sqrt(np.maximum(widths**2 - own**2, 0.09)) / scale


def assess_field(measures: Sequence[WindowMeasure], cells: pd.DataFrame) -> FieldQuality:
    """Return the quality of a field from the measures of its windows and its detections.

    Parameters
    ----------
    measures : sequence of WindowMeasure
        Measures of windows that cover the field without overlap.
    cells : DataFrame
        Detections of the field; only whether there are any matters.
    """
    pixels = sum(measure.pixels for measure in measures)
    covered = sum(measure.covered for measure in measures) / pixels if pixels else 0.0
    black = sum(measure.black for measure in measures) / pixels if pixels else 0.0
    edges = np.sum([measure.edges for measure in measures], axis=0) if measures else np.zeros(len(_EDGES) - 1)
    width = _sharpest(edges)
    focus = min(_SHARP_UM / width, 1.0) if width > 0 else 0.0
    nuclei = _mean([measure.nuclei for measure in measures])
    staining = min(max(nuclei - _mean([measure.others for measure in measures]), 0.0), 1.0)

    faults: list[tuple[str, str]] = []
    if black > 0.95:
        faults.append(("blank", "the image is black"))
    elif covered < _BLANK:
        faults.append(("blank", "the field has almost no stained pixels"))
    else:
        if width == 0:
            faults.append(("out-of-focus", "no sharp edge was detected"))
        elif focus < _BLURRED:
            faults.append(("out-of-focus", f"edges are {width:.1f} um wide; in focus they are about {_SHARP_UM:g} um"))
        if covered > _THICK:
            faults.append(("too-thick", f"{covered:.0%} of the field is covered; cells overlap"))
        if nuclei > 0 and len(cells) and staining < _PALE:
            faults.append(("poorly-stained", "nuclei are hardly darker than the rest of the stained pixels"))
    if not len(cells):
        faults.append(("no-cells", "no nucleated cell was detected"))
    return FieldQuality(
        float(focus),
        float(staining),
        float(covered),
        faults[0][0] if faults else "ok",
        tuple(text for _, text in faults),
    )


def _sharpest(edges: NDArray[Any]) -> float:
    """Return the first quartile of edge widths in um, interpolated within its bin; 0 if there are too few edges."""
    total = int(edges.sum())
    if total < _FEWEST_EDGES:
        return 0.0
    share = np.cumsum(edges) / total
    number = int(np.searchsorted(share, 0.25))
    before = float(share[number - 1]) if number else 0.0
    part = (0.25 - before) / (float(share[number]) - before)
    low, high = float(_EDGES[number]), float(_EDGES[number + 1])
    return low * math.pow(high / low, part)


def _mean(sums: Sequence[tuple[int, float]]) -> float:
    count = sum(number for number, _ in sums)
    return sum(total for _, total in sums) / count if count else 0.0
