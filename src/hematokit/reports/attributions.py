"""Figures of attributions: one cell beside its maps, the classes side by side, uncertain cells, whole fields.

Numbers become colours by one rule: a map that says how much each pixel matters is shown in grey, bright where it
contributes to the class, from 0 to its 99th percentile (as the authors of SmoothGrad draw it); a map of regions is laid
over the image, from 0 to its highest value. Each map is scaled by itself, so brightness compares pixels of one cell and
never one cell with another.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

from hematokit.reports.overlay import font, shortened
from hematokit.reports.rendering import INK, MUTED, STYLE

__all__ = [
    "AttributedCell",
    "HEAT",
    "METHOD_NAMES",
    "REGION_METHODS",
    "UncertainCell",
    "cell_picture",
    "class_figure",
    "map_picture",
    "saliency_overlay",
    "uncertain_figure",
]

Patch = npt.NDArray[np.uint8]
Map = npt.NDArray[np.float32]

METHOD_NAMES: Final = {
    "grad-cam": "Grad-CAM",
    "smoothgrad": "SmoothGrad",
    "integrated-gradients": "Integrated gradients",
    "occlusion": "Occlusion",
    "guided-grad-cam": "Guided Grad-CAM",
}
REGION_METHODS: Final = frozenset({"grad-cam", "occlusion"})
"""Methods whose maps are coarse: regions laid over the image, rather than pixels in grey."""

# From green over yellow to red: hues that stained cells do not have, in an order that everybody reads as rising.
HEAT: Final = LinearSegmentedColormap.from_list(
    "heat", ["#1f8f6f", "#5fc94e", "#d7e64a", "#ffd23f", "#ff8a1f", "#e31a1c"]
)
_DIVERGING: Final = LinearSegmentedColormap.from_list("versus", ["#2166ac", "#92c5de", "#f7f7f7", "#f4a582", "#b2182b"])
_GREY_PERCENTILE: Final = 99.0
_SIDE: Final = 250
_BAND: Final = 34


@dataclass(frozen=True)
class AttributedCell:
    """A cell, its prediction and its maps.

    Attributes
    ----------
    cell_id : str
    label : str
        Class code; empty where unknown.
    predicted : str
    probability : float
        Of the predicted class.
    target : str
        Code of the class explained.
    patch : ndarray of uint8, shape (P, P, 3)
    maps : mapping of str to ndarray of float32, shape (P, P)
        By method, in the patch's pixels.
    """

    cell_id: str
    label: str
    predicted: str
    probability: float
    target: str
    patch: Patch
    maps: Mapping[str, Map]


@dataclass(frozen=True)
class UncertainCell:
    """A cell and its maps for the two leading classes.

    Attributes
    ----------
    cell_id : str
    label : str
        Class code; empty where unknown.
    reason : str
        Why it is shown: misclassified, low-confidence, or both.
    first, second : str
        Codes of the two leading classes.
    p_first, p_second : float
        Their probabilities.
    patch : ndarray of uint8, shape (P, P, 3)
    maps : mapping of str to ndarray of float32, shape (2, P, P)
        By method: for the first and for the second class.
    """

    cell_id: str
    label: str
    reason: str
    first: str
    second: str
    p_first: float
    p_second: float
    patch: Patch
    maps: Mapping[str, Map]


def _percent(probability: float) -> str:
    return f"{100 * probability:.0f} %" if probability < 0.995 else "> 99 %"


def map_picture(method: str, attribution: Map, patch: Patch, *, highest: float | None = None) -> Patch:
    """Draw one map.

    Parameters
    ----------
    method : str
        Decides between grey and a heat map over the patch.
    attribution : ndarray of float32, shape (P, P)
    patch : ndarray of uint8, shape (P, P, 3)
    highest : float, optional
        Value shown at full strength; the map's own by default. Given, it makes maps comparable.

    Returns
    -------
    ndarray of uint8, shape (P, P, 3)
    """
    positive = np.clip(attribution, 0.0, None)
    top = _highest(method, attribution) if highest is None else highest
    share = np.clip(positive / top, 0.0, 1.0) if top > 0 else np.zeros_like(positive)
    if method in REGION_METHODS:
        return _laid_over(patch, HEAT(share)[..., :3], share)
    grey = (share * 255 + 0.5).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def _highest(method: str, attribution: Map) -> float:
    positive = np.clip(attribution, 0.0, None)
    top = positive.max() if method in REGION_METHODS else np.percentile(positive, _GREY_PERCENTILE)
    return float(top or positive.max())


def _laid_over(patch: Patch, colours: npt.NDArray[np.floating], share: npt.NDArray[np.floating]) -> Patch:
    """Return colours over a patch that fades to grey beneath them, stronger where the share is higher."""
    picture = patch.astype(np.float32) / 255.0
    grey = picture @ np.array([0.299, 0.587, 0.114], np.float32)
    # No colour where the map is zero: a tint everywhere would hide the cell.
    alpha = np.clip(0.85 * share, 0.0, 0.62)[..., None].astype(np.float32)
    base = 0.5 * picture + 0.5 * grey[..., None]
    return _to_bytes((1 - alpha) * base + alpha * colours)


def _to_bytes(colours: npt.NDArray[np.floating]) -> Patch:
    return np.asarray(np.clip(colours, 0.0, 1.0) * 255 + 0.5, np.uint8)


def _difference_picture(first: Map, second: Map, patch: Patch, *, scale: float | None = None) -> Patch:
    """Show where one class's map is higher (red) and where the other's is (blue), over the faded patch."""
    difference = first - second
    top = scale or float(np.percentile(np.abs(difference), 99.5)) or 1.0
    share = np.clip(difference / top, -1.0, 1.0)
    picture = patch.astype(np.float32) / 255.0
    grey = (picture @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]
    base = np.repeat(0.35 + 0.65 * grey, 3, axis=2)
    colours = _DIVERGING(share / 2 + 0.5)[..., :3]
    alpha = np.clip(np.abs(share), 0.0, 1.0)[..., None] ** 0.7 * 0.8
    return _to_bytes((1 - alpha) * base + alpha * colours)


def _regions_last(methods: Iterable[str]) -> list[str]:
    """Return methods in the order shown: those of single pixels first."""
    return sorted(methods, key=lambda name: name in REGION_METHODS)


def cell_picture(cell: AttributedCell) -> bytes:
    """Draw a cell and its maps side by side.

    Returns
    -------
    bytes
        A PNG file; panels of at least 250 px, and a line of text that is cut off where it does not fit.
    """
    patch, maps = cell.patch, cell.maps
    caption = f"{cell.cell_id}   {f'{cell.label}, ' if cell.label else ''}predicted {cell.predicted} "
    caption += _percent(cell.probability)
    if cell.target != cell.predicted:
        caption += f", explained for {cell.target}"
    order = _regions_last(maps)
    panels = [patch, *(map_picture(name, maps[name], patch) for name in order)]
    names = ["Original", *(METHOD_NAMES.get(name, name) for name in order)]
    flat = {name for name in order if not (maps[name] > 0).any()}
    names = [
        title + (" (nothing for this class)" if name in flat else "")
        for title, name in zip(names, ["", *order], strict=True)
    ]
    side = max(_SIDE, patch.shape[0])
    gap = 6
    canvas = Image.new("RGB", (len(panels) * (side + gap) + gap, side + 2 * _BAND), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((gap, 8), shortened(caption, font(15), canvas.width - 2 * gap), fill=INK, font=font(15))
    for number, (panel, name) in enumerate(zip(panels, names, strict=True)):
        x = gap + number * (side + gap)
        image = Image.fromarray(panel)
        if panel.shape[0] != side:
            image = image.resize((side, side), Image.Resampling.BICUBIC)
        canvas.paste(image, (x, _BAND))
        draw.text((x, _BAND + side + 6), shortened(name, font(13), side), fill=MUTED, font=font(13))
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG")
    return buffer.getvalue()


def class_figure(cells: Mapping[str, AttributedCell], methods: Sequence[str]) -> Figure:
    """Draw classes as columns; original, then one row a method, regions last (the paper's Fig. 8).

    Parameters
    ----------
    cells : mapping of str to AttributedCell
        By class code; one column each.
    methods : sequence of str
        Rows.
    """
    rows = _regions_last(methods)
    width, height = max(1.35 * len(cells) + 0.5, 3.0), 1.35 * (len(rows) + 1) + 0.75
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        grid: Any = figure.subplots(len(rows) + 1, max(len(cells), 1), squeeze=False)
        for column, (code, cell) in enumerate(cells.items()):
            title = f"{'' if cell.predicted == code else 'as '}{cell.predicted} {_percent(cell.probability)}"
            if cell.target != cell.predicted:
                title += f", for {cell.target}"
            panels = [cell.patch, *(map_picture(name, cell.maps[name], cell.patch) for name in rows)]
            for row, panel in enumerate(panels):
                axes = grid[row][column]
                axes.imshow(panel, interpolation="bilinear")
                axes.set(xticks=[], yticks=[])
                for spine in axes.spines.values():
                    spine.set_visible(False)
            top = grid[0][column]
            top.set_title(code, fontsize=11, fontweight="bold", color=INK, pad=17)
            top.text(0.5, 1.03, title, transform=top.transAxes, ha="center", va="bottom", fontsize=7, color=MUTED)
        for row, name in enumerate(["Original", *(METHOD_NAMES.get(name, name) for name in rows)]):
            grid[row][0].set_ylabel(name, fontsize=9, color=INK)
        figure.subplots_adjust(
            left=0.42 / width,
            right=1 - 0.06 / width,
            top=1 - 0.6 / height,
            bottom=0.06 / height,
            wspace=0.03,
            hspace=0.03,
        )
    return figure


def uncertain_figure(cells: Sequence[UncertainCell], methods: Sequence[str]) -> Figure:
    """Draw uncertain cells, one per row: the original and, by method, the maps of both classes and their difference.

    Both maps of a method have one scale, so that they can be compared; the difference is red where the first class's
    map is higher and blue where the second's is.

    Parameters
    ----------
    cells : sequence of UncertainCell
    methods : sequence of str
    """
    columns = 1 + 3 * len(methods)
    width, height = 1.5 * columns + 0.2, 1.9 * len(cells) + 0.45
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        grid: Any = figure.subplots(max(len(cells), 1), columns, squeeze=False)
        for row, cell in enumerate(cells):
            panels: list[tuple[Patch, str]] = [(cell.patch, "")]
            for name in methods:
                first, second = cell.maps[name]
                top = max(_highest(name, first), _highest(name, second))
                panels += [
                    (map_picture(name, first, cell.patch, highest=top), f"for {cell.first}"),
                    (map_picture(name, second, cell.patch, highest=top), f"for {cell.second}"),
                    (_difference_picture(first, second, cell.patch, scale=top), "difference"),
                ]
            for axes, (panel, title) in zip(grid[row], panels, strict=True):
                axes.imshow(panel, interpolation="bilinear")
                axes.set(xticks=[], yticks=[])
                for spine in axes.spines.values():
                    spine.set_visible(False)
                axes.set_xlabel(title, fontsize=7.5, color=MUTED, labelpad=2)
            label = f"labelled {cell.label}" if cell.label else "no label"
            leading = f"{cell.first} {_percent(cell.p_first)} or {cell.second} {_percent(cell.p_second)}"
            grid[row][0].set_title(
                f"{cell.cell_id}: {label}; {leading} ({cell.reason})", fontsize=8.5, color=INK, loc="left", pad=4
            )
        for place, name in enumerate(methods):
            box = grid[0][1 + 3 * place]
            box.text(
                0.0,
                1.2,
                METHOD_NAMES.get(name, name),
                transform=box.transAxes,
                fontsize=10,
                fontweight="bold",
                color=INK,
            )
        figure.subplots_adjust(
            left=0.1 / width, right=1 - 0.1 / width, top=1 - 0.5 / height, bottom=0.22 / height, wspace=0.04, hspace=0.3
        )
    return figure


def saliency_overlay(
    thumbnail: Patch,
    layer: Map,
    boxes: npt.NDArray[np.float64],
    codes: Sequence[str],
    *,
    method: str = "grad-cam",
) -> bytes:
    """Draw a saliency layer over a field.

    Parameters
    ----------
    thumbnail : ndarray of uint8, shape (h, w, 3)
        The field, made smaller.
    layer : ndarray of float32, shape (h, w)
        Relative attributions, about 1 at the top of a cell's map; evidence against a class is not shown.
    boxes : ndarray of float, shape (n, 4)
        ``y0, x0, y1, x1`` of the cells that were explained, in pixels of the thumbnail; outlined.
    codes : sequence of str
        The class that each was explained for.
    method : str
        Layers of methods that attribute to single pixels are smoothed, because these are not visible in a field.

    Returns
    -------
    bytes
        A PNG file.
    """
    share = np.clip(layer, 0.0, 1.0)
    if method not in REGION_METHODS and len(boxes):
        side = float(np.median(boxes[:, 2:] - boxes[:, :2]))
        share = gaussian_filter(share, sigma=max(side / 40, 1.0))
        share = np.clip(share / (float(np.percentile(share[share > 0], 99)) if (share > 0).any() else 1.0), 0.0, 1.0)
    image = Image.fromarray(_laid_over(thumbnail, HEAT(share)[..., :3], share))
    draw = ImageDraw.Draw(image)
    line = max(1, round(max(image.size) / 1600))
    letters = font(max(11, round(max(image.size) / 110)))
    for (y0, x0, y1, x1), code in zip(boxes.tolist(), codes, strict=True):
        draw.rectangle((x0, y0, x1 - 1, y1 - 1), outline=INK, width=line)
        draw.text((x0 + 3, y0 + 1), code, fill=INK, font=letters, stroke_width=2, stroke_fill="white")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
