"""Macenko's method: the two stains of an image, and their exchange for others.

Macenko et al., A method for normalizing histology slides for quantitative analysis, ISBI 2009. What differs from the
paper, and why:

- A pixel counts by its mean optical density, not by the least of its three: red cells hardly absorb red light, and
  with the paper's rule a blood smear would lose one of its two stains.
- The plane comes from second moments about zero, not about the mean. Their first axis has no negative part, so that
  angles within the plane never jump; and an image of one stain gives that stain.
- Pictures are expected with a white background; see `hematokit_stain.white`.
- What the two stains do not explain is kept as it is. An image exchanged for itself does not change.
- An image that is empty or has one stain only says nothing about two; it comes back as it is.
- Colours and amounts are changed within limits. The paper measures whole slides, a model sees the crop of one cell.

Written without eigenvalue solvers, so that it exports to ONNX.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch

from hematokit_stain.colours import density, mix, transmission
from hematokit_stain.white import quantiles

__all__ = ["Stains", "exchange_stains", "measure_stains"]

_THRESHOLD: Final = 0.15
_LEAST: Final = 0.05
"""Share of stained pixels below which an image says too little."""

_QUANTILES: Final = (0.01, 0.99)
_ANGLE: Final = 0.2
"""Least angle between two stains, in radians: eleven degrees. Azure and eosin are some thirty apart in marrow smears,
red cells alone spread over less than this."""

_AMOUNT: Final = 0.05
_STRETCH: Final = 2.0
"""Amounts are changed by this factor at most: what the crop of one cell holds is chance."""

_TURN: Final = 0.2
"""Stains are turned by this angle at most, in radians: eleven degrees. Two laboratories differ by about as much or a
little more, but what a single crop shows is as uncertain; beyond this, nuclei of pale smears come out green."""

_USUAL: Final = ((0.834, 0.278, 0.477), (0.093, 0.954, 0.284))
"""Stands in where an image has no two stains, so that everything stays finite; the result is not used."""


@dataclass(frozen=True)
class Stains:
    """Of some images.

    Attributes
    ----------
    vectors : Tensor, shape (B, 2, 3)
        Optical density of each stain in red, green and blue, of length 1; first the one that absorbs more red.
    amounts : Tensor, shape (B, 2)
        Nearly the largest amount of each (its 99th percentile).
    usable : Tensor, shape (B,), bool
        Whether the image shows two stains.
    """

    vectors: torch.Tensor
    amounts: torch.Tensor
    usable: torch.Tensor


def measure_stains(images: torch.Tensor) -> Stains:
    """Find the two stains of images (B, 3, H, W) in [0, 1]."""
    # Constants to a gradient, as in the colour transfer.
    densities = density(images.detach()).flatten(2)
    keep = densities.mean(1) > _THRESHOLD
    weight = keep[:, None].to(densities.dtype)
    count = weight.sum((1, 2))
    moments = torch.stack([(densities * densities[:, i : i + 1] * weight).mean(-1) for i in range(3)], dim=1)
    first = _first_axis(moments)
    size = (first[:, :, None] * first[:, None] * moments).sum((1, 2))
    second = _first_axis(moments - size[:, None, None] * first[:, :, None] * first[:, None])
    second = _unit(second - (first * second).sum(1, keepdim=True) * first)
    second = torch.where(second[:, :1] < 0, -second, second)
    angles = torch.atan2((densities * second[:, :, None]).sum(1), (densities * first[:, :, None]).sum(1))
    low, high = quantiles(angles, keep, count, _QUANTILES)
    usable = (count >= _LEAST * densities.shape[-1]) & (high - low > _ANGLE)
    vectors = torch.stack(
        [first * turn.cos()[:, None] + second * turn.sin()[:, None] for turn in (high, low)], dim=1
    ).clamp(min=0)
    usual = torch.tensor(_USUAL, device=images.device, dtype=vectors.dtype)
    vectors = torch.where(usable[:, None, None], _unit(vectors), _unit(usual))
    parts = mix(densities[..., None], _inverse(_with_third(vectors)))[:, :2, :, 0]
    amounts = torch.stack([quantiles(parts[:, i], keep, count, _QUANTILES)[1] for i in (0, 1)], dim=1)
    usable = usable & (amounts > _AMOUNT).all(1)
    return Stains(vectors, torch.where(usable[:, None], amounts, torch.ones_like(amounts)), usable)


def exchange_stains(
    images: torch.Tensor, vectors: torch.Tensor, amounts: torch.Tensor, own: Stains | None = None
) -> torch.Tensor:
    """Exchange the stains of images for others.

    Parameters
    ----------
    images : Tensor, shape (B, 3, H, W), float32 in [0, 1]
    vectors : Tensor, shape (B, 2, 3) or (1, 2, 3)
        The stains to give them, as in `Stains`.
    amounts : Tensor, shape (B, 2) or (1, 2)
        Their amounts.
    own : Stains, optional
        Of the images, where they are known.

    Returns
    -------
    Tensor, shape (B, 3, H, W)
        Images without two stains come back as they are.
    """
    own = measure_stains(images) if own is None else own
    mine = _with_third(own.vectors)
    theirs = torch.cat([_within_reach(own.vectors, vectors), mine[:, 2:]], dim=1)
    stretch = (amounts / own.amounts).clamp(1 / _STRETCH, _STRETCH)
    stretch = torch.cat([stretch, torch.ones_like(stretch[:, :1])], dim=1)
    # One matrix per image: take apart, stretch, put together.
    matrix = _product(_inverse(mine) * stretch[:, None], theirs)
    changed = transmission(mix(density(images), matrix))
    return torch.where(own.usable[:, None, None, None], changed, images)


def _within_reach(own: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Wanted stains, or where they are too far from an image's own, the farthest allowed on the way to them."""
    wanted = wanted.expand_as(own)
    cosine = (own * wanted).sum(-1, keepdim=True).clamp(-1, 1)
    across = wanted - cosine * own
    # Exact where nothing is to be held back: an image exchanged for itself does not change.
    limited = own * math.cos(_TURN) + _unit(across) * math.sin(_TURN)
    return torch.where(cosine >= math.cos(_TURN), wanted, limited)


def _unit(vectors: torch.Tensor) -> torch.Tensor:
    return vectors / vectors.square().sum(-1, keepdim=True).clamp(min=1e-12).sqrt()


def _product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Matrix products (B, 3, 3) as sums; see `hematokit_stain.colours`."""
    return (left[:, :, :, None] * right[:, None]).sum(2)


def _first_axis(moments: torch.Tensor) -> torch.Tensor:
    """Eigenvector (B, 3) of the largest eigenvalue, by squaring: symmetric matrices, no eigenvalue negative."""
    # A little of the unit matrix: black and empty images have no moments at all.
    power = moments + 1e-9 * torch.eye(3, device=moments.device, dtype=moments.dtype)
    for _ in range(9):
        power = power / power.square().sum((1, 2), keepdim=True).clamp(min=1e-30).sqrt()
        power = _product(power, power)
    # All columns are multiples of it; the longest is the most exact.
    column = power.square().sum(1).argmax(1)
    return _unit(power.gather(2, column[:, None, None].expand(-1, 3, 1))[:, :, 0])


def _cross(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.stack(
        [
            a[:, 1] * b[:, 2] - a[:, 2] * b[:, 1],
            a[:, 2] * b[:, 0] - a[:, 0] * b[:, 2],
            a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0],
        ],
        dim=1,
    )


def _with_third(vectors: torch.Tensor) -> torch.Tensor:
    """Two stains (B, 2, 3) and what is neither: (B, 3, 3)."""
    return torch.cat([vectors, _unit(_cross(vectors[:, 0], vectors[:, 1]))[:, None]], dim=1)


def _inverse(matrix: torch.Tensor) -> torch.Tensor:
    """Inverse of (B, 3, 3)."""
    a, b, c = matrix[:, 0], matrix[:, 1], matrix[:, 2]
    columns = torch.stack([_cross(b, c), _cross(c, a), _cross(a, b)], dim=2)
    return columns / (a * _cross(b, c)).sum(1)[:, None, None]
