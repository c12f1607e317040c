"""Optical densities of stains, smooth noise for textures, and the canvas of optical densities."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from hematokit.synthetic.anatomy import Density

__all__ = ["Canvas", "PIXEL_SIZE_UM", "Plane", "Rng", "Texture", "mix", "ramp", "tint"]

Rng = np.random.Generator

PURPLE: Density = (1.20, 2.50, 0.34)
REDDISH: Density = (0.95, 2.25, 0.32)
DARK: Density = (1.65, 2.80, 0.50)
DEEP_BLUE: Density = (1.30, 1.38, 0.17)
BLUE: Density = (0.82, 0.86, 0.10)
GREY_BLUE: Density = (0.48, 0.55, 0.09)
LILAC: Density = (0.30, 0.47, 0.07)
PINK: Density = (0.10, 0.27, 0.05)
ORANGE: Density = (0.24, 0.70, 0.30)
AZUROPHILIC: Density = (0.50, 1.20, 0.14)
FINE: Density = (0.14, 0.38, 0.05)
EOSIN: Density = (0.12, 0.38, 0.24)
BASOPHILIC: Density = (1.30, 2.00, 0.45)


def tint(rng: Rng, density: Density, spread: float = 0.08) -> Density:
    """Return a stain with random depth and hue."""
    depth = float(np.exp(rng.normal(0.0, spread)))
    red, green, blue = (value * depth * float(np.exp(rng.normal(0.0, spread / 2))) for value in density)
    return red, green, blue


def mix(first: Density, second: Density, share: float) -> Density:
    """Return the mixture of two stains with the given share of the second."""
    share = float(np.clip(share, 0.0, 1.0))
    red, green, blue = (a + (b - a) * share for a, b in zip(first, second, strict=True))
    return red, green, blue


PIXEL_SIZE_UM = 0.08625
"""3.45 um camera pixels behind a 40x objective; an estimate that gives red cells their usual 7 um."""

Plane = NDArray[np.float32]

_TILE = 512
_TILE_SIGMAS = (0.8, 1.4, 2.4, 4.2, 7.5, 13.0, 24.0)  # px


@lru_cache(maxsize=1)
def _tiles() -> tuple[Plane, ...]:
    # Filtering noise for each cell would cost more than drawing it: every cell uses a window of these.
    noise = np.random.default_rng(20210611).standard_normal((_TILE, _TILE))
    tiles = []
    for sigma in _TILE_SIGMAS:
        tile = ndimage.gaussian_filter(noise, sigma, mode="wrap")
        tiles.append(((tile - tile.mean()) / tile.std()).astype(np.float32))
        noise = np.roll(noise.T, 97)
    # Twice as wide as its period, so that any window of up to one period is a slice of it.
    return tuple(np.tile(tile, (2, 2)) for tile in tiles)


class Texture:
    """Smooth noise of unit variance, fixed by a seed and by the position relative to the drawn object."""

    def __init__(self, seed: int, rows: NDArray[np.intp], columns: NDArray[np.intp]) -> None:
        self._rng = np.random.default_rng(seed)
        self._rows, self._columns = rows, columns

    def __call__(self, sigma: float) -> Plane:
        """Return noise, float32 (rows, columns), of about `sigma` pixels; another one with each call."""
        dy, dx = self._rng.integers(0, _TILE, 2)
        kind = int(np.argmin([abs(np.log(known / max(sigma, 0.1))) for known in _TILE_SIGMAS]))
        tile = _tiles()[kind]
        if self._rng.integers(2):
            tile = tile.T
        if max(len(self._rows), len(self._columns)) > _TILE:
            return tile[np.ix_((self._rows + dy) % _TILE, (self._columns + dx) % _TILE)]
        y, x = int(self._rows[0] + dy) % _TILE, int(self._columns[0] + dx) % _TILE
        return tile[y : y + len(self._rows), x : x + len(self._columns)]


class Canvas:
    """Optical densities of a piece of smear.

    Parameters
    ----------
    height, width : int
        Size in px.
    pixel_size_um : float
        Micrometres per px.

    Attributes
    ----------
    density : ndarray, float32, shape (height, width, 3)
        Optical density in red, green and blue.
    """

    def __init__(self, height: int, width: int, pixel_size_um: float = PIXEL_SIZE_UM) -> None:
        # Colour planes are not interleaved in memory: drawing on them is twice as fast.
        self.density: Plane = np.moveaxis(np.zeros((3, height, width), np.float32), 0, -1)
        self.pixel_size_um = pixel_size_um

    @property
    def height(self) -> int:
        """Rows in px."""
        return int(self.density.shape[0])

    @property
    def width(self) -> int:
        """Columns in px."""
        return int(self.density.shape[1])

    def window(self, y: int, x: int, reach_um: float) -> tuple[slice, slice] | None:
        """Return the part of the canvas within `reach_um` of a point, or ``None`` if there is none."""
        reach = int(np.ceil(reach_um / self.pixel_size_um)) + 2
        y0, y1 = max(0, y - reach), min(self.height, y + reach + 1)
        x0, x1 = max(0, x - reach), min(self.width, x + reach + 1)
        return (slice(y0, y1), slice(x0, x1)) if y0 < y1 and x0 < x1 else None

    def add(self, where: tuple[slice, slice], alpha: Plane, density: Plane, cover: float = 1.0) -> None:
        """Add a premultiplied layer to a window; `cover` 0 adds the densities, 1 hides the layers below."""
        part = self.density[where]
        part *= (1.0 - cover * alpha)[..., None]
        part += density


def ramp(distance: Plane, width: float) -> Plane:
    """Return the opacity across an edge `width` px wide; `distance` is positive inside."""
    opacity: Plane = np.clip(distance / np.float32(max(width, 1.0)) + np.float32(0.5), 0.0, 1.0)
    return opacity
