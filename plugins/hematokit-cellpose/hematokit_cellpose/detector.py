"""The detector: a field's window through the network, and its cells as a table."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import find_contours

from hematokit.errors import ModelError, PluginError
from hematokit.models import resolve_device
from hematokit_cellpose.flows import label_cells, network_input, run_tiles
from hematokit_cellpose.weights import Network, find_weights, load_network

__all__ = ["CellposeDetector", "make", "nuclear_pixels"]

_COLUMNS: Final = ("y", "x", "y0", "x0", "height", "width", "score", "area", "touches_border", "contour")

_LARGEST_INPUT: Final = 60_000_000
"""Pixels that a window may have at the network's scale; beyond, memory runs to many gigabytes."""


def make(*, model: str, download: bool, device: str, **options: Any) -> CellposeDetector:
    """Find and load the network.

    Parameters
    ----------
    model, download, device
        The options of those names; the others go on to `CellposeDetector`.

    Raises
    ------
    ModelError
        If there are no weights, or they do not fit.
    PluginError
        If there is no such device, or cellpose is not installed.
    """
    place = _device(device)
    return CellposeDetector(load_network(find_weights(model, download=download), place), place, **options)


def _device(name: str) -> torch.device:
    try:
        return resolve_device(name)
    except (ModelError, NotImplementedError) as error:
        raise PluginError(f"detector cellpose: device {name} cannot be used here; set detector.device=cpu") from error


@dataclass(frozen=True)
class CellposeDetector:
    """Cells that a Cellpose network outlines.

    Parameters
    ----------
    network : Network
    device : torch.device
        Where it is.
    diameter, diameter_um : float
        Width of a typical cell in px, or in um; 0: as in the network's training.
    flow_threshold, cellprob_threshold : float
        As cellpose's.
    minimum_area : float
        Area of the smallest cell as a share of a typical one's.
    minimum_nucleus : float
        Cells of whose pixels a smaller share is stained as nuclei are, are left out.
    margin : float
        What a box has around the outline on each side, as a share of its own side.
    batch_size : int
        Tiles at once.
    """

    network: Network
    device: torch.device
    diameter: float = 0.0
    diameter_um: float = 0.0
    flow_threshold: float = 0.4
    cellprob_threshold: float = 0.0
    minimum_area: float = 0.05
    minimum_nucleus: float = 0.0
    margin: float = 0.0
    batch_size: int = 8

    def detect(self, field: NDArray[np.uint8], pixel_size_um: float | None = None) -> pd.DataFrame:
        """Find the cells of a field, or of a window of one.

        Parameters
        ----------
        field : ndarray of uint8, shape (H, W, 3)
            RGB.
        pixel_size_um : float or None
            Micrometres per pixel, needed for `diameter_um`.

        Returns
        -------
        DataFrame
            One row per cell, with `hematokit.plugins.specs.DETECTION_COLUMNS`. Area and contour are those of what the
            network outlines; the score is its mean probability of being cell.

        Raises
        ------
        PluginError
            If `diameter_um` is set and the pixel size is not known, or the field would become too large.
        """
        height, width = field.shape[:2]
        scale = self.network.scale_px / self._diameter_px(pixel_size_um)
        if height * width * scale * scale > _LARGEST_INPUT:
            raise PluginError(
                f"detector cellpose: a window of {width} x {height} px would be enlarged {scale:.2g} times; "
                "set detector.diameter to the width of a typical cell in pixels"
            )
        if min(height, width) * scale < 4:
            return _table([])
        flows = run_tiles(self.network, network_input(field, self.network.channels, scale), self.batch_size)
        labels = label_cells(
            flows,
            cellprob_threshold=self.cellprob_threshold,
            flow_threshold=self.flow_threshold,
            minimum_px=self.minimum_area * math.pi / 4 * self.network.scale_px**2,
            device=self.device,
        )
        nuclear = nuclear_pixels(field, labels.shape) if self.minimum_nucleus > 0 else None
        # Rounded sides: the two axes may differ a little.
        enlarge = np.array([height / labels.shape[0], width / labels.shape[1]])
        rows = []
        for number, place in enumerate(ndimage.find_objects(labels), 1):
            if place is None:
                continue
            mask = labels[place] == number
            if nuclear is not None and nuclear[place][mask].mean() < self.minimum_nucleus:
                continue
            score = float((1 / (1 + np.exp(-flows[2][place][mask]))).mean())
            rows.append(self._row(mask, place, score, enlarge, height, width))
        return _table(rows)

    def _diameter_px(self, pixel_size_um: float | None) -> float:
        if self.diameter_um:
            if pixel_size_um:
                return self.diameter_um / pixel_size_um
            if not self.diameter:
                raise PluginError(
                    "detector cellpose: diameter_um needs the field's pixel size, which is not known; give it, "
                    "or set detector.diameter in pixels"
                )
        return self.diameter or self.network.cells_px

    def _row(
        self, mask: NDArray[np.bool_], place: tuple[slice, ...], score: float, enlarge: NDArray[Any], h: int, w: int
    ) -> dict[str, Any]:
        corner = np.array([place[0].start, place[1].start])
        contour = np.clip((_outline(mask) + corner) * enlarge, 0, (h, w))
        y0, x0 = corner * enlarge
        y1, x1 = (corner + mask.shape) * enlarge
        pad_y, pad_x = (y1 - y0) * self.margin, (x1 - x0) * self.margin
        top, left, bottom, right = y0 - pad_y, x0 - pad_x, y1 + pad_y, x1 + pad_x
        # Half a pixel of the network's input: nothing nearer to the border can be distinguished from it.
        near = enlarge / 2
        cut = top < near[0] or left < near[1] or bottom > h - near[0] or right > w - near[1]
        top, left = max(math.floor(top), 0), max(math.floor(left), 0)
        bottom, right = min(math.ceil(bottom), h), min(math.ceil(right), w)
        return {
            "y": (y0 + y1) / 2,
            "x": (x0 + x1) / 2,
            "y0": top,
            "x0": left,
            "height": bottom - top,
            "width": right - left,
            "score": score,
            "area": float(mask.sum() * enlarge.prod()),
            "touches_border": bool(cut),
            "contour": contour.astype(np.float32),
        }


def nuclear_pixels(field: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Say which pixels are stained as nuclei are by Romanowsky stains.

    Nuclei absorb red light, and red cells next to none: a pixel is nuclear where it lets less than 0.7 of the
    background's red through, and absorbs red at least 0.4 times as much as green.

    Parameters
    ----------
    field : ndarray of uint8, shape (H, W, 3)
    shape : tuple of int
        Height and width of the result.

    Returns
    -------
    ndarray of bool, shape `shape`
    """
    picture = torch.from_numpy(np.array(field)).permute(2, 0, 1)[None]
    small = torch.nn.functional.interpolate(picture, size=shape[:2], mode="bilinear", antialias=True)[0].float().numpy()
    light = np.percentile(small.reshape(3, -1), 95, axis=1)[:, None, None]
    red, green, _ = np.maximum(-np.log(np.maximum(small, 1) / np.maximum(light, 1)), 0)
    return np.asarray((red > -math.log(0.7)) & (red > 0.4 * green))


def _outline(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Draw the outline of a mask's largest part, pixel corners on the integers."""
    soft = ndimage.gaussian_filter(np.pad(mask, 3).astype(np.float32), 0.7)
    lines = find_contours(soft, 0.5)
    if not lines:
        bottom, right = mask.shape
        return np.array([(0, 0), (0, right), (bottom, right), (bottom, 0)], np.float64)
    line = max(lines, key=len)[:-1]
    return np.asarray(np.clip(line - 2.5, 0, mask.shape), np.float64)


def _table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    rows = sorted(rows, key=lambda row: (row["y"], row["x"]))
    kinds = {"y0": np.int64, "x0": np.int64, "height": np.int64, "width": np.int64, "touches_border": np.bool_}
    return pd.DataFrame(
        {
            name: pd.Series([row[name] for row in rows], dtype=object if name == "contour" else kinds.get(name, float))
            for name in _COLUMNS
        }
    )
