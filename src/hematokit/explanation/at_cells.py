"""Explaining single cells of an open field, as a viewer asks for them: the map in the field's own pixels.

The classifier may be at work elsewhere meanwhile: explaining goes through a copy of its modules that shares the
weights, because explainers hook into modules and a forward pass of somebody else would end up in their hooks. The cells
are classified already, so the explainer's own forward pass is the only one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import pandas as pd

from hematokit.errors import ExplanationError, printable
from hematokit.explanation.field_map import blend_maps, cell_boxes, maps_to_patch
from hematokit.explanation.running import own_modules, run_explainer
from hematokit.imaging.geometry import Box
from hematokit.models.field_cells import cut_patches, field_patch_side
from hematokit.plugins import MadeExplainer
from hematokit.progress import Progress, no_log, no_progress

if TYPE_CHECKING:
    from hematokit.imaging.fieldfiles import Field
    from hematokit.models import Classifier, Model

__all__ = ["ExplainedCell", "cell_crop", "explain_at", "explainable", "joined_map"]

_LARGEST_AREA: Final = 64_000_000
"""Pixels of a joined map, 256 MB as float32."""

_ROOM: Final = 2.0
"""Size of a crop relative to the cell's box, where no model states a patch size."""

Maps = npt.NDArray[np.float32]

_COPIES: Final[WeakKeyDictionary[Classifier, dict[str, list[Classifier]]]] = WeakKeyDictionary()
"""Copies of a classifier that are not in use, by explainer: explainers remember what they found out about a network."""


@dataclass(frozen=True)
class ExplainedCell:
    """One cell and the reason for one class.

    Attributes
    ----------
    cell_id : str
    method : str
        Name of the explainer.
    target : str
        Code of the class that was asked about.
    patch : ndarray of uint8, shape (P, P, 3)
        Patch that the model classified.
    box : Box
        The pixels of the field that the patch took; it may leave the field.
    map : ndarray of float32, shape (box.height, box.width)
        In pixels of the field, unscaled.
    patch_map : ndarray of float32, shape (P, P)
        The same in pixels of the patch.
    """

    cell_id: str
    method: str
    target: str
    patch: npt.NDArray[np.uint8]
    box: Box
    map: Maps
    patch_map: Maps


def explainable(classifier: Model | None, model: str, *, device: str = "auto", identity: str = "") -> Classifier:
    """Return a classifier that can be explained: the given one, or the same model computed by torch.

    Parameters
    ----------
    classifier : Model or None
        As it classified; explainers need torch.
    model : str
        Run or bundle it came from; loaded where `classifier` is not a torch model.
    device : str
        For loading.
    identity : str, optional
        Which model classified the cells, as `hematokit.models.bundle.bundle_identity` gives it; by default that of
        `classifier`.

    Raises
    ------
    ExplanationError
        If the model is unknown.
    ModelError
        If it cannot be loaded, is another model by now, or is an ONNX file, which computes no gradients.
    """
    from hematokit.models import cached_model

    if classifier is not None and classifier.runtime == "torch":
        return cast("Classifier", classifier)
    if not model:
        raise ExplanationError("these cells come without their model, so nothing can be explained; classify the field")
    return cached_model(model, device, "torch", identity=identity or (classifier.identity if classifier else ""))


def cell_crop(
    field: Field, cells: pd.DataFrame, classifier: Model | None = None, *, model_pixel_size_um: float | None = None
) -> npt.NDArray[np.uint8]:
    """Cut the image of one cell.

    Parameters
    ----------
    field : Field
    cells : DataFrame
        One row of a cells table.
    classifier : Model, optional
        The patch that it takes; without it, the cell's box with room around it.
    model_pixel_size_um : float, optional
        As for `explain_at`.

    Returns
    -------
    ndarray of uint8, shape (side, side, 3)
    """
    if classifier is None:
        size = side = max(8, round(_ROOM * float(cells[["height", "width"]].to_numpy(np.float64).max())))
    else:
        size, side = classifier.patch_size, field_patch_side(field, classifier, model_pixel_size_um)
    pixels: npt.NDArray[np.uint8] = cut_patches(field, cells, size, side=side)[0]
    return pixels


def explain_at(
    field: Field,
    cells: pd.DataFrame,
    classifier: Classifier,
    explainer: MadeExplainer,
    targets: Sequence[str],
    *,
    model_pixel_size_um: float | None = None,
    batch_size: int = 4,
    progress: Progress = no_progress,
    log: Callable[[str], None] = no_log,
) -> Iterator[ExplainedCell]:
    """Explain cells of an open field one after the other.

    Parameters
    ----------
    field : Field
        The opened field.
    cells : DataFrame
        Rows of its cells table.
    classifier : Classifier
        Computed by torch; it is not changed and may be used by another thread meanwhile.
    explainer : MadeExplainer
        From `hematokit.explanation.running.make_explainer`.
    targets : sequence of str
        For each cell, the code of the class that is asked about.
    model_pixel_size_um : float, optional
        Pixel size of the model's training images, instead of that in its bundle.
    batch_size : int
        Cells at a time.
    progress : Progress
        Called before every forward pass, so that raising from it cancels soon.
    log : callable
        Called with a line if the accelerator's memory is too small and the CPU continues.

    Yields
    ------
    ExplainedCell

    Raises
    ------
    ExplanationError
        If a target is no class of the model.
    FieldError, ImageError, ModelError
        If the patches cannot be cut.
    PluginError
        If the explainer fails or cannot explain this network.
    """
    import torch

    places = np.array([_place(classifier, code) for code in targets], np.int64)
    side = field_patch_side(field, classifier, model_pixel_size_um)
    boxes = cell_boxes(cells[["y", "x"]].to_numpy(np.float64), side)
    names = cells["cell_id"].astype(str).tolist()
    done = 0

    def batches(model: Classifier) -> Iterator[ExplainedCell]:
        size, spec = model.patch_size, model.input_spec
        handle = model.register_forward_pre_hook(lambda module, given: progress(done, len(cells), explainer.name))
        try:
            for first in range(done, len(cells), batch_size):
                part = np.arange(first, min(first + batch_size, len(cells)))
                patches = cut_patches(field, cells.iloc[part], size, side=side)
                images = model.prepare(torch.from_numpy(patches.copy()).to(model.device))
                maps = run_explainer(explainer, model, images, torch.from_numpy(places[part]).to(model.device))
                small = maps_to_patch(maps, size, spec)
                placed = small if side == size else maps_to_patch(maps, size, spec, side=side)
                for row, cell in enumerate(part.tolist()):
                    yield ExplainedCell(
                        names[cell], explainer.name, targets[cell], patches[row], boxes[cell], placed[row], small[row]
                    )
        finally:
            handle.remove()

    unused = _COPIES.setdefault(classifier, {}).setdefault(explainer.name, [])
    own = unused.pop() if unused else own_modules(classifier)
    try:
        for explained in batches(own):
            done += 1
            yield explained
    except torch.OutOfMemoryError:
        # Only accelerators raise this. The classifier itself stays where it is.
        log(f"{explainer.name}: not enough memory on {classifier.device}; continuing on the CPU, more slowly")
        for explained in batches(classifier.on_cpu()):
            done += 1
            yield explained
    finally:
        unused.append(own)
    progress(len(cells), len(cells), "")


def _place(classifier: Classifier, code: str) -> int:
    if code not in classifier.codes:
        raise ExplanationError(
            f"{printable(str(code))!r} is no class of this model; ask about one of {', '.join(classifier.codes)}"
        )
    return classifier.codes.index(code)


def joined_map(explained: Sequence[ExplainedCell], height: int, width: int) -> tuple[Box, Maps]:
    """Join the maps of cells by the rule of `hematokit.explanation.field_map`.

    Parameters
    ----------
    explained : sequence of ExplainedCell
        At least one.
    height, width : int
        Size of the field in pixels.

    Returns
    -------
    box : Box
        The part of the field that they cover.
    map : ndarray of float32, shape (box.height, box.width)
        Relative: about 1 at the top of each cell's map; 0 where there is no cell.

    Raises
    ------
    ExplanationError
        If the cells are so far apart that the map would not fit into memory.
    """
    parts = [found for cell in explained if (found := cell.box.clipped(height, width)) is not None]
    if not parts:
        raise ExplanationError("the cells to explain are outside the field; classify the field again")
    y0, x0 = min(part.y0 for part in parts), min(part.x0 for part in parts)
    area = Box(y0, x0, max(part.y1 for part in parts) - y0, max(part.x1 for part in parts) - x0)
    if area.height * area.width > _LARGEST_AREA:
        raise ExplanationError(
            f"the cells are {max(area.height, area.width)} px apart, too far for one map; select cells nearer to each "
            "other, or use hematokit explain for the whole field"
        )
    boxes = [cell.box for cell in explained]
    return area, blend_maps(area, boxes, range(len(boxes)), lambda number: explained[number].map)
