"""Classification of the cells of a field: patches are cut at the cell centres and classified in batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from hematokit.annotations.cells import order_columns
from hematokit.errors import FieldError
from hematokit.imaging.fieldfiles.pixelsize import check_given, is_same_size
from hematokit.imaging.geometry import cut_patch, patch_box
from hematokit.progress import Progress, no_progress

if TYPE_CHECKING:
    from hematokit.imaging.fieldfiles import Field
    from hematokit.models.model import Model

__all__ = [
    "classify_cells",
    "classify_in_batches",
    "cut_patches",
    "field_patch_side",
    "model_pixel_size",
    "scale_warnings",
]

_LARGEST_SIDE: Final = 4096


def model_pixel_size(model: Model, given: float | None = None) -> float | None:
    """Return the pixel size of the patches of a model in micrometres.

    Parameters
    ----------
    model : Model
    given : float, optional
        Overrides the pixel size in the configuration of the model.

    Returns
    -------
    float or None
        None if unknown.

    Raises
    ------
    ImageError
        If `given` is not a finite number above 0.
    """
    check_given(given)
    return model.pixel_size_um if given is None else given


def field_patch_side(field: Field, model: Model, model_pixel_size_um: float | None = None) -> int:
    """Return the side of a patch in pixels of the field, at which cells have the same size as in training.

    Parameters
    ----------
    field : Field
        The opened field, or any object with its ``pixel_size_um``.
    model : Model
    model_pixel_size_um : float, optional
        Overrides the pixel size in the configuration of the model.

    Returns
    -------
    int
        The side in pixels; the patch size of the model if the pixel size of the field or of the model is unknown.

    Raises
    ------
    FieldError
        If the pixel sizes differ so much that no sensible patch can be cut.
    """
    trained = model_pixel_size(model, model_pixel_size_um)
    if field.pixel_size_um is None or trained is None or is_same_size(trained, field.pixel_size_um):
        return model.patch_size
    side = round(model.patch_size * trained / field.pixel_size_um)
    if not 8 <= side <= _LARGEST_SIDE:
        raise FieldError(
            f"a pixel of {field.pixel_size_um:g} um does not go with a model of {trained:g} um: a patch would take "
            f"{side} pixels; check the pixel size (--pixel-size, --force-pixel-size)"
        )
    return side


def scale_warnings(
    model_pixel_size_um: float | None,
    unknown: int,
    *,
    field_option: str = "--pixel-size",
    model_option: str = "--model-pixel-size",
) -> list[str]:
    """Return one warning per unknown pixel size, for which patches are not rescaled.

    Parameters
    ----------
    model_pixel_size_um : float or None
        From `model_pixel_size`.
    unknown : int
        Number of fields of unknown pixel size.
    field_option, model_option : str
        Options that set the pixel sizes.
    """
    warnings = []
    if unknown:
        scale = "that of the model" if model_pixel_size_um is None else f"the model's {model_pixel_size_um:.4g} um"
        which = "1 field" if unknown == 1 else f"{unknown:,} fields"
        warnings.append(
            f"the pixel size of {which} is not known, so sizes were judged from the cells themselves and patches were "
            f"not rescaled to {scale}; give it with {field_option}"
        )
    if model_pixel_size_um is None:
        warnings.append(
            "the pixel size that the model was trained at is not known, so patches were not rescaled to it; give it "
            f"with {model_option}"
        )
    return warnings


def cut_patches(field: Field, cells: pd.DataFrame, size: int, *, side: int | None = None) -> npt.NDArray[np.uint8]:
    """Cut a square patch around the centre of each cell.

    Parameters
    ----------
    field : Field
        The opened field.
    cells : DataFrame
        With the columns ``y`` and ``x``.
    size : int
        Side of the patches in pixels.
    side : int, optional
        Side of a patch in pixels of the field, `size` by default; other patches are resampled to `size`.

    Returns
    -------
    ndarray of uint8, shape (n, size, size, 3)
        Pixels outside the field are filled by reflection.
    """
    patches = np.empty((len(cells), size, size, 3), np.uint8)
    taken = side or size
    for number, (y, x) in enumerate(zip(cells["y"].tolist(), cells["x"].tolist(), strict=True)):
        patch = cut_patch(field.read, field.height, field.width, patch_box(y, x, taken))
        patches[number] = patch if taken == size else _resampled(patch, size)
    return patches


def _resampled(patch: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    from PIL import Image

    return np.asarray(Image.fromarray(patch).resize((size, size), Image.Resampling.LANCZOS))


def classify_cells(
    field: Field,
    cells: pd.DataFrame,
    model: Model,
    *,
    model_pixel_size_um: float | None = None,
    batch_size: int = 64,
    progress: Progress = no_progress,
) -> pd.DataFrame:
    """Classify the cells of a field.

    Parameters
    ----------
    field : Field
        The opened field.
    cells : DataFrame
        Cells of the field; only their centres are used.
    model : Model
        From `hematokit.load_model`.
    model_pixel_size_um : float, optional
        Pixel size of the training images of the model, which overrides its configuration; patches are resampled if
        that of the field differs.
    batch_size : int
        Number of patches per batch, which limits the memory.
    progress : Progress
        Called after each batch.

    Returns
    -------
    DataFrame
        `cells` with ``predicted``, ``probability``, ``p_<CODE>`` for every class of the model, and ``reviewed``
        (False).

    Raises
    ------
    FieldError
        If the pixel sizes are incompatible.
    ImageError, ModelError
        If the field cannot be read or the model cannot compute.
    """
    results = [
        part
        for _, part in classify_in_batches(
            field, cells, model, model_pixel_size_um=model_pixel_size_um, batch_size=batch_size, progress=progress
        )
    ]
    predictions = pd.concat(results, ignore_index=True)
    return order_columns(pd.concat([cells.reset_index(drop=True), predictions], axis=1).assign(reviewed=False))


def classify_in_batches(
    field: Field,
    cells: pd.DataFrame,
    model: Model,
    *,
    model_pixel_size_um: float | None = None,
    batch_size: int = 64,
    progress: Progress = no_progress,
) -> Iterator[tuple[slice, pd.DataFrame]]:
    """Classify cells batch by batch, so that a viewer can show them progressively.

    Parameters are those of `classify_cells`.

    Yields
    ------
    rows, predictions : slice, DataFrame
        The rows of `cells`, by position, and their prediction columns. Without cells, one empty pair.
    """
    side = field_patch_side(field, model, model_pixel_size_um)
    for start in range(0, max(len(cells), 1), batch_size):
        rows = slice(start, min(start + batch_size, len(cells)))
        patches = cut_patches(field, cells.iloc[rows], model.patch_size, side=side)
        yield rows, model.predict(patches, batch_size=batch_size)
        progress(rows.stop, len(cells), "")
