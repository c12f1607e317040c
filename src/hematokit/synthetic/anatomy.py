"""Geometry and stain of a synthetic cell.

Lengths are micrometres, relative to the cell's centre, row first. Colours are optical densities in red, green and blue:
the transmitted light is ``exp(-density)``, so that the densities of layers add up (Beer-Lambert law).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["Cell", "Density", "Granules", "Spot", "Streak", "lobe_chain"]

Density = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Granules:
    """One population of granules.

    Attributes
    ----------
    density : Density
        Optical density that one granule adds to the cell.
    radius : float
        Mean radius in um; its standard deviation is a third of it.
    count : int
        Number of granules scattered over the cell's disc; those outside the permitted region are not drawn.
    over_nucleus : float
        Opacity over the nucleus, 0 (granules of the cytoplasm only) to 1 (they cover the nucleus, as in basophils).
    rim : float
        Darkness of the outline relative to the middle; 0 is an evenly stained granule.
    """

    density: Density
    radius: float
    count: int
    over_nucleus: float = 0.0
    rim: float = 0.0


@dataclass(frozen=True, slots=True)
class Spot:
    """A soft round change of density: nucleoli and vacuoles (`change` < 0), chromatin clumps (> 0).

    `change` is relative: -0.5 halves the density in the middle of the spot.
    """

    y: float
    x: float
    radius: float
    change: float


@dataclass(frozen=True, slots=True)
class Streak:
    """A straight rod with round ends (Auer rod, chromosome arm, scratch), centred at `y`, `x`."""

    y: float
    x: float
    angle: float
    length: float
    width: float


@dataclass(frozen=True)
class Cell:
    """One cell (or artefact) as geometry and stain.

    Attributes
    ----------
    code : str
        Class code.
    radius : float
        Mean radius of the outline in um.
    texture_seed : int
        Seed of the chromatin, the granules and the small irregularities.
    elongation, angle : float
        Long axis over short axis, and the long axis' direction (radians).
    outline : ndarray, shape (k, 2)
        Amplitude (relative to the radius) and phase of harmonics 2 .. k+1 of the outline.
    hairs : ndarray, shape (n, 3)
        Projections: direction (radians), width (radians), length (um).
    cytoplasm : Density
        Stain of the cytoplasm; all zero for a bare nucleus.
    mottle, rim : float
        Relative unevenness of the cytoplasm, and its relative darkening along the membrane.
    edge : float
        Width of the cytoplasm's edge in um; large for smudges.
    nucleus : ndarray, shape (n, 3)
        Circles (y, x, radius) whose union is the nucleus.
    nucleus_edge, warp : float
        Width of the nucleus' edge, and amplitude of the irregularity of all outlines (um).
    chromatin : Density
        Stain of the nucleus.
    clump, contrast, net, membrane : float
        Chromatin: size of its grains (um), relative contrast, share of a net of strands against clumps (0..1), and
        darkness of the nuclear membrane.
    spots : tuple of Spot
        Changes within the nucleus.
    vacuoles : tuple of Spot
        Changes within the cytoplasm (vacuoles, the pale Golgi zone).
    granules, rods : tuple
        Granule populations; Auer rods with `rod_density`.
    lens : float
        Relative thinning of the nucleus towards its border.
    fray : float
        Amplitude of the fine roughness of the membrane (um).
    stipple, stipple_size : Density, float
        Fine granulation too dense to count: stain of a grain, and the size of grains (um).
    shade, shade_angle : float
        Relative unevenness of the whole cell's thickness, and the direction of its thick side (radians).
    faces : ndarray, shape (n, 2)
        Flat sides against neighbours: direction (radians) and distance from the centre (um).
    defocus : float
        Blur of this cell alone, in um (standard deviation).
    """

    code: str
    radius: float
    texture_seed: int
    elongation: float = 1.0
    angle: float = 0.0
    outline: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 2)))
    hairs: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 3)))
    cytoplasm: Density = (0.0, 0.0, 0.0)
    mottle: float = 0.1
    rim: float = 0.0
    edge: float = 0.15
    nucleus: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 3)))
    nucleus_edge: float = 0.12
    warp: float = 0.15
    chromatin: Density = (1.25, 2.3, 0.42)
    clump: float = 0.3
    contrast: float = 0.2
    net: float = 0.5
    membrane: float = 0.1
    spots: tuple[Spot, ...] = ()
    vacuoles: tuple[Spot, ...] = ()
    granules: tuple[Granules, ...] = ()
    rods: tuple[Streak, ...] = ()
    rod_density: Density = (0.35, 1.3, 0.2)
    lens: float = 0.12
    fray: float = 0.05
    stipple: Density = (0.0, 0.0, 0.0)
    stipple_size: float = 0.12
    shade: float = 0.0
    shade_angle: float = 0.0
    faces: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 2)))
    defocus: float = 0.0

    @property
    def extent(self) -> float:
        """Radius in um of the disc that the cell occupies."""
        if not len(self.nucleus):
            return self.radius
        return max(self.radius, float((np.hypot(self.nucleus[:, 0], self.nucleus[:, 1]) + self.nucleus[:, 2]).max()))

    @property
    def reach(self) -> float:
        """Distance in um from the centre within which the cell is drawn."""
        outline: float = self.radius * self.elongation**0.5 * (1.0 + float(np.abs(self.outline[:, 0]).sum()))
        if len(self.hairs):
            outline += float(self.hairs[:, 2].max())
        rods = max((float(np.hypot(rod.y, rod.x)) + rod.length / 2 for rod in self.rods), default=0.0)
        return max(outline, self.extent, rods) + self.warp * 3 + self.fray * 3 + self.edge + 3 * self.defocus


def lobe_chain(
    rng: np.random.Generator,
    *,
    thickness: float,
    length: float,
    bend: float,
    lobes: int = 1,
    constriction: float = 0.0,
    wobble: float = 0.0,
    limit: float = np.inf,
    offset: float = 0.0,
) -> NDArray[np.float64]:
    """Return circles along a bent line: the shape of every nucleus from disc, kidney and band to a chain of lobes.

    Parameters
    ----------
    thickness : float
        Radius of the chain in um.
    length, bend : float
        Length of its midline in um and the angle that it turns through in radians.
    lobes, constriction : int, float
        Number of lobes, and how far the bridges between them are pinched (0 none, 0.85 threads).
    wobble : float
        Standard deviation of random turns per step (radians) and of the lobes' sizes (relative, a third of it).
    limit, offset : float
        The nucleus is moved off the centre by `offset` um in a random direction, and kept within `limit` um of it.

    Returns
    -------
    ndarray, shape (n, 3)
        Rows (y, x, radius) in um.
    """
    steps = max(3, 7 * lobes if lobes > 1 else 9) if length > 0 else 1
    turns = np.full(steps, bend / steps) + rng.normal(0.0, wobble, steps) if steps > 1 else np.zeros(1)
    heading = rng.uniform(0, 2 * np.pi) + np.cumsum(turns)
    pace = length / max(steps - 1, 1)
    points = np.stack([np.cumsum(np.sin(heading)), np.cumsum(np.cos(heading))], axis=1) * pace
    along = (np.arange(steps) + 0.5) / steps
    radii = np.full(steps, thickness)
    if lobes > 1:
        sizes = np.clip(1.0 + rng.normal(0.0, 0.12, lobes), 0.75, 1.3)
        radii *= sizes[np.minimum((along * lobes).astype(int), lobes - 1)]
        between = np.abs(along - 0.5) < 0.5 - 0.5 / lobes  # the two ends stay round
        radii *= 1.0 - constriction * between * np.cos(np.pi * lobes * along) ** 2
        # Lobes have bumps: a few smaller circles protrude from the chain, but not on the bridges.
        knobs = rng.choice(np.flatnonzero(radii > 0.8 * radii.max()), 2 * lobes)
        away = rng.uniform(0.25, 0.5, len(knobs)) * radii[knobs]
        out = rng.uniform(0, 2 * np.pi, len(knobs))
        points = np.vstack([points, points[knobs] + (away * np.array([np.sin(out), np.cos(out)])).T])
        radii = np.append(radii, radii[knobs] * rng.uniform(0.65, 0.85, len(knobs)))
    points -= np.average(points, axis=0, weights=radii**2)
    if offset:
        towards = rng.uniform(0, 2 * np.pi)
        points += offset * np.array([np.sin(towards), np.cos(towards)])
    for _ in range(4):
        # A chain that leaves the cell is moved back, then scaled down: nuclei are never outside their cell.
        over = np.hypot(points[:, 0], points[:, 1]) + radii - limit
        worst = int(np.argmax(over))
        if over[worst] <= 0:
            break
        direction = points[worst] / max(float(np.hypot(*points[worst])), 1e-9)
        points -= direction * over[worst] * 0.6
    over = float((np.hypot(points[:, 0], points[:, 1]) + radii).max())
    scale = min(1.0, limit / over)
    return np.column_stack([points * scale, radii * scale])
