"""Where things lie: cells that touch and flatten each other, red cells loose, in mats and in rouleaux."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hematokit.imaging.synthetic.anatomy import Cell
from hematokit.imaging.synthetic.bystanders import draw_platelets, draw_red_cell, draw_specks
from hematokit.imaging.synthetic.canvas import Canvas, Texture
from hematokit.imaging.synthetic.smears import Smear

__all__ = ["Disc", "expected_number", "press", "scatter", "surround"]

Disc = tuple[float, float, float]
"""Row, column and radius in px of a place that is taken."""


def expected_number(rng: np.random.Generator, canvas: Canvas, per_10000_um2: float) -> int:
    """Draw how many things of that density lie on the canvas and a margin of 4 um around it."""
    height, width = (side * canvas.pixel_size_um + 8.0 for side in (canvas.height, canvas.width))
    return int(rng.poisson(per_10000_um2 * height * width / 1e4))


def scatter(
    rng: np.random.Generator,
    canvas: Canvas,
    radii: NDArray[np.float64],
    placed: list[Disc],
    *,
    tries: int = 6,
    clumping: float = 0.0,
) -> list[tuple[int, int, int]]:
    """Positions (number, y, x) at which discs of these radii (px) hardly overlap each other and those placed.

    A disc for which there is no room is squeezed in little by little after ten tries, and left out after the last.
    With `clumping` that share of places is sought right beside a disc that lies already.
    """
    margin = float(radii.max(initial=0.0)) * 0.6
    found = []
    taken = np.empty((len(placed) + len(radii), 3))
    taken[: len(placed)] = np.reshape(placed, (-1, 3))
    count = len(placed)
    for number, radius in enumerate(radii):
        for attempt in range(tries):
            y = rng.uniform(-margin, canvas.height + margin)
            x = rng.uniform(-margin, canvas.width + margin)
            if clumping and count and rng.random() < clumping:
                beside, towards = taken[rng.integers(count)], rng.uniform(0, 2 * np.pi)
                away = beside[2] + radius * rng.uniform(0.88, 1.05)
                near_y, near_x = beside[0] + away * np.sin(towards), beside[1] + away * np.cos(towards)
                if -margin < near_y < canvas.height + margin and -margin < near_x < canvas.width + margin:
                    y, x = near_y, near_x
            gap = np.hypot(taken[:count, 0] - y, taken[:count, 1] - x) - taken[:count, 2] - radius
            if gap.min(initial=np.inf) > -radius * (0.12 + 0.01 * max(0, attempt - 10)):
                taken[count] = y, x, radius
                count += 1
                found.append((number, round(y), round(x)))
                break
    placed[:] = [(float(y), float(x), float(radius)) for y, x, radius in taken[:count]]
    return found


def press(rng: np.random.Generator, cells: Sequence[Cell], places: Sequence[tuple[int, int]], px: float) -> list[Cell]:
    """Return the cells, flattened where they touch: neighbours share a straight border, as in a dense marrow.

    Parameters
    ----------
    rng : numpy.random.Generator
        Draws which pairs overlap freely instead.
    cells : sequence of Cell
        What will be drawn.
    places : sequence of (int, int)
        Their centres in px.
    px : float
        Micrometres per px.
    """
    centres = np.reshape(np.asarray(places, np.float64), (-1, 2)) * px
    reach = np.array([cell.extent for cell in cells])
    faces: list[list[tuple[float, float]]] = [[] for _ in cells]
    for first in range(len(cells)):
        dy, dx = (centres[first + 1 :] - centres[first]).T
        away = np.hypot(dy, dx)
        for step in np.flatnonzero((away < 1.2 * (reach[first + 1 :] + reach[first])) & (away > 1.0)):
            free, gap = rng.random() < 0.2, rng.uniform(-0.1, 0.25)
            if free:
                continue
            second, apart = first + 1 + int(step), float(away[step])
            # The line on which both discs have the same power: where they cross, if they do.
            near = (apart**2 + reach[first] ** 2 - reach[second] ** 2) / (2 * apart)
            near = float(
                np.clip(near, min(0.6 * reach[first], 0.5 * apart), apart - min(0.6 * reach[second], 0.5 * apart))
            )
            angle = float(np.arctan2(dy[step], dx[step]))
            faces[first].append((angle, near - gap))
            faces[second].append((angle + np.pi, apart - near - gap))
    return [replace(cell, faces=np.array(flat)) if flat else cell for cell, flat in zip(cells, faces, strict=True)]


def _chains(
    rng: np.random.Generator, canvas: Canvas, count: int, radius: float, placed: list[Disc]
) -> list[tuple[int, int]]:
    """Centres of red cells stacked like coins, in bent rows of three to nine."""
    taken = np.reshape(placed, (-1, 3))
    centres: list[tuple[int, int]] = []
    while len(centres) < count:
        y, x = rng.uniform(0, canvas.height), rng.uniform(0, canvas.width)
        heading, pace = rng.uniform(0, 2 * np.pi), radius * rng.uniform(0.7, 1.6)
        for _ in range(int(rng.integers(3, 10))):
            gap = np.hypot(taken[:, 0] - y, taken[:, 1] - x) - taken[:, 2]
            if gap.min(initial=np.inf) > 0:
                centres.append((round(y), round(x)))
            else:
                count -= 1
            heading += rng.normal(0.0, 0.25)
            y, x = y + pace * np.sin(heading), x + pace * np.cos(heading)
    return centres


def surround(canvas: Canvas, smear: Smear, rng: np.random.Generator, placed: list[Disc]) -> None:
    """Draw red cells around what is already placed, platelets and debris anywhere."""
    px = canvas.pixel_size_um
    if smear.curd:
        # Plasma dries in flakes, more here than there, and below the cells.
        texture = Texture(int(rng.integers(2**31)), np.arange(canvas.height), np.arange(canvas.width))
        flakes = np.maximum(texture(4.2) - 0.3, 0.0) * np.maximum(texture(24.0) + 0.3, 0.0)
        for channel, stain in enumerate((0.9, 1.1, 0.2)):
            canvas.density[..., channel] += np.float32(smear.curd * stain) * flakes
    count = expected_number(rng, canvas, smear.red_cells)
    stacked = int(rng.binomial(count, smear.rouleaux))
    # Red cells may lie under each other and under nucleated cells, as they do where a smear is thick.
    crowded = [(y, x, radius * 0.8) for y, x, radius in placed]
    centres = _chains(rng, canvas, stacked, 3.5 / px, crowded)
    loose = np.full(count - stacked, 3.5 / px * (0.88 - 0.22 * min(1.0, smear.red_cells / 240.0)))
    centres += [(y, x) for _, y, x in scatter(rng, canvas, loose, crowded, tries=10, clumping=0.5)]
    # They leave parts of a smear free: waves of a fifth of a millimetre thin them out.
    waves = rng.uniform(0, 2 * np.pi, (3, 2)), rng.uniform(25.0, 70.0, 3) / px
    for y, x in centres:
        height = sum(
            np.sin((y * np.sin(turn) + x * np.cos(turn)) * 2 * np.pi / length + phase)
            for (turn, phase), length in zip(*waves, strict=True)
        )
        if height * smear.patchiness < 1.0:
            draw_red_cell(canvas, rng, y, x, smear.red_cell, bluish=bool(rng.random() < smear.polychromasia))
    draw_platelets(canvas, rng, expected_number(rng, canvas, smear.platelets))
    draw_specks(canvas, rng, expected_number(rng, canvas, smear.debris))
