"""Look of a smear (light, stain, red cells, density of objects), and conversion of densities to an image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from hematokit.synthetic.canvas import Canvas, Plane, Texture, mix
from hematokit.synthetic.drawing import RedCellLook

__all__ = ["Smear", "develop", "smear_style"]

# Backgrounds met in the real crops (8-bit RGB): white, lilac, yellowish, grey, olive grey, dark olive.
_LIGHTS = (
    ((247, 246, 253), 0.24),
    ((236, 229, 247), 0.18),
    ((224, 223, 206), 0.18),
    ((192, 192, 198), 0.12),
    ((163, 166, 163), 0.18),
    ((142, 146, 143), 0.10),
)
# Red cells met there: beige, pinkish grey, greenish grey, lilac, tan.
_RED_CELLS = (
    ((0.13, 0.20, 0.23), 0.32),
    ((0.20, 0.29, 0.27), 0.27),
    ((0.22, 0.20, 0.19), 0.16),
    ((0.18, 0.23, 0.14), 0.13),
    ((0.07, 0.17, 0.25), 0.12),
)
_SMOOTH_NOISE = np.array([0.48, 1.0, 0.48]) / (1.0 + 2 * 0.48**2) ** 0.5
"""Weights of a pixel and its neighbours in the noise of each."""


@dataclass(frozen=True, slots=True)
class Smear:
    """Look of the fields of one smear.

    Attributes
    ----------
    smear_id, patient_id : str
        Names, such as ``"S03"`` and ``"P02"``.
    light : tuple of float
        Colour of the empty background, 8-bit RGB.
    strength : float
        Depth of the stain, relative.
    hue : tuple of float
        Balance of the two dyes: factors on the densities in red, green and blue.
    flare : float
        Stray light, the share of the background seen through an opaque object.
    blur : float
        Optics: standard deviation in px.
    shift : tuple of float
        Chromatic aberration: shift of red and blue relative to green in rows and columns (px), in opposite directions.
    noise : float
        Camera noise, 8-bit levels (standard deviation) at mid grey.
    slope, vignette : tuple of float, float
        Fall of the light per field height and width, and towards the corners, relative.
    red_cell : RedCellLook
        Stain and shape of red cells.
    polychromasia, rouleaux : float
        Share of young bluish red cells, and of those stacked like coins.
    red_cells, nucleated, platelets, debris : float
        Objects per 10,000 square um.
    patchiness, clumping : float
        Unevenness of the red cells (0 to 1), and the share of nucleated cells that touch others.
    haze, curd : float
        Density of stained plasma, and of the flakes in it.
    """

    smear_id: str
    patient_id: str
    light: tuple[float, float, float]
    strength: float
    hue: tuple[float, float, float]
    flare: float
    blur: float
    shift: tuple[float, float]
    noise: float
    slope: tuple[float, float]
    vignette: float
    red_cell: RedCellLook
    polychromasia: float
    rouleaux: float
    red_cells: float
    nucleated: float
    platelets: float
    debris: float
    patchiness: float
    clumping: float
    haze: float
    curd: float


def _triple(values: NDArray[np.float64]) -> tuple[float, float, float]:
    first, second, third = (float(value) for value in values)
    return first, second, third


def smear_style(seed: int, number: int) -> Smear:
    """Return the look of one smear; two smears in a row (0 and 1, 2 and 3, ...) are of the same patient."""
    rng = np.random.default_rng([seed, 7, number])
    kind = rng.choice(len(_LIGHTS), p=[share for _, share in _LIGHTS])
    light = np.asarray(_LIGHTS[kind][0]) + rng.normal(0.0, 5.0) + rng.normal(0.0, 2.5, 3)
    first, second = rng.choice(len(_RED_CELLS), 2, p=[share for _, share in _RED_CELLS])
    colour = np.asarray(mix(_RED_CELLS[first][0], _RED_CELLS[second][0], float(rng.beta(0.7, 0.7))))
    look = RedCellLook(
        density=_triple(colour * rng.lognormal(-0.05, 0.24)),
        pallor=float(rng.choice([0.05, 0.25, 0.5, 0.75], p=[0.35, 0.25, 0.25, 0.15])),
        rim=float(rng.uniform(0.0, 0.35)),
        halo=float(rng.choice([0.0, rng.uniform(0.02, 0.1)], p=[0.3, 0.7])),
        edge=float(rng.uniform(2.5, 7.0)),
        crenated=float(rng.choice([0.02, 0.25, 0.8], p=[0.75, 0.17, 0.08])),
        additive=float(rng.beta(0.6, 1.5)),
        spread=float(rng.uniform(0.6, 1.5)),
    )
    return Smear(
        smear_id=f"S{number + 1:02d}",
        patient_id=f"P{number // 2 + 1:02d}",
        light=_triple(np.clip(light, 128, 260)),
        strength=float(np.clip(rng.lognormal(0.0, 0.08), 0.8, 1.25)),
        hue=_triple(np.array([rng.uniform(0.9, 1.12), rng.uniform(0.95, 1.06), rng.uniform(0.8, 1.25)])),
        flare=float(rng.uniform(0.005, 0.035)),
        blur=float(rng.uniform(1.0, 1.6)),
        shift=(float(rng.normal(0.0, 0.22)), float(rng.normal(0.0, 0.22))),
        noise=float(rng.uniform(1.1, 2.1)),
        slope=(float(rng.normal(0, 0.06)), float(rng.normal(0, 0.06))),
        vignette=float(rng.uniform(0.0, 0.16)),
        red_cell=look,
        polychromasia=float(rng.uniform(0.0, 0.2)),
        rouleaux=float(rng.choice([0.0, 0.2, 0.6], p=[0.5, 0.3, 0.2])),
        red_cells=float(rng.uniform(45.0, 170.0)),
        nucleated=float(rng.uniform(4.0, 36.0)),
        platelets=float(rng.gamma(1.5, 4.0)),
        debris=float(rng.gamma(0.9, 170.0)),
        patchiness=float(rng.uniform(0.2, 1.0)),
        clumping=float(rng.uniform(0.2, 0.7)),
        haze=float(rng.choice([0.005, 0.025, 0.08], p=[0.5, 0.36, 0.14])),
        curd=float(rng.choice([0.0, 0.05, 0.14], p=[0.55, 0.3, 0.15])),
    )


def _kernel(sigma: float, shift: float) -> NDArray[np.float64]:
    """Return a Gaussian of that width (px), shifted by part of a pixel."""
    reach = int(np.ceil(3.0 * sigma + abs(shift)))
    weights = np.exp(-0.5 * ((np.arange(-reach, reach + 1) - shift) / sigma) ** 2)
    kernel: NDArray[np.float64] = weights / weights.sum()
    return kernel


def _camera_noise(rng: np.random.Generator, shared: Plane) -> Plane:
    """Return noise of one colour, of about unit variance; `shared` is the noise common to all three colours.

    In the real crops, neighbouring pixels correlate by 0.54, red and green by 0.8, green and blue by 0.65.
    """
    noise = rng.standard_normal(shared.shape, dtype=np.float32)
    noise *= np.float32(0.52)
    noise += shared
    sharp = noise * np.float32(0.25)
    for axis in range(2):
        noise = ndimage.correlate1d(noise, _SMOOTH_NOISE, axis=axis, mode="nearest")
    noise += sharp
    return noise


def develop(canvas: Canvas, smear: Smear, rng: np.random.Generator, *, blur: float | None = None) -> NDArray[np.uint8]:
    """Return the image of a canvas by a camera on a microscope.

    Parameters
    ----------
    canvas : Canvas
        Optical densities.
    smear : Smear
        Light, stain, optics and camera.
    rng : numpy.random.Generator
        Source of haze and noise.
    blur : float, optional
        Standard deviation in px instead of the smear's own.

    Returns
    -------
    ndarray, uint8, shape (height, width, 3)
        RGB.
    """
    density = canvas.density
    seed = int(rng.integers(2**31))
    texture = Texture(seed, np.arange(canvas.height), np.arange(canvas.width))
    haze: Plane = np.float32(smear.haze) * (1.0 + 0.6 * texture(24.0)) + np.float32(0.008) * texture(4.2)
    np.maximum(haze, 0.0, out=haze)
    rows = np.linspace(-0.5, 0.5, canvas.height, dtype=np.float32)[:, None]
    columns = np.linspace(-0.5, 0.5, canvas.width, dtype=np.float32)[None, :]
    light = 1.0 + np.float32(smear.slope[0]) * rows + np.float32(smear.slope[1]) * columns
    light -= np.float32(smear.vignette) * (rows**2 + columns**2)
    sigma = smear.blur if blur is None else blur
    shared: Plane = rng.standard_normal((canvas.height, canvas.width), dtype=np.float32)
    shared *= np.float32(0.85)
    image = np.empty(density.shape, np.uint8)
    # Red and blue are shifted relative to green, and less sharp.
    for channel, (side, widen) in enumerate(((1.0, 1.06), (0.0, 1.0), (-1.0, 1.15))):
        plane = density[..., channel] + haze * np.float32((0.85, 1.15, 0.22)[channel])
        plane *= np.float32(-smear.strength * smear.hue[channel])
        np.exp(plane, out=plane)
        plane *= np.float32(1.0 - smear.flare)
        plane += np.float32(smear.flare)
        for axis in range(2):
            kernel = _kernel(sigma * widen, side * smear.shift[axis])
            plane = ndimage.correlate1d(plane, kernel, axis=axis, mode="nearest")
        plane *= light * np.float32(smear.light[channel])
        # Shot noise grows with the root of the brightness.
        noise = _camera_noise(rng, shared)
        noise *= np.sqrt(plane * np.float32(0.7 / 128.0) + np.float32(0.3)) * np.float32(smear.noise)
        plane += noise
        plane += np.float32(0.5)
        image[..., channel] = np.clip(plane, 0, 255, out=plane)
    return image
