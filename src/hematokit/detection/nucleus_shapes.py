"""Single nuclei from a mask of nuclei: touching nuclei are split, lobes of one nucleus merged, and outlines traced."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import find_contours
from skimage.morphology import remove_small_holes
from skimage.segmentation import expand_labels, watershed

from hematokit.imaging.staining import StainMaps

__all__ = ["outline", "separate_nuclei"]

Labels = NDArray[np.int32]
Number = TypeVar("Number", bound=np.generic)

NECK: Final = 0.78
"""Smallest width of the neck between two parts of one nucleus, as a share of the width of the smaller part."""

LOBE_UM: Final = 9.0
"""Largest width in um of a lobe of a segmented nucleus, in a field with few cells."""

CELL_UM: Final = 22.0
"""Largest span in um of the lobes of one nucleus, in a field with few cells. All sizes in this module are generous,
because the scale may be an estimate."""

WHOLE_UM: Final = 6.0
"""Width in um above which two round parts of similar width are two whole nuclei."""

MANY: Final = 4
"""Number of groups of nuclei, or of round nuclei, from which lobes are recognised relative to the typical width of the
field's larger nuclei: by `SLIM`, `COMPACT` and `SPAN`."""

SLIM: Final = (0.72, 5.0, 6.2)
"""Largest width of a lobe: in typical widths, and its lower and upper limit in um."""

COMPACT: Final = (0.5, 3.8, 4.6)
"""The same for a round lobe; smaller, because erythroblasts and lymphocytes have small round nuclei."""

ROUND: Final = 1.4
"""Ratio of the area of a part to that of its inscribed circle, below which the part is round."""

SPAN: Final = (2.1, 13.0, 18.0)
"""Largest span of the lobes of one nucleus: in typical widths, and its lower and upper limit in um."""

LOBE_GAP_UM: Final = 2.5
"""Largest gap between lobes of one nucleus."""

_DEEPEST_UM: Final = 15.0
"""Largest distance in um to the edge of a nucleus; larger distances need not be exact."""

_STRIP: Final = 1024
"""Number of rows that are transformed at a time."""

EDGE: Final = 0.62
"""Value of the nucleus map at the edge of a nucleus, as a share of the darkness of the nucleus."""

CYTOPLASM: Final = 0.18
"""Smallest violet of the cytoplasm between lobes, as a share of that of nuclei; background, between cells, is paler."""


@dataclass
class _Part:
    """One piece of the mask, or several merged pieces; lengths and areas are in working pixels.

    `inside` is the position of one of its pixels, `width` the diameter of its largest inscribed circle.
    """

    members: list[int]
    inside: tuple[int, int]
    width: float
    area: float
    y0: int
    x0: int
    y1: int
    x1: int

    @property
    def is_round(self) -> bool:
        return self.area < ROUND * math.pi / 4 * self.width**2

    def span_with(self, other: _Part) -> int:
        return max(
            max(self.y1, other.y1) - min(self.y0, other.y0),
            max(self.x1, other.x1) - min(self.x0, other.x0),
        )


@dataclass(frozen=True)
class _Contact:
    """Contact of two parts that touch or nearly touch.

    `neck` is the width of the neck in pixels (0 for a gap), `between` the mean violet of the seam outside of the parts
    and `length` the length of that seam in pixels.
    """

    neck: float
    between: float
    length: float

    def with_(self, other: _Contact) -> _Contact:
        length = self.length + other.length
        between = (self.between * self.length + other.between * other.length) / length
        return _Contact(max(self.neck, other.neck), between, length)


def separate_nuclei(maps: StainMaps, threshold: float, scale: float) -> Labels:
    """Label the nuclei of a field.

    Parameters
    ----------
    maps : StainMaps
        Smoothed maps.
    threshold : float
        Value of the nucleus map above which a pixel belongs to a nucleus.
    scale : float
        Pixels per micrometre.

    Returns
    -------
    ndarray of int32, shape (H, W)
        0 for background; the lobes of one nucleus share a label.
    """
    pieces, _ = _cut(maps.nuclei > threshold, scale)
    if not pieces.any():
        return pieces
    # Each nucleus gets its own threshold, relative to its darkness: pale nuclei are not eroded, and dark nuclei do not
    # include cytoplasm that is as dark as a pale nucleus.
    edges = np.maximum(EDGE * _darkness(pieces, maps.nuclei), threshold)
    pieces, depth = _cut((pieces > 0) & (maps.nuclei > edges[pieces]), scale)
    if not pieces.any():
        return pieces
    cytoplasm = max(CYTOPLASM * float(maps.violet[pieces > 0].mean()), 0.05)
    return _joined(pieces, maps.violet, depth, cytoplasm, scale)


def _darkness(pieces: Labels, nuclei: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the 80th percentile of the nucleus map in each piece, 0 for the background; shape (count + 1,)."""
    dark = np.zeros(int(pieces.max()) + 1)
    for number, place in enumerate(ndimage.find_objects(pieces), 1):
        if place is not None:
            dark[number] = np.percentile(nuclei[place][pieces[place] == number], 80)
    return dark


def _cut(mask: NDArray[np.bool_], scale: float) -> tuple[Labels, NDArray[np.float32]]:
    """Smooth a mask and split it at its necks; also return the distance to its edge.

    The split is a watershed of the distance transform, with one marker per local maximum:
    https://scikit-image.org/docs/stable/auto_examples/segmentation/plot_watershed.html
    """
    pad = max(2, round(scale))
    mask = np.pad(mask, pad, mode="edge")
    mask = ndimage.binary_closing(mask, iterations=max(1, round(0.3 * scale)))
    mask = ndimage.binary_opening(mask, iterations=max(1, round(0.3 * scale)))
    mask = remove_small_holes(mask, max_size=int(6.0 * scale * scale) + 1)
    depth = _by_strips(ndimage.distance_transform_edt, mask, math.ceil(_DEEPEST_UM * scale), np.float32)
    depth = ndimage.gaussian_filter(depth, 0.25 * scale, truncate=3.0)
    depth[~mask] = 0.0
    inner = (slice(pad, -pad), slice(pad, -pad))
    mask, depth = mask[inner], depth[inner]
    size = 2 * max(1, round(0.6 * scale)) + 1
    peaks = (depth == ndimage.maximum_filter(depth, size=size)) & (depth > 0.5 * scale)
    markers, count = ndimage.label(peaks, np.ones((3, 3)))
    if not count:
        return np.zeros(mask.shape, np.int32), depth
    return watershed(-depth, markers, mask=mask).astype(np.int32), depth


def _by_strips(
    function: Callable[[NDArray[Any]], NDArray[Any]], image: NDArray[Any], overlap: int, dtype: type[Number]
) -> NDArray[Number]:
    """Apply a function strip by strip, because distance transforms need much memory.

    Results are exact if they depend on neighbourhoods of at most `overlap` rows.
    """
    result = np.empty(image.shape, dtype)
    for top in range(0, len(image), _STRIP):
        bottom = min(top + _STRIP, len(image))
        before = max(top - overlap, 0)
        result[top:bottom] = function(image[before : bottom + overlap])[top - before : bottom - before]
    return result


def _joined(
    pieces: Labels, violet: NDArray[np.float32], depth: NDArray[np.float32], cytoplasm: float, scale: float
) -> Labels:
    """Merge pieces that were split by mistake, and the lobes of one nucleus."""
    count = int(pieces.max())
    widths = np.zeros(count + 1, np.float32)
    filled = pieces > 0
    np.maximum.at(widths, pieces[filled], 2 * depth[filled])
    parts: dict[int, _Part] = {}
    for number, place in enumerate(ndimage.find_objects(pieces), 1):
        if place is not None:
            rows, columns = place
            own = pieces[place] == number
            first = int(np.argmax(own))
            inside = (rows.start + first // own.shape[1], columns.start + first % own.shape[1])
            parts[number] = _Part(
                [number], inside, float(widths[number]), float(own.sum()),
                rows.start, columns.start, rows.stop, columns.stop,
            )  # fmt: skip
    contacts = _contacts(pieces, violet, depth, scale)
    neighbours: dict[int, set[int]] = {number: set() for number in parts}
    for first, second in contacts:
        neighbours[first].add(second)
        neighbours[second].add(first)
    # First merge the pieces without a neck between them, so that whole nuclei differ from lobes; then the lobes.
    _join(parts, contacts, neighbours, lambda one, two, contact: contact.neck / min(one.width, two.width) - NECK)
    typical = _typical_width(parts, pieces, scale)
    if typical > 0:
        slim, compact, cell = (
            min(max(share * typical, low * scale), high * scale) for share, low, high in (SLIM, COMPACT, SPAN)
        )
    else:
        slim, compact, cell = LOBE_UM * scale, LOBE_UM * scale, CELL_UM * scale

    def lobes(one: _Part, two: _Part, contact: _Contact) -> float:
        small = one if one.width <= two.width else two
        limit = compact if small.is_round else slim
        whole = one.is_round and two.is_round and small.width > max(WHOLE_UM * scale, 0.7 * max(one.width, two.width))
        if whole or small.width > limit or one.span_with(two) > cell or contact.between < cytoplasm:
            return 0.0
        return contact.neck / small.width + contact.between

    _join(parts, contacts, neighbours, lobes)
    renumber = np.zeros(count + 1, np.int32)
    for number, part in enumerate(parts.values(), 1):
        renumber[part.members] = number
    return renumber[pieces]


def _typical_width(parts: dict[int, _Part], pieces: Labels, scale: float) -> float:
    """Return the typical width in pixels of a field's larger nuclei; 0 if there are too few to estimate it.

    It is the median over groups of nearby parts of the width of the widest part.
    """
    steps = max(1, round(1.5 * scale))
    groups, count = ndimage.label(ndimage.binary_dilation(pieces > 0, iterations=steps))
    widest = np.zeros(count + 1)
    for part in parts.values():
        group = groups[part.inside]
        widest[group] = max(widest[group], part.width)
    large = widest[widest > 4.5 * scale]
    if len(large) >= MANY:
        return float(np.median(large))
    # All nuclei may form one clump. Whole nuclei are round, most lobes are not.
    compact = [part.width for part in parts.values() if part.width > 4.5 * scale and part.is_round]
    return float(np.median(compact)) if len(compact) >= MANY else 0.0


def _join(
    parts: dict[int, _Part],
    contacts: dict[tuple[int, int], _Contact],
    neighbours: dict[int, set[int]],
    bond: Callable[[_Part, _Part, _Contact], float],
) -> None:
    """Merge the pair with the strongest bond until no bond is above 0.

    The queue may have outdated bonds of a pair; `current` has the valid one.
    """

    def offer(pair: tuple[int, int]) -> None:
        one, two = pair
        value = bond(parts[one], parts[two], contacts[pair])
        if value > 0:
            current[pair] = value
            heapq.heappush(queue, (-value, pair))
        else:
            current.pop(pair, None)

    queue: list[tuple[float, tuple[int, int]]] = []
    current: dict[tuple[int, int], float] = {}
    for pair in contacts:
        offer(pair)
    while queue:
        value, pair = heapq.heappop(queue)
        if pair not in contacts or current.get(pair) != -value:
            continue  # one of the two has been merged in the meantime
        kept = pair[0]
        _merge(parts, contacts, neighbours, *pair)
        for other in neighbours[kept]:
            offer((min(kept, other), max(kept, other)))


def _merge(
    parts: dict[int, _Part],
    contacts: dict[tuple[int, int], _Contact],
    neighbours: dict[int, set[int]],
    first: int,
    second: int,
) -> None:
    one, two = parts[first], parts.pop(second)
    parts[first] = _Part(
        one.members + two.members, one.inside, max(one.width, two.width), one.area + two.area,
        min(one.y0, two.y0), min(one.x0, two.x0), max(one.y1, two.y1), max(one.x1, two.x1),
    )  # fmt: skip
    del contacts[first, second]
    neighbours[first].discard(second)
    for other in neighbours.pop(second) - {first}:
        contact = contacts.pop((min(second, other), max(second, other)))
        renamed = (min(first, other), max(first, other))
        contacts[renamed] = contact.with_(contacts[renamed]) if renamed in contacts else contact
        neighbours[other].discard(second)
        neighbours[other].add(first)
        neighbours[first].add(other)


def _contacts(
    pieces: Labels, violet: NDArray[np.float32], depth: NDArray[np.float32], scale: float
) -> dict[tuple[int, int], _Contact]:
    """Return the contacts of pieces that touch or nearly touch, by pair of labels."""
    reach = LOBE_GAP_UM / 2 * scale
    grown = _by_strips(lambda strip: expand_labels(strip, reach), pieces, math.ceil(reach) + 1, np.int32)
    ones, twos, necks, betweens = [], [], [], []
    whole = slice(None)
    for before, after in (
        ((slice(None, -1), whole), (slice(1, None), whole)),
        ((whole, slice(None, -1)), (whole, slice(1, None))),
    ):
        left, right = grown[before], grown[after]
        edge = (left != right) & (left > 0) & (right > 0)
        ones.append(np.minimum(left[edge], right[edge]))
        twos.append(np.maximum(left[edge], right[edge]))
        necks.append(2 * np.minimum(depth[before][edge], depth[after][edge]))
        betweens.append(np.minimum(violet[before][edge], violet[after][edge]))
    first, second = np.concatenate(ones).astype(np.int64), np.concatenate(twos).astype(np.int64)
    if not len(first):
        return {}
    base = int(pieces.max()) + 1
    keys, place = np.unique(first * base + second, return_inverse=True)
    neck, between = np.concatenate(necks), np.concatenate(betweens)
    widest = np.zeros(len(keys))
    np.maximum.at(widest, place, neck)
    # The seam between two touching parts continues outside of them, into the notch. Between two cells it crosses
    # background, between two lobes the cytoplasm of their cell.
    outside = neck <= 0
    lengths = np.bincount(place, outside, minlength=len(keys))
    sums = np.bincount(place, between * outside, minlength=len(keys))
    inner = np.bincount(place, between) / np.bincount(place)
    return {
        (int(key) // base, int(key) % base): _Contact(
            float(widest[number]),
            float(sums[number] / lengths[number]) if lengths[number] else float(inner[number]),
            float(max(lengths[number], 1.0)),
        )
        for number, key in enumerate(keys)
    }


def outline(mask: NDArray[np.bool_], *, smoothing: float = 0.0) -> NDArray[np.float64]:
    """Return the outline of a mask, or of its largest part.

    Parameters
    ----------
    mask : ndarray of bool, shape (H, W)
        Mask with at least one pixel.
    smoothing : float
        Radius in pixels of the closing that removes narrow bays (pale chromatin at the edge).

    Returns
    -------
    ndarray of float64, shape (n, 2)
        ``(y, x)``, pixel corners on the integers, not closed, n >= 3.
    """
    steps = round(smoothing)
    pad = steps + 3
    padded = np.pad(mask, pad)
    if steps > 0:
        padded = ndimage.binary_closing(padded, iterations=steps)
    soft = ndimage.gaussian_filter(padded.astype(np.float32), 0.8)
    lines = find_contours(soft, 0.5)
    if not lines:
        # The smoothed mask of a few pixels may stay below 0.5 everywhere: return its bounding box.
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        y0, y1, x0, x1 = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
        return np.array([(y0, x0), (y0, x1), (y1, x1), (y1, x0)], np.float64)
    line = max(lines, key=len)[:-1]
    # The line has about two points per pixel of its length; a quarter of them is sufficient.
    line = line[:: max(1, min(4, len(line) // 16))]
    height, width = mask.shape
    return np.asarray(np.clip(line - (pad - 0.5), 0, (height, width)), np.float64)
