"""Colour spaces on batches (B, 3, H, W), on any device, with scikit-image's numbers.

Products with 3x3 matrices are written as sums: under autocast, and with TF32, a matrix product keeps ten bits of a
number or fewer, which is visible in a picture.
"""

from __future__ import annotations

from typing import Final

import torch
from skimage import color
from skimage.color import colorconv

from hematokit import HematokitError

__all__ = ["FLOOR", "density", "lab_to_rgb", "mix", "rgb_to_lab", "stain_matrix", "transmission"]

FLOOR: Final = 0.5 / 255
"""Half a grey level. scikit-image's 1e-6 would put black far away from almost black: 13.8 instead of 5.5."""

_WHITE: Final = torch.tensor(color.xyz_tristimulus_values(illuminant="D65", observer="2"), dtype=torch.float32)
_XYZ_FROM_RGB: Final = torch.tensor(colorconv.xyz_from_rgb.T, dtype=torch.float32)
_RGB_FROM_XYZ: Final = torch.tensor(colorconv.rgb_from_xyz.T, dtype=torch.float32)


def mix(images: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Multiply every pixel, as a row, with a matrix.

    Parameters
    ----------
    images : Tensor, shape (B, 3, H, W), float32
    matrix : Tensor, shape (3, 3) or (B, 3, 3)

    Returns
    -------
    Tensor, shape (B, 3, H, W)
    """
    rows = matrix.to(images).reshape(-1, 3, 3, 1, 1)
    return images[:, 0:1] * rows[:, 0] + images[:, 1:2] * rows[:, 1] + images[:, 2:3] * rows[:, 2]


def density(images: torch.Tensor, floor: float = FLOOR) -> torch.Tensor:
    """Optical density: the negative natural logarithm of what comes through."""
    return -images.clamp(min=floor).log()


def transmission(densities: torch.Tensor) -> torch.Tensor:
    """What comes through: the inverse of `density`, in [0, 1]."""
    return (-densities).exp().clamp(0, 1)


def stain_matrix(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Look up one of scikit-image's stain matrices.

    Parameters
    ----------
    name : str
        The three letters in scikit-image's names, as ``hed`` in ``rgb_from_hed``.

    Returns
    -------
    rgb_from_stains, stains_from_rgb : Tensor, shape (3, 3), float32
        Optical densities of amounts of stain, and back; pixels are rows.

    Raises
    ------
    HematokitError
        If there is none of that name.
    """
    # The public names: the module behind them has matrices of colour spaces, too.
    known = sorted(key.removeprefix("rgb_from_") for key in dir(color) if key.startswith("rgb_from_"))
    if name not in known:
        raise HematokitError(f"scikit-image has no stain matrix {name!r}; it has: {', '.join(known)}")
    matrices = getattr(color, f"rgb_from_{name}"), getattr(color, f"{name}_from_rgb")
    return torch.tensor(matrices[0], dtype=torch.float32), torch.tensor(matrices[1], dtype=torch.float32)


def rgb_to_lab(images: torch.Tensor) -> torch.Tensor:
    """From sRGB in [0, 1] to CIELAB (D65, 2 degrees), as `skimage.color.rgb2lab`."""
    # Powers only of what their branch is for: gradients of the other one would not be finite.
    linear = torch.where(
        images > 0.04045, ((images.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4, images.clamp(min=0) / 12.92
    )
    xyz = mix(linear, _XYZ_FROM_RGB) / _WHITE.to(images).view(1, 3, 1, 1)
    curved = torch.where(xyz > 0.008856, xyz.clamp(min=0.008856) ** (1 / 3), 7.787 * xyz + 16.0 / 116.0)
    x, y, z = curved[:, 0:1], curved[:, 1:2], curved[:, 2:3]
    return torch.cat([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)


def lab_to_rgb(lab: torch.Tensor) -> torch.Tensor:
    """From CIELAB to sRGB in [0, 1], as `skimage.color.lab2rgb`; colours that sRGB lacks are clipped."""
    y = (lab[:, 0:1] + 16) / 116
    curved = torch.cat([y + lab[:, 1:2] / 500, y, (y - lab[:, 2:3] / 200).clamp(min=0)], dim=1)
    xyz = torch.where(curved > 0.2068966, curved**3, (curved - 16.0 / 116.0) / 7.787)
    linear = mix(xyz * _WHITE.to(lab).view(1, 3, 1, 1), _RGB_FROM_XYZ)
    bent = 1.055 * linear.clamp(min=0.0031308) ** (1 / 2.4) - 0.055
    return torch.where(linear > 0.0031308, bent, 12.92 * linear).clamp(0, 1)
