"""The parts that recipes share: an outline, nucleoli, folds, the pale hof, vacuoles."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hematokit.imaging.synthetic.anatomy import Cell, Spot

__all__ = ["blank_cell", "fold", "hof", "nucleoli", "draw_radius", "vacuoles", "within"]

Rng = np.random.Generator


def draw_radius(rng: Rng, mean: float, spread: float = 0.09) -> float:
    """Radius in um: normal around the mean, cut at two standard deviations."""
    return mean * (1.0 + spread * float(np.clip(rng.normal(), -2.0, 2.0)))


def blank_cell(rng: Rng, code: str, radius: float, roughness: float = 0.022) -> Cell:
    """A cell of that size with an outline of its own and nothing in it."""
    blebs = int(rng.choice([0, 2, 5], p=[0.72, 0.22, 0.06]))
    return Cell(
        code,
        radius,
        int(rng.integers(2**31)),
        elongation=1.0 + abs(float(rng.normal(0.0, 0.14))),
        angle=float(rng.uniform(0, np.pi)),
        outline=np.column_stack(
            [rng.normal(0.0, roughness * np.array([1.6, 1.1, 0.8, 0.5])), rng.uniform(0, 2 * np.pi, 4)]
        ),
        # Some membranes bulge in small blebs.
        hairs=np.column_stack(
            [rng.uniform(0, 2 * np.pi, blebs), rng.uniform(0.06, 0.15, blebs), rng.gamma(2.0, 0.17, blebs)]
        ),
        warp=float(rng.uniform(0.08, 0.18)),
        fray=float(rng.uniform(0.03, 0.09)),
        edge=float(rng.uniform(0.2, 0.5)),
        nucleus_edge=float(rng.uniform(0.12, 0.35)),
        membrane=float(rng.uniform(0.0, 0.22)),
        lens=float(rng.uniform(0.05, 0.25)),
        shade=float(rng.uniform(0.03, 0.14)),
        shade_angle=float(rng.uniform(0, 2 * np.pi)),
    )


def within(rng: Rng, nucleus: NDArray[np.float64]) -> tuple[float, float, float]:
    """A point well inside the nucleus, and the radius of the lobe it lies in."""
    y, x, radius = nucleus[rng.integers(len(nucleus))]
    away, angle = 0.65 * radius * np.sqrt(rng.random()), rng.uniform(0, 2 * np.pi)
    return float(y + away * np.sin(angle)), float(x + away * np.cos(angle)), float(radius)


def nucleoli(rng: Rng, nucleus: NDArray[np.float64], count: int, size: float) -> tuple[Spot, ...]:
    """Pale round spots in the nucleus."""
    spots = []
    for _ in range(count):
        y, x, _radius = within(rng, nucleus)
        spots.append(Spot(y, x, float(size * rng.uniform(0.7, 1.3)), -float(rng.uniform(0.25, 0.45))))
    return tuple(spots)


def hof(nucleus: NDArray[np.float64], radius: float, size: float, change: float) -> Spot:
    """The pale zone of the Golgi body: beside the nucleus, on the side where the cytoplasm is."""
    centre = np.average(nucleus[:, :2], axis=0, weights=nucleus[:, 2])
    away = float(np.hypot(*centre))
    towards = -centre / away if away > 0.05 else np.array([0.0, 1.0])
    reach = float(((nucleus[:, :2] - centre) @ towards + nucleus[:, 2]).max())
    y, x = centre + towards * (reach + 0.12 * radius)
    return Spot(float(y), float(x), size * radius, change)


def vacuoles(rng: Rng, radius: float, count: int, size: float = 0.5) -> tuple[Spot, ...]:
    """Pale round holes in the cytoplasm."""
    spots = []
    for _ in range(count):
        away, angle = radius * rng.uniform(0.3, 0.92), rng.uniform(0, 2 * np.pi)
        spots.append(
            Spot(float(away * np.sin(angle)), float(away * np.cos(angle)), size * float(rng.uniform(0.5, 1.3)), -0.8)
        )
    return tuple(spots)


def fold(rng: Rng, nucleus: NDArray[np.float64]) -> tuple[Spot, ...]:
    """A fold of the nucleus: a pale or dark line across it, as a row of small spots."""
    start, end = np.array(within(rng, nucleus)[:2]), np.array(within(rng, nucleus)[:2])
    sign = -0.22 if rng.random() < 0.5 else 0.22
    places = [start + (end - start) * share for share in np.linspace(-0.4, 1.4, 6)]
    return tuple(Spot(float(place[0]), float(place[1]), 0.45, sign) for place in places)
