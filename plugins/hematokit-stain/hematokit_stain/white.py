"""The white of a picture: the colour of its empty background, against which stains are measured.

Both methods count light that does not come through as stain. A camera's grey, or a yellowish lamp, would be the
strongest stain of all in a picture of a few cells, so each picture is first divided by its own white.
"""

from __future__ import annotations

from typing import Final

import torch

__all__ = ["balance_white", "measure_white", "quantiles"]

_BRIGHTEST: Final = (0.95, 0.99)
"""Pixels between these quantiles of brightness are taken for background; the very brightest are reflections."""

_DARKEST: Final = 0.3
_BRIGHT: Final = 0.8
_GREY: Final = 0.85
"""Background is grey, the least of its three colours this share of the largest, or it is bright. What is neither, and
what is almost black, is a picture full of cells: red cells side by side would be taken for a reddish lamp."""


def measure_white(images: torch.Tensor) -> torch.Tensor:
    """Find the white of images (B, 3, H, W) in [0, 1].

    Returns
    -------
    Tensor, shape (B, 3, 1, 1)
        Ones for images that show no background.
    """
    # Constants to a gradient, as all that is measured.
    pixels = images.detach().flatten(2)
    brightness = pixels.mean(1)
    everything = torch.ones_like(brightness)
    low, high = quantiles(brightness, everything > 0, everything.sum(1), _BRIGHTEST)
    # A little room: rounding must not leave an even picture without pixels.
    inside = (brightness >= low[:, None] - 1e-4) & (brightness <= high[:, None] + 1e-4)
    weight = inside[:, None].to(pixels.dtype)
    white = (pixels * weight).sum(2) / weight.sum(2)
    light = white.mean(1)
    grey = white.amin(1) >= _GREY * white.amax(1)
    believed = (light >= _DARKEST) & (grey | (light >= _BRIGHT))
    return torch.where(believed[:, None], white, torch.ones_like(white))[:, :, None, None]


def balance_white(images: torch.Tensor, white: torch.Tensor | None = None) -> torch.Tensor:
    """Make the background of images (B, 3, H, W) white; their white is measured unless it is given."""
    white = measure_white(images) if white is None else white
    return (images / white).clamp(0, 1)


def quantiles(
    values: torch.Tensor, keep: torch.Tensor, count: torch.Tensor, shares: tuple[float, float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Two quantiles of the kept ones of values (B, N), `count` (B,) in number, interpolated."""
    ordered = torch.where(keep, values, torch.full_like(values, 1e4)).sort(dim=1).values
    found = []
    for share in shares:
        place = (count - 1).clamp(min=0) * share
        below = place.floor()
        above = torch.minimum(below + 1, (count - 1).clamp(min=0))
        at_below = ordered.gather(1, below.long()[:, None])[:, 0]
        at_above = ordered.gather(1, above.long()[:, None])[:, 0]
        found.append(at_below + (place - below) * (at_above - at_below))
    return found[0], found[1]
