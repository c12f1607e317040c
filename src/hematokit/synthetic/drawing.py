"""Drawing on a canvas of optical densities: cells, red cells, platelets and debris."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from hematokit.synthetic.anatomy import Cell, Density, Granules, Spot, Streak
from hematokit.synthetic.canvas import Canvas, Plane, Texture, ramp

__all__ = ["DrawnCell", "RedCellLook", "draw_cell", "draw_platelets", "draw_red_cell", "draw_specks"]

_BINS = 720  # of the outline, by direction


@dataclass(frozen=True, eq=False)
class DrawnCell:
    """Masks of a drawn cell over the window ``[y0:y0+h, x0:x0+w]`` of the canvas."""

    y0: int
    x0: int
    body: NDArray[np.bool_]
    nucleus: NDArray[np.bool_]


def _outline(cell: Cell, direction: Plane) -> Plane:
    """Return the radius of the cell in each direction, um."""
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
        radius += length * np.clip(1.0 - away, 0.0, 1.0) ** 2 * (1.0 + 2.0 * np.minimum(away, 1.0))
    index = (direction * (_BINS / (2 * np.pi))).astype(np.int32) % _BINS
    around: Plane = radius.astype(np.float32)[index]
    return around


def _union(circles: NDArray[np.float64], y: Plane, x: Plane) -> Plane:
    """Return the signed distance (um, positive inside) to a union of circles."""
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
def _disc_stamp(radius_4th: int, rim: float) -> Plane:
    radius = radius_4th / 4
    reach = int(np.ceil(radius + 1))
    grid = np.arange(-reach, reach + 1)
    distance = radius - np.hypot(grid[:, None], grid[None, :])
    disc = np.clip(distance + 0.5, 0.0, 1.0)
    if rim:
        disc = disc * (1.0 - rim * np.clip(distance / max(radius, 0.5), 0.0, 1.0))
    return np.asarray(disc, np.float32)


def _granules(shape: tuple[int, int], kind: Granules, cell: Cell, centre: tuple[float, float], px: float) -> Plane:
    """Return the coverage 0..1 by one population of granules; `centre` is the cell's, in window px."""
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
        stamp = _disc_stamp(int(quarter), kind.rim)
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
        np.maximum(part, ramp((rod.width - np.hypot(beyond, across)) / px, 1.5), out=part)
    return cover


def _squeeze(distance: Plane, faces: NDArray[np.float64], give: float, y: Plane, x: Plane, px: float) -> Plane:
    """Return `distance` (px, positive inside) of a shape flattened `give` um before each face."""
    for angle, away in faces.astype(np.float32):
        free = (away - np.float32(give) - (y * np.sin(angle) + x * np.cos(angle))) / np.float32(px)
        # A smooth minimum: pressed membranes have no corners.
        soft = np.float32(0.7 / px)
        overlap = np.maximum(soft - np.abs(distance - free), 0.0)
        distance = np.minimum(distance, free) - overlap * overlap / (4.0 * soft)
    return distance


def _body(cell: Cell, distance: Plane, texture: Texture, y: Plane, x: Plane, px: float) -> Plane:
    """Return the relative density of the cytoplasm."""
    fine = texture(1.2)
    body: Plane = np.asarray(1.0 + cell.mottle * (0.5 * fine + 0.6 * texture(0.45 / px)), np.float32)
    # Basophilic cytoplasm is foamy: small pale flecks.
    body -= np.float32(1.6 * cell.mottle) * np.maximum(texture(0.2 / px) - 0.9, 0.0)
    if cell.rim:
        body += cell.rim * np.exp(-np.maximum(distance, 0.0) * (px / (0.16 * cell.radius)))
    _spots(body, cell.vacuoles, y, x)
    return np.maximum(body, np.float32(0.0))


def _chromatin(cell: Cell, distance: Plane, texture: Texture, y: Plane, x: Plane, px: float) -> Plane:
    """Return the relative density of the nucleus."""
    grain = cell.clump / px
    # Clumps with bright streaks between them; or a lacework of strands around pale meshes.
    clumps = np.tanh(2.0 * texture(grain)) * 0.7 - 1.1 * np.maximum(1.0 - 3.0 * np.abs(texture(grain)), 0.0)
    lace = 0.9 - 1.4 * np.abs(texture(grain))
    pattern = (1.0 - cell.net) * (clumps + 0.3) + cell.net * lace
    nucleus: Plane = np.asarray(1.0 + cell.contrast * (pattern + 0.28 * texture(1.4)), np.float32)
    # The nucleus is a lens: thinner towards its border, which the membrane draws darker again.
    nucleus -= np.float32(cell.lens) * np.exp(-np.maximum(distance, 0.0) * (px / 0.8))
    if cell.membrane:
        nucleus += cell.membrane * np.exp(-(((distance * px - 0.15) / 0.22) ** 2))
    _spots(nucleus, cell.spots, y, x)
    return np.maximum(nucleus, np.float32(0.1))


def _planes(density: Density) -> Plane:
    return np.asarray(density, np.float32)[:, None, None]


def draw_cell(canvas: Canvas, cell: Cell, y: int, x: int) -> DrawnCell | None:
    """Draw a cell with its centre at a pixel.

    Parameters
    ----------
    canvas : Canvas
        Changed in place.
    cell : Cell
        The cell.
    y, x : int
        Centre in px; may be outside the canvas. A cell looks the same wherever it is drawn.

    Returns
    -------
    DrawnCell or None
        Masks of the cell and of its nucleus, without cells that cover them later; ``None`` if nothing is visible.
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
    # Membranes are rough at a finer scale than the shape.
    to_edge: Plane = _outline(cell, direction) - np.hypot(ys, xs) + np.float32(cell.fray) * texture(0.35 / px)
    to_edge /= np.float32(px)
    to_edge = _squeeze(to_edge, cell.faces, 0.0, ys, xs, px)
    body_alpha = ramp(to_edge, cell.edge / px)
    to_membrane = _union(cell.nucleus, ys, xs) / np.float32(px)
    if len(cell.nucleus):
        to_membrane = _squeeze(to_membrane + np.float32(0.05 / px) * texture(0.35 / px), cell.faces, 0.3, ys, xs, px)
    nucleus_alpha = ramp(to_membrane, cell.nucleus_edge / px)

    density: Plane = _planes(cell.cytoplasm) * _body(cell, to_edge, texture, ys, xs, px)
    if any(cell.stipple):
        grains = np.clip(1.3 * texture(cell.stipple_size / px) - 0.5, 0.0, 1.6)
        density += grains * _planes(cell.stipple)
    bare = not any(cell.cytoplasm)
    if len(cell.nucleus):
        nucleus = _chromatin(cell, to_membrane, texture, ys, xs, px) * _planes(cell.chromatin)
        density += nucleus_alpha * (nucleus - density)
    if cell.shade:
        # Cells are not flat: one side is thicker than the other.
        sine, cosine = (np.float32(0.7 / cell.radius * way(cell.shade_angle)) for way in (np.sin, np.cos))
        tilt = ys * sine + xs * cosine
        density *= np.clip(1.0 + np.float32(cell.shade) * (tilt + 0.6 * texture(1.4 / px)), 0.4, 1.8)
    region = np.maximum(body_alpha, nucleus_alpha)
    for kind in cell.granules:
        cover = _granules(region.shape, kind, cell, (-float(rows[0]), -float(columns[0])), px)
        cover = cover * (1.0 - (1.0 - kind.over_nucleus) * nucleus_alpha)
        density += cover * _planes(kind.density)
    if cell.rods:
        cover = _rods(cell.rods, ys, xs, px) * (1.0 - 0.6 * nucleus_alpha)
        density += cover * _planes(cell.rod_density)
    alpha = nucleus_alpha if bare and len(cell.nucleus) and not cell.granules else region
    density *= alpha
    if cell.defocus:
        sigma = cell.defocus / px
        alpha = ndimage.gaussian_filter(alpha, sigma, mode="nearest")
        density = ndimage.gaussian_filter(density, (0, sigma, sigma), mode="nearest")
    canvas.add(where, alpha, np.moveaxis(density, 0, -1), cover=0.0 if bare and not len(cell.nucleus) else 0.88)
    body = (nucleus_alpha if bare and len(cell.nucleus) else region) > 0.5
    return DrawnCell(where[0].start, where[1].start, body, nucleus_alpha > 0.5)


@dataclass(frozen=True, slots=True)
class RedCellLook:
    """Look of the red cells of a smear.

    Attributes
    ----------
    density : Density
        Stain.
    pallor : float
        Relative paleness of the centre, 0 to 1.
    rim, halo : float
        Relative darkening along the border, and the decrease of density in the refractile line around it.
    edge : float
        Width of the border in px: red cells are slightly out of focus.
    crenated : float
        Share with a scalloped or spiky outline.
    additive : float
        Share whose density adds to that of overlapped objects; the others hide them.
    spread : float
        Variation of size and shape, relative to a healthy smear.
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
    """Draw a red cell with a diameter of 6 to 8 um; a bluish one is young (polychromatic)."""
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
        # Light refracted at the border is focused in a line outside it.
        density -= np.float32(look.halo) * np.exp(-(((inside + 0.32) / 0.22) ** 2))
    canvas.add(where, alpha, np.moveaxis(density, 0, -1), cover=cover)


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
    """Draw platelets of 1.5 to 3 um, lilac with purple granules: mostly single, some in clumps."""
    px, left = canvas.pixel_size_um, count
    while left > 0:
        clump = int(min(left, 1 if rng.random() < 0.85 else rng.integers(3, 14)))
        left -= clump
        y, x = rng.uniform(0, canvas.height), rng.uniform(0, canvas.width)
        for dy, dx in rng.normal(0.0, 0.75 * clump**0.5 / px if clump > 1 else 0.0, (clump, 2)):
            draw_cell(canvas, _platelet(rng), round(y + dy), round(x + dx))


def draw_specks(canvas: Canvas, rng: np.random.Generator, count: int) -> None:
    """Draw grains of stain and of burst cells, single and in loose groups, and rarely a lump of precipitate."""
    px, left = canvas.pixel_size_um, count
    while left > 0:
        swarm = int(min(left, 1 if rng.random() < 0.7 else rng.integers(3, 60)))
        left -= swarm
        y, x = rng.uniform(0, canvas.height), rng.uniform(0, canvas.width)
        lump = swarm == 1 and rng.random() < 0.03
        depth = rng.uniform(0.6, 1.3) if lump else rng.uniform(0.15, 0.6)
        stain = np.asarray((0.9, 0.8, 0.5) if lump else (0.35, 0.9, 0.12), np.float32) * np.float32(depth)
        for dy, dx in rng.normal(0.0, 3.5 / px if swarm > 1 else 0.0, (swarm, 2)):
            stamp = _disc_stamp(int(rng.uniform(10, 24) if lump else rng.uniform(3, 8)), 0.0)
            if lump:
                stamp = ndimage.gaussian_filter(stamp, 1.0)
            row, column, size = int(y + dy), int(x + dx), stamp.shape[0]
            if 0 <= row < canvas.height - size and 0 <= column < canvas.width - size:
                canvas.density[row : row + size, column : column + size] += stamp[..., None] * stain
