"""A smear's look: light, stain, red cells, density; and the development of densities into an image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from hematokit.imaging.synthetic.anatomy import Density
from hematokit.imaging.synthetic.drawing import Canvas, Plane, Texture

__all__ = ["Smear", "develop", "smear_style"]

# Backgrounds met in the real crops (8-bit RGB): white, lilac, yellowish, grey, olive grey.
_LIGHTS = (
    ((248, 247, 255), 0.26),
    ((238, 230, 250), 0.20),
    ((226, 226, 206), 0.24),
    ((186, 187, 192), 0.14),
    ((158, 162, 160), 0.16),
)


@dataclass(frozen=True, slots=True)
class Smear:
    """What all fields of one smear share.

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
    blur, noise : float
        Optics (px, standard deviation) and camera (8-bit levels, standard deviation).
    slope : tuple of float
        Fall of the light per field height and width, relative.
    red_cell : Density
        Stain of red cells.
    pallor, polychromasia : float
        How pale red cells are in the middle, and the share of bluish ones.
    red_cells, nucleated, platelets, debris : float
        Things per 10,000 square um.
    haze : float
        Density of stained plasma.
    """

    smear_id: str
    patient_id: str
    light: tuple[float, float, float]
    strength: float
    hue: tuple[float, float, float]
    flare: float
    blur: float
    noise: float
    slope: tuple[float, float]
    red_cell: Density
    pallor: float
    polychromasia: float
    red_cells: float
    nucleated: float
    platelets: float
    debris: float
    haze: float


def _triple(values: NDArray[np.float64]) -> tuple[float, float, float]:
    first, second, third = (float(value) for value in values)
    return first, second, third


def smear_style(seed: int, number: int) -> Smear:
    """Return the look of one smear; two smears in a row (0 and 1, 2 and 3, ...) are of the same patient."""
    rng = np.random.default_rng([seed, 7, number])
    kind = rng.choice(len(_LIGHTS), p=[share for _, share in _LIGHTS])
    light = np.asarray(_LIGHTS[kind][0]) + rng.normal(0.0, 4.0) + rng.normal(0.0, 2.5, 3)
    beige = np.array([0.14, 0.21, 0.26]) * rng.uniform(0.8, 1.35)
    bluish = np.array([0.40, 0.31, 0.22]) * rng.uniform(0.7, 1.1)
    share = rng.beta(0.6, 1.4)
    return Smear(
        smear_id=f"S{number + 1:02d}",
        patient_id=f"P{number // 2 + 1:02d}",
        light=_triple(np.clip(light, 135, 260)),
        strength=float(rng.uniform(0.82, 1.1)),
        hue=_triple(np.array([rng.uniform(0.86, 1.15), rng.uniform(0.9, 1.06), rng.uniform(0.75, 1.3)])),
        flare=float(rng.uniform(0.01, 0.05)),
        blur=float(rng.uniform(0.8, 1.35)),
        noise=float(rng.uniform(0.8, 1.9)),
        slope=(float(rng.normal(0, 0.05)), float(rng.normal(0, 0.05))),
        red_cell=_triple(beige * (1 - share) + bluish * share),
        pallor=float(rng.choice([0.0, 0.15, 0.5, 0.75], p=[0.35, 0.3, 0.2, 0.15])),
        polychromasia=float(rng.uniform(0.0, 0.3)),
        red_cells=float(rng.uniform(35.0, 105.0)),
        nucleated=float(rng.uniform(4.0, 34.0)),
        platelets=float(rng.gamma(1.5, 4.0)),
        debris=float(rng.gamma(1.2, 45.0)),
        haze=float(rng.choice([0.0, 0.02, 0.08], p=[0.5, 0.38, 0.12])),
    )


def develop(canvas: Canvas, smear: Smear, rng: np.random.Generator, *, blur: float | None = None) -> NDArray[np.uint8]:
    """Turn densities into the image that a camera on a microscope takes.

    Parameters
    ----------
    canvas : Canvas
        What was drawn.
    smear : Smear
        Light, stain, optics and camera.
    rng : numpy.random.Generator
        Draws the haze and the noise.
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
    haze: Plane = np.float32(smear.haze) * (1.0 + 0.5 * texture(24.0)) + np.float32(0.012) * texture(4.2)
    density += haze[..., None] * np.asarray((0.8, 1.3, 0.2), np.float32)
    density *= np.asarray(smear.hue, np.float32) * np.float32(-smear.strength)
    image = np.exp(density, out=density)
    image *= np.float32(1.0 - smear.flare)
    image += np.float32(smear.flare)
    rows = np.linspace(-0.5, 0.5, canvas.height, dtype=np.float32)[:, None]
    columns = np.linspace(-0.5, 0.5, canvas.width, dtype=np.float32)[None, :]
    light = 1.0 + np.float32(smear.slope[0]) * rows + np.float32(smear.slope[1]) * columns
    sigma = smear.blur if blur is None else blur
    image = ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="nearest", truncate=3.0)
    image *= light[..., None] * np.asarray(smear.light, np.float32)
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    # Neighbouring pixels share noise (the camera interpolates colours).
    noise[:, 1:] += noise[:, :-1] * np.float32(0.6)
    image += noise * np.float32(smear.noise / 1.17)
    np.clip(image, 0, 255, out=image)
    return (image + np.float32(0.5)).astype(np.uint8)
