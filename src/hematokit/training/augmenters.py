"""Built-in augmenters: ``hematonet`` (the paper's set in one warp), ``flips`` and ``none``."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hematokit.errors import PluginError
from hematokit.plugins.hookspecs import hookimpl
from hematokit.plugins.specs import AugmenterSpec, Option

if TYPE_CHECKING:
    import torch

__all__ = ["register_augmenters"]


def _uniform(low: float, high: float, count: int, generator: torch.Generator, device: torch.device) -> torch.Tensor:
    import torch

    # Drawn where the generator lives and then moved: the same seed gives the same batch.
    drawn = torch.rand(count, generator=generator, device=generator.device)
    return (low + (high - low) * drawn).to(device)


@dataclass(frozen=True)
class HematonetAugmenter:
    """Rotation, zoom, flips and translation of the HematoNet paper (Tripathi et al. 2022), as one affine warp.

    One warp resamples once, where a chain of operations would blur the cell several times. Borders are reflected. The
    translation of each image is capped so that, at its zoom, the central `cell_extent` of the patch stays in view:
    the labelled cell is the one in the middle.

    Parameters
    ----------
    rotation : float
        Largest rotation in degrees; angles are uniform in [0, rotation].
    zoom_out, zoom_in : float
        Smallest and largest magnification; uniform in the logarithm, so that halving is as likely as doubling.
    translation : float
        Largest shift as a share of the image's side, in both directions.
    flip : bool
        Flip horizontally and vertically, each with probability one half.
    cell_extent : float
        Share of the patch's side that the labelled cell may fill.
    """

    rotation: float = 90.0
    zoom_out: float = 0.8
    zoom_in: float = 1.25
    translation: float = 0.1
    flip: bool = True
    cell_extent: float = 0.7

    def __post_init__(self) -> None:
        if self.zoom_out > self.zoom_in:
            raise PluginError(
                f"augmenter hematonet: zoom_out {self.zoom_out:g} is larger than zoom_in {self.zoom_in:g}; swap them"
            )

    def matrices(self, count: int, generator: torch.Generator, device: torch.device) -> torch.Tensor:
        """Draw one inverse warp per image.

        Returns
        -------
        Tensor, shape (count, 2, 3), float32
            From output to input coordinates in [-1, 1], as `torch.nn.functional.affine_grid` takes them.
        """
        import torch

        angle = _uniform(0.0, math.radians(self.rotation), count, generator, device)
        zoom = _uniform(math.log(self.zoom_out), math.log(self.zoom_in), count, generator, device).exp()
        # In [-1, 1] the side is 2 long. The cell reaches cell_extent * zoom from the centre of the output; what is
        # left up to the border is what it may be moved by.
        cap = (1.0 - self.cell_extent * zoom).clamp(min=0.0, max=2.0 * self.translation)
        shift_x = _uniform(-1.0, 1.0, count, generator, device) * cap
        shift_y = _uniform(-1.0, 1.0, count, generator, device) * cap
        ones = torch.ones(count, device=device)
        if self.flip:
            flip_x = torch.where(_uniform(0, 1, count, generator, device) < 0.5, -ones, ones)
            flip_y = torch.where(_uniform(0, 1, count, generator, device) < 0.5, -ones, ones)
        else:
            flip_x, flip_y = ones, ones
        # Output = shift + zoom * rotate * flip * input, inverted: input = flip * rotate^T / zoom * (output - shift).
        cosine, sine = angle.cos() / zoom, angle.sin() / zoom
        a, b = flip_x * cosine, flip_x * sine
        c, d = flip_y * -sine, flip_y * cosine
        return torch.stack(
            [
                torch.stack([a, b, -(a * shift_x + b * shift_y)], dim=1),
                torch.stack([c, d, -(c * shift_x + d * shift_y)], dim=1),
            ],
            dim=1,
        )

    def __call__(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Warp a batch (B, 3, H, W) of float32 in [0, 1]; see `hematokit.plugins.specs.Augmenter`."""
        import torch
        from torch.nn import functional

        matrices = self.matrices(len(images), generator, images.device).to(images.dtype)
        # affine_grid's matrix product costs a third of the warp on a CPU; the sum is separable into rows and columns.
        y, x = (((2 * torch.arange(n, device=images.device) + 1) / n - 1).to(images.dtype) for n in images.shape[2:])
        along_rows = matrices[:, None, None, :, 1] * y[:, None, None] + matrices[:, None, None, :, 2]
        grid = matrices[:, None, None, :, 0] * x[:, None] + along_rows
        return functional.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


@dataclass(frozen=True)
class FlipsAugmenter:
    """Horizontal and vertical flips, each with probability one half; no pixel is resampled."""

    def __call__(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Flip a batch (B, 3, H, W); see `hematokit.plugins.specs.Augmenter`."""
        import torch

        for axis in (2, 3):
            chosen = _uniform(0, 1, len(images), generator, images.device) < 0.5
            images = torch.where(chosen[:, None, None, None], images.flip(axis), images)
        return images


@dataclass(frozen=True)
class NoAugmenter:
    """Leaves the batch as it is."""

    def __call__(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return `images`."""
        return images


@hookimpl
def register_augmenters(register: Callable[[AugmenterSpec], None]) -> None:
    """Register the built-in augmenters."""
    register(
        AugmenterSpec(
            name="hematonet",
            description="The paper's: rotation, zoom, flips, translation, in one warp with reflected borders",
            factory=HematonetAugmenter,
            options={
                "rotation": Option(float, 90.0, "largest rotation in degrees", 0.0, 360.0),
                "zoom_out": Option(float, 0.8, "smallest magnification", 0.2, 1.0),
                "zoom_in": Option(float, 1.25, "largest magnification", 1.0, 5.0),
                "translation": Option(float, 0.1, "largest shift as a share of the side", 0.0, 0.5),
                "flip": Option(bool, True, "flip in both directions"),
                "cell_extent": Option(float, 0.7, "share of the side that stays in view", 0.0, 1.0),
            },
        )
    )
    register(AugmenterSpec("flips", "Horizontal and vertical flips only", FlipsAugmenter))
    register(AugmenterSpec("none", "No augmentation", NoAugmenter))
