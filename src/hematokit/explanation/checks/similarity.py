"""Similarity of attribution maps: rank correlation, structural similarity, and means over cells with intervals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata
from skimage.metrics import structural_similarity as skimage_ssim

from hematokit.evaluation.intervals import LEVEL, cluster_ids, cluster_weights

__all__ = [
    "Estimate",
    "bootstrapped_mean",
    "has_signs",
    "normalised",
    "other_cells",
    "rank_correlation",
    "structural_similarity",
]

Maps = npt.NDArray[np.floating]

_CLIP: Final = 99.0
_SMALLEST_SIDE: Final = 11  # of the window that Wang et al. weigh with a Gaussian of deviation 1.5


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over cells and its 95 % interval.

    Attributes
    ----------
    mean : float
        NaN where no cell has a value.
    low, high : float
        Bounds; NaN where fewer than two groups of cells have a value.
    n : int
        Cells with a value.
    """

    mean: float
    low: float
    high: float
    n: int

    def columns(self, name: str) -> dict[str, float]:
        """Return the mean and its bounds as cells of a table: `name`, ``<name>_low``, ``<name>_high``."""
        return {name: self.mean, f"{name}_low": self.low, f"{name}_high": self.high}


def has_signs(maps: Maps) -> bool:
    """Return whether an explainer gives signed maps: any value below 0."""
    return bool((np.nan_to_num(maps) < 0).any())


def rank_correlation(first: Maps, second: Maps) -> npt.NDArray[np.float64]:
    """Spearman's rank correlation over the pixels of each pair of maps.

    Parameters
    ----------
    first, second : ndarray (n, H, W), float
        Maps in pairs.

    Returns
    -------
    ndarray (n,), float64
        From -1 to 1. A map of one value has no ranks: two such maps count as alike (1), one beside a map with ranks as
        unrelated (0); a map with values that are not finite counts as unrelated to any.
    """
    _check_pairs(first, second)
    left, right = (_centred_ranks(maps) for maps in (first, second))
    product = (left * right).sum(axis=1)
    norms = np.sqrt((left**2).sum(axis=1) * (right**2).sum(axis=1))
    flat_left, flat_right = ((~ranks.any(axis=1)) for ranks in (left, right))
    found = np.divide(product, norms, out=np.zeros(len(product)), where=norms > 0)
    found[flat_left & flat_right] = 1.0
    found[~(_finite(first) & _finite(second))] = 0.0
    return np.asarray(found.clip(-1.0, 1.0))


def structural_similarity(first: Maps, second: Maps, *, signed: bool = False) -> npt.NDArray[np.float64]:
    """Mean structural similarity (SSIM) of each pair of maps, after scaling each map for itself.

    Parameters
    ----------
    first, second : ndarray (n, H, W), float
        Maps in pairs, at least 11 pixels wide.
    signed : bool
        Whether 0 is the middle of the scale; see `normalised`. Maps then go from 0 (against) to 1 (for).

    Returns
    -------
    ndarray (n,), float64
        At most 1. A map with values that are not finite counts as unrelated (0) to any.

    Raises
    ------
    ValueError
        If the maps are smaller than the window.

    References
    ----------
    Wang Z, Bovik AC, Sheikh HR, Simoncelli EP (2004). Image quality assessment: from error visibility to structural
    similarity. IEEE Transactions on Image Processing 13, 600-612. Their Gaussian window and constants are used.
    """
    _check_pairs(first, second)
    if min(first.shape[1:]) < _SMALLEST_SIDE:
        raise ValueError(f"SSIM needs maps of at least {_SMALLEST_SIDE} x {_SMALLEST_SIDE} pixels, not {first.shape}")
    usable = _finite(first) & _finite(second)
    left, right = normalised(first, signed=signed), normalised(second, signed=signed)
    if signed:
        # SSIM compares brightnesses and is not defined below 0: a map and its opposite would count as alike.
        left, right = (left + 1) / 2, (right + 1) / 2
    found = np.zeros(len(first))
    for index in np.flatnonzero(usable):
        found[index] = skimage_ssim(
            left[index],
            right[index],
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    return found


def normalised(maps: Maps, *, signed: bool = False) -> npt.NDArray[np.float64]:
    """Scale each map for comparison and display.

    Values are divided by the 99th percentile of the absolute values and clipped, as Smilkov et al. (2017) show maps: a
    gradient map has a few pixels that would press all others to 0.

    Parameters
    ----------
    maps : ndarray (n, H, W), float
        Values that are not finite count as 0.
    signed : bool
        Bring them to [-1, 1], where 0 stays 0. Otherwise the smallest value of each is taken off first, and they come
        to [0, 1].

    Returns
    -------
    ndarray (n, H, W), float64
    """
    values = np.nan_to_num(np.asarray(maps, dtype=np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    if not signed:
        values = values - values.min(axis=(1, 2), keepdims=True)
    limit = np.percentile(np.abs(values), _CLIP, axis=(1, 2), keepdims=True)
    # Where less than one pixel in a hundred is not 0, the percentile is: take the largest value.
    limit = np.where(limit > 0, limit, np.abs(values).max(axis=(1, 2), keepdims=True))
    scaled: npt.NDArray[np.float64] = np.divide(values, limit, out=np.zeros_like(values), where=limit > 0)
    return scaled.clip(-1.0, 1.0)


def other_cells(n: int, seed: int, times: int = 3) -> npt.NDArray[np.int64]:
    """Choose, for each of `n` cells, `times` other cells at random.

    Parameters
    ----------
    n : int
        Number of cells.
    seed : int
    times : int
        Other cells for each.

    Returns
    -------
    ndarray (min(times, n - 1), n), int64
        Each row is a permutation without fixed points; no rows for fewer than two cells.
    """
    order = np.random.default_rng(seed).permutation(n)
    rows = np.empty((max(0, min(times, n - 1)), n), dtype=np.int64)
    for shift, row in enumerate(rows, start=1):
        # A random circle of cells, walked on by a few steps, never comes back to where it started.
        row[order] = np.roll(order, shift)
    return rows


def bootstrapped_mean(
    values: npt.ArrayLike, groups: npt.ArrayLike | None = None, *, seed: int = 0, resamples: int = 1000
) -> Estimate:
    """Mean over cells with the percentile interval of a bootstrap over groups of cells.

    Parameters
    ----------
    values : array_like (n,), float
        One figure per cell; NaN where a cell has none.
    groups : array_like (n,), optional
        Group of each cell (patient, or duplicate group); cells of one group are drawn together.
    seed, resamples : int
        Of the (Bayesian) bootstrap, see `hematokit.evaluation.intervals`.

    Returns
    -------
    Estimate
    """
    figures = np.asarray(values, dtype=np.float64)
    clusters = cluster_ids(groups, len(figures))
    known = np.isfinite(figures)
    if not known.any():
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    figures, clusters = figures[known], np.unique(clusters[known], return_inverse=True)[1]
    sums, counts = np.bincount(clusters, weights=figures), np.bincount(clusters).astype(np.float64)
    mean = float(figures.mean())
    if len(sums) < 2:
        return Estimate(mean, float("nan"), float("nan"), len(figures))
    draws = np.concatenate(
        [(weights @ sums) / (weights @ counts) for weights in cluster_weights(clusters, resamples, seed)]
    )
    low, high = np.quantile(draws, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
    # Rounding must not push a bound past the mean where all cells agree.
    return Estimate(mean, min(float(low), mean), max(float(high), mean), len(figures))


def _centred_ranks(maps: Maps) -> npt.NDArray[np.float64]:
    flat = np.nan_to_num(np.asarray(maps, dtype=np.float64)).reshape(len(maps), -1)
    ranks = rankdata(flat, axis=1)
    centred: npt.NDArray[np.float64] = ranks - (flat.shape[1] + 1) / 2
    return centred


def _finite(maps: Maps) -> npt.NDArray[np.bool_]:
    return np.asarray(np.isfinite(maps).all(axis=(1, 2)))


def _check_pairs(first: Maps, second: Maps) -> None:
    if first.ndim != 3 or first.shape != second.shape:
        raise ValueError(f"maps are compared in pairs: two arrays (n, H, W), not {first.shape} and {second.shape}")
