"""Whether another way of computing a model gives the same answers: measured, before anybody relies on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from hematokit.errors import ModelError

__all__ = ["BATCHES", "EXPORT_TOLERANCE", "Parity", "check_agreement", "measure_parity", "sample_patches"]

BATCHES: Final = (1, 2, 7)
"""Sizes of batches that are tried: a graph whose batch is fixed, or that mixes its patches, shows at one of them."""

EXPORT_TOLERANCE: Final = 1e-4
"""Largest difference of a logit in a file that is given away."""

TOLERANCE: Final = 1e-3
"""Largest difference of a logit that passes when a model is only computed here; rounding gives some 1e-6."""

_RELATIVE: Final = 1e-5
_TIE: Final = 1e-5

Patches = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.float32]
Computing = Callable[[Patches], Logits]


@dataclass(frozen=True)
class Parity:
    """How much the answers of two ways of computing one model differ.

    Attributes
    ----------
    patches : int
        Patches compared.
    batches : tuple of int
        Sizes of batches that they were given in.
    max_logit_difference : float
        Largest absolute difference of a logit; NaN if one is no number.
    classes_changed : int
        Patches whose class is another one in any of the batches, those apart that two classes share but for rounding.
    largest_logit : float
        Largest absolute logit, to judge the difference by.
    """

    patches: int
    batches: tuple[int, ...]
    max_logit_difference: float
    classes_changed: int
    largest_logit: float

    def within(self, tolerance: float) -> bool:
        """Whether no class changed and no logit is further off than `tolerance` (or 1e-5 of the largest, if more).

        float32 has some seven digits, of which a deep network loses two or three: a logit of 100 is not held to 1e-4.
        """
        return self.classes_changed == 0 and self.max_logit_difference <= max(tolerance, _RELATIVE * self.largest_logit)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "batches": list(self.batches)}


def measure_parity(
    reference: Computing, candidate: Computing, patches: Patches, what: str, *, batches: tuple[int, ...] = BATCHES
) -> Parity:
    """Compare two ways of computing the same logits.

    Parameters
    ----------
    reference, candidate : callable
        Patches (n, P, P, 3) uint8 to logits (n, C).
    patches : ndarray, shape (n, P, P, 3), uint8
        At least one; the candidate gets all of them once for each size of batch.
    what : str
        The candidate's name, for the error.
    batches : tuple of int
        Sizes of batches.

    Returns
    -------
    Parity

    Raises
    ------
    ModelError
        If the candidate gives another number of logits, or cannot take a size of batch.
    """
    expected = np.asarray(reference(patches))
    ranked = np.sort(expected, axis=1)
    tied = (ranked[:, -1] - ranked[:, -2] < _TIE) if expected.shape[1] > 1 else np.ones(len(expected), bool)
    worst = 0.0
    changed = np.zeros(len(expected), bool)
    for size in batches:
        for start in range(0, len(patches), size):
            wanted = expected[start : start + size]
            found = np.asarray(candidate(patches[start : start + size]))
            if found.shape != wanted.shape:
                raise ModelError(
                    f"{what} gives {found.shape} numbers where torch gives {wanted.shape}; use --runtime torch"
                )
            # Not Python's max, which lets a NaN slip through.
            worst = float(np.maximum(worst, np.abs(found - wanted).max()))
            changed[start : start + size] |= found.argmax(axis=1) != wanted.argmax(axis=1)
    return Parity(len(patches), batches, worst, int((changed & ~tied).sum()), float(np.abs(expected).max()))


def check_agreement(reference: Computing, candidate: Computing, side: int, what: str) -> float:
    """Compare a runtime with the reference, on sample patches.

    Parameters
    ----------
    reference, candidate : callable
        Patches (n, P, P, 3) uint8 to logits (n, C).
    side : int
        Side of the patches in pixels.
    what : str
        The candidate's name, for the error.

    Returns
    -------
    float
        Largest difference of a logit.

    Raises
    ------
    ModelError
        If a logit differs by more than 1e-3 (or, if that is more, 1e-5 of the largest), or a class changes, other than
        between two that are equal but for rounding.
    """
    found = measure_parity(reference, candidate, sample_patches(side), what)
    if not found.within(TOLERANCE):
        raise ModelError(
            f"{what} does not repeat torch's answers: logits differ by up to {found.max_logit_difference:.2g} (allowed "
            f"{TOLERANCE:g}) and {found.classes_changed} of {found.patches} test patches change class; "
            "use --runtime torch"
        )
    return found.max_logit_difference


def sample_patches(side: int) -> Patches:
    """Return seven unlike patches, always the same: blank, black, noise, a ramp, and three drawings of a stained cell.

    Parameters
    ----------
    side : int
        Pixels.

    Returns
    -------
    ndarray, uint8, shape (7, side, side, 3)
    """
    random = np.random.default_rng(0)
    place = (np.arange(side, dtype=np.float32) + 0.5) / side - 0.5
    rows, columns = np.meshgrid(place, place, indexing="ij")
    patches = np.empty((7, side, side, 3), np.uint8)
    patches[0], patches[1] = 255, 0
    patches[2] = random.integers(0, 256, patches.shape[1:], dtype=np.uint8)
    patches[3] = np.stack([rows, columns, -rows], axis=-1) * 255 + 127.5
    looks = (
        (0.30, 0.20, (95, 50, 140), (170, 175, 215)),
        (0.40, 0.33, (120, 70, 160), (205, 170, 205)),
        (0.20, 0.14, (60, 30, 100), (225, 150, 150)),
    )
    for index, (body, nucleus, dark, pale) in enumerate(looks, start=4):
        image = np.full((side, side, 3), (236, 228, 240), np.float32)
        for radius, colour in ((body, pale), (nucleus, dark)):
            bumps = 1 + 0.15 * np.sin((index - 2) * np.arctan2(rows, columns))
            inside = np.clip((radius * bumps - np.hypot(rows, columns)) * side, 0, 1)[..., None]
            image += inside * (np.asarray(colour, np.float32) - image)
        image += random.normal(0, 6, image.shape)
        patches[index] = image.clip(0, 255)
    return patches
