"""Is a map on the cell? Share of the attribution inside the central cell and inside its nucleus."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import ndimage
from skimage.draw import polygon2mask

from hematokit.explanation.checks.faithfulness import CENTRED, centred_gaussian
from hematokit.explanation.checks.similarity import Estimate, bootstrapped_mean, has_signs
from hematokit.imaging.staining import background, stain_maps
from hematokit.progress import Progress, no_progress

if TYPE_CHECKING:
    from hematokit.plugins.specs import Detector, InputSpec

__all__ = ["REGIONS", "CellMasks", "Localisation", "evidence", "find_cell_masks", "localisation"]

Maps = npt.NDArray[np.float32]
Masks = npt.NDArray[np.bool_]

REGIONS: Final = ("nucleus", "cell")

_OFF_CENTRE: Final = 0.25
"""Largest distance of the central nucleus from the middle, as a share of the side, where none covers the middle."""

_CYTOPLASM_REACH: Final = 0.8
"""Reach of the search for cytoplasm around a nucleus, as a share of the radius of a circle of the nucleus' area."""

_STAINED: Final = 0.2
"""Density of the palest pixel that counts as cytoplasm, as a share of the nucleus' median density."""


@dataclass(frozen=True)
class CellMasks:
    """Central cells in the input's pixels.

    Attributes
    ----------
    nucleus, cell : ndarray (n, S, S), bool
        Empty where nothing was found; the cell includes its nucleus.
    found : ndarray (n,), bool
        Whether a central nucleus was found.
    """

    nucleus: Masks
    cell: Masks
    found: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Localisation:
    """Shares of attribution by method and class.

    Attributes
    ----------
    cells : DataFrame
        One row per cell and method (the `CENTRED` Gaussian among them): ``cell`` (its number), ``label``, ``method``,
        ``nucleus``, ``cell_share`` (shares of the attribution, 0 to 1; NaN where no nucleus was found or the map is
        empty), ``nucleus_area``, ``cell_area`` (shares of the image).
    summary : DataFrame
        One row per method and class (``label`` empty: all): ``n`` (cells with a figure), ``not_found`` (cells without
        a nucleus), ``empty`` (maps without any attribution, of cells with one); for ``nucleus`` and ``cell`` the mean
        share, ``_low``, ``_high``, ``_area`` (mean area share), and ``_gain`` (share minus the Gaussian's, paired) with
        ``_gain_low`` and ``_gain_high``.
    """

    cells: pd.DataFrame
    summary: pd.DataFrame


def evidence(maps: Maps) -> Maps:
    """Return the evidence for the class: the positive part of maps that have signs; maps without signs unchanged.

    Parameters
    ----------
    maps : ndarray (n, H, W), float32
        All by one method: whether it has signs is decided for them together.
    """
    return np.maximum(maps, 0) if has_signs(maps) else maps


def find_cell_masks(
    detector: Detector,
    patches: npt.NDArray[np.uint8],
    input_spec: InputSpec,
    *,
    pixel_size_um: float | None = None,
    progress: Progress = no_progress,
) -> CellMasks:
    """Segment the central cell of each patch.

    The *nucleus* is the inside of the detector's contour that covers the middle of the patch, else of the one whose
    centre is nearest to it, up to a quarter of the side away. A detector that gives one contour for a nucleus in
    several parts gives its largest part. The *cell* is an estimate, because detectors find nuclei: the nucleus, and
    stained pixels around it up to 0.8 of its radius, as far as they are connected with it and no other nucleus is
    nearer. Red cells that touch can be part of it.

    Parameters
    ----------
    detector : Detector
        With contours, such as the built-in ``nuclei``.
    patches : ndarray (n, P, P, 3), uint8
    input_spec : InputSpec
        The classifier's; masks are resized and padded as the image is, so that they fit it.
    pixel_size_um : float, optional
        Micrometres per pixel of the patches.
    progress : Progress
        Called with the number of patches that are done.

    Returns
    -------
    CellMasks
    """
    import torch

    from hematokit.models.classifier import fit_to_input

    side = patches.shape[1]
    size = input_spec.size
    masks = np.zeros((2, len(patches), size, size), dtype=bool)
    found = np.zeros(len(patches), dtype=bool)
    for index, patch in enumerate(patches):
        cells = detector.detect(patch, pixel_size_um)
        chosen = _central(cells, side)
        if chosen is not None:
            nuclei = [_inside(contour, side) for contour in cells["contour"] if contour is not None]
            nucleus = _inside(cells["contour"].iloc[chosen], side)
            pair = np.stack([nucleus, _whole_cell(patch, nucleus, nuclei)])
            fitted = fit_to_input(torch.from_numpy(pair[:, None].astype(np.float32)), input_spec)
            masks[:, index] = fitted[:, 0].numpy() >= 0.5
            found[index] = bool(masks[0, index].any())
        progress(index + 1, len(patches), "finding nuclei")
    return CellMasks(masks[0], masks[1], found)


def localisation(
    maps: Mapping[str, Maps],
    masks: CellMasks,
    labels: Sequence[str],
    *,
    groups: npt.ArrayLike | None = None,
    seed: int = 0,
) -> Localisation:
    """Measure how much of each map is on the cell and on its nucleus.

    Parameters
    ----------
    maps : mapping of str to ndarray (n, S, S), float32
        Maps of the same cells by each method. Of signed maps the positive part counts (see `evidence`).
    masks : CellMasks
    labels : sequence of str
        Class of each cell.
    groups : array_like (n,), optional
        Groups of cells that belong together, for the intervals.
    seed : int
        Of the bootstrap.

    Returns
    -------
    Localisation
        With a centred Gaussian beside the methods: on crops that are centred on their cell it is on the cell, too,
        so a share says little without it and without the area's share.
    """
    count, side = len(labels), masks.nucleus.shape[1]
    gaussian = np.repeat(centred_gaussian(side)[None], count, axis=0)
    rows = []
    for method, values in {**maps, CENTRED: gaussian}.items():
        weights = np.nan_to_num(evidence(values)).astype(np.float64)
        total = weights.sum(axis=(1, 2))
        usable = masks.found & (total > 0)
        shares = {}
        for region, mask in (("nucleus", masks.nucleus), ("cell", masks.cell)):
            inside = (weights * mask).sum(axis=(1, 2))
            shares[region] = np.divide(inside, total, out=np.full(count, np.nan), where=usable)
        for index in range(count):
            rows.append(
                {
                    "cell": index,
                    "label": labels[index],
                    "method": method,
                    "nucleus": shares["nucleus"][index],
                    "cell_share": shares["cell"][index],
                    "nucleus_area": _area(masks.nucleus[index], masks.found[index]),
                    "cell_area": _area(masks.cell[index], masks.found[index]),
                    "empty": bool(masks.found[index] and total[index] <= 0),
                }
            )
    table = pd.DataFrame(rows)
    return Localisation(table, _summary(table, groups, seed))


def _summary(table: pd.DataFrame, groups: npt.ArrayLike | None, seed: int) -> pd.DataFrame:
    known = None if groups is None else np.asarray(groups, dtype=object)
    reference = table[table["method"] == CENTRED].set_index("cell")
    rows = []
    for method, own in table.groupby("method", sort=False):
        for label in ["", *dict.fromkeys(own["label"])]:
            part = (own if label == "" else own[own["label"] == label]).set_index("cell")
            inside = None if known is None else known[part.index.to_numpy()]

            def mean(values: pd.Series[float], inside: Any = inside) -> Estimate:
                return bootstrapped_mean(values.to_numpy(dtype=np.float64), inside, seed=seed)

            row: dict[str, Any] = {
                "method": method,
                "label": label,
                "n": int(part["nucleus"].notna().sum()),
                "not_found": int(part["nucleus_area"].isna().sum()),
                "empty": int(part["empty"].sum()),
            }
            for region, column in (("nucleus", "nucleus"), ("cell", "cell_share")):
                share = mean(part[column])
                gain = mean(part[column] - reference.loc[part.index, column])
                row |= share.columns(region)
                row[f"{region}_area"] = mean(part[f"{region}_area"]).mean
                row |= gain.columns(f"{region}_gain")
            rows.append(row)
    return pd.DataFrame(rows)


def _area(mask: Masks, found: bool) -> float:
    return float(mask.mean()) if found else float("nan")


def _central(cells: pd.DataFrame, side: int) -> int | None:
    """Return the place in the table of the nucleus in the middle of the patch."""
    if "contour" not in cells or cells.empty:
        return None
    middle = side / 2
    distances = []
    for contour, y, x in zip(cells["contour"], cells["y"], cells["x"], strict=True):
        if contour is None or len(contour) < 3:
            distances.append(np.inf)
        elif _inside(contour, side)[side // 2, side // 2]:
            distances.append(-1.0)
        else:
            distances.append(float(np.hypot(y - middle, x - middle)))
    nearest = int(np.argmin(distances))
    return nearest if distances[nearest] <= _OFF_CENTRE * side else None


def _inside(contour: npt.ArrayLike, side: int) -> Masks:
    # Contours have pixel corners on the integers; polygon2mask asks about pixel centres at the integers.
    mask: Masks = polygon2mask((side, side), np.asarray(contour, dtype=np.float64) - 0.5)
    return mask


def _whole_cell(patch: npt.NDArray[np.uint8], nucleus: Masks, nuclei: Sequence[Masks]) -> Masks:
    if not nucleus.any():
        return nucleus
    stain = stain_maps(patch, background(patch), sigma=1.0).stain
    reach = _CYTOPLASM_REACH * np.sqrt(nucleus.sum() / np.pi)
    distance = ndimage.distance_transform_edt(~nucleus)
    near = distance <= reach
    others = np.logical_or.reduce([other for other in nuclei if not (other & nucleus).any()], initial=False)
    if np.any(others):
        near &= distance < ndimage.distance_transform_edt(~np.broadcast_to(others, nucleus.shape))
    stained = near & (stain >= _STAINED * float(np.median(stain[nucleus]))) | nucleus
    parts, _ = ndimage.label(ndimage.binary_opening(stained, iterations=2) | nucleus)
    connected = np.isin(parts, np.unique(parts[nucleus]))
    whole: Masks = ndimage.binary_fill_holes(connected)
    return whole
