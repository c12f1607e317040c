"""The pictures of a folder of explanations: one a cell, the classes side by side, sheets of cells in doubt."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from hematokit.explanation.placing import maps_to_patch
from hematokit.explanation.storing import MapArrays, writing
from hematokit.fields.naming import safe_name
from hematokit.files import write_atomically
from hematokit.models.predictions import prediction_frame
from hematokit.reporting.attribution_figures import DoubtCell, FigureCell, cell_picture, class_figure, doubt_figure
from hematokit.reporting.drawing import to_png

if TYPE_CHECKING:
    from hematokit.explanation.running import ExplainedBatch
    from hematokit.explanation.selection import ChosenCells
    from hematokit.models import Classifier

__all__ = ["CellDrawer", "draw_classes", "draw_doubt", "picture_name"]

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
