"""Optical densities of stained things, and how they are varied and mixed."""

from __future__ import annotations

import numpy as np

from hematokit.imaging.synthetic.anatomy import Density

__all__ = ["mix", "tint"]

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
    """Vary depth and hue of a stain."""
    depth = float(np.exp(rng.normal(0.0, spread)))
    red, green, blue = (value * depth * float(np.exp(rng.normal(0.0, spread / 2))) for value in density)
    return red, green, blue


def mix(first: Density, second: Density, share: float) -> Density:
    """Go the given share of the way from one stain to another."""
    share = float(np.clip(share, 0.0, 1.0))
    red, green, blue = (a + (b - a) * share for a, b in zip(first, second, strict=True))
    return red, green, blue
