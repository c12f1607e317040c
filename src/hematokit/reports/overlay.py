"""A field with its cells outlined in the colours of their classes, and a legend beside it.

Drawn with Pillow: a field of 5 million pixels with 200 cells takes half a second, most of it compression. The fonts,
colours and lengths used here serve other figures that are drawn without matplotlib.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image, ImageDraw

from hematokit.annotations.cells import MIN_PROBABILITY, called_classes, low_confidence_cells
from hematokit.differential.counts import counting_groups

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

    from hematokit.taxonomy import Taxonomy

__all__ = ["Picturable", "contrasting", "draw_overlay", "font", "scale_bar_length", "shortened"]


@lru_cache(maxsize=64)
def font(size: int, *, bold: bool = False) -> FreeTypeFont:
    """Return DejaVu Sans at a height in pixels; it comes with matplotlib and has Latin, Greek and Cyrillic letters."""
    import matplotlib
    from PIL import ImageFont

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", name)
    return ImageFont.truetype(str(path), max(6, size))


def _colour_rgb(colour: str) -> tuple[int, int, int]:
    """Return ``"#rrggbb"`` as three numbers from 0 to 255."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def contrasting(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return white for a dark colour and nearly black for a light one, which is readable on it."""
    channels = [value / 255 for value in colour]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    # Where the contrast ratios (WCAG 2) with white and with black are equal.
    return (20, 20, 20) if luminance > 0.2 else (255, 255, 255)


def shortened(text: str, letters: FreeTypeFont, width: float) -> str:
    """Return the text, cut with an ellipsis to fit a width in pixels."""
    if letters.getlength(text) <= width:
        return text
    while text and letters.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


def scale_bar_length(width_um: float) -> float:
    """Return a round length (1, 2 or 5 times a power of ten) of about a tenth of the image's width, in micrometres."""
    wanted = width_um / 8
    power = 10.0 ** math.floor(math.log10(wanted))
    return max(step * power for step in (1, 2, 5) if step * power <= wanted)


Colour = tuple[int, int, int]
_INK: Final[Colour] = (31, 41, 51)
_MUTED: Final[Colour] = (91, 103, 116)
_PAPER: Final[Colour] = (255, 255, 255)
_PLAIN: Final[Colour] = (0, 220, 255)
"""Of cells without a class: a colour that no stain has."""

_SMALLEST: Final = 1200
"""Longer side that small fields are enlarged to, so that letters and outlines have enough pixels."""
_MOST_CODES: Final = 500
"""With more cells than this, no codes are written beside them."""


class Picturable(Protocol):
    """The interface that drawing needs of a field."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def height(self) -> int:
        """Pixels."""

    @property
    def width(self) -> int:
        """Pixels."""

    @property
    def pixel_size_um(self) -> float | None:
        """Micrometres per pixel, where known."""

    def thumbnail(self, longest: int) -> tuple[npt.NDArray[np.uint8], float]:
        """Pixels (h, w, 3), and how many of the field's pixels one of them is wide."""


@dataclass(frozen=True, slots=True)
class _Mark:
    """One cell as drawn: its outline (n, 2) as ``(x, y)`` in the overlay, and its style."""

    outline: npt.NDArray[np.float64]
    colour: Colour
    low_confidence: bool
    code: str

    @property
    def box(self) -> tuple[float, float, float, float]:
        x0, y0 = self.outline.min(axis=0).tolist()
        x1, y1 = self.outline.max(axis=0).tolist()
        return x0, y0, x1, y1


def draw_overlay(
    field: Picturable,
    cells: pd.DataFrame,
    taxonomy: Taxonomy,
    *,
    min_probability: float = MIN_PROBABILITY,
    longest: int = 2452,
) -> bytes:
    """Draw a field with its cells.

    Each cell gets an outline around its nucleus in the colour of its class, dashed where it is low-confidence,
    and its class code where there is room beside it. The legend on the right counts the classes; a scale bar is drawn
    where the pixel size is known. Before classification all cells have one colour.

    Parameters
    ----------
    field : Field
        The opened field.
    cells : DataFrame
        Its cells table.
    taxonomy : Taxonomy
        Gives colours and names.
    min_probability : float
        Probability below which a cell is low-confidence.
    longest : int
        Longer side of the field in the overlay, in pixels; larger fields are downsampled to it.

    Returns
    -------
    bytes
        A PNG file.

    Raises
    ------
    ImageError
        If the field cannot be read.
    """
    pixels, factor = field.thumbnail(longest)
    image = Image.fromarray(pixels)
    enlarged = max(1.0, min(_SMALLEST, longest) / max(image.size))
    if enlarged > 1:
        size = (max(1, round(image.width * enlarged)), max(1, round(image.height * enlarged)))
        image = image.resize(size, Image.Resampling.BICUBIC)
    scale = enlarged / factor
    unit = max(image.size) / 1200
    """Pixels of the picture that are one pixel when it is shown 1200 pixels wide."""

    marks = _marks(cells, taxonomy, min_probability, scale, unit)
    canvas = ImageDraw.Draw(image)
    for mark in marks:
        _outline(canvas, mark, unit)
    if len(marks) <= _MOST_CODES:
        _codes(canvas, image.size, marks, unit)
    if field.pixel_size_um is not None:
        _scale_bar(canvas, image.size, field.pixel_size_um / scale, unit)
    legend = _legend(cells, taxonomy, min_probability, field.name, image.height, unit)
    sheet = Image.new("RGB", (image.width + legend.width, max(image.height, legend.height)), _PAPER)
    sheet.paste(image, (0, 0))
    sheet.paste(legend, (image.width, 0))
    return _png(sheet)


def _png(image: Image.Image) -> bytes:
    """Compress with settings that take a tenth of the default's time on photographs, for about the same size."""
    import imagecodecs

    png = imagecodecs.PNG
    return bytes(imagecodecs.png_encode(np.asarray(image), level=1, strategy=png.STRATEGY.RLE, filter=png.FILTER.PAETH))


def _marks(cells: pd.DataFrame, taxonomy: Taxonomy, min_probability: float, scale: float, unit: float) -> list[_Mark]:
    colours = {entry.code: _colour_rgb(entry.colour) for entry in taxonomy}
    called, low_confidence = called_classes(cells), low_confidence_cells(cells, min_probability)
    contours = list(cells["contour"]) if "contour" in cells.columns else [None] * len(cells)
    boxes = cells[["y0", "x0", "height", "width"]].to_numpy(np.float64)
    marks = []
    for contour, (y0, x0, height, width), code, is_low_confidence in zip(
        contours, boxes, called, low_confidence, strict=True
    ):
        if contour is not None and len(contour) >= 3:
            points = np.asarray(contour, np.float64)[:, ::-1] * scale
        else:
            points = _ellipse(y0, x0, height, width) * scale
        text = f"{code}?" if code and is_low_confidence else str(code)
        marks.append(
            _Mark(
                _widened(_thinned(points, 4 * unit), 1.5 * unit),
                colours.get(code, _PLAIN),
                bool(is_low_confidence),
                text,
            )
        )
    return marks


def _ellipse(y0: float, x0: float, height: float, width: float) -> npt.NDArray[np.float64]:
    """A cell without an outline is drawn as the ellipse in its box, which hides less of it than the box."""
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    return np.stack([x0 + width * (0.5 + 0.5 * np.cos(angle)), y0 + height * (0.5 + 0.5 * np.sin(angle))], axis=1)


def _thinned(points: npt.NDArray[np.float64], step: float) -> npt.NDArray[np.float64]:
    """Return an outline without points that are too close to be distinguished; they take most of the drawing time."""
    steps = np.hypot(*(np.concatenate((points[1:], points[:1])) - points).T)
    keep = np.unique(np.floor(np.append(0.0, np.cumsum(steps)[:-1]) / step), return_index=True)[1]
    return points[keep] if len(keep) >= 8 else points


def _widened(points: npt.NDArray[np.float64], margin: float) -> npt.NDArray[np.float64]:
    """Move an outline outward from its middle, so that the line is around the nucleus and not on its edge."""
    middle = (points.min(axis=0) + points.max(axis=0)) / 2
    away = points - middle
    distance = np.maximum(np.hypot(away[:, 0], away[:, 1]), 1e-6)
    # Against the larger of the two, lest a point near the middle of a lobed nucleus be thrown far out.
    widened: npt.NDArray[np.float64] = middle + away * (1 + margin / np.maximum(distance, np.median(distance)))[:, None]
    return widened


def _outline(canvas: ImageDraw.ImageDraw, mark: _Mark, unit: float) -> None:
    x0, y0, x1, y1 = mark.box
    line = max(1, round(2.6 * unit))
    if max(x1 - x0, y1 - y0) < 5 * line:
        # Too small for an outline: a dot.
        x, y, radius = (x0 + x1) / 2, (y0 + y1) / 2, max(1.5, 1.6 * unit)
        fill = None if mark.low_confidence else mark.colour
        canvas.ellipse(
            (x - radius, y - radius, x + radius, y + radius), fill=fill, outline=mark.colour, width=line // 2
        )
        return
    halo = contrasting(mark.colour)
    # Pillow draws slanted lines one pixel narrower than requested: with less, they would have no halo.
    wide = line + max(4, 2 * round(unit))
    closed = np.vstack([mark.outline, mark.outline[:2]])
    path = [(float(x), float(y)) for x, y in closed]
    if not mark.low_confidence:
        canvas.line(path, fill=halo, width=wide, joint="curve")
        canvas.line(path, fill=mark.colour, width=line, joint="curve")
        return
    for dash in _dashes(closed[:-1], 7 * unit, 6 * unit):
        canvas.line(dash, fill=halo, width=wide)
        canvas.line(dash, fill=mark.colour, width=line)


def _dashes(path: npt.NDArray[np.float64], dash: float, gap: float) -> Iterable[list[tuple[float, float]]]:
    """Cut a path (n, 2) into pieces of that length with gaps between."""
    steps = np.hypot(*np.diff(path, axis=0).T)
    along = np.append(0.0, np.cumsum(steps))
    count = max(3, round(along[-1] / (dash + gap)))
    period = along[-1] / count
    for number in range(count):
        start, stop = number * period, number * period + period * dash / (dash + gap)
        inner = along[(along > start) & (along < stop)]
        where = np.concatenate([[start], inner, [stop]])
        xs, ys = np.interp(where, along, path[:, 0]), np.interp(where, along, path[:, 1])
        yield list(zip(xs.tolist(), ys.tolist(), strict=True))


def _codes(canvas: ImageDraw.ImageDraw, size: tuple[int, int], marks: list[_Mark], unit: float) -> None:
    """Write each cell's code beside it where neither a cell nor another code is in the way."""
    letters = font(round(11 * unit), bold=True)
    pad = max(1, round(2 * unit))
    cell = max(2, round(3 * unit))
    taken = np.zeros((size[1] // cell + 2, size[0] // cell + 2), np.bool_)

    def area(x0: float, y0: float, x1: float, y1: float) -> tuple[slice, slice]:
        return (
            slice(max(0, int(y0 // cell)), max(0, int(y1 // cell) + 1)),
            slice(max(0, int(x0 // cell)), max(0, int(x1 // cell) + 1)),
        )

    for mark in marks:
        taken[area(*mark.box)] = True
    sizes = {code: _text_size(letters, code) for code in {mark.code for mark in marks}}
    for mark in marks:
        if not mark.code:
            continue
        width, height = sizes[mark.code]
        width, height = width + 2 * pad, height + 2 * pad
        x0, y0, x1, y1 = mark.box
        middle, level, gap = (x0 + x1 - width) / 2, (y0 + y1 - height) / 2, 4 * unit
        # Above the cell if there is space, otherwise at another side.
        for x, y in (
            (middle, y0 - height - gap),
            (middle, y1 + gap),
            (x1 + gap, level),
            (x0 - width - gap, level),
            (x1, y0 - height),
            (x0 - width, y0 - height),
            (x1, y1),
            (x0 - width, y1),
        ):
            if x < 0 or y < 0 or x + width >= size[0] or y + height >= size[1]:
                continue
            where = area(x, y, x + width, y + height)
            if taken[where].any():
                continue
            taken[where] = True
            canvas.rounded_rectangle((x, y, x + width, y + height), radius=3 * unit, fill=mark.colour)
            canvas.text(
                (x + width / 2, y + height / 2), mark.code, font=letters, fill=contrasting(mark.colour), anchor="mm"
            )
            break


def _text_size(letters: FreeTypeFont, text: str) -> tuple[float, float]:
    left, _, right, _ = letters.getbbox(text)
    # One height for all, whatever letters a code has.
    _, top, _, bottom = letters.getbbox("H")
    return right - left, bottom - top


def _scale_bar(canvas: ImageDraw.ImageDraw, size: tuple[int, int], um_per_pixel: float, unit: float) -> None:
    length = scale_bar_length(size[0] * um_per_pixel)
    wide, thick = length / um_per_pixel, max(2, round(4 * unit))
    letters = font(round(13 * unit), bold=True)
    text = f"{length:g} µm"
    left, bottom = round(14 * unit), size[1] - round(14 * unit)
    pad = round(7 * unit)
    top = bottom - thick - round(20 * unit)
    inner = max(wide, letters.getlength(text))
    canvas.rounded_rectangle((left - pad, top - pad, left + inner + pad, bottom + pad), radius=4 * unit, fill=_PAPER)
    canvas.rectangle((left, bottom - thick, left + wide, bottom), fill=_INK)
    canvas.text((left + inner / 2, bottom - thick - 5 * unit), text, font=letters, fill=_INK, anchor="mb")


def _legend(
    cells: pd.DataFrame, taxonomy: Taxonomy, min_probability: float, title: str, height: int, unit: float
) -> Image.Image:
    """The panel on the right: classes with their counts, in the taxonomy's order."""
    lines = _legend_lines(cells, taxonomy, min_probability)
    width, row = round(360 * unit), round(25 * unit)
    head = round(74 * unit)
    panel = Image.new("RGB", (width, max(height, head + round((len(lines) + 2.4) * row))), _PAPER)
    canvas = ImageDraw.Draw(panel)
    left, right = round(16 * unit), width - round(14 * unit)
    large, plain, bold = font(round(17 * unit), bold=True), font(round(14 * unit)), font(round(14 * unit), bold=True)
    small = font(round(11 * unit))
    canvas.text((left, 12 * unit), shortened(title, large, right - left), font=large, fill=_INK)
    found = f"{len(cells):,} cell{'s' if len(cells) != 1 else ''}"
    canvas.text((left, 38 * unit), found, font=plain, fill=_MUTED)
    y = float(head)
    counts = max((plain.getlength(line.count) for line in lines), default=0.0) + 10 * unit
    # One column for all codes, but a code of 32 letters must not push the names out of the panel.
    codes = min(90 * unit, max([44 * unit, *(bold.getlength(line.code) + 10 * unit for line in lines)]))
    numbers, percents = right - round(58 * unit), right
    for line in lines:
        middle = y + row / 2
        if line.swatch is not None:
            radius = 8 * unit
            if line.dashed:
                ring = _ellipse(middle - radius, left, 2 * radius, 2 * radius)
                _outline(canvas, _Mark(ring, line.swatch, True, ""), unit)
            else:
                disc = (left, middle - radius, left + 2 * radius, middle + radius)
                canvas.ellipse(disc, fill=line.swatch, outline=_MUTED, width=max(1, round(unit)))
        start = left + (26 * unit if line.swatch is not None else 0)
        colour = _MUTED if line.muted else _INK
        if line.code:
            canvas.text((start, middle), line.code, font=bold, fill=colour, anchor="lm")
            start += max(codes, bold.getlength(line.code) + 8 * unit)
        letters = small if line.heading else plain
        canvas.text(
            (start, middle),
            shortened(line.name, letters, (numbers - counts if line.count else right) - start),
            font=letters,
            fill=_MUTED if line.heading else colour,
            anchor="lm",
        )
        canvas.text((numbers, middle), line.count, font=plain, fill=colour, anchor="rm")
        canvas.text((percents, middle), line.percent, font=plain, fill=colour, anchor="rm")
        y += row
    canvas.text((left, panel.height - 12 * unit), "For research use only", font=small, fill=_MUTED, anchor="lb")
    return panel


@dataclass(frozen=True, slots=True)
class _Line:
    name: str
    code: str = ""
    count: str = ""
    percent: str = ""
    swatch: Colour | None = None
    dashed: bool = False
    muted: bool = False
    heading: bool = False


def _legend_lines(cells: pd.DataFrame, taxonomy: Taxonomy, min_probability: float) -> list[_Line]:
    called, low_confidence = called_classes(cells), low_confidence_cells(cells, min_probability)
    if not len(cells):
        return [_Line("No nucleated cell was found.", muted=True)]
    if not (called != "").any():
        return [_Line("Nucleated cells, not classified", count=f"{len(cells):,}", swatch=_PLAIN)]
    groups = counting_groups(taxonomy)
    sure = {code: int(((called == code) & ~low_confidence).sum()) for code in taxonomy.codes}
    total = sum(sure[code] for code in groups.counted)
    lines = [
        _Line(
            taxonomy[code].name,
            code,
            f"{sure[code]:,}",
            _percent(sure[code] / total),
            _colour_rgb(taxonomy[code].colour),
        )
        for code in groups.counted
        if sure[code]
    ]
    apart = [
        _Line(taxonomy[code].name, code, f"{sure[code]:,}", "", _colour_rgb(taxonomy[code].colour), muted=True)
        for code in groups.apart
        if sure[code]
    ]
    if apart:
        lines += [_Line("Not in the per cent:", heading=True), *apart]
    below = int((low_confidence | (called == "")).sum())
    if below:
        lines += [
            _Line(f"Probability below {min_probability:g}:", heading=True),
            _Line("Low-confidence", "?", f"{below:,}", "", _MUTED, dashed=True, muted=True),
        ]
    return lines


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if math.isfinite(share) else ""
