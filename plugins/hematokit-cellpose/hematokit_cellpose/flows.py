"""A picture through a network, tile by tile, and from its flows to labelled cells."""

from __future__ import annotations

import contextlib
import io
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from hematokit_cellpose.weights import Network, library

__all__ = ["label_cells", "network_input", "run_tiles"]

_OVERLAP: Final = 0.1
"""Share of a tile's side that it has in common with the next, as in cellpose."""

_FLATTEST: Final = 20.0
"""Grey levels between the darkest and the brightest of a picture below which it is not stretched further: in a window
without cells, noise would look like some."""

_STEPS: Final = 200
"""Steps along the flows; cells are about 30 px wide where they are followed, so all arrive."""


def network_input(pixels: NDArray[np.uint8], channels: int, scale: float) -> torch.Tensor:
    """Resize, choose the channels and stretch each from its 1st to its 99th percentile to [0, 1].

    Parameters
    ----------
    pixels : ndarray of uint8, shape (H, W, 3)
    channels : int
        2: the mean of the colours and an empty channel; 3: the colours.
    scale : float
        Pixels of the result per pixel.

    Returns
    -------
    Tensor, shape (channels, h, w), float32
    """
    height, width = (max(1, round(side * scale)) for side in pixels.shape[:2])
    # A copy, because torch does not take read-only arrays.
    picture = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None]
    if (height, width) != pixels.shape[:2]:
        picture = interpolate(picture, size=(height, width), mode="bilinear", antialias=scale < 1)
    image = picture[0].float()
    if channels == 2:
        image = image.mean(0, keepdim=True)
    # Percentiles of many millions of pixels are those of every few.
    step = max(1, int((height * width / 4e6) ** 0.5))
    sample = image[:, ::step, ::step].flatten(1).numpy()
    low, high = np.percentile(sample, (1.0, 99.0), axis=1).astype(np.float32)[..., None, None]
    image = (image - torch.from_numpy(low)) / torch.from_numpy(np.maximum(high - low, _FLATTEST))
    return torch.cat([image, torch.zeros_like(image)]) if channels == 2 else image


def run_tiles(network: Network, image: torch.Tensor, batch_size: int) -> NDArray[np.float32]:
    """Run the network over overlapping tiles, which fade into each other.

    Parameters
    ----------
    network : Network
    image : Tensor, shape (channels, h, w)
    batch_size : int
        Tiles at once.

    Returns
    -------
    ndarray of float32, shape (3, h, w)
        Flows along y and x, logit of being cell.
    """
    device = next(network.module.parameters()).device
    height, width = image.shape[1:]
    high, wide = (_side(network, length) for length in (height, width))
    # Repeated edges, because black ones would be a thing to see.
    padding = (0, max(0, wide - width), 0, max(0, high - height))
    padded = torch.nn.functional.pad(image[None], padding, mode="replicate")[0]
    corners = [(y, x) for y in _starts(padded.shape[1], high) for x in _starts(padded.shape[2], wide)]
    fade = _fade(high)[:, None] * _fade(wide)
    total = torch.zeros(3, *padded.shape[1:])
    weight = torch.zeros(padded.shape[1:])
    for begin in range(0, len(corners), batch_size):
        part = corners[begin : begin + batch_size]
        batch = torch.stack([padded[:, y : y + high, x : x + wide] for y, x in part]).to(device)
        with torch.inference_mode():
            answers = network.module(batch)[0].float().cpu()
        for (y, x), answer in zip(part, answers, strict=True):
            total[:, y : y + high, x : x + wide] += answer * fade
            weight[y : y + high, x : x + wide] += fade
    return (total / weight)[:, :height, :width].numpy()


def _side(network: Network, length: int) -> int:
    """Side of a tile: a picture smaller than one makes do with less, in steps of the coarsest level's pixels."""
    return min(network.tile, -(-length // network.step) * network.step)


def _starts(length: int, tile: int) -> list[int]:
    """First pixels of tiles that cover a side, evenly spread, the last one ending with it."""
    if length <= tile:
        return [0]
    count = 1 + int(np.ceil((length - tile) / (tile * (1 - 2 * _OVERLAP))))
    return [int(start) for start in np.linspace(0, length - tile, count)]


def _fade(tile: int) -> torch.Tensor:
    """Weights along a tile's side: less towards its edge, where the network sees less."""
    distance = torch.arange(tile).sub((tile - 1) / 2).abs()
    return torch.sigmoid((tile / 2 - 20 - distance) / 7.5)


def label_cells(
    flows: NDArray[np.float32], *, cellprob_threshold: float, flow_threshold: float, minimum_px: float, device: Any
) -> NDArray[np.int32]:
    """Follow the flows to cells.

    Parameters
    ----------
    flows : ndarray of float32, shape (3, h, w)
        From `run_tiles`.
    cellprob_threshold, flow_threshold : float
        As cellpose's.
    minimum_px : float
        Smaller cells are left out.
    device : torch.device

    Returns
    -------
    ndarray of int32, shape (h, w)
        0 where there is no cell.
    """
    dynamics = library("dynamics")
    if not (flows[2] > cellprob_threshold).any():
        return np.zeros(flows.shape[1:], np.int32)
    # Versions of cellpose print what they do.
    with contextlib.redirect_stdout(io.StringIO()):
        found = dynamics.compute_masks(
            flows[:2],
            flows[2],
            niter=_STEPS,
            cellprob_threshold=cellprob_threshold,
            flow_threshold=flow_threshold,
            min_size=max(1, round(minimum_px)),
            device=device,
        )
    # The labels, and in cellpose 3.0 where the pixels went.
    labels = found[0] if isinstance(found, tuple) else found
    return np.asarray(labels).astype(np.int32)
