"""Frame of a field, brightness of its background, and maps of its stains.

Stain maps are optical densities, which are additive and independent of colour casts and uneven illumination. In a
Romanowsky stain (May-Grünwald-Giemsa, Wright, Leishman) the complex of azure B and eosin makes nuclei violet: they
absorb red, and they absorb green much more than blue. Red cells absorb blue about as much as green, and almost no red.
Basophilic cytoplasm absorbs red, but not more green than red. The *nucleus map* combines both properties of nuclei.

References
----------
Ruifrok and Johnston, Quantification of histochemical staining by color deconvolution, Anal Quant Cytol Histol 23, 2001
(optical density). Horobin, How Romanowsky stains work and why they remain valuable, Biotech Histochem 86, 2011 (the
violet of azure B-eosin).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from hematokit.imaging.geometry import Box

__all__ = [
    "Light",
    "StainMaps",
    "background",
    "optical_density",
    "image_frame",
    "downsample",
    "smoothed",
    "stain_maps",
]

Image = NDArray[np.uint8] | NDArray[np.float32]

_OFFSET: Final = 4.0
"""Added to grey values before the logarithm, which would amplify the noise of dark pixels."""

_TILES: Final = 8
"""Number of tiles along the longer side for the estimate of the background."""


def image_frame(pixels: NDArray[np.uint8]) -> Box | None:
    """Return the box of the image inside a letterbox, without bars of one colour along its sides.

    Parameters
    ----------
    pixels : ndarray of uint8, shape (H, W, 3)

    Returns
    -------
    Box or None
        None if the whole image is of one colour.
    """
    height, width = pixels.shape[:2]
    top, bottom = _bars(pixels)
    if top + bottom >= height:
        return None
    left, right = _bars(pixels[top : height - bottom].transpose(1, 0, 2))
    if left + right >= width:
        return None
    return Box(top, left, height - top - bottom, width - left - right)


def _bars(pixels: NDArray[np.uint8]) -> tuple[int, int]:
    """Return the numbers of rows of one colour at the top and at the bottom."""
    # Bars have little noise, from compression only; rows of a real image have more.
    step = max(1, pixels.shape[1] // 512)
    thinned = pixels[:, ::step].astype(np.float32)
    mean = thinned.mean(axis=1)
    even = (np.abs(thinned - mean[:, None]).mean(axis=1) < 1.5).all(axis=1)
    return _leading(even, mean), _leading(even[::-1], mean[::-1])


def _leading(even: NDArray[np.bool_], mean: NDArray[np.float32]) -> int:
    same = even & (np.abs(mean - mean[0]) < 3.0).all(axis=1)
    return len(same) if same.all() else int(np.argmin(same))


def downsample(pixels: NDArray[np.uint8], factor: int) -> NDArray[np.float32]:
    """Return an image downsampled by averaging ``factor x factor`` blocks; incomplete blocks are left out.

    Returns
    -------
    ndarray of float32, shape (H // factor, W // factor, 3)
    """
    if factor == 1:
        return pixels.astype(np.float32)
    height, width = pixels.shape[0] // factor, pixels.shape[1] // factor
    whole = pixels[: height * factor, : width * factor]
    # Sums of rows in 16 bits, then of columns: several times faster than a mean over two axes.
    rows = np.zeros((height, width * factor, 3), np.uint16)
    for offset in range(factor):
        rows += whole[offset::factor]
    total = np.zeros((height, width, 3), np.float32)
    for offset in range(factor):
        total += rows[:, offset::factor]
    total /= factor * factor
    return total


@dataclass(frozen=True)
class Light:
    """Brightness of the empty background: one quadratic surface per channel, in the logarithm of grey values.

    Attributes
    ----------
    level : ndarray, shape (3,)
        Logarithm of the background's grey value plus `_OFFSET`, for the whole image.
    shape : ndarray, shape (6, 3)
        Deviation from it by position: coefficients of 1, y, x, y^2, x^2 and xy, with positions from -1 to 1.
    """

    level: NDArray[np.float64]
    shape: NDArray[np.float64]

    def log_plane(self, channel: int, height: int, width: int) -> NDArray[np.float32]:
        """Return the surface of a channel for an image of that size, shape (height, width)."""
        longest = max(height, width)
        y = (np.arange(height, dtype=np.float32) + 0.5) / longest * 2 - 1
        x = (np.arange(width, dtype=np.float32) + 0.5) / longest * 2 - 1
        one, sy, sx, syy, sxx, sxy = self.shape[:, channel].astype(np.float32)
        plane: NDArray[np.float32] = np.multiply.outer(y * sxy, x)
        plane += (np.float32(self.level[channel]) + one + sy * y + syy * y * y)[:, None]
        plane += sx * x + sxx * x * x
        np.clip(plane, np.float32(self.level[channel] - 1.5), np.float32(5.7), out=plane)
        return plane


def background(image: Image) -> Light:
    """Estimate the colour of the empty background at every position, including white balance and uneven illumination.

    The estimate is a quadratic surface through the brightest part of each tile, fitted by iteratively reweighted least
    squares with ridge regularisation. Tiles without background are below the surface and get little weight.

    Parameters
    ----------
    image : ndarray of uint8 or float32, shape (H, W, 3), in [0, 255]
    """
    height, width = image.shape[:2]
    side = max(8, -(-max(height, width) // _TILES))
    places, colours = [], []
    for y in range(0, height, side):
        for x in range(0, width, side):
            tile = image[y : y + side, x : x + side]
            step = max(1, int(np.sqrt(tile.shape[0] * tile.shape[1] / 2000)))
            colours.append(_brightest(tile[::step, ::step], 80))
            places.append((min(y + side / 2, height), min(x + side / 2, width)))
    step = max(1, int(np.sqrt(height * width / 20000)))
    level = np.log(_brightest(image[::step, ::step], 85) + _OFFSET)
    logs = np.log(np.asarray(colours) + _OFFSET) - level
    where = np.asarray(places) / max(height, width) * 2 - 1
    y, x = where[:, 0], where[:, 1]
    terms = np.stack([np.ones_like(y), y, x, y * y, x * x, x * y], axis=1)
    # Uneven illumination darkens tiles gradually, cells darken single tiles. The tolerance starts high, so that the
    # surface first follows the illumination, and decreases, so that tiles with cells lose their weight.
    surface = logs.copy()
    shape = np.zeros((6, 3))
    for tolerance in (0.3, 0.3, 0.2, 0.15, 0.1, 0.08, 0.08):
        short = np.maximum((surface - logs)[:, 1], 0.0)
        weight = 1.0 / (1.0 + (short / tolerance) ** 4) + 1e-4
        # The ridge keeps the surface flat if too few tiles show background.
        ridge = np.diag([0.0, 1.0, 1.0, 1.0, 1.0, 1.0]) * 0.02 * weight.sum() + np.eye(6) * 1e-6
        shape = np.linalg.solve(terms.T @ (weight[:, None] * terms) + ridge, terms.T @ (weight[:, None] * logs))
        shape = np.clip(shape, -1.0, 1.0)
        surface = terms @ shape
    return Light(level, shape)


def _brightest(pixels: Image, percentile: float) -> NDArray[np.float64]:
    """Return the median colour of the pixels brightest in green, the channel that red cells and nuclei both absorb."""
    flat = pixels.reshape(-1, 3).astype(np.float64)
    return np.asarray(np.median(flat[flat[:, 1] >= np.percentile(flat[:, 1], percentile)], axis=0))


def optical_density(image: Image, light: Light, channel: int, *, sigma: float = 0.0) -> NDArray[np.float32]:
    """Return the optical density of a channel relative to the background (natural logarithm; 0 is background).

    Parameters
    ----------
    image : ndarray of uint8 or float32, shape (H, W, 3), in [0, 255]
    light : Light
        From `background`.
    channel : int
        0 red, 1 green, 2 blue.
    sigma : float
        Smoothing in pixels.

    Returns
    -------
    ndarray of float32, shape (H, W)
    """
    plane = image[..., channel]
    if plane.dtype == np.uint8:
        logs = np.log(np.arange(256, dtype=np.float32) + np.float32(_OFFSET))[plane]
    else:
        logs = np.log(plane + np.float32(_OFFSET))
    density = light.log_plane(channel, *plane.shape)
    density -= logs
    return smoothed(density, sigma)


def smoothed(plane: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """Return a plane (H, W) smoothed by a Gaussian of `sigma` pixels; 0 means no smoothing."""
    if sigma <= 0:
        return plane
    return np.asarray(ndimage.gaussian_filter(plane, sigma, truncate=3.0, mode="nearest"), np.float32)


@dataclass(frozen=True)
class StainMaps:
    """Maps of the stains; arrays of float32, shape (H, W).

    Attributes
    ----------
    nuclei : ndarray
        The nucleus map: the geometric mean of the density of red (almost 0 in red cells) and `violet`. It is 0 for
        background, red cells and dirt, and about 0.3 to 2 for nuclei.
    violet : ndarray
        Density of green less that of blue: high in nuclei, low in cytoplasm, 0 in background, red cells and grey dirt.
    stain : ndarray
        Density of green, which all stained objects of a smear absorb.
    """

    nuclei: NDArray[np.float32]
    violet: NDArray[np.float32]
    stain: NDArray[np.float32]


def stain_maps(image: Image, light: Light, *, sigma: float = 0.0) -> StainMaps:
    """Return the stain maps of an image. For a colourless image, `nuclei` and `violet` are 0.6 times its density.

    Parameters
    ----------
    image : ndarray of uint8 or float32, shape (H, W, 3), in [0, 255]
    light : Light
        From `background`.
    sigma : float
        Smoothing in pixels.
    """
    stain = optical_density(image, light, 1, sigma=sigma)
    if _is_colourless(image):
        nuclei = np.maximum(stain, 0.0) * np.float32(0.6)
        return StainMaps(nuclei, nuclei, stain)
    violet = stain - optical_density(image, light, 2, sigma=sigma)
    np.maximum(violet, 0.0, out=violet)
    nuclei = optical_density(image, light, 0, sigma=sigma)
    np.maximum(nuclei, 0.0, out=nuclei)
    nuclei *= violet
    np.sqrt(nuclei, out=nuclei)
    # The colour of nearly black pixels is unreliable. These are not nuclei, which always transmit some blue.
    brightest = np.maximum(np.maximum(image[..., 0], image[..., 1]), image[..., 2])
    nuclei[brightest < 24] = 0.0
    return StainMaps(nuclei, violet, stain)


def _is_colourless(image: Image) -> bool:
    """Return whether an image (H, W, 3) in [0, 255] has the same values in all channels, apart from noise."""
    step = max(1, int(np.sqrt(image.shape[0] * image.shape[1] / 50000)))
    thinned = image[::step, ::step].astype(np.float32)
    return bool(np.percentile(thinned.max(axis=2) - thinned.min(axis=2), 99) < 5.0)
