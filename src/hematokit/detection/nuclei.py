"""The built-in detector ``nuclei``: nucleated cells by the violet of their nuclei, without a network or training.

Steps, in order:

1. Crop letterbox bars; estimate the background colour; compute the nucleus map (`hematokit.imaging.staining`).
2. Compute the threshold of the nucleus map, and the scale where the pixel size is unknown
   (`hematokit.detection.nucleus_scale`).
3. Threshold the map at a working resolution; split the mask at its necks and merge the lobes of one nucleus
   (`hematokit.detection.nucleus_shapes`).
4. Keep the parts that are as large, as dark and as compact as a nucleus.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from hematokit.annotations.cells import DETECTION_COLUMNS, detections_table
from hematokit.detection.nucleus_scale import COARSE_SIDE, Levels, estimate_scale, find_levels
from hematokit.detection.nucleus_shapes import outline, separate_nuclei
from hematokit.imaging.geometry import Box, contour_area
from hematokit.imaging.staining import StainMaps, background, downsample, image_frame, stain_maps

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["NucleusDetector"]

_WORKING_SCALE: Final = 3.2
"""Working resolution in pixels per micrometre, sufficient to detect and outline a nucleus."""

_FEWEST_PX: Final = 5.0
"""Smallest width in pixels of the smallest nucleus: below it, noise looks like nuclei."""

_CUT_DIAMETER: Final = 1.2
"""Smallest diameter of a nucleus cut by the border, in units of the smallest diameter: about half of a typical nucleus.
"""

_RED_CELL_HUE: Final = 0.12
"""Density of red less that of blue, relative to green, that separates red cells (below, however dark) from nuclei."""

_SMALLEST_NUCLEUS_PX: Final = 10.0
"""Width in pixels below which violet objects are dirt if the field has no red cells to compare them with."""


@dataclass(frozen=True)
class NucleusDetector:
    """Detector of nucleated cells by their nuclei.

    Parameters
    ----------
    min_score : float
        Smallest score of a detected cell, 0 to 1.
    min_diameter_um : float
        Diameter of the smallest nucleus: that of a circle with the same area as all its lobes together.
    margin_um : float
        Margin of a cell's box around the nucleus, on each side.
    """

    min_score: float = 0.55
    min_diameter_um: float = 3.1
    margin_um: float = 1.5

    def detect(self, field: NDArray[np.uint8], pixel_size_um: float | None = None) -> pd.DataFrame:
        """Detect the nucleated cells of a field.

        Parameters
        ----------
        field : ndarray of uint8, shape (H, W, 3)
            RGB.
        pixel_size_um : float or None
            Micrometres per pixel; if None, it is estimated from the widths of red cells and nuclei in the field.

        Returns
        -------
        DataFrame
            One row per cell, sorted by y, then x:

            - ``y, x``: centre of the box of the nucleus, px;
            - ``y0, x0, height, width``: box of the nucleus (all its lobes) plus `margin_um`, clipped to the field, px;
            - ``score``: 0 to 1;
            - ``area``: area of the nucleus, square pixels;
            - ``touches_border``: whether the nucleus or the cell is cut by the border of the image;
            - ``contour``: outline of the nucleus (of its largest lobe if the lobes do not touch), float32 (n, 2) of
              (y, x), with pixel corners on the integers.
        """
        frame = image_frame(field) if field.size else None
        if frame is None or min(frame.height, frame.width) < 4:
            return _table([])
        rows = self._rows(field[frame.slices], pixel_size_um)
        for row in rows:
            row["y"] += frame.y0
            row["x"] += frame.x0
            row["y0"] += frame.y0
            row["x0"] += frame.x0
            row["contour"] += np.array([frame.y0, frame.x0], np.float32)
        return _table(rows)

    def _rows(self, image: NDArray[np.uint8], pixel_size_um: float | None) -> list[dict[str, Any]]:
        factor = max(1, round(max(image.shape[:2]) / COARSE_SIDE))
        coarse = downsample(image, factor)
        light = background(coarse)
        maps = stain_maps(coarse, light, sigma=1.0)
        levels = find_levels(maps)
        if levels is None:
            return []
        if pixel_size_um is not None:
            scale = 1.0 / pixel_size_um
        else:
            coarse_scale, certainty = estimate_scale(maps, levels)
            scale = coarse_scale * factor
            if scale <= 0 or (certainty == 0 and scale * 8.0 < _SMALLEST_NUCLEUS_PX):
                return []
        if self.min_diameter_um * scale < _FEWEST_PX:
            return []
        factor = max(1, int(scale / _WORKING_SCALE))
        if min(image.shape[:2]) // factor < 4:
            return []
        working = downsample(image, factor)
        scale /= factor
        maps = stain_maps(working, light, sigma=max(0.5, 0.35 * scale))
        labels = separate_nuclei(maps, levels.threshold, scale)
        return self._measured(labels, maps, levels, scale, factor, image.shape[:2])

    def _measured(
        self,
        labels: NDArray[np.int32],
        maps: StainMaps,
        levels: Levels,
        scale: float,
        factor: int,
        shape: tuple[int, ...],
    ) -> list[dict[str, Any]]:
        rows = []
        height, width = shape[0], shape[1]
        margin = self.margin_um * scale * factor
        for number, place in enumerate(ndimage.find_objects(labels), 1):
            if not place:  # the label is unused
                continue
            mask = labels[place] == number
            area = float(mask.sum())
            top, left, bottom, right = place[0].start, place[1].start, place[0].stop, place[1].stop
            cut = top == 0 or left == 0 or bottom == labels.shape[0] or right == labels.shape[1]
            diameter = 2 * math.sqrt(area / math.pi) / scale
            if diameter < self.min_diameter_um * (_CUT_DIAMETER if cut else 1.0):
                continue
            if _red_over_blue(maps, place, mask) < _RED_CELL_HUE:
                continue
            # A nucleus cut by the border continues beyond it, so the border does not count as its edge.
            depth = ndimage.distance_transform_edt(np.pad(mask, 1, mode="edge" if cut else "constant"))
            thickness = 2 * float(depth.max()) / scale
            level = float(maps.nuclei[place][mask].mean())
            score = self._score(diameter, thickness, level, levels)
            if score < self.min_score:
                continue
            line = outline(mask, smoothing=0.5 * scale) + np.array((top, left), np.float32)
            line = np.clip(line * factor, 0, (height, width))
            y0, x0, y1, x1 = top * factor, left * factor, min(bottom * factor, height), min(right * factor, width)
            # Downsampling leaves out the last incomplete block; a nucleus at its edge extends to the end of the field.
            if bottom == labels.shape[0]:
                y1 = height
            if right == labels.shape[1]:
                x1 = width
            box = Box(
                math.floor(y0 - margin), math.floor(x0 - margin),
                math.ceil(y1 - y0 + 2 * margin), math.ceil(x1 - x0 + 2 * margin),
            )  # fmt: skip
            inside = box.clipped(height, width)
            assert inside is not None  # it contains the nucleus
            rows.append(
                {
                    "y": (y0 + y1) / 2,
                    "x": (x0 + x1) / 2,
                    "y0": inside.y0,
                    "x0": inside.x0,
                    "height": inside.height,
                    "width": inside.width,
                    "score": score,
                    "area": max(area * factor * factor, contour_area(line)),
                    "touches_border": not box.inside(height, width),
                    "contour": line.astype(np.float32),
                }
            )
        return rows

    def _score(self, diameter: float, thickness: float, level: float, levels: Levels) -> float:
        """Return the score of a part, 0 to 1: the geometric mean of its scores for darkness, size and thickness."""
        dark = _ramp(level, levels.threshold, levels.threshold + 0.25)
        large = _ramp(diameter, 0.7 * self.min_diameter_um, 1.6 * self.min_diameter_um)
        thick = _ramp(thickness, 1.5, 4.0)
        return math.cbrt(dark * large * thick)


def _red_over_blue(maps: StainMaps, place: tuple[slice, ...], mask: NDArray[np.bool_]) -> float:
    """Return the density of red less that of blue in a mask, relative to green.

    It is low in red cells, because haemoglobin absorbs blue most.
    """
    stain, violet, nuclei = (plane[place][mask] for plane in (maps.stain, maps.violet, maps.nuclei))
    # Recover red and blue from the maps: the nucleus map is sqrt(red * violet), and violet is green less blue.
    red = float((nuclei**2 / np.maximum(violet, 0.02)).sum())
    return (red - float((stain - violet).sum())) / max(float(stain.sum()), 1e-6)


def _ramp(value: float, low: float, high: float) -> float:
    """Return 0 up to `low`, 1 from `high`, and linear values between."""
    return min(max((value - low) / (high - low), 0.0), 1.0)


def _table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    rows = sorted(rows, key=lambda row: (row["y"], row["x"]))
    return detections_table({name: [row[name] for row in rows] for name in DETECTION_COLUMNS})
