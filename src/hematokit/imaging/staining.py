"""Light and stain of a smear's picture: where the picture is, how bright its background, how much stain is where.

Everything works on optical density, because stain adds up there and a cast or uneven light drops out. In a Romanowsky
stain (May-Grünwald-Giemsa, Wright, Leishman) the complex of azure B and eosin makes nuclei violet: they absorb red,
and they absorb green much more than blue. Red cells absorb blue about as much as green, and hardly any red. Basophilic
cytoplasm absorbs red, but green no more than red. The *nucleus map* is high only where both signs of a nucleus are
there.

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
    "is_colourless",
    "optical_density",
    "picture_frame",
    "reduced",
    "smoothed",
    "stain_maps",
]

Picture = NDArray[np.uint8] | NDArray[np.float32]

_OFFSET: Final = 4.0
"""Added to grey values before the logarithm, so that noise in the dark stays small."""

_TILES: Final = 8
"""Tiles along the longer side for the estimate of the background."""


def picture_frame(pixels: NDArray[np.uint8]) -> Box | None:
    """Find the picture inside a letterbox: bars of one colour along its sides are left out.

    Parameters
    ----------
    pixels : ndarray of uint8, shape (H, W, 3)

    Returns
    -------
    Box or None
        None if all of it is of one colour.
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
    """Count the rows of one colour at the top and the bottom."""
    # Compression leaves a little noise in a bar; a row of a real picture has more than that.
    step = max(1, pixels.shape[1] // 512)
    thinned = pixels[:, ::step].astype(np.float32)
    mean = thinned.mean(axis=1)
    even = (np.abs(thinned - mean[:, None]).mean(axis=1) < 1.5).all(axis=1)
    return _leading(even, mean), _leading(even[::-1], mean[::-1])


def _leading(even: NDArray[np.bool_], mean: NDArray[np.float32]) -> int:
    same = even & (np.abs(mean - mean[0]) < 3.0).all(axis=1)
    return len(same) if same.all() else int(np.argmin(same))


def reduced(pixels: NDArray[np.uint8], factor: int) -> NDArray[np.float32]:
    """Average blocks of ``factor x factor`` pixels; rows and columns that fill no block are left out.

    Returns
    -------
    ndarray of float32, shape (H // factor, W // factor, 3)
    """
    if factor == 1:
        return pixels.astype(np.float32)
    height, width = pixels.shape[0] // factor, pixels.shape[1] // factor
    whole = pixels[: height * factor, : width * factor]
    # One block row at a time in a 16-bit sum: several times faster than a mean over two axes.
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
    """The brightness of the empty background: per channel, a surface of second order in the logarithm.

    Attributes
    ----------
    level : ndarray, shape (3,)
        Logarithm of the background's grey value plus an offset, taken over the whole picture.
    shape : ndarray, shape (6, 3)
        What is added to it by place: coefficients of 1, y, x, y^2, x^2 and xy, places from -1 to 1.
    """

    level: NDArray[np.float64]
    shape: NDArray[np.float64]

    def log_plane(self, channel: int, height: int, width: int) -> NDArray[np.float32]:
        """Return the surface of a channel for a picture of that size, shape (height, width)."""
        longest = max(height, width)
        y = (np.arange(height, dtype=np.float32) + 0.5) / longest * 2 - 1
        x = (np.arange(width, dtype=np.float32) + 0.5) / longest * 2 - 1
        one, sy, sx, syy, sxx, sxy = self.shape[:, channel].astype(np.float32)
        plane: NDArray[np.float32] = np.multiply.outer(y * sxy, x)
        plane += (np.float32(self.level[channel]) + one + sy * y + syy * y * y)[:, None]
        plane += sx * x + sxx * x * x
        np.clip(plane, np.float32(self.level[channel] - 1.5), np.float32(5.7), out=plane)
        return plane


def background(picture: Picture) -> Light:
    """Estimate the colour of the empty background at every place: white balance and uneven light in one.

    A smooth surface through the brightest part of each tile; tiles without any background lie below it and are given
    little weight.

    Parameters
    ----------
    picture : ndarray of uint8 or float32, shape (H, W, 3), in [0, 255]
    """
    height, width = picture.shape[:2]
    side = max(8, -(-max(height, width) // _TILES))
    places, colours = [], []
    for y in range(0, height, side):
        for x in range(0, width, side):
            tile = picture[y : y + side, x : x + side]
            step = max(1, int(np.sqrt(tile.shape[0] * tile.shape[1] / 2000)))
            colours.append(_brightest(tile[::step, ::step], 80))
            places.append((min(y + side / 2, height), min(x + side / 2, width)))
    step = max(1, int(np.sqrt(height * width / 20000)))
    level = np.log(_brightest(picture[::step, ::step], 85) + _OFFSET)
    logs = np.log(np.asarray(colours) + _OFFSET) - level
    where = np.asarray(places) / max(height, width) * 2 - 1
    y, x = where[:, 0], where[:, 1]
    terms = np.stack([np.ones_like(y), y, x, y * y, x * x, x * y], axis=1)
    # Uneven light makes tiles darker little by little, cells make single tiles darker: begin with all of them.
    surface = logs.copy()
    shape = np.zeros((6, 3))
    for tolerance in (0.3, 0.3, 0.2, 0.15, 0.1, 0.08, 0.08):
        short = np.maximum((surface - logs)[:, 1], 0.0)
        weight = 1.0 / (1.0 + (short / tolerance) ** 4) + 1e-4
        # A ridge keeps the surface flat where too few tiles show background.
        ridge = np.diag([0.0, 1.0, 1.0, 1.0, 1.0, 1.0]) * 0.02 * weight.sum() + np.eye(6) * 1e-6
        shape = np.linalg.solve(terms.T @ (weight[:, None] * terms) + ridge, terms.T @ (weight[:, None] * logs))
        shape = np.clip(shape, -1.0, 1.0)
        surface = terms @ shape
    return Light(level, shape)


def _brightest(pixels: Picture, percentile: float) -> NDArray[np.float64]:
    """Median colour of the pixels that are brightest in green, which red cells and nuclei absorb alike."""
    flat = pixels.reshape(-1, 3).astype(np.float64)
    return np.asarray(np.median(flat[flat[:, 1] >= np.percentile(flat[:, 1], percentile)], axis=0))


def optical_density(picture: Picture, light: Light, channel: int, *, sigma: float = 0.0) -> NDArray[np.float32]:
    """Optical density of a channel against the background (natural logarithm; 0 is background).

    Parameters
    ----------
    picture : ndarray of uint8 or float32, shape (H, W, 3), in [0, 255]
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
    plane = picture[..., channel]
    if plane.dtype == np.uint8:
        logs = np.log(np.arange(256, dtype=np.float32) + np.float32(_OFFSET))[plane]
    else:
        logs = np.log(plane + np.float32(_OFFSET))
    density = light.log_plane(channel, *plane.shape)
    density -= logs
    return smoothed(density, sigma)


def smoothed(plane: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """Smooth a plane (H, W) with a Gaussian of `sigma` pixels; 0 leaves it as it is."""
    if sigma <= 0:
        return plane
    return np.asarray(ndimage.gaussian_filter(plane, sigma, truncate=3.0, mode="nearest"), np.float32)


@dataclass(frozen=True)
class StainMaps:
    """What is stained how, pixel by pixel; arrays of float32, shape (H, W).

    Attributes
    ----------
    nuclei : ndarray
        How much a pixel looks like a nucleus: 0 for background, red cells and dirt, about 0.3 to 2 for nuclei. The
        geometric mean of two densities, that of red (red cells have none) and `violet`.
    violet : ndarray
        Density of green less that of blue: nuclei have most, cytoplasm some, background, red cells and grey dirt none.
    stain : ndarray
        Density of green, which whatever a smear holds absorbs.
    """

    nuclei: NDArray[np.float32]
    violet: NDArray[np.float32]
    stain: NDArray[np.float32]


def stain_maps(picture: Picture, light: Light, *, sigma: float = 0.0) -> StainMaps:
    """Map the stains of a picture. In a picture without colour, nuclei and violet are made of its density alone.

    Parameters
    ----------
    picture : ndarray of uint8 or float32, shape (H, W, 3), in [0, 255]
    light : Light
        From `background`.
    sigma : float
        Smoothing in pixels.
    """
    stain = optical_density(picture, light, 1, sigma=sigma)
    if is_colourless(picture):
        nuclei = np.maximum(stain, 0.0) * np.float32(0.6)
        return StainMaps(nuclei, nuclei, stain)
    violet = stain - optical_density(picture, light, 2, sigma=sigma)
    np.maximum(violet, 0.0, out=violet)
    nuclei = optical_density(picture, light, 0, sigma=sigma)
    np.maximum(nuclei, 0.0, out=nuclei)
    nuclei *= violet
    np.sqrt(nuclei, out=nuclei)
    # Nearly black pixels have no colour that could be trusted; nuclei always let some blue through.
    brightest = np.maximum(np.maximum(picture[..., 0], picture[..., 1]), picture[..., 2])
    nuclei[brightest < 24] = 0.0
    return StainMaps(nuclei, violet, stain)


def is_colourless(picture: Picture) -> bool:
    """Tell whether a picture (H, W, 3) in [0, 255] has the same values in all channels, noise apart."""
    step = max(1, int(np.sqrt(picture.shape[0] * picture.shape[1] / 50000)))
    thinned = picture[::step, ::step].astype(np.float32)
    return bool(np.percentile(thinned.max(axis=2) - thinned.min(axis=2), 99) < 5.0)
