"""Letters, colours and lengths of pictures that are drawn without matplotlib."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

__all__ = ["colour_rgb", "contrasting", "font", "scale_bar_length", "shortened"]


@lru_cache(maxsize=64)
def font(size: int, *, bold: bool = False) -> FreeTypeFont:
    """DejaVu Sans at a height in pixels. It comes with matplotlib and knows Latin, Greek and Cyrillic letters."""
    import matplotlib
    from PIL import ImageFont

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", name)
    return ImageFont.truetype(str(path), max(6, size))


def colour_rgb(colour: str) -> tuple[int, int, int]:
    """``"#rrggbb"`` as three numbers from 0 to 255."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def contrasting(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    """White for a dark colour, nearly black for a light one: what can be read on it, and sets it off."""
    channels = [value / 255 for value in colour]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    # Where the contrast ratios (WCAG 2) with white and with black are equal.
    return (20, 20, 20) if luminance > 0.2 else (255, 255, 255)


def shortened(text: str, letters: FreeTypeFont, width: float) -> str:
    """The text, cut with an ellipsis to fit a width in pixels."""
    if letters.getlength(text) <= width:
        return text
    while text and letters.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


def scale_bar_length(width_um: float) -> float:
    """A round length (1, 2 or 5 times a power of ten) of about a tenth of the picture's width, in micrometres."""
    wanted = width_um / 8
    power = 10.0 ** math.floor(math.log10(wanted))
    return max(step * power for step in (1, 2, 5) if step * power <= wanted)
