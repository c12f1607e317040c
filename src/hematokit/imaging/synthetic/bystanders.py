"""Draws what lies around nucleated cells: red cells, platelets, grains of stain and of burst cells."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from hematokit.imaging.synthetic.anatomy import Cell, Density, Granules
from hematokit.imaging.synthetic.canvas import Canvas, Plane, Texture, ramp
from hematokit.imaging.synthetic.drawing import disc_stamp, draw_cell

__all__ = ["RedCellLook", "draw_platelets", "draw_red_cell", "draw_specks"]


@dataclass(frozen=True, slots=True)
class RedCellLook:
    """What the red cells of a smear share.

    Attributes
    ----------
    density : Density
        Stain.
    pallor : float
        How pale they are in the middle, 0 to 1.
    rim, halo : float
        How much darker they are along the border, relative, and the density that the refractile line around them lacks.
    edge : float
        Width of the border in px: red cells lie a little out of focus.
    crenated : float
        Share of those with a scalloped or spiky outline.
    additive : float
        Share of those that darken what they overlap; the others hide it, as cells that lie flat side by side do.
    spread : float
        How much size and shape vary, relative to a healthy smear.
    """

    density: Density
    pallor: float
    rim: float
    halo: float
    edge: float
    crenated: float
    additive: float
    spread: float


def draw_red_cell(
    canvas: Canvas, rng: np.random.Generator, y: int, x: int, look: RedCellLook, *, bluish: bool = False
) -> None:
    """Draw a red cell 6 to 8 um across; a bluish one is young (polychromatic)."""
    radius = float(np.clip(rng.normal(3.5 + 0.3 * bluish, 0.25 * look.spread), 2.6, 4.5))
    stretch = float(np.clip(1.0 + abs(rng.normal(0.0, 0.13 * look.spread)), 1.0, 1.7))
    angle = float(rng.uniform(0, np.pi))
    waves = [(order, float(rng.normal(0.0, 0.09 * look.spread / order))) for order in (2, 3, 4)]
    if rng.random() < look.crenated:
        waves.append((int(rng.integers(9, 17)), float(rng.uniform(0.02, 0.05))))
    phases = rng.uniform(0, 2 * np.pi, len(waves))
    depth = float(rng.normal(1.0, 0.12))
    pallor = float(np.clip(look.pallor * rng.uniform(0.5, 1.25), 0.0, 0.92))
    pale, slit = radius * float(rng.uniform(0.34, 0.58)), float(rng.choice([1.0, 1.6, 2.6], p=[0.75, 0.17, 0.08]))
    off_y, off_x = rng.normal(0.0, 0.07 * radius, 2)
    cover = 0.35 if rng.random() < look.additive else 0.9
    seed, tint = int(rng.integers(2**31)), rng.normal(1.0, 0.04, 3)
    where = canvas.window(y, x, radius * stretch * 1.25 + 0.5)
    if where is None:
        return
    px = canvas.pixel_size_um
    rows, columns = (np.arange(part.start, part.stop) - at for part, at in zip(where, (y, x), strict=True))
    texture = Texture(seed, rows, columns)
    bend = np.float32(0.16 * look.spread)
    ys: Plane = (rows * px).astype(np.float32)[:, None] + bend * texture(1.2 / px)
    xs: Plane = (columns * px).astype(np.float32)[None, :] + bend * texture(1.2 / px)
    sine, cosine = np.float32(np.sin(angle)), np.float32(np.cos(angle))
    along, across = ys * sine + xs * cosine, ys * cosine - xs * sine
    ratio = np.float32(stretch**0.5)
    along, across = along / ratio, across * ratio
    around = np.arange(360) * (np.pi / 180)
    wave = np.ones(360, np.float32)
    for (order, amplitude), phase in zip(waves, phases, strict=True):
        wave += np.float32(amplitude) * np.cos(order * around + phase).astype(np.float32)
    direction = (np.arctan2(across, along) * np.float32(180 / np.pi)).astype(np.int16) % 360
    inside = np.float32(radius) - np.sqrt(along * along + across * across) * wave[direction]
    alpha = ramp(inside / np.float32(px), look.edge)
    middle = ((along - np.float32(off_y)) ** 2 + ((across - np.float32(off_x)) * np.float32(slit)) ** 2) / pale**2
    profile = 1.0 - pallor * np.exp(-(middle ** np.float32(1.5)))
    profile += look.rim * np.exp(-(((inside - 0.35) / 0.45) ** 2))
    profile *= alpha * (1.0 + 0.05 * texture(1.1 / px))
    stain = np.asarray((0.33, 0.34, 0.18) if bluish else look.density, np.float32) * np.asarray(
        depth * tint, np.float32
    )
    density = np.asarray(profile * stain[:, None, None], np.float32)
    if look.halo:
        # Light bent at the border gathers in a line outside it.
        density -= np.float32(look.halo) * np.exp(-(((inside + 0.32) / 0.22) ** 2))
    canvas.lay(where, alpha, np.moveaxis(density, 0, -1), cover=cover)


def _platelet(rng: np.random.Generator) -> Cell:
    radius = float(rng.uniform(0.7, 1.5))
    return Cell(
        "",
        radius,
        int(rng.integers(2**31)),
        elongation=float(rng.uniform(1.0, 1.6)),
        angle=float(rng.uniform(0, np.pi)),
        outline=np.column_stack([rng.normal(0, 0.1, 3), rng.uniform(0, 2 * np.pi, 3)]),
        cytoplasm=(0.2, 0.36, 0.06),
        mottle=0.4,
        edge=0.5,
        granules=(Granules((0.25, 0.6, 0.08), 0.15, int(12 * radius**2)),),
    )


def draw_platelets(canvas: Canvas, rng: np.random.Generator, count: int) -> None:
    """Strew platelets of 1.5 to 3 um, lilac with purple granules: mostly single, some in clumps."""
    px, left = canvas.pixel_size_um, count
    while left > 0:
        clump = int(min(left, 1 if rng.random() < 0.85 else rng.integers(3, 14)))
        left -= clump
        y, x = rng.uniform(0, canvas.height), rng.uniform(0, canvas.width)
        for dy, dx in rng.normal(0.0, 0.75 * clump**0.5 / px if clump > 1 else 0.0, (clump, 2)):
            draw_cell(canvas, _platelet(rng), round(y + dy), round(x + dx))


def draw_specks(canvas: Canvas, rng: np.random.Generator, count: int) -> None:
    """Strew grains of stain and of burst cells, alone and in loose swarms; now and then a lump of precipitate."""
    px, left = canvas.pixel_size_um, count
    while left > 0:
        swarm = int(min(left, 1 if rng.random() < 0.7 else rng.integers(3, 60)))
        left -= swarm
        y, x = rng.uniform(0, canvas.height), rng.uniform(0, canvas.width)
        lump = swarm == 1 and rng.random() < 0.03
        depth = rng.uniform(0.6, 1.3) if lump else rng.uniform(0.15, 0.6)
        stain = np.asarray((0.9, 0.8, 0.5) if lump else (0.35, 0.9, 0.12), np.float32) * np.float32(depth)
        for dy, dx in rng.normal(0.0, 3.5 / px if swarm > 1 else 0.0, (swarm, 2)):
            stamp = disc_stamp(int(rng.uniform(10, 24) if lump else rng.uniform(3, 8)), 0.0)
            if lump:
                stamp = ndimage.gaussian_filter(stamp, 1.0)
            row, column, size = int(y + dy), int(x + dx), stamp.shape[0]
            if 0 <= row < canvas.height - size and 0 <= column < canvas.width - size:
                canvas.density[row : row + size, column : column + size] += stamp[..., None] * stain
