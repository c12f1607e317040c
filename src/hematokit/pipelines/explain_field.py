"""Explanation of the cells of a whole field, with a layer of all maps: ``hematokit explain --field``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Unpack

import numpy as np
import numpy.typing as npt

from hematokit.annotations.cells import name_cells
from hematokit.detection.windows import examine_field, make_detector
from hematokit.errors import ExplanationError, printable
from hematokit.explanation.field_map import cell_boxes, downsample_layer, maps_to_patch, write_layer
from hematokit.explanation.folder import writing
from hematokit.explanation.running import make_explainers
from hematokit.explanation.selection import ALL, cells_of_field, read_cell_ids
from hematokit.files import write_atomically
from hematokit.imaging.fieldfiles import open_field
from hematokit.imaging.fieldfiles.listing import safe_name
from hematokit.models import find_bundle, load_model
from hematokit.models.field_cells import classify_cells, field_patch_side, model_pixel_size, scale_warnings
from hematokit.overrides import ExplainFieldOverrides
from hematokit.pipelines.explain import ExplanationResult, ExplanationRun
from hematokit.pipelines.settings import ExplainFieldSettings
from hematokit.progress import Progress, no_progress
from hematokit.reports.attributions import saliency_overlay

if TYPE_CHECKING:
    from hematokit.imaging.fieldfiles import Field
    from hematokit.models import Classifier

__all__ = ["explain_field"]

_SALIENCY: Final = "saliency"
_LONGEST: Final = 2452
"""Longer side of the field in the figures, in pixels."""


def explain_field(
    field: str | Path,
    model: str | Path,
    output: str | Path,
    *,
    settings: ExplainFieldSettings | None = None,
    progress: Progress = no_progress,
    **overrides: Unpack[ExplainFieldOverrides],
) -> ExplanationResult:
    """Detect, classify and explain the cells of a whole field.

    Writes what `hematokit.explain` writes, and for each method a saliency layer of the field's size,
    ``saliency/<method>.ome.zarr`` (float32), and ``saliency/<method>.png``, the layer over the field. See
    `hematokit.explanation.field_map` for how maps that overlap are blended.

    Parameters
    ----------
    field : path
        The image.
    model : path
        Run or bundle.
    output : path
        Folder of results.
    settings : ExplainFieldSettings, optional
        Its ``cells`` are ids as ``hematokit classify`` gives them, ``"all"`` (the default), or ``"low-confidence"``.
    progress : Progress
        Called with the number of cells done.
    **overrides
        Fields of `ExplainFieldSettings`; they take precedence over `settings`.

    Returns
    -------
    ExplanationResult

    Raises
    ------
    ExplanationError
        If no cell is detected, one asked for is not there, or the folder holds something else.
    FieldError, ImageError, ModelError, PluginError
        If the field, the model, the detector or a method cannot be used.
    """
    started = time.monotonic()
    settings = ExplainFieldSettings.combine(settings, overrides)
    bundle = find_bundle(model)
    explainers = make_explainers(settings.methods, settings.options, seed=settings.seed)
    detector = make_detector(settings.detector, settings.detector_options)
    classifier = load_model(bundle, device=settings.device, runtime="torch")
    with open_field(
        Path(field), pixel_size_um=settings.pixel_size_um, force_pixel_size=settings.force_pixel_size
    ) as opened:
        progress(0, None, "detecting cells")
        detected = name_cells(examine_field(opened, detector).cells, safe_name(opened.name), printable(str(field)))
        if not len(detected):
            raise ExplanationError(f"{printable(str(field))} has no cells that detector {settings.detector!r} detects")

        scale = model_pixel_size(classifier, settings.model_pixel_size_um)
        side = field_patch_side(opened, classifier, scale)
        classified = classify_cells(
            opened, detected, classifier, model_pixel_size_um=scale, batch_size=settings.batch_size, progress=progress
        )
        chosen = cells_of_field(
            opened,
            Path(field),
            classified,
            ALL if settings.cells is None else read_cell_ids(settings.cells),
            patch_size=classifier.patch_size,
            side=side,
            min_probability=settings.min_probability,
        )

        run = ExplanationRun(
            output,
            classifier,
            chosen,
            explainers,
            target=settings.target,
            batch_size=settings.batch_size,
            progress=progress,
            identity={"detector": detector.identity(), "pixel sizes": [opened.pixel_size_um, scale]},
        )
        run.explain_cells(figures=settings.figures)
        run.draw_classes()
        run.paths["saliency"] = _lay_over(run, opened, classifier, side)
        if settings.uncertain:
            run.explain_uncertain(settings.min_probability)
        return run.result(started, [*opened.notes, *scale_warnings(scale, opened.pixel_size_um is None)])


def _lay_over(run: ExplanationRun, opened: Field, classifier: Classifier, side: int) -> Path:
    """Write the saliency layers and their figures; `side` is the side of a patch in pixels of the field."""
    folder, cells, arrays = run.folder.path / _SALIENCY, run.cells, run.arrays
    boxes = cell_boxes(cells[["y", "x"]].to_numpy(np.float64), side)
    thumbnail, scale = opened.thumbnail(_LONGEST)
    corners = cells[["y0", "x0", "height", "width"]].to_numpy(np.float64)
    corners[:, 2:] += corners[:, :2]
    outlines = corners / scale
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for method in arrays.methods:

            def read(number: int, method: str = method) -> npt.NDArray[np.float32]:
                found = arrays.maps(method, number)
                return maps_to_patch(found, classifier.patch_size, classifier.input_spec, side=side)

            layer = write_layer(
                folder / f"{method}.ome.zarr",
                f"{method} of {opened.name}",
                opened.height,
                opened.width,
                boxes,
                read,
                pixel_size_um=opened.pixel_size_um,
            )
            small = downsample_layer(layer, *thumbnail.shape[:2])
            picture = saliency_overlay(thumbnail, small, outlines, cells["target"].tolist(), method=method)
            write_atomically(folder / f"{method}.png", picture)
    return folder
