"""Reinhard's colour transfer: mean and deviation of what is stained, in CIELAB.

Reinhard et al., Color transfer between images, IEEE Computer Graphics and Applications 21, 2001. Two changes, both
because crops of single cells differ in how much of them is empty: only stained pixels count, and only they are changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch

from hematokit_stain.colours import density, lab_to_rgb, rgb_to_lab

__all__ = ["ColourStatistics", "match_colours", "measure_colours", "stained"]

_THRESHOLD: Final = 0.15
"""Mean optical density of a pixel that counts as stained (Macenko's)."""

_LEAST: Final = 0.01
"""Share of stained pixels below which an image says nothing about its stain."""

_STRETCH: Final = 3.0
"""Deviations are changed by this factor at most: an even picture has nothing to stretch but noise."""


@dataclass(frozen=True)
class ColourStatistics:
    """Of some images.

    Attributes
    ----------
    mean, deviation : Tensor, shape (B, 3)
        Of L*, a* and b* over stained pixels.
    usable : Tensor, shape (B,), bool
        Whether enough of the image is stained.
    """

    mean: torch.Tensor
    deviation: torch.Tensor
    usable: torch.Tensor


def stained(images: torch.Tensor) -> torch.Tensor:
    """How much each pixel counts as stained, (B, 1, H, W) in [0, 1]; a ramp, so that no edge appears."""
    return ((density(images).mean(1, keepdim=True) - _THRESHOLD / 2) / _THRESHOLD).clamp(0, 1)


def measure_colours(images: torch.Tensor) -> ColourStatistics:
    """Measure images (B, 3, H, W) in [0, 1]."""
    return _measure(rgb_to_lab(images), stained(images))


def _measure(lab: torch.Tensor, weight: torch.Tensor) -> ColourStatistics:
    # Constants to a gradient: how a pixel changes the mean of all is not what an explanation asks.
    lab, weight = lab.detach(), weight.detach()
    share = weight.mean((2, 3))
    total = share.clamp(min=1e-6)
    mean = (lab * weight).mean((2, 3)) / total
    variance = ((lab - mean[:, :, None, None]) ** 2 * weight).mean((2, 3)) / total
    return ColourStatistics(mean, variance.clamp(min=1e-6).sqrt(), share[:, 0] >= _LEAST)


def match_colours(
    images: torch.Tensor, mean: torch.Tensor, deviation: torch.Tensor, own: ColourStatistics | None = None
) -> torch.Tensor:
    """Give images the statistics of others.

    Parameters
    ----------
    images : Tensor, shape (B, 3, H, W), float32 in [0, 1]
    mean, deviation : Tensor, shape (B, 3) or (1, 3)
        What to give them.
    own : ColourStatistics, optional
        Of the images, where they are known.

    Returns
    -------
    Tensor, shape (B, 3, H, W)
        Images with next to nothing stained come back as they are.
    """
    lab, weight = rgb_to_lab(images), stained(images)
    own = _measure(lab, weight) if own is None else own
    stretch = (deviation / own.deviation).clamp(1 / _STRETCH, _STRETCH)
    moved = (lab - own.mean[:, :, None, None]) * stretch[:, :, None, None] + mean[:, :, None, None]
    weight = weight * own.usable[:, None, None, None]
    return images + weight * (lab_to_rgb(moved) - images)
