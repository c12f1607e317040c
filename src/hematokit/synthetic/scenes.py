"""Synthetic crops and fields with their ground truth: cells, red cells, platelets and debris arranged on a canvas.

Cells may touch and flatten each other; red cells are loose, in mats and in rouleaux.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hematokit.errors import HematokitError
from hematokit.synthetic.anatomy import Cell
from hematokit.synthetic.canvas import PIXEL_SIZE_UM, Canvas, Texture
from hematokit.synthetic.classes import CODES, MARROW, make_cell
from hematokit.synthetic.drawing import draw_cell, draw_platelets, draw_red_cell, draw_specks
from hematokit.synthetic.smears import Smear, develop, smear_style

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "SyntheticCell",
    "SyntheticCrop",
    "SyntheticField",
    "crop_counts",
    "synthesize_crops",
    "synthesize_field",
]

_Disc = tuple[float, float, float]
"""Row, column and radius in px of an occupied disc."""


def _expected_number(rng: np.random.Generator, canvas: Canvas, per_10000_um2: float) -> int:
    """Return a random number of objects of that density on the canvas and a margin of 4 um around it."""
    height, width = (side * canvas.pixel_size_um + 8.0 for side in (canvas.height, canvas.width))
    return int(rng.poisson(per_10000_um2 * height * width / 1e4))


def _scatter(
    rng: np.random.Generator,
    canvas: Canvas,
    radii: NDArray[np.float64],
    placed: list[_Disc],
    *,
    tries: int = 6,
    clumping: float = 0.0,
) -> list[tuple[int, int, int]]:
    """Return positions (number, y, x) at which discs of these radii (px) hardly overlap each other and those placed.

    More and more overlap is allowed after ten tries; a disc that fits nowhere is left out. `clumping` is the share of
    positions that are tried directly beside a placed disc.
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


def _press(rng: np.random.Generator, cells: Sequence[Cell], places: Sequence[tuple[int, int]], px: float) -> list[Cell]:
    """Return cells flattened where they touch: neighbours share a straight border, as in a dense marrow.

    Parameters
    ----------
    rng : numpy.random.Generator
        Selects the pairs that overlap instead.
    cells : sequence of Cell
        The cells.
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
            # The radical line of the two discs: where they cross, if they do.
            near = (apart**2 + reach[first] ** 2 - reach[second] ** 2) / (2 * apart)
            near = float(
                np.clip(near, min(0.6 * reach[first], 0.5 * apart), apart - min(0.6 * reach[second], 0.5 * apart))
            )
            angle = float(np.arctan2(dy[step], dx[step]))
            faces[first].append((angle, near - gap))
            faces[second].append((angle + np.pi, apart - near - gap))
    return [replace(cell, faces=np.array(flat)) if flat else cell for cell, flat in zip(cells, faces, strict=True)]


def _chains(
    rng: np.random.Generator, canvas: Canvas, count: int, radius: float, placed: list[_Disc]
) -> list[tuple[int, int]]:
    """Return centres of red cells in rouleaux: bent rows of three to nine."""
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


def _surround(canvas: Canvas, smear: Smear, rng: np.random.Generator, placed: list[_Disc]) -> None:
    """Draw red cells around the placed discs, and platelets and debris anywhere."""
    px = canvas.pixel_size_um
    if smear.curd:
        # Plasma dries in flakes, unevenly, and below the cells.
        texture = Texture(int(rng.integers(2**31)), np.arange(canvas.height), np.arange(canvas.width))
        flakes = np.maximum(texture(4.2) - 0.3, 0.0) * np.maximum(texture(24.0) + 0.3, 0.0)
        for channel, stain in enumerate((0.9, 1.1, 0.2)):
            canvas.density[..., channel] += np.float32(smear.curd * stain) * flakes
    count = _expected_number(rng, canvas, smear.red_cells)
    stacked = int(rng.binomial(count, smear.rouleaux))
    # Red cells may overlap each other and nucleated cells, as in the thick parts of a smear.
    crowded = [(y, x, radius * 0.8) for y, x, radius in placed]
    centres = _chains(rng, canvas, stacked, 3.5 / px, crowded)
    loose = np.full(count - stacked, 3.5 / px * (0.88 - 0.22 * min(1.0, smear.red_cells / 240.0)))
    centres += [(y, x) for _, y, x in _scatter(rng, canvas, loose, crowded, tries=10, clumping=0.5)]
    # Parts of a smear are free of them: waves of a fifth of a millimetre thin them out.
    waves = rng.uniform(0, 2 * np.pi, (3, 2)), rng.uniform(25.0, 70.0, 3) / px
    for y, x in centres:
        height = sum(
            np.sin((y * np.sin(turn) + x * np.cos(turn)) * 2 * np.pi / length + phase)
            for (turn, phase), length in zip(*waves, strict=True)
        )
        if height * smear.patchiness < 1.0:
            draw_red_cell(canvas, rng, y, x, smear.red_cell, bluish=bool(rng.random() < smear.polychromasia))
    draw_platelets(canvas, rng, _expected_number(rng, canvas, smear.platelets))
    draw_specks(canvas, rng, _expected_number(rng, canvas, smear.debris))


@dataclass(frozen=True, eq=False)
class SyntheticCell:
    """Ground truth of one cell of a crop or field, as drawn, without the cells that cover it later.

    Attributes
    ----------
    code : str
        Class code.
    y, x : float
        Its centre, in px with pixel corners on the integers; for a cell cut by the border of the image, the nearest
        point of its box.
    y0, x0, height, width : int
        Box of its visible part, px, half-open.
    touches_border : bool
        Whether the border of the image cuts it.
    body, nucleus : ndarray, bool, shape (height, width)
        Masks over the box. A cell without a nucleus (stain precipitate) has an empty one.
    """

    code: str
    y: float
    x: float
    y0: int
    x0: int
    height: int
    width: int
    touches_border: bool
    body: NDArray[np.bool_]
    nucleus: NDArray[np.bool_]

    @cached_property
    def contours(self) -> list[NDArray[np.float64]]:
        """Contours of the nucleus' parts: arrays (n, 2) of row and column, pixel corners on the integers."""
        from skimage.measure import find_contours

        padded = np.pad(self.nucleus.astype(np.float64), 1)
        return [line + np.array([self.y0 - 0.5, self.x0 - 0.5]) for line in find_contours(padded, 0.5)]


@dataclass(frozen=True, eq=False)
class SyntheticCrop:
    """One synthetic single-cell crop.

    Attributes
    ----------
    code : str
        Class of the cell in the middle.
    index : int
        Number within its class, from 0.
    pixels : ndarray, uint8, shape (size, size, 3)
        RGB.
    smear_id, patient_id : str
        Its synthetic smear and patient.
    cells : tuple of SyntheticCell
        All nucleated cells in view; the first is the one in the middle.
    """

    code: str
    index: int
    pixels: NDArray[np.uint8]
    smear_id: str
    patient_id: str
    cells: tuple[SyntheticCell, ...]

    @property
    def nucleus(self) -> NDArray[np.bool_]:
        """Mask (size, size) of the middle cell's nucleus."""
        return self._whole(self.cells[0].nucleus)

    @property
    def body(self) -> NDArray[np.bool_]:
        """Mask (size, size) of the middle cell."""
        return self._whole(self.cells[0].body)

    def _whole(self, part: NDArray[np.bool_]) -> NDArray[np.bool_]:
        cell = self.cells[0]
        mask = np.zeros(self.pixels.shape[:2], np.bool_)
        mask[cell.y0 : cell.y0 + cell.height, cell.x0 : cell.x0 + cell.width] = part
        return mask


@dataclass(frozen=True, eq=False)
class SyntheticField:
    """One synthetic field of view.

    Attributes
    ----------
    pixels : ndarray, uint8, shape (height, width, 3)
        RGB.
    cells : tuple of SyntheticCell
        Every nucleated cell, in the order drawn: later ones cover earlier ones.
    smear_id, patient_id : str
        Its synthetic smear and patient.
    pixel_size_um : float
        Micrometres per px.
    """

    pixels: NDArray[np.uint8]
    cells: tuple[SyntheticCell, ...]
    smear_id: str
    patient_id: str
    pixel_size_um: float = PIXEL_SIZE_UM

    def table(self) -> pd.DataFrame:
        """Return the ground truth as a table: label, y, x, y0, x0, height, width, touches_border, nucleus_area (px)."""
        import pandas as pd

        columns = ["label", "y", "x", "y0", "x0", "height", "width", "touches_border", "nucleus_area"]
        rows = [
            (c.code, c.y, c.x, c.y0, c.x0, c.height, c.width, c.touches_border, int(c.nucleus.sum()))
            for c in self.cells
        ]
        return pd.DataFrame(rows, columns=columns)


def _place_cell(canvas: Canvas, cell: Cell, y: int, x: int) -> SyntheticCell | None:
    drawn = draw_cell(canvas, cell, y, x)
    if drawn is None or not drawn.body.any():
        return None
    rows, columns = np.flatnonzero(drawn.body.any(axis=1)), np.flatnonzero(drawn.body.any(axis=0))
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    y0, x0 = drawn.y0 + top, drawn.x0 + left
    return SyntheticCell(
        code=cell.code,
        y=float(np.clip(y + 0.5, y0, y0 + bottom - top)),
        x=float(np.clip(x + 0.5, x0, x0 + right - left)),
        y0=y0,
        x0=x0,
        height=bottom - top,
        width=right - left,
        touches_border=y0 == 0 or x0 == 0 or y0 + bottom - top == canvas.height or x0 + right - left == canvas.width,
        body=drawn.body[top:bottom, left:right].copy(),
        nucleus=drawn.nucleus[top:bottom, left:right].copy(),
    )


def _draw_codes(rng: np.random.Generator, count: int) -> list[str]:
    weights = np.array(list(MARROW.values()), np.float64)
    return [str(code) for code in rng.choice(list(MARROW), count, p=weights / weights.sum())]


def _synthesize_crop(code: str, index: int, seed: int, size: int, smears: int) -> SyntheticCrop:
    rng = np.random.default_rng([seed, zlib.crc32(code.encode()), index])
    # Every class is spread evenly over the smears, so that no class has a distinct background.
    smear = smear_style(seed, (index + zlib.crc32(code.encode())) % smears)
    canvas = Canvas(size, size)
    cell = make_cell(code, rng)
    middle = np.rint(size / 2 + np.clip(rng.normal(0.0, 2.5, 2), -6, 6)).astype(int)
    px = canvas.pixel_size_um
    placed: list[_Disc] = [(float(middle[0]), float(middle[1]), cell.extent / px)]
    count = _expected_number(rng, canvas, smear.nucleated)
    others = [make_cell(other, rng) for other in _draw_codes(rng, count)]
    radii = np.array([other.extent / px for other in others])
    spots = _scatter(rng, canvas, radii, placed, tries=12, clumping=smear.clumping)
    _surround(canvas, smear, rng, placed)
    places = [(int(middle[0]), int(middle[1])), *((y, x) for _, y, x in spots)]
    own_cell, *around = _press(rng, [cell, *(others[number] for number, _, _ in spots)], places, px)
    cells = [_place_cell(canvas, other, *place) for other, place in zip(around, places[1:], strict=True)]
    own = _place_cell(canvas, own_cell, *places[0])
    if own is None:
        raise HematokitError(f"a cell of class {code} does not show in a crop of {size} px; ask for a larger size")
    pixels = develop(canvas, smear, rng, blur=smear.blur * float(np.exp(rng.normal(0.0, 0.18))))
    truth = (own, *(other for other in cells if other is not None))
    return SyntheticCrop(code, index, pixels, smear.smear_id, smear.patient_id, truth)


def crop_counts(counts: Mapping[str, int] | int) -> dict[str, int]:
    """Return the crops per class in the order of the taxonomy; a number is used for every class.

    Raises
    ------
    HematokitError
        If a class cannot be drawn or a count is negative.
    """
    from hematokit.taxonomy import MATEK_21

    wanted = dict.fromkeys(MATEK_21.codes, counts) if isinstance(counts, int) else dict(counts)
    unknown = sorted(set(wanted) - set(CODES))
    if unknown:
        raise HematokitError(f"class {unknown[0]!r} cannot be drawn; choose among {', '.join(MATEK_21.codes)}")
    negative = [code for code, count in wanted.items() if count < 0]
    if negative:
        raise HematokitError(f"{wanted[negative[0]]} crops of class {negative[0]}: ask for 0 or more")
    return {code: wanted[code] for code in MATEK_21.codes if wanted.get(code)}


def synthesize_crops(
    counts: Mapping[str, int] | int, *, seed: int = 0, size: int = 250, smears: int = 8
) -> Iterator[SyntheticCrop]:
    """Draw single-cell crops, class by class.

    Parameters
    ----------
    counts : mapping of str to int, or int
        Crops per class code, or as many of every class.
    seed : int
        The crop of a class and index is the same for the same seed, `size` and `smears`, whatever else is drawn.
    size : int
        Side in px.
    smears : int
        Number of smears (stains and lights) to spread the crops over; two make a patient.

    Yields
    ------
    SyntheticCrop
        In the taxonomy's order of classes.

    Raises
    ------
    HematokitError
        If a class cannot be drawn, or a number makes no sense.
    """
    if size < 32 or smears < 1 or seed < 0:
        raise HematokitError(
            f"size {size}, smears {smears}, seed {seed}: needed are at least 32 px, 1 smear and seed 0"
        )
    wanted = crop_counts(counts)

    def crops() -> Iterator[SyntheticCrop]:
        for code, count in wanted.items():
            for index in range(count):
                yield _synthesize_crop(code, index, seed, size, smears)

    return crops()


def synthesize_field(
    height: int = 2056, width: int = 2452, *, cells: Mapping[str, int] | int = 200, seed: int = 0, smear: int = 0
) -> SyntheticField:
    """Draw a whole field of a smear.

    Parameters
    ----------
    height, width : int
        Size in px.
    cells : mapping of str to int, or int
        Nucleated cells per class, or their number, of classes as often as in a marrow. Fewer are drawn where
        so many do not fit.
    seed : int
        Same seed, same field.
    smear : int
        Number of the smear whose stain and light it has.

    Returns
    -------
    SyntheticField

    Raises
    ------
    HematokitError
        If a class cannot be drawn, or a number makes no sense.
    """
    if height < 32 or width < 32 or seed < 0 or smear < 0:
        raise HematokitError(f"a field of {width}x{height} px, seed {seed}, smear {smear}: too small or negative")
    rng = np.random.default_rng([seed, 11, smear])
    look = smear_style(seed, smear)
    canvas = Canvas(height, width)
    if isinstance(cells, int):
        if cells < 0:
            raise HematokitError(f"{cells} cells: ask for 0 or more")
        codes = _draw_codes(rng, cells)
    else:
        codes = [code for code, count in crop_counts(cells).items() for _ in range(count)]
        rng.shuffle(codes)
    made = [make_cell(code, rng) for code in codes]
    radii = np.array([cell.extent / canvas.pixel_size_um for cell in made])
    placed: list[_Disc] = []
    spots = _scatter(rng, canvas, radii, placed, tries=50, clumping=look.clumping)
    _surround(canvas, look, rng, placed)
    places = [(y, x) for _, y, x in spots]
    pressed = _press(rng, [made[number] for number, _, _ in spots], places, canvas.pixel_size_um)
    truth = [_place_cell(canvas, cell, *place) for cell, place in zip(pressed, places, strict=True)]
    seen = tuple(cell for cell in truth if cell is not None)
    return SyntheticField(develop(canvas, look, rng), seen, look.smear_id, look.patient_id)
