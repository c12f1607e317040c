"""Draws cells, red cells and platelets onto a canvas of optical densities."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from hematokit.imaging.synthetic.anatomy import Cell, Density, Granules, Spot, Streak

__all__ = [
    "PIXEL_SIZE_UM",
    "Canvas",
    "DrawnCell",
    "Texture",
    "draw_cell",
    "draw_platelet",
    "draw_red_cell",
    "draw_specks",
]

PIXEL_SIZE_UM = 0.08625
"""3.45 um camera pixels behind a 40x objective; an estimate that gives red cells their usual 7 um."""

Plane = NDArray[np.float32]

_TILE = 512
_TILE_SIGMAS = (0.8, 1.4, 2.4, 4.2, 7.5, 13.0, 24.0)  # px
_BINS = 720  # of the outline, by direction


@lru_cache(maxsize=1)
def _tiles() -> tuple[Plane, ...]:
    # Filtering noise per cell would cost more than drawing it: every cell cuts its own window from these.
    noise = np.random.default_rng(20210611).standard_normal((_TILE, _TILE))
    tiles = []
    for sigma in _TILE_SIGMAS:
        tile = ndimage.gaussian_filter(noise, sigma, mode="wrap")
        tiles.append(((tile - tile.mean()) / tile.std()).astype(np.float32))
        noise = np.roll(noise.T, 97)
    # Twice as wide as its period, so that any window of up to one period is a slice of it.
    return tuple(np.tile(tile, (2, 2)) for tile in tiles)


class Texture:
    """Smooth noise of unit variance, fixed by a seed and by the position relative to the thing that bears it."""

    def __init__(self, seed: int, rows: NDArray[np.intp], columns: NDArray[np.intp]) -> None:
        self._rng = np.random.default_rng(seed)
        self._rows, self._columns = rows, columns

    def __call__(self, sigma: float) -> Plane:
        """Return float32 (rows, columns) noise of about `sigma` pixels; each call gives another one."""
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
        self.density: Plane = np.zeros((height, width, 3), np.float32)
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

    def lay(self, where: tuple[slice, slice], alpha: Plane, density: Plane, cover: float = 1.0) -> None:
        """Lay a premultiplied layer over a window; `cover` 0 adds the densities, 1 hides what lies below."""
        part = self.density[where]
        part *= (1.0 - cover * alpha)[..., None]
        part += density


@dataclass(frozen=True, eq=False)
class DrawnCell:
    """Where a cell came to lie: masks over the window ``[y0:y0+h, x0:x0+w]`` of the canvas."""

    y0: int
    x0: int
    body: NDArray[np.bool_]
    nucleus: NDArray[np.bool_]


def _ramp(distance: Plane, width: float) -> Plane:
    """Opacity across an edge `width` px wide; `distance` is positive inside."""
    ramp: Plane = np.clip(distance / np.float32(max(width, 1.0)) + np.float32(0.5), 0.0, 1.0)
    return ramp


def _outline(cell: Cell, direction: Plane) -> Plane:
    """Radius of the cell in each direction, um."""
    theta = np.arange(_BINS) * (2 * np.pi / _BINS)
    turned = theta - cell.angle
    ratio = cell.elongation**0.5
    radius = cell.radius / np.sqrt((np.cos(turned) / ratio) ** 2 + (np.sin(turned) * ratio) ** 2)
    wave = sum(
        (amplitude * np.cos((order + 2) * theta + phase) for order, (amplitude, phase) in enumerate(cell.outline)),
        start=np.zeros(_BINS),
    )
    radius *= 1.0 + wave
    for angle, width, length in cell.hairs:
        away = np.abs((theta - angle + np.pi) % (2 * np.pi) - np.pi) / width
        radius += length * np.clip(1.0 - away, 0.0, 1.0) ** 1.3
    index = (direction * (_BINS / (2 * np.pi))).astype(np.int32) % _BINS
    around: Plane = radius.astype(np.float32)[index]
    return around


def _union(circles: NDArray[np.float64], y: Plane, x: Plane) -> Plane:
    """Signed distance (um, positive inside) to a union of circles."""
    best = np.full(np.broadcast_shapes(y.shape, x.shape), -1e6, np.float32)
    for cy, cx, radius in circles.astype(np.float32):
        inside = radius - np.sqrt((y - cy) ** 2 + (x - cx) ** 2)
        np.maximum(best, inside, out=best)
    return best


def _spots(target: Plane, spots: tuple[Spot, ...], y: Plane, x: Plane) -> None:
    """Multiply `target` by the relative change of each spot, in place."""
    for spot in spots:
        squared = ((y - spot.y) ** 2 + (x - spot.x) ** 2) / spot.radius**2
        # A flat-topped bump: nucleoli and vacuoles have an edge, unlike a plain Gaussian.
        target *= 1.0 + spot.change * np.exp(-(squared**2))


@lru_cache(maxsize=256)
def _stamp(radius_4th: int, rim: float) -> Plane:
    radius = radius_4th / 4
    reach = int(np.ceil(radius + 1))
    grid = np.arange(-reach, reach + 1)
    distance = radius - np.hypot(grid[:, None], grid[None, :])
    disc = np.clip(distance + 0.5, 0.0, 1.0)
    if rim:
        disc = disc * (1.0 - rim * np.clip(distance / max(radius, 0.5), 0.0, 1.0))
    return np.asarray(disc, np.float32)


def _granules(shape: tuple[int, int], kind: Granules, cell: Cell, centre: tuple[float, float], px: float) -> Plane:
    """Coverage 0..1 by one population of granules; `centre` is the cell's, in window px."""
    seed = cell.texture_seed + int(1e6 * kind.radius) + kind.count
    rng = np.random.default_rng(seed)
    away = cell.radius * 1.12 * cell.elongation**0.5 * np.sqrt(rng.random(kind.count))
    angle = rng.uniform(0, 2 * np.pi, kind.count)
    radii = np.maximum(rng.normal(kind.radius, kind.radius / 3, kind.count) / px, 0.6)
    rows = np.rint(centre[0] + away * np.sin(angle) / px).astype(int)
    columns = np.rint(centre[1] + away * np.cos(angle) / px).astype(int)
    quarters = np.rint(radii * 4).astype(int)
    half = int(np.ceil(quarters.max(initial=0) / 4 + 1))
    margin = 2 * half + 2
    cover = np.zeros((shape[0] + 2 * margin, shape[1] + 2 * margin), np.float32)
    seen = (rows >= -half) & (columns >= -half) & (rows < shape[0] + half) & (columns < shape[1] + half)
    for row, column, quarter in zip(rows[seen], columns[seen], quarters[seen], strict=True):
        stamp = _stamp(int(quarter), kind.rim)
        half = stamp.shape[0] // 2
        top, left = row + margin - half, column + margin - half
        part = cover[top : top + stamp.shape[0], left : left + stamp.shape[1]]
        np.maximum(part, stamp, out=part)
    return cover[margin:-margin, margin:-margin]


def _rods(rods: tuple[Streak, ...], y: Plane, x: Plane, px: float) -> Plane:
    cover = np.zeros(np.broadcast_shapes(y.shape, x.shape), np.float32)
    for rod in rods:
        # Only the rod's own neighbourhood: a margin of 1 um allows for the warped coordinates.
        reach = rod.length / 2 + rod.width + 1.0
        near = tuple(
            slice(*np.searchsorted(line, [middle - reach, middle + reach]))
            for line, middle in ((y[:, y.shape[1] // 2], rod.y), (x[x.shape[0] // 2], rod.x))
        )
        part, dy, dx = cover[near], y[near] - rod.y, x[near] - rod.x
        sine, cosine = np.sin(rod.angle), np.cos(rod.angle)
        along = dy * sine + dx * cosine
        across = dy * cosine - dx * sine
        beyond = np.maximum(np.abs(along) - rod.length / 2, 0.0)
        np.maximum(part, _ramp((rod.width - np.hypot(beyond, across)) / px, 1.5), out=part)
    return cover


def _body(cell: Cell, distance: Plane, texture: Texture, y: Plane, x: Plane, px: float) -> Plane:
    """Relative density of the cytoplasm."""
    body: Plane = np.asarray(1.0 + cell.mottle * (0.6 * texture(2.4) + 0.6 * texture(0.45 / px)), np.float32)
    if cell.rim:
        body += cell.rim * np.exp(-np.maximum(distance, 0.0) * (px / (0.16 * cell.radius)))
    _spots(body, cell.vacuoles, y, x)
    return np.maximum(body, np.float32(0.0))


def _chromatin(cell: Cell, distance: Plane, texture: Texture, y: Plane, x: Plane, px: float) -> Plane:
    """Relative density of the nucleus."""
    coarse = texture(cell.clump / px)
    pattern = (1.0 - cell.net) * np.tanh(1.6 * coarse) + cell.net * (0.9 - 1.5 * np.abs(texture(cell.clump / px)))
    grains = 1.0 + cell.contrast * (pattern + 0.35 * texture(1.0)) + 0.06 * texture(1.2 / px)
    nucleus: Plane = np.asarray(grains, np.float32)
    if cell.membrane:
        nucleus += cell.membrane * np.exp(-((distance * px / 0.22) ** 2))
    _spots(nucleus, cell.spots, y, x)
    return np.maximum(nucleus, np.float32(0.1))


def draw_cell(canvas: Canvas, cell: Cell, y: int, x: int) -> DrawnCell | None:
    """Draw a cell with its centre at a pixel.

    Parameters
    ----------
    canvas : Canvas
        Drawn upon.
    cell : Cell
        What to draw.
    y, x : int
        Centre in px; may lie outside the canvas. The visible part of a cell looks the same wherever it is drawn.

    Returns
    -------
    DrawnCell or None
        Masks of the cell and of its nucleus, before anything drawn later covers them; ``None`` if nothing is visible.
    """
    where = canvas.window(y, x, cell.reach)
    if where is None:
        return None
    px = canvas.pixel_size_um
    rows = np.arange(where[0].start, where[0].stop) - y
    columns = np.arange(where[1].start, where[1].stop) - x
    texture = Texture(cell.texture_seed, rows, columns)
    wavy = 1.0 / px
    ys: Plane = (rows * px).astype(np.float32)[:, None] + np.float32(cell.warp) * texture(wavy)
    xs: Plane = (columns * px).astype(np.float32)[None, :] + np.float32(cell.warp) * texture(wavy)

    direction = np.arctan2(ys, xs)
    to_edge = (_outline(cell, direction) - np.hypot(ys, xs)) / np.float32(px)
    body_alpha = _ramp(to_edge, cell.edge / px)
    to_membrane = _union(cell.nucleus, ys, xs) / np.float32(px)
    nucleus_alpha = _ramp(to_membrane, cell.nucleus_edge / px)

    density = np.asarray(cell.cytoplasm, np.float32) * _body(cell, to_edge, texture, ys, xs, px)[..., None]
    bare = not any(cell.cytoplasm)
    if len(cell.nucleus):
        nucleus = _chromatin(cell, to_membrane, texture, ys, xs, px)[..., None] * np.asarray(cell.chromatin, np.float32)
        density += nucleus_alpha[..., None] * (nucleus - density)
    region = np.maximum(body_alpha, nucleus_alpha)
    for kind in cell.granules:
        cover = _granules(region.shape, kind, cell, (-float(rows[0]), -float(columns[0])), px)
        cover = cover * (1.0 - (1.0 - kind.over_nucleus) * nucleus_alpha)
        density += cover[..., None] * np.asarray(kind.density, np.float32)
    if cell.rods:
        cover = _rods(cell.rods, ys, xs, px) * (1.0 - 0.6 * nucleus_alpha)
        density += cover[..., None] * np.asarray(cell.rod_density, np.float32)
    alpha = nucleus_alpha if bare and len(cell.nucleus) and not cell.granules else region
    density *= alpha[..., None]
    if cell.defocus:
        sigma = cell.defocus / px
        alpha = ndimage.gaussian_filter(alpha, sigma, mode="nearest")
        density = ndimage.gaussian_filter(density, (sigma, sigma, 0), mode="nearest")
    canvas.lay(where, alpha, density, cover=0.0 if bare and not len(cell.nucleus) else 0.88)
    body = (nucleus_alpha if bare and len(cell.nucleus) else region) > 0.5
    return DrawnCell(where[0].start, where[1].start, body, nucleus_alpha > 0.5)


def draw_red_cell(canvas: Canvas, rng: np.random.Generator, y: int, x: int, density: Density, pallor: float) -> None:
    """Draw a red cell 6 to 8 um across; `pallor` 0 .. 1 is how pale its middle is."""
    radius = float(np.clip(rng.normal(3.55, 0.25), 2.9, 4.3))
    stretch = float(np.clip(1.0 + abs(rng.normal(0.0, 0.12)), 1.0, 1.5))
    angle, phase, wave = rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi), rng.normal(0.0, 0.035)
    seed = int(rng.integers(2**31))
    where = canvas.window(y, x, radius * stretch * 1.15)
    if where is None:
        return
    px = canvas.pixel_size_um
    rows, columns = (np.arange(part.start, part.stop) - at for part, at in zip(where, (y, x), strict=True))
    texture = Texture(seed, rows, columns)
    ys: Plane = (rows * px).astype(np.float32)[:, None] + np.float32(0.13) * texture(1.6 / px)
    xs: Plane = (columns * px).astype(np.float32)[None, :]
    sine, cosine = np.float32(np.sin(angle)), np.float32(np.cos(angle))
    along, across = ys * sine + xs * cosine, ys * cosine - xs * sine
    ratio = np.float32(stretch**0.5)
    rho = np.hypot(along / ratio, across * ratio) * (
        1.0 + np.float32(wave) * np.cos(3 * np.arctan2(across, along) + phase)
    )
    inside = np.float32(radius) - rho
    alpha = _ramp(inside / np.float32(px), 2.0)
    profile = 1.0 - pallor * np.exp(-((rho / (0.42 * radius)) ** 4)) + 0.22 * np.exp(-((inside / 0.28) ** 2))
    profile *= alpha * (1.0 + 0.04 * texture(0.9 / px))
    canvas.lay(where, alpha, profile[..., None] * np.asarray(density, np.float32), cover=0.25)


def draw_platelet(canvas: Canvas, rng: np.random.Generator, y: int, x: int) -> None:
    """Draw a platelet: 1.5 to 3 um, lilac with purple granules."""
    radius = float(rng.uniform(0.7, 1.5))
    outline = np.column_stack([rng.normal(0, 0.08, 3), rng.uniform(0, 2 * np.pi, 3)])
    draw_cell(
        canvas,
        Cell(
            "",
            radius,
            int(rng.integers(2**31)),
            elongation=float(rng.uniform(1.0, 1.6)),
            angle=float(rng.uniform(0, np.pi)),
            outline=outline,
            cytoplasm=(0.22, 0.35, 0.05),
            mottle=0.4,
            edge=0.4,
            granules=(Granules((0.35, 0.8, 0.12), 0.16, int(14 * radius**2)),),
        ),
        y,
        x,
    )


def draw_specks(canvas: Canvas, rng: np.random.Generator, count: int) -> None:
    """Strew grains of stain and of burst cells, alone and in small swarms."""
    px = canvas.pixel_size_um
    left = count
    while left > 0:
        swarm = int(min(left, 1 if rng.random() < 0.6 else rng.integers(3, 40)))
        left -= swarm
        y, x = rng.uniform(0, canvas.height), rng.uniform(0, canvas.width)
        depth = rng.uniform(0.25, 0.8)
        density = np.array([0.35, 1.0, 0.12]) * depth
        for dy, dx in rng.normal(0.0, 2.2 / px if swarm > 1 else 0.0, (swarm, 2)):
            stamp = _stamp(int(rng.uniform(3, 9)), 0.0)
            row, column, size = int(y + dy), int(x + dx), stamp.shape[0]
            if 0 <= row < canvas.height - size and 0 <= column < canvas.width - size:
                part = canvas.density[row : row + size, column : column + size]
                part += stamp[..., None] * density.astype(np.float32)
