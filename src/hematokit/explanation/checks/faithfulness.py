"""Do the pixels that a map points at matter to the model? Deletion and insertion curves.

References
----------
Petsiuk V, Das A, Saenko K (2018). RISE: randomized input sampling for explanation of black-box models. BMVC.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from scipy.ndimage import gaussian_filter
from torch.nn import functional

from hematokit.explanation.checks.similarity import bootstrapped_mean
from hematokit.progress import Progress, no_progress, part_of

if TYPE_CHECKING:
    from hematokit.models.classifier import Classifier

__all__ = [
    "BASELINES",
    "CENTRED",
    "Faithfulness",
    "baseline_maps",
    "centred_gaussian",
    "deletion_insertion",
    "replacement_images",
]

Maps = npt.NDArray[np.float32]
Replacement = Literal["blur", "mean"]
Order = Literal["value", "magnitude"]

CENTRED: Final = "centred Gaussian"
BASELINES: Final = ("random pixels", "random blobs", CENTRED)
"""Maps that use neither model nor image; blobs are as coarse as Grad-CAM, single pixels as fine as a gradient."""


_BLUR: Final = 1 / 12  # deviation, as a share of the side: nothing smaller than a nucleus is left
_CENTRED_DEVIATION: Final = 1 / 6
_BLOB_DEVIATION: Final = 1 / 14


@dataclass(frozen=True)
class Faithfulness:
    """Deletion and insertion of several methods on the same cells.

    Attributes
    ----------
    cells : DataFrame
        One row per cell and method: ``cell`` (its number), ``label``, ``method``, ``deletion``, ``insertion`` (areas
        under the curves, 0 to 1), ``whole`` and ``replaced`` (the target's probability for the image and for its
        replacement).
    summary : DataFrame
        One row per method and class (``label`` empty: all cells): ``n``, ``deletion``, ``insertion`` with ``_low``
        and ``_high``.
    gains : DataFrame
        One row per method and baseline: ``deletion`` (baseline's area minus method's) and ``insertion`` (method's minus
        baseline's) with ``_low`` and ``_high``, paired by cell: above 0 the method is better.
    curves : DataFrame
        Mean curves: ``method``, ``label``, ``fraction`` of pixels, ``deletion``, ``insertion`` (probabilities).
    replacement, order : str
        As given.
    """

    cells: pd.DataFrame
    summary: pd.DataFrame
    gains: pd.DataFrame
    curves: pd.DataFrame
    replacement: str
    order: str


def centred_gaussian(side: int) -> Maps:
    """Return a Gaussian hill (side, side) in the middle of the patch, with a deviation of a sixth of the side.

    On crops that are centred on a cell it marks the cell without using the image: the baseline to beat. Deletion and
    insertion use the order of its pixels only, which the deviation does not change.
    """
    places = (np.arange(side) + 0.5) / side - 0.5
    hill = np.exp(-(places**2) / (2 * _CENTRED_DEVIATION**2))
    return np.outer(hill, hill).astype(np.float32)


def baseline_maps(count: int, side: int, seed: int = 0) -> dict[str, Maps]:
    """Return maps of the `BASELINES`, each (count, side, side), float32; all but the Gaussian differ by cell."""
    random = np.random.default_rng(seed)
    pixels = random.random((count, side, side), dtype=np.float32)
    noise = random.standard_normal((count, side, side), dtype=np.float32)
    blobs = gaussian_filter(noise, (0, _BLOB_DEVIATION * side, _BLOB_DEVIATION * side), mode="reflect")
    return {
        "random pixels": pixels,
        "random blobs": blobs - blobs.min(axis=(1, 2), keepdims=True),
        CENTRED: np.repeat(centred_gaussian(side)[None], count, axis=0),
    }


def replacement_images(images: torch.Tensor, replacement: Replacement = "blur") -> torch.Tensor:
    """Return the images whose pixels replace deleted ones.

    Parameters
    ----------
    images : Tensor, shape (n, 3, S, S), float32 in [0, 1]
    replacement : {"blur", "mean"}
        ``"blur"``: the image under a Gaussian with a deviation of a twelfth of the side, which keeps colours where they
        are and leaves no structure. Petsiuk et al. use a blur for insertion because a sharp-edged constant looks
        like something. ``"mean"``: the mean colour of the image, which hides where the cell is, too, but draws
        edges.

    Returns
    -------
    Tensor, shape (n, 3, S, S)
    """
    if replacement == "mean":
        return images.mean(dim=(2, 3), keepdim=True).expand_as(images).contiguous()
    side = images.shape[-1]
    deviation = _BLUR * side
    reach = min(round(3 * deviation), side - 1)
    places = torch.arange(-reach, reach + 1, dtype=torch.float32, device=images.device)
    kernel = torch.exp(-(places**2) / (2 * deviation**2))
    kernel = (kernel / kernel.sum()).expand(3, 1, -1)
    padded = functional.pad(images, (reach, reach, reach, reach), mode="reflect")
    rows = functional.conv2d(padded, kernel[:, :, :, None], groups=3)
    return functional.conv2d(rows, kernel[:, :, None, :], groups=3)


def pixel_ranks(maps: Maps, seed: int = 0) -> npt.NDArray[np.int64]:
    """Number the pixels of each map (n, H, W) from 0, highest value first; equal values in random order.

    A fixed order would delete what Grad-CAM sets to 0 row by row, from the top of the image.
    """
    flat = np.nan_to_num(np.asarray(maps, dtype=np.float64)).reshape(len(maps), -1)
    random = np.random.default_rng(seed)
    ranks = np.empty(flat.shape, dtype=np.int64)
    for values, row in zip(flat, ranks, strict=True):
        row[np.lexsort((random.random(len(values)), -values))] = np.arange(len(values))
    return ranks.reshape(maps.shape)


def deletion_insertion(
    classifier: Classifier,
    images: torch.Tensor,
    targets: torch.Tensor,
    maps: Mapping[str, Maps],
    *,
    labels: Sequence[str] | None = None,
    groups: npt.ArrayLike | None = None,
    steps: int = 24,
    replacement: Replacement = "blur",
    order: Order = "value",
    baselines: bool = True,
    batch_size: int = 64,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Faithfulness:
    """Measure how the target's probability falls as pixels are replaced, and rises as they are put back.

    *Deletion* replaces the pixels that a map gives the highest values first; a small area under the curve is good.
    *Insertion* begins with the replacement and puts those pixels back first; a large area is good.

    Parameters
    ----------
    classifier : Classifier
    images : Tensor, shape (n, 3, S, S), float32 in [0, 1]
    targets : Tensor, shape (n,), int64
        Class whose probability is followed.
    maps : mapping of str to ndarray (n, S, S), float32
        Maps of the same cells by each method.
    labels : sequence of str, optional
        Class of each cell for the figures per class; the target's code by default.
    groups : array_like (n,), optional
        Groups of cells that belong together, for the intervals.
    steps : int
        Steps of equal size from none to all pixels.
    replacement : {"blur", "mean"}
        See `replacement_images`.
    order : {"value", "magnitude"}
        Rank pixels by the value (what speaks against the class goes last) or by its absolute value.
    baselines : bool
        Measure the `BASELINES` too.
    batch_size : int
        Images classified at a time; bounds memory.
    seed : int
        Of random baselines, ties and intervals.
    progress : Progress
        Called with the number of cells that are done, counted once per method.

    Returns
    -------
    Faithfulness
    """
    count, side = len(images), images.shape[-1]
    if labels is None:
        labels = [classifier.codes[int(target)] for target in targets]
    ranked = {name: np.abs(values) if order == "magnitude" else values for name, values in maps.items()}
    compared = baseline_maps(count, side, seed) if baselines else {}
    fractions = np.arange(steps + 1) / steps
    limits = torch.from_numpy(np.round(fractions * side * side).astype(np.int64))
    replaced = replacement_images(images, replacement)
    rows: list[dict[str, Any]] = []
    curves: list[pd.DataFrame] = []
    total = count * (len(ranked) + len(compared))
    classifier.eval()
    for number, (name, values) in enumerate([*ranked.items(), *compared.items()]):
        ranks = torch.from_numpy(pixel_ranks(values, seed))
        report = part_of(progress, number * count, total, f"deletion and insertion, {name}")
        removed, restored = _curves(classifier, (images, replaced), targets, ranks, limits, batch_size, report)
        for index in range(count):
            rows.append(
                {
                    "cell": index,
                    "label": labels[index],
                    "method": name,
                    "deletion": float(np.trapezoid(removed[index], fractions)),
                    "insertion": float(np.trapezoid(restored[index], fractions)),
                    "whole": float(removed[index, 0]),
                    "replaced": float(restored[index, 0]),
                }
            )
        for label in ["", *dict.fromkeys(labels)]:
            chosen = np.array([label in ("", own) for own in labels])
            curves.append(
                pd.DataFrame(
                    {
                        "method": name,
                        "label": label,
                        "fraction": fractions,
                        "deletion": removed[chosen].mean(axis=0),
                        "insertion": restored[chosen].mean(axis=0),
                    }
                )
            )
    table = pd.DataFrame(rows)
    spread = None if groups is None else np.asarray(groups, dtype=object)
    return Faithfulness(
        table,
        _summary(table, spread, seed),
        _gains(table, list(ranked), list(compared), spread, seed),
        pd.concat(curves, ignore_index=True),
        replacement,
        order,
    )


@torch.inference_mode()
def _curves(
    classifier: Classifier,
    pair: tuple[torch.Tensor, torch.Tensor],
    targets: torch.Tensor,
    ranks: torch.Tensor,
    limits: torch.Tensor,
    batch_size: int,
    progress: Progress,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return probabilities (n, steps + 1) under deletion and insertion; `pair` is the images and their replacements."""
    images, replaced = pair
    count, steps, device = len(images), len(limits), classifier.device
    # Nothing deleted is everything inserted, and the other way round: those two images are looked at once.
    inner = torch.arange(1, steps - 1)
    found = torch.empty(2, count, steps)
    jobs = [(cell, step, way) for cell in range(count) for way in (0, 1) for step in inner.tolist()]
    jobs += [(cell, step, 0) for cell in range(count) for step in (0, steps - 1)]
    for start in range(0, len(jobs), batch_size):
        cells, at, ways = (torch.tensor(part) for part in zip(*jobs[start : start + batch_size], strict=True))
        first = ranks[cells] < limits[at][:, None, None]
        # Deletion shows the replacement where a pixel is among the first, insertion where it is not.
        hidden = (first ^ ways.bool()[:, None, None])[:, None]
        shown = torch.where(hidden, replaced[cells.to(replaced.device)], images[cells.to(images.device)])
        logits = classifier(shown.to(device)).float().cpu() / classifier.temperature
        found[ways, cells, at] = torch.softmax(logits, dim=1).gather(1, targets.cpu()[cells][:, None])[:, 0]
        progress(min(count, round(count * (start + len(cells)) / len(jobs))), count, "")
    found[1, :, 0], found[1, :, -1] = found[0, :, -1], found[0, :, 0]
    removed, restored = found.double().numpy()
    return removed, restored


def _summary(table: pd.DataFrame, groups: npt.NDArray[np.object_] | None, seed: int) -> pd.DataFrame:
    rows = []
    for method, own in table.groupby("method", sort=False):
        for label in ["", *dict.fromkeys(own["label"])]:
            part = own if label == "" else own[own["label"] == label]
            inside = None if groups is None else groups[part["cell"].to_numpy()]
            row: dict[str, Any] = {"method": method, "label": label, "n": len(part)}
            for figure in ("deletion", "insertion"):
                row |= bootstrapped_mean(part[figure], inside, seed=seed).columns(figure)
            rows.append(row)
    return pd.DataFrame(rows)


def _gains(
    table: pd.DataFrame, methods: list[str], baselines: list[str], groups: npt.ArrayLike | None, seed: int
) -> pd.DataFrame:
    rows = []
    areas = {name: part.set_index("cell") for name, part in table.groupby("method", sort=False)}
    for method in methods:
        for baseline in baselines:
            row: dict[str, Any] = {"method": method, "baseline": baseline}
            for figure, sign in (("deletion", -1), ("insertion", 1)):
                gain = sign * (areas[method][figure] - areas[baseline][figure])
                row |= bootstrapped_mean(gain.to_numpy(), groups, seed=seed).columns(figure)
            rows.append(row)
    columns = ["method", "baseline"]
    columns += [f"{figure}{end}" for figure in ("deletion", "insertion") for end in ("", "_low", "_high")]
    return pd.DataFrame(rows, columns=columns)
