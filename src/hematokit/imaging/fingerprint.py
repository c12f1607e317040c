"""Fingerprints of patches, and the comparison of patches that may show the same pixels.

A fingerprint has two parts. *Keypoints* are local extremes of a band-passed image, each with two hashes of its
surroundings. Patches cut from one field at different positions have equal hashes in their overlap, displaced by one
integer translation (`match_translations`). The *shape* is a vector of low-frequency cosine coefficients that is
invariant to mirroring and to rotation by right angles: re-encoded, flipped and rotated copies have nearly equal shapes
(`match_shapes`).

Both give candidates, which `compare_patches` confirms or rejects by the correlation of the contrast-normalised overlap
of two patches, at the best translation near a given one.

References
----------
Lowe DG (2004). Distinctive image features from scale-invariant keypoints. International Journal of Computer Vision 60,
91-110 (extremes of a difference of smoothed images as keypoints). Calonder M, Lepetit V, Strecha C, Fua P (2010).
BRIEF: binary robust independent elementary features. ECCV 2010, 778-792 (comparisons of pairs of points as descriptor).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.fft import dct
from scipy.ndimage import gaussian_filter, uniform_filter
from scipy.spatial import cKDTree

__all__ = [
    "Overlap",
    "KEYPOINTS",
    "PatchFingerprints",
    "SHAPE_SIZE",
    "TRANSFORMS",
    "Translations",
    "compare_patches",
    "contrast",
    "fingerprint_patches",
    "grey",
    "match_shapes",
    "match_translations",
    "overlap_views",
    "turn",
]

UInt8 = npt.NDArray[np.uint8]
Float = npt.NDArray[np.float32]
Int = npt.NDArray[np.int64]

KEYPOINTS = 64
"""Keypoints kept per patch, strongest first."""

_RADIUS = 14  # px around a keypoint that are hashed: small enough for narrow overlaps, large enough to be unique
_SIGMA_HASH = 1.5  # px, smoothing under the hashes
_SIGMA_FINE, _BOX_COARSE = 1.3, 9  # additional: together a band of sigma 2 to 4 px; finer bands have JPEG's blocks
_SPACING = 9  # px, side of the window in which a keypoint is the extreme
_CONTRAST = 1.0  # grey levels of band-passed signal below which an extreme is noise: blank patches get no keypoints
_BITS = 72  # per hash; with fewer, chance matches outnumber true ones among 10^7 keypoints; with more, noise flips one
_LOW = 7  # cosine frequencies per axis in the shape
_FLAT = 0.75  # grey levels of low-frequency signal below which a patch has no shape: flat patches are all similar
_COINCIDE = 0.25  # share of the keypoints in the overlap that must coincide
_NONE = np.uint8(255)  # in `positions`: no keypoint


def _pairs_of_points() -> Int:
    # The points must never change: hashes on disk are comparable only with hashes of the same points. NumPy guarantees
    # the raw stream of PCG64, but not that of the methods of Generator:
    # https://numpy.org/doc/stable/reference/random/compatibility.html
    raw = np.random.PCG64(20210).random_raw(8 * 8 * _BITS).reshape(-1, 4)
    side = _RADIUS // 2 * 2 + 1
    points: Int = (raw % side).astype(np.int64) * 2 - (side - 1)
    first, second = points[:, :2], points[:, 2:]
    inside = (np.hypot(*first.T) <= _RADIUS) & (np.hypot(*second.T) <= _RADIUS) & (np.hypot(*(first - second).T) >= 4)
    return np.ascontiguousarray(points[inside][: 2 * _BITS])


_POINTS = _pairs_of_points()
_AROUND = {
    reach: np.array([(y, x) for y in range(-reach, reach + 1) for x in range(-reach, reach + 1) if y or x])
    for reach in (1, _SPACING // 2)
}
SHAPE_SIZE = _LOW * _LOW - 1
"""Numbers in a patch's shape."""


@dataclass(frozen=True)
class PatchFingerprints:
    """Fingerprints of n patches, as arrays with one row per patch.

    Attributes
    ----------
    hashes : uint32 (n, KEYPOINTS, 2)
        Two hashes of the surroundings of each keypoint.
    positions : uint8 (n, KEYPOINTS, 2)
        Row and column of each keypoint, in units of `step` px; 255 where there are fewer keypoints.
    shapes : float16 (n, SHAPE_SIZE)
        Shape vectors of length 1; zeros for a patch without any shape.
    step : int
        Pixels per unit of `positions`: 1 for patches of up to 255 px.
    """

    hashes: npt.NDArray[np.uint32]
    positions: UInt8
    shapes: npt.NDArray[np.float16]
    step: int = 1

    def __len__(self) -> int:
        return len(self.hashes)


class Translations(NamedTuple):
    """Pairs of patches with keypoints that agree on a translation, as arrays with one row per pair.

    A point at ``p`` in patch `second` is at ``p + (dy, dx)`` in patch `first`; `first` > `second`.
    """

    first: Int
    second: Int
    dy: Int
    dx: Int
    votes: Int


def grey(patch: UInt8) -> Float:
    """Return the grey image of an RGB patch (P, P, 3): float32 (P, P), 0 to 255."""
    # Green-weighted: in Romanowsky stains green carries most of the contrast.
    weights = np.array([0.3, 0.5, 0.2], np.float32)
    return (patch.astype(np.float32) @ weights).astype(np.float32, copy=False)


def _keypoints(smooth: Float, margin: int) -> tuple[Int, Int]:
    """Return rows and columns of the strongest extremes of a band of `smooth`, at least `margin` from the border."""
    fine = gaussian_filter(smooth, _SIGMA_FINE, truncate=3)
    coarse = uniform_filter(uniform_filter(smooth, _BOX_COARSE), _BOX_COARSE)
    strength = np.abs(fine - coarse)
    height, width = strength.shape
    inner = strength[margin : height - margin, margin : width - margin]
    extreme = inner > _CONTRAST
    for dy, dx in _AROUND[1]:
        extreme &= inner >= strength[margin + dy : height - margin + dy, margin + dx : width - margin + dx]
    # Only these few are compared with the wide window: ten times faster than a maximum filter.
    y, x = np.nonzero(extreme)
    y, x = y + margin, x + margin
    order = np.argsort(-strength[y, x], kind="stable")[: 8 * KEYPOINTS]
    y, x = y[order], x[order]
    wide = _AROUND[_SPACING // 2]
    top = strength[y[:, None] + wide[:, 0], x[:, None] + wide[:, 1]].max(axis=1, initial=0) <= strength[y, x]
    return y[top][:KEYPOINTS], x[top][:KEYPOINTS]


def _hash_bits(bits: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint32]:
    """Fold (m, 2 * _BITS) bits into (m, 2) 32-bit hashes."""
    packed = np.packbits(bits.reshape(len(bits), 2, _BITS), axis=2).astype(np.uint64)
    # 64-bit FNV-1a, folded to 32 bits: https://datatracker.ietf.org/doc/html/rfc9923
    mixed = np.full(packed.shape[:2], 0xCBF29CE484222325, np.uint64)
    for byte in range(packed.shape[2]):
        mixed = (mixed ^ packed[:, :, byte]) * np.uint64(0x100000001B3)
    return (mixed ^ (mixed >> np.uint64(32))).astype(np.uint32)


@lru_cache(maxsize=8)
def _cosines(side: int) -> Float:
    """Return the first `_LOW` rows of the orthonormal DCT-II, over the square root of `side`: (_LOW, side)."""
    matrix = dct(np.eye(side), type=2, norm="ortho", axis=0)[:_LOW]
    return np.asarray(matrix / np.sqrt(side), np.float32)


def _shape(image: Float) -> Float:
    """Return a vector that is invariant to flips, rotations by right angles, brightness and contrast.

    A flip changes the sign of the odd coefficients of one axis, and a transposition swaps the axes; so the sum and the
    absolute difference of ``|c[u, v]|`` and ``|c[v, u]|`` are invariant.
    """
    rows, columns = (_cosines(side) for side in image.shape)
    low = np.abs(rows @ image @ columns.T)
    low[0, 0] = 0  # the mean
    upper = np.triu_indices(_LOW, 1)
    one, two = low[upper], low.T[upper]
    shape = np.concatenate([(one + two) / np.sqrt(2), np.abs(one - two) / np.sqrt(2), np.diag(low)[1:]])
    size = float(np.linalg.norm(shape))
    return np.asarray(shape / size if size > _FLAT else shape * 0, np.float32)


def fingerprint_patches(patches: UInt8) -> PatchFingerprints:
    """Return the fingerprints of patches.

    Parameters
    ----------
    patches : uint8 (n, P, P, 3)
        RGB patches. Those of up to 32 px have no keypoints: only copies of them match, not overlaps.

    Returns
    -------
    PatchFingerprints
        About 700 bytes per patch.
    """
    if patches.ndim != 4 or patches.shape[3] != 3 or patches.dtype != np.uint8:
        raise ValueError(f"patches must be uint8 (n, P, P, 3), not {patches.dtype} {patches.shape}")
    n, size = len(patches), min(patches.shape[1:3])
    step = -(-max(patches.shape[1:3]) // 255)
    hashes = np.zeros((n, KEYPOINTS, 2), np.uint32)
    positions = np.full((n, KEYPOINTS, 2), _NONE, np.uint8)
    shapes = np.zeros((n, SHAPE_SIZE), np.float16)
    margin = _RADIUS + 2
    for index, patch in enumerate(patches):
        image = grey(patch)
        if size > 2 * margin:
            smooth = gaussian_filter(image, _SIGMA_HASH, truncate=3)
            y, x = _keypoints(smooth, margin)
            a = smooth[y[:, None] + _POINTS[:, 0], x[:, None] + _POINTS[:, 1]]
            b = smooth[y[:, None] + _POINTS[:, 2], x[:, None] + _POINTS[:, 3]]
            hashes[index, : len(y)] = _hash_bits(a > b)
            positions[index, : len(y)] = np.stack([y // step, x // step], axis=1)
        shapes[index] = _shape(image)
    return PatchFingerprints(hashes, positions, shapes, step)


def match_translations(
    prints: PatchFingerprints,
    start: int = 0,
    *,
    min_votes: int = 2,
    neighbours: int = 16,
    chunk: int = 2048,
) -> Translations:
    """Return pairs of patches in which several keypoints agree on one translation.

    Parameters
    ----------
    prints : PatchFingerprints
        Fingerprints of all patches.
    start : int
        Smallest index of the later patch of a pair; pairs of earlier patches are not returned.
    min_votes : int
        Number of keypoints whose hashes must agree on a translation, within one unit. In addition, a share of all
        keypoints in the overlap must coincide in position.
    neighbours : int
        Largest number of earlier equal hashes with which a hash is matched, so that a hash of very many patches (an
        artefact of the camera, or thousands of copies of one image) takes linear time. Copies remain connected through
        each other.
    chunk : int
        Number of patches matched at a time, which limits the memory.

    Returns
    -------
    Translations
        Candidates, to be confirmed by `compare_patches`.
    """
    n = len(prints)
    valid = prints.positions[:, :, 0] != _NONE
    reach = int(prints.positions.max(initial=0, where=valid[:, :, None]))
    # One sorted array of (hash, keypoint) per hash, both packed into 64 bits: smaller and faster than an argsort.
    keypoint = np.flatnonzero(valid).astype(np.uint64)
    indexes = []
    for which in range(prints.hashes.shape[2]):
        # In place, because for the published data set each of these arrays has about 90 MB.
        index = prints.hashes[:, :, which][valid].astype(np.uint64)
        index <<= np.uint64(32)
        index |= keypoint
        index.sort()
        indexes.append(index)
    del keypoint
    found = []
    for begin in range(start, n, chunk):
        end = min(begin + chunk, n)
        mine = np.flatnonzero(valid[begin:end]).astype(np.uint64) + np.uint64(begin * KEYPOINTS)
        matches = []
        for which, index in enumerate(indexes):
            entries = (prints.hashes[begin:end, :, which][valid[begin:end]].astype(np.uint64) << np.uint64(32)) | mine
            at = np.searchsorted(index, entries)
            for back in range(1, neighbours + 1):
                reachable = at >= back
                at, entries = at[reachable], entries[reachable]
                other = index[at - back]
                equal = (other >> np.uint64(32)) == (entries >> np.uint64(32))
                at, entries, other = at[equal], entries[equal], other[equal]
                if not len(at):
                    break
                matches.append(np.stack([entries & np.uint64(0xFFFFFFFF), other & np.uint64(0xFFFFFFFF)], axis=1))
        if matches:
            found.append(_vote(prints, np.concatenate(matches).astype(np.int64), min_votes, reach))
    if not found:
        empty = np.zeros(0, np.int64)
        return Translations(empty, empty, empty, empty, empty)
    return Translations(*(np.concatenate(column) for column in zip(*found, strict=True)))


def _vote(prints: PatchFingerprints, matches: Int, min_votes: int, reach: int) -> Translations:
    # Each match votes for a translation of its pair of patches; the translation with most votes wins.
    first, second = matches.T // KEYPOINTS
    other = first != second
    # A keypoint votes once even if both of its hashes agree. Sorting one number per match is much faster than sorting
    # rows.
    span = np.int64(len(prints)) * KEYPOINTS
    codes = np.unique(matches[other, 0] * span + matches[other, 1])
    one, two = np.divmod(codes, span)
    first, second = one // KEYPOINTS, two // KEYPOINTS
    pair = first * len(prints) + second
    # Nearly all pairs have a single match by chance and are dropped here.
    _, inverse, counts = np.unique(pair, return_inverse=True, return_counts=True)
    enough = counts[inverse] >= min_votes
    one, two, pair = one[enough], two[enough], pair[enough]
    flat = prints.positions.reshape(-1, 2)
    dy, dx = (flat[one].astype(np.int64) - flat[two]).T
    order = np.lexsort((dx, dy, pair))
    pair, dy, dx = pair[order], dy[order], dx[order]
    new = np.ones(len(pair), bool)
    new[1:] = (np.diff(pair) != 0) | (np.diff(dy) != 0) | (np.diff(dx) != 0)
    exact = np.diff(np.append(np.flatnonzero(new), len(pair)))
    pair, dy, dx = pair[new], dy[new], dx[new]
    # The most frequent translation of each pair, and the votes within one unit of it.
    best = np.lexsort((-exact, pair))
    pair, dy, dx, exact = pair[best], dy[best], dx[best], exact[best]
    leader = np.ones(len(pair), bool)
    leader[1:] = np.diff(pair) != 0
    at = np.cumsum(leader) - 1
    leaders = np.flatnonzero(leader)
    near = (np.abs(dy - dy[leaders][at]) <= 1) & (np.abs(dx - dx[leaders][at]) <= 1)
    votes = np.bincount(at, weights=exact * near, minlength=len(leaders)).astype(np.int64)
    kept = leaders[votes >= min_votes]
    found = Translations(
        pair[kept] // len(prints), pair[kept] % len(prints), dy[kept], dx[kept], votes[votes >= min_votes]
    )
    agree = np.concatenate(
        [
            _coincide(
                prints.positions, prints.step, reach, Translations(*(column[part : part + 4096] for column in found))
            )
            for part in range(0, len(kept), 4096)
        ]
        or [np.zeros(0, bool)]
    )
    first, second, dy, dx, votes = (column[agree] for column in found)
    return Translations(first, second, dy * prints.step, dx * prints.step, votes)


def _coincide(positions: UInt8, step: int, reach: int, found: Translations) -> npt.NDArray[np.bool_]:
    """Return whether enough keypoints of one patch coincide with keypoints of the other under the translation.

    This rejects chance matches without reading pixels. Positions are compared, not hashes, because noise changes a bit
    of many hashes but does not move their keypoints. By chance, 1 in 80 keypoints is within one pixel of another.
    """
    one = positions[found.first].astype(np.int16)
    two = positions[found.second].astype(np.int16) + np.stack([found.dy, found.dx], axis=1).astype(np.int16)[:, None]
    one[positions[found.first] == _NONE] = -1000
    two[positions[found.second] == _NONE] = 1000
    low, high = (_RADIUS + 2) // step, reach
    shared = ((two >= low) & (two <= high)).all(axis=2).sum(axis=1)
    hit = (np.abs(one[:, :, None, 0] - two[:, None, :, 0]) <= 1) & (
        np.abs(one[:, :, None, 1] - two[:, None, :, 1]) <= 1
    )
    hits = hit.any(axis=1).sum(axis=1)
    return np.asarray((hits >= 3) & (hits >= _COINCIDE * shared))


def match_shapes(shapes: npt.NDArray[np.float16], start: int = 0, *, radius: float = 0.12, most: int = 16) -> Int:
    """Return pairs of patches with nearly the same shape.

    Parameters
    ----------
    shapes : float16 (n, SHAPE_SIZE)
        Shapes of all patches; rows of zeros match nothing.
    start : int
        Smallest index of the later patch of a pair.
    radius : float
        Largest Euclidean distance of shapes (vectors of length 1).
    most : int
        Number of nearest patches considered for each patch.

    Returns
    -------
    int64 (m, 2)
        Indices, the later patch first; candidates, to be confirmed by `compare_patches`.
    """
    has_shape = np.flatnonzero(shapes.any(axis=1))
    queries = has_shape[has_shape >= start]
    if len(has_shape) < 2 or not len(queries):
        return np.zeros((0, 2), np.int64)
    tree = cKDTree(shapes[has_shape].astype(np.float32))
    _, near = tree.query(shapes[queries].astype(np.float32), k=most, distance_upper_bound=radius, workers=-1)
    near = np.where(near < len(has_shape), has_shape[np.minimum(near, len(has_shape) - 1)], -1)
    pairs = np.stack([np.repeat(queries, near.shape[1]), near.ravel()], axis=1)
    pairs = pairs[(pairs[:, 1] >= 0) & (pairs[:, 0] != pairs[:, 1])]
    return np.unique(np.sort(pairs, axis=1)[:, ::-1], axis=0).astype(np.int64)


TRANSFORMS = ("same", "turn90", "turn180", "turn270", "mirror", "mirror+turn90", "mirror+turn180", "mirror+turn270")
"""The eight symmetries of the square, by the numbers that `compare_patches` and `turn` use."""

# Measured: similarity >= 0.86 and drop >= 0.41 for 60 real overlaps; similarity <= 0.6 for unrelated patches.
_SIMILAR, _DROP, _SHARE = 0.7, 0.2, 0.05
_DIRECTIONS = ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1))
_CLIMB = 3  # steps of one pixel towards the best translation
_ASIDE = 8  # px, displacement for the drop: larger than a keypoint, smaller than a nucleus


class Overlap(NamedTuple):
    """Overlap of two patches.

    Attributes
    ----------
    dy, dx : int
        Translation, px.
    similarity : float
        Correlation of the overlap.
    share : float
        Area of the overlap, as a share of a patch.
    drop : float
        Decrease of the correlation when the translation is changed by 8 px, in the direction of the smallest decrease.
        It is near 0 if only a straight edge agrees, such as the black bar of a letterboxed image.
    transform : int
        Index in `TRANSFORMS` of the transform of the second patch.
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


def contrast(patch: UInt8) -> Float:
    """Return the contrast-normalised grey image of a patch, in which all texture has the same weight.

    Without normalisation, a dark nucleus or the black bar of a letterboxed image would dominate a correlation.

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
    """Return a view of `image` (P, P, ...) under transform number `transform`: first mirrored, then rotated."""
    return np.rot90(image[:, ::-1] if transform >= 4 else image, transform % 4)


def overlap_views(
    first: npt.NDArray[np.generic], second: npt.NDArray[np.generic], dy: int, dx: int
) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.generic]]:
    """Return views of the overlap of two patches, with `second` at (dy, dx) in the pixels of `first`."""
    height, width = first.shape[:2]
    rows, columns = max(height - abs(dy), 0), max(width - abs(dx), 0)
    y, x = max(dy, 0), max(dx, 0)
    return first[y : y + rows, x : x + columns], second[y - dy : y - dy + rows, x - dx : x - dx + columns]


def _correlation(one: npt.NDArray[np.generic], two: npt.NDArray[np.generic]) -> float:
    a = np.ascontiguousarray(one, np.float32).ravel()
    b = np.ascontiguousarray(two, np.float32).ravel()
    # A blank overlap has almost no energy. The constant prevents a high correlation of its noise.
    blank = np.float32(0.01 * a.size)
    return float(a @ b / np.sqrt((a @ a + blank) * (b @ b + blank))) if a.size else 0.0


def compare_patches(first: Float, second: Float, dy: int = 0, dx: int = 0, *, any_transform: bool = False) -> Overlap:
    """Return the correlation of two patches in their overlap.

    Parameters
    ----------
    first, second : float32 (P, P)
        From `contrast`.
    dy, dx : int
        Translation in px, as in `Translations`; it is refined by hill climbing within 3 px.
    any_transform : bool
        Whether `second` may be mirrored and rotated by right angles.

    Returns
    -------
    Overlap
        A similarity of 1 means equal up to brightness and contrast. It is usually above 0.95 for the same pixels
        encoded twice, and below 0.6 for unrelated patches at their best translation.
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
    return Overlap(y, x, round(similarity, 4), round(share, 4), round(drop, 4), transform)
