"""The pictures of a folder of explanations: one a cell, the classes side by side, sheets of cells in doubt.

Pictures of attributions: one cell beside its maps, the classes side by side, cells in doubt, whole fields.

Numbers become colours by one rule, stated here: a map that says how much each pixel matters is shown in grey, bright
where it contributes to the class, from 0 to its 99th percentile (as the authors of SmoothGrad draw it); a map of
regions is laid over the picture, from 0 to its highest value. Each map is scaled by itself, so brightness compares
pixels of one cell and never one cell with another.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import matplotlib
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

from hematokit.explanation.field_map import maps_to_patch
from hematokit.explanation.folder import MapArrays, writing
from hematokit.files import write_atomically
from hematokit.imaging.fieldfiles.opening import safe_name
from hematokit.models.predictions import prediction_frame
from hematokit.reports.overlay import font, shortened
from hematokit.reports.rendering import INK, MUTED, STYLE, to_png

if TYPE_CHECKING:
    from hematokit.explanation.running import ExplainedBatch
    from hematokit.explanation.selection import ChosenCells
    from hematokit.models import Classifier

__all__ = [
    "CellDrawer",
    "DoubtCell",
    "FigureCell",
    "HEAT",
    "METHOD_NAMES",
    "REGION_METHODS",
    "cell_picture",
    "class_figure",
    "difference_picture",
    "doubt_figure",
    "draw_classes",
    "draw_doubt",
    "map_picture",
    "picture_name",
    "saliency_overlay",
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
"""Methods whose maps are coarse: regions laid over the picture, rather than pixels in grey."""

# From green over yellow to red: hues that stained cells do not have, in an order that everybody reads as rising.
HEAT: Final = LinearSegmentedColormap.from_list(
    "heat", ["#1f8f6f", "#5fc94e", "#d7e64a", "#ffd23f", "#ff8a1f", "#e31a1c"]
)
_DIVERGING: Final = LinearSegmentedColormap.from_list("versus", ["#2166ac", "#92c5de", "#f7f7f7", "#f4a582", "#b2182b"])
_GREY_PERCENTILE: Final = 99.0
_SIDE: Final = 250
_BAND: Final = 34


@dataclass(frozen=True)
class FigureCell:
    """A cell in the figure of classes.

    Attributes
    ----------
    code : str
        The class of its column.
    title : str
        One line under the code.
    patch : ndarray of uint8, shape (P, P, 3)
    maps : mapping of str to ndarray of float32, shape (P, P)
        By method, in the patch's pixels.
    colour : str
        The class's colour, ``#rrggbb``.
    """

    code: str
    title: str
    patch: Patch
    maps: Mapping[str, Map]
    colour: str = INK


@dataclass(frozen=True)
class DoubtCell:
    """A cell in doubt.

    Attributes
    ----------
    title : str
        What it is and why it is here.
    first, second : str
        The two leading classes, with what is known of them.
    patch : ndarray of uint8, shape (P, P, 3)
    maps : mapping of str to ndarray of float32, shape (2, P, P)
        By method: for the first and for the second class.
    """

    title: str
    first: str
    second: str
    patch: Patch
    maps: Mapping[str, Map]


def map_picture(method: str, attribution: Map, patch: Patch, *, highest: float | None = None) -> Patch:
    """Turn a map into a picture.

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
    """Colours over a picture that fades to grey beneath them, stronger where the share is."""
    picture = patch.astype(np.float32) / 255.0
    grey = picture @ np.array([0.299, 0.587, 0.114], np.float32)
    # Nothing is laid over where the map says nothing: a tint everywhere would hide the cell and say no more.
    alpha = np.clip(0.85 * share, 0.0, 0.62)[..., None].astype(np.float32)
    base = 0.5 * picture + 0.5 * grey[..., None]
    return _to_bytes((1 - alpha) * base + alpha * colours)


def _to_bytes(colours: npt.NDArray[np.floating]) -> Patch:
    return np.asarray(np.clip(colours, 0.0, 1.0) * 255 + 0.5, np.uint8)


def difference_picture(first: Map, second: Map, patch: Patch, *, scale: float | None = None) -> Patch:
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


def cell_picture(patch: Patch, maps: Mapping[str, Map], caption: str) -> bytes:
    """Draw a cell and its maps side by side.

    Parameters
    ----------
    patch : ndarray of uint8, shape (P, P, 3)
    maps : mapping of str to ndarray of float32, shape (P, P)
        By method, in the patch's pixels.
    caption : str
        One line; what does not fit is cut off.

    Returns
    -------
    bytes
        A PNG file; panels of at least 250 px.
    """
    order = [name for name in maps if name not in REGION_METHODS] + [name for name in maps if name in REGION_METHODS]
    panels = [patch, *(map_picture(name, maps[name], patch) for name in order)]
    names = ["Original", *(METHOD_NAMES.get(name, name) for name in order)]
    flat = {name for name in order if not (maps[name] > 0).any()}
    names = [
        said + (" (nothing for this class)" if name in flat else "")
        for said, name in zip(names, ["", *order], strict=True)
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


def class_figure(cells: Sequence[FigureCell], methods: Sequence[str]) -> Figure:
    """Draw classes as columns; original, then one row a method, regions last (the paper's Fig. 8).

    Parameters
    ----------
    cells : sequence of FigureCell
        One a column.
    methods : sequence of str
        Rows.
    """
    rows = [name for name in methods if name not in REGION_METHODS] + [
        name for name in methods if name in REGION_METHODS
    ]
    width, height = max(1.35 * len(cells) + 0.5, 3.0), 1.35 * (len(rows) + 1) + 0.75
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        grid: Any = figure.subplots(len(rows) + 1, max(len(cells), 1), squeeze=False)
        for column, cell in enumerate(cells):
            panels = [cell.patch, *(map_picture(name, cell.maps[name], cell.patch) for name in rows)]
            for row, panel in enumerate(panels):
                axes = grid[row][column]
                axes.imshow(panel, interpolation="bilinear")
                axes.set(xticks=[], yticks=[])
                for spine in axes.spines.values():
                    spine.set_visible(False)
            top = grid[0][column]
            top.set_title(cell.code, fontsize=11, fontweight="bold", color=INK, pad=17)
            top.text(0.5, 1.03, cell.title, transform=top.transAxes, ha="center", va="bottom", fontsize=7, color=MUTED)
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


def doubt_figure(cells: Sequence[DoubtCell], methods: Sequence[str]) -> Figure:
    """Draw cells in doubt, one a row: original, and by method the maps of both classes and their difference.

    Both maps of a method have one scale, so that they can be compared; the difference is red where the first class's
    map is higher and blue where the second's is.

    Parameters
    ----------
    cells : sequence of DoubtCell
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
                    (difference_picture(first, second, cell.patch, scale=top), "difference"),
                ]
            for axes, (panel, said) in zip(grid[row], panels, strict=True):
                axes.imshow(panel, interpolation="bilinear")
                axes.set(xticks=[], yticks=[])
                for spine in axes.spines.values():
                    spine.set_visible(False)
                axes.set_xlabel(said, fontsize=7.5, color=MUTED, labelpad=2)
            grid[row][0].set_title(cell.title, fontsize=8.5, color=INK, loc="left", pad=4)
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
    """Lay a saliency layer over a field.

    Parameters
    ----------
    thumbnail : ndarray of uint8, shape (h, w, 3)
        The field, made smaller.
    layer : ndarray of float32, shape (h, w)
        Relative attributions, about 1 at the top of a cell's map; what speaks against a class is not shown.
    boxes : ndarray of float, shape (n, 4)
        ``y0, x0, y1, x1`` of the cells that were explained, in pixels of the thumbnail; outlined.
    codes : sequence of str
        The class that each was explained for.
    method : str
        Layers of methods that speak of single pixels are smoothed, because nobody sees single pixels of a field.

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


_PER_SHEET: Final = 6


class CellDrawer:
    """Draws the pictures of a batch."""

    def __init__(self, folder: Path, chosen: ChosenCells, classifier: Classifier) -> None:
        self.folder = folder
        self._cells = chosen.cells
        self._classifier = classifier

    def __call__(self, batch: ExplainedBatch) -> None:
        classifier = self._classifier
        predictions = prediction_frame(batch.logits, classifier.codes, classifier.temperature)
        maps = {name: to_patch(found, classifier) for name, found in batch.maps.items()}
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            for place, row in enumerate(batch.positions.tolist()):
                cell = self._cells.iloc[row]
                says = predictions.iloc[place]
                code = classifier.codes[int(batch.targets[place])]
                caption = f"{cell['cell_id']}   {describe(cell, says)}"
                if code != says["predicted"]:
                    caption += f", explained for {code}"
                content = cell_picture(batch.patches[place], {name: maps[name][place] for name in maps}, caption)
                write_atomically(self.folder / picture_name(row, str(cell["cell_id"])), content)


def picture_name(row: int, cell_id: str) -> str:
    """File name of a cell's picture: its row, so that no two are equal, and its id."""
    return f"{row:05d}-{safe_name(cell_id)}.png"


def describe(cell: Any, says: Any) -> str:
    """What the model takes a cell for, and what it is."""
    label = cell.get("label", "")
    said = f"{says['predicted']} {_share(says['probability'])}"
    if not label:
        return f"predicted {said}"
    return f"{label}, predicted {said}"


def _share(probability: float) -> str:
    return f"{100 * probability:.0f} %" if probability < 0.995 else "> 99 %"


def to_patch(maps: npt.NDArray[np.float32], classifier: Classifier) -> npt.NDArray[np.float32]:
    """Maps of the input in pixels of the patch."""
    return maps_to_patch(maps, classifier.patch_size, classifier.input_spec)


def draw_classes(classifier: Classifier, chosen: ChosenCells, table: pd.DataFrame, arrays: MapArrays) -> bytes | None:
    """Draw the figure of classes with the first cell chosen of each, as a PNG file; None without cells.

    A cell without a label that the model knows stands for the class predicted.
    """
    known = table["label"].where(table["label"].isin(list(classifier.codes)), table["predicted"])
    shown = []
    for code in classifier.codes:
        rows = np.flatnonzero((known == code).to_numpy())
        if not len(rows):
            continue
        row = int(rows[0])
        cell = table.iloc[row]
        patch = chosen.read(np.array([row]))[0]
        maps = {name: to_patch(arrays.maps(name, row), classifier) for name in arrays.methods}
        mistaken = "" if cell["predicted"] == code else "as "
        title = f"{mistaken}{cell['predicted']} {_share(cell['probability'])}"
        if cell["target"] != cell["predicted"]:
            title += f", for {cell['target']}"
        shown.append(FigureCell(code, title, patch, maps, classifier.taxonomy[code].colour))
    return to_png(class_figure(shown, arrays.methods), dpi=200) if shown else None


def draw_doubt(
    folder: Path, classifier: Classifier, chosen: ChosenCells, doubtful: pd.DataFrame, arrays: MapArrays
) -> Path:
    """Draw the cells in doubt, a few a sheet; returns the folder."""
    rows = doubtful["row"].to_numpy(np.int64)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for sheet, start in enumerate(range(0, len(doubtful), _PER_SHEET)):
            places = range(start, min(start + _PER_SHEET, len(doubtful)))
            patches = chosen.read(rows[list(places)])
            shown = []
            for patch, place in zip(patches, places, strict=True):
                cell = doubtful.iloc[place]
                label = f"labelled {cell['label']}" if cell.get("label", "") else "no label"
                title = (
                    f"{cell['cell_id']}: {label}; {cell['first']} {_share(cell['p_first'])} or {cell['second']} "
                    f"{_share(cell['p_second'])} ({cell['reason']})"
                )
                maps = {name: to_patch(arrays.maps(name, place), classifier) for name in arrays.methods}
                shown.append(DoubtCell(title, cell["first"], cell["second"], patch, maps))
            content = to_png(doubt_figure(shown, arrays.methods))
            write_atomically(folder / f"sheet-{sheet + 1:03d}.png", content)
        for left in sorted(folder.glob("sheet-*.png"))[sheet + 1 :]:
            left.unlink()
    return folder
