"""Normalisation: all images towards one reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from hematokit import HematokitError
from hematokit_stain.macenko import exchange_stains
from hematokit_stain.references import measure_pictures, parse_reference, write_reference
from hematokit_stain.reinhard import match_colours
from hematokit_stain.white import balance_white

__all__ = ["StainNormaliser", "normalise"]


class StainNormaliser(torch.nn.Module):
    """Brings images to one reference; nothing in it is learned.

    Parameters
    ----------
    method : {"reinhard", "macenko"}
    reference : str
        Numbers as ``hematokit stain-reference`` writes them; empty for the built-in ones.

    Raises
    ------
    HematokitError
        If the method or the reference makes no sense.
    """

    numbers: torch.Tensor

    def __init__(self, method: str = "reinhard", reference: str = "") -> None:
        super().__init__()
        self.method = method
        numbers = torch.from_numpy(parse_reference(reference, method))[None]
        if method == "macenko":
            stains = numbers[:, :6].view(1, 2, 3)
            stains = stains / stains.norm(dim=2, keepdim=True)
            numbers = torch.cat([stains.flatten(1), numbers[:, 6:]], dim=1)
        # Not persistent: the numbers are the backbone's option, which a bundle keeps beside the weights.
        self.register_buffer("numbers", numbers, persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Normalise images (B, 3, H, W) in [0, 1]: the background white, and then the stain where there is enough."""
        numbers = self.numbers.float()
        images = balance_white(images.float().clamp(0, 1))
        if self.method == "macenko":
            return exchange_stains(images, numbers[:, :6].reshape(1, 2, 3), numbers[:, 6:])
        return match_colours(images, numbers[:, :3], numbers[:, 3:])


def normalise(
    pictures: npt.NDArray[np.uint8],
    method: str = "reinhard",
    reference: str | Path = "",
    *,
    device: str | torch.device = "cpu",
    batch_size: int = 64,
) -> npt.NDArray[np.uint8]:
    """Bring pictures to the stain of a reference.

    Parameters
    ----------
    pictures : ndarray of uint8, shape (n, H, W, 3) or (H, W, 3)
        Whole fields are better than crops of one cell, whose contents sway the measurement.
    method : {"reinhard", "macenko"}
    reference : str or Path
        A `Path` is a picture or a folder of pictures, which are measured; text is the line of numbers that
        ``hematokit stain-reference`` writes; empty for the built-in numbers.
    device : str or torch.device
        Where to compute.
    batch_size : int
        Pictures at a time.

    Returns
    -------
    ndarray of uint8
        Of the same shape. Backgrounds become white; pictures without enough stain are not changed otherwise.

    Raises
    ------
    HematokitError
        If pictures, method or reference make no sense.

    Examples
    --------
    >>> field = hematokit_stain.normalise(pixels, "macenko", Path("our-lab/"))  # doctest: +SKIP
    """
    if pictures.dtype != np.uint8 or pictures.ndim not in (3, 4) or pictures.shape[-1] != 3:
        raise HematokitError(
            f"stain normalisation takes uint8 pictures (n, H, W, 3), not {pictures.dtype} {pictures.shape}"
        )
    if isinstance(reference, Path):
        reference = write_reference(measure_pictures(reference, method))
    module = StainNormaliser(method, reference).to(device)
    batch = pictures if pictures.ndim == 4 else pictures[None]
    done = np.empty_like(batch)
    with torch.inference_mode():
        for start in range(0, len(batch), batch_size):
            part = torch.from_numpy(np.array(batch[start : start + batch_size])).to(device)
            images = module(part.permute(0, 3, 1, 2).float() / 255)
            grey = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
            done[start : start + batch_size] = grey.cpu().numpy()
    return done.reshape(pictures.shape)
