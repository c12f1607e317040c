"""Whether two patches show the same pixels, and moved by how much.

The measure is a correlation of contrast-normalised images over what both show, at the best translation near a given
one. What proposes the pairs is `hematokit.imaging.fingerprint`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter, uniform_filter

__all__ = ["TRANSFORMS", "Comparison", "compare", "contrast", "grey", "overlap_views", "turn"]

UInt8 = npt.NDArray[np.uint8]
Float = npt.NDArray[np.float32]

TRANSFORMS = ("same", "turn90", "turn180", "turn270", "mirror", "mirror+turn90", "mirror+turn180", "mirror+turn270")
"""The eight symmetries of the square, in the order of the numbers that `compare` and `turn` use."""

# Measured on 60 real overlaps: similarity 0.86 and more, drop 0.41 and more. Unrelated: similarity up to 0.6.
_SIMILAR, _DROP, _SHARE = 0.7, 0.2, 0.05
_DIRECTIONS = ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1))
_CLIMB = 3  # steps of one pixel towards the best translation
_ASIDE = 8  # px, for the drop: wider than a keypoint, narrower than a nucleus


class Comparison(NamedTuple):
    """What `compare` measured.

    Attributes
    ----------
    dy, dx : int
        Translation, px.
    similarity : float
        Correlation of the overlap.
    share : float
        Part of a patch that overlaps.
    drop : float
        By how much the correlation falls when the translation is changed by 8 px, in the direction where it falls
        least. Near 0 where only a straight edge agrees, such as the black bar of a letterboxed image.
    transform : int
        Index in `TRANSFORMS` of what was done to the second patch.
    """

    dy: int
    dx: int
    similarity: float
    share: float
    drop: float
    transform: int = 0

    @property
    def same(self) -> bool:
        """Whether both patches show the same pixels."""
        return self.similarity >= _SIMILAR and self.drop >= _DROP and self.share >= _SHARE


def grey(patch: UInt8) -> Float:
    """Grey image of an RGB patch (P, P, 3): float32 (P, P), 0 to 255."""
    # Green-weighted: in Romanowsky stains green carries most of the contrast.
    weights = np.array([0.3, 0.5, 0.2], np.float32)
    return (patch.astype(np.float32) @ weights).astype(np.float32, copy=False)


def contrast(patch: UInt8) -> Float:
    """Contrast-normalised grey image, in which every textured spot weighs alike.

    Without it, one dark nucleus or the black bar of a letterboxed image would decide a correlation alone.

    Parameters
    ----------
    patch : uint8 (P, P, 3)

    Returns
    -------
    float32 (P, P)
        About -2 to 2; near 0 where the patch is blank.
    """
    image = gaussian_filter(grey(patch), 1.0, truncate=3)
    high = image - uniform_filter(image, 15)
    spread = np.sqrt(np.maximum(uniform_filter(high * high, 31), 0))
    return np.asarray(high / (spread + 3.0), np.float32)


def turn(image: npt.NDArray[np.generic], transform: int) -> npt.NDArray[np.generic]:
    """View of `image` (P, P, ...) under transform number `transform` of `TRANSFORMS`: mirrored first, then turned."""
    return np.rot90(image[:, ::-1] if transform >= 4 else image, transform % 4)


def overlap_views(
    first: npt.NDArray[np.generic], second: npt.NDArray[np.generic], dy: int, dx: int
) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.generic]]:
    """Views of what both patches show, where `second` lies at (dy, dx) in the pixels of `first`."""
    height, width = first.shape[:2]
    rows, columns = max(height - abs(dy), 0), max(width - abs(dx), 0)
    y, x = max(dy, 0), max(dx, 0)
    return first[y : y + rows, x : x + columns], second[y - dy : y - dy + rows, x - dx : x - dx + columns]


def _correlation(one: npt.NDArray[np.generic], two: npt.NDArray[np.generic]) -> float:
    a = np.ascontiguousarray(one, np.float32).ravel()
    b = np.ascontiguousarray(two, np.float32).ravel()
    # A blank overlap has next to no energy; the constant keeps its noise from counting as agreement.
    blank = np.float32(0.01 * a.size)
    return float(a @ b / np.sqrt((a @ a + blank) * (b @ b + blank))) if a.size else 0.0


def compare(first: Float, second: Float, dy: int = 0, dx: int = 0, *, any_transform: bool = False) -> Comparison:
    """Correlate what two patches show in common.

    Parameters
    ----------
    first, second : float32 (P, P)
        From `contrast`.
    dy, dx : int
        Translation (px) to look around, as in `Translations`; the best within 3 px, uphill, is taken.
    any_transform : bool
        Also try `second` mirrored and turned by right angles.

    Returns
    -------
    Comparison
        Similarity 1 means the same up to brightness and contrast. The same pixels encoded twice stay above 0.95 as
        a rule; unrelated patches at their best translation stay under 0.6.
    """
    transform = 0
    if any_transform:
        coarse = [_correlation(first[::2, ::2], turn(second, t)[::2, ::2]) for t in range(len(TRANSFORMS))]
        transform = int(np.argmax(coarse))
        second = np.ascontiguousarray(turn(second, transform), np.float32)
    best = (-2.0, dy, dx)
    tried: set[tuple[int, int]] = set()
    middle = (dy, dx)
    for _ in range(_CLIMB):
        for y in (middle[0] - 1, middle[0], middle[0] + 1):
            for x in (middle[1] - 1, middle[1], middle[1] + 1):
                if (y, x) in tried or abs(y) >= first.shape[0] or abs(x) >= first.shape[1]:
                    continue
                tried.add((y, x))
                best = max(best, (_correlation(*overlap_views(first, second, y, x)), y, x))
        if (best[1], best[2]) == middle:
            break
        middle = (best[1], best[2])
    similarity, y, x = best
    share = (1 - abs(y) / first.shape[0]) * (1 - abs(x) / first.shape[1])
    drop = similarity
    if similarity >= _SIMILAR:
        aside = (_correlation(*overlap_views(first, second, y + _ASIDE * v, x + _ASIDE * u)) for v, u in _DIRECTIONS)
        drop = similarity - max(aside)
    return Comparison(y, x, round(similarity, 4), round(share, 4), round(drop, 4), transform)
