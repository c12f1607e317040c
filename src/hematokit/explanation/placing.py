"""From pixels of the network's input back to pixels of the patch: the inverse of `Classifier.prepare`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from hematokit.specs import InputSpec

__all__ = ["maps_to_patch"]

Maps = npt.NDArray[np.float32]


def maps_to_patch(maps: Maps, patch_size: int, spec: InputSpec, *, side: int | None = None) -> Maps:
    """Bring maps to the patch's own pixels.

    Parameters
    ----------
    maps : ndarray of float32, shape (..., S, S)
        In pixels of the input.
    patch_size : int
        Side of the model's patches in pixels.
    spec : InputSpec
        How patches became the input.
    side : int, optional
        Side of the result in pixels, where a patch took another number of pixels of a field than `patch_size`.

    Returns
    -------
    ndarray of float32, shape (..., side, side)
        A reflected margin of the input is cut off; what the input did not show, because it was cropped, is zero.
    """
    import torch
    from torch.nn import functional

    from hematokit.models.classifier import input_region

    start, length = input_region(patch_size, spec)
    shape = maps.shape[:-2]
    planes = torch.from_numpy(np.ascontiguousarray(maps).reshape(-1, 1, *maps.shape[-2:]))
    if length != planes.shape[-1]:
        planes = functional.interpolate(planes, size=(length, length), mode="bilinear", align_corners=False)
    # Negative padding cuts.
    after = patch_size - start - length
    planes = functional.pad(planes, (start, after, start, after))
    if side is not None and side != patch_size:
        shrinking = side < patch_size
        planes = functional.interpolate(
            planes, size=(side, side), mode="bilinear", align_corners=False, antialias=shrinking
        )
    result: Maps = planes.numpy().reshape(*shape, *planes.shape[-2:])
    return result
