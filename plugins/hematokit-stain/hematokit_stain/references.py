"""References: measured from pictures, drawn from, written as a line of numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

import hematokit
from hematokit import HematokitError
from hematokit_stain.macenko import measure_stains
from hematokit_stain.reinhard import measure_colours
from hematokit_stain.white import balance_white

__all__ = ["BUILT_IN", "METHODS", "measure", "measure_pictures", "parse_reference", "write_reference"]

METHODS: Final = ("reinhard", "macenko")

BUILT_IN: Final = {
    "reinhard": "54.31,35.32,-45.59,19.33,19.06,23.61",
    "macenko": "0.6697,0.634,0.3679,0.4031,0.9097,0.08691,1.166,2.716",
}
"""Medians over marrow crops of Matek et al. 2021 (May-Gruenwald-Giemsa/Pappenheim, one scanner)."""

_SIDE: Final = 256
_MOST: Final = 500
_ENDINGS: Final = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp"}


def measure(images: torch.Tensor, method: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Measure images (B, 3, H, W) in [0, 1], their background made white.

    Returns
    -------
    numbers : Tensor, shape (B, 6) or (B, 8)
        Reinhard: means, deviations. Macenko: first stain, second stain, amounts.
    usable : Tensor, shape (B,), bool

    Raises
    ------
    HematokitError
        If there is no such method.
    """
    check_method(method)
    images = balance_white(images)
    if method == "reinhard":
        colours = measure_colours(images)
        return torch.cat([colours.mean, colours.deviation], dim=1), colours.usable
    stains = measure_stains(images)
    return torch.cat([stains.vectors.flatten(1), stains.amounts], dim=1), stains.usable


def check_method(method: str) -> None:
    """Refuse an unknown method."""
    if method not in METHODS:
        raise HematokitError(f"no stain method is called {method!r}; there are: {', '.join(METHODS)}")


def measure_pictures(path: str | Path, method: str) -> torch.Tensor:
    """Measure a picture, or up to 500 pictures of a folder, evenly chosen.

    Returns
    -------
    Tensor, shape (n, 6) or (n, 8), float32
        Those that show enough stain.

    Raises
    ------
    HematokitError
        If there is no picture, one cannot be read, or none shows enough stain.
    """
    check_method(method)
    found = []
    for picture in _pictures(Path(path)):
        with hematokit.open_field(picture) as field:
            pixels, _ = field.thumbnail(_SIDE)
        images = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None].float() / 255
        numbers, usable = measure(images, method)
        found.append(numbers[usable])
    measured = torch.cat(found)
    if not len(measured):
        what = "two stains" if method == "macenko" else "stain"
        raise HematokitError(f"no picture of {path} shows {what}; give pictures of stained cells")
    return measured


def _pictures(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]  # whether it is there and can be read is for open_field to say
    listed = sorted(item for item in path.rglob("*") if item.suffix.lower() in _ENDINGS and item.is_file())
    if not listed:
        raise HematokitError(f"folder {path} holds no pictures ({', '.join(sorted(_ENDINGS))}); give one that does")
    chosen = np.unique(np.linspace(0, len(listed) - 1, min(len(listed), _MOST)).round().astype(int))
    return [listed[index] for index in chosen]


def write_reference(measured: torch.Tensor) -> str:
    """The median of measurements (n, 6 or 8) as a line of numbers, for ``--set backbone.reference=...``."""
    return ",".join(f"{number:.4g}" for number in measured.median(dim=0).values.tolist())


def parse_reference(text: str, method: str) -> npt.NDArray[np.float32]:
    """Read what `write_reference` wrote; empty text stands for the built-in numbers.

    Raises
    ------
    HematokitError
        If it is not as many numbers as the method has, or they are impossible.
    """
    check_method(method)
    wanted = 6 if method == "reinhard" else 8
    try:
        numbers = np.array([float(part) for part in (text or BUILT_IN[method]).split(",")], dtype=np.float32)
    except ValueError:
        numbers = np.zeros(0, np.float32)
    if len(numbers) != wanted or not np.isfinite(numbers).all():
        raise HematokitError(
            f"stain reference {text[:60]!r} is not {wanted} numbers with commas, as method {method} has; "
            "hematokit stain-reference PICTURES writes them"
        )
    if not _possible(numbers, method):
        raise HematokitError(
            f"stain reference {text[:60]!r} is none: deviations and amounts are above 0, stains are not negative, "
            "and unlike each other; hematokit stain-reference PICTURES writes them"
        )
    return numbers


def _possible(numbers: npt.NDArray[np.float32], method: str) -> bool:
    if method == "reinhard":
        return bool((numbers[3:] > 0).all() and 0 <= numbers[0] <= 100)
    first, second = numbers[:3], numbers[3:6]
    lengths = np.linalg.norm(first), np.linalg.norm(second)
    if (numbers[:6] < 0).any() or (numbers[6:] <= 0).any() or min(lengths) < 0.5:
        return False
    return bool(first @ second < 0.999 * lengths[0] * lengths[1])
