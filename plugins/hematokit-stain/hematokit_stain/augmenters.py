"""The augmenters: HED jitter, and the methods of Reinhard and Macenko at random or towards references."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch

from hematokit_stain.colours import density, mix, stain_matrix, transmission
from hematokit_stain.macenko import exchange_stains, measure_stains
from hematokit_stain.references import measure_pictures
from hematokit_stain.reinhard import match_colours, measure_colours
from hematokit_stain.white import balance_white, measure_white

__all__ = ["HedJitter", "MacenkoJitter", "ReinhardJitter"]

_Chance = Callable[[int], torch.Tensor]
"""Number of columns to numbers, uniform in [0, 1], a row for each image."""


class _StainAugmenter:
    """What the three share: which images are changed, and references.

    Parameters
    ----------
    share : float
        Share of the images whose stain is changed.
    references : str
        Picture or folder of pictures to draw towards, empty for none.
    reach : float
        Largest part of the way to a reference.
    """

    method = ""

    def __init__(self, share: float = 1.0, references: str = "", reach: float = 1.0) -> None:
        self.share, self.reach, self.references = share, reach, references
        if references:
            self.bank  # noqa: B018 - pictures that cannot be read are said before the training begins

    @cached_property
    def bank(self) -> torch.Tensor:
        """Measurements of the references (n, 6 or 8)."""
        return measure_pictures(self.references, self.method)

    def __call__(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Change a batch (B, 3, H, W) of float32 in [0, 1]; see `hematokit.plugins.specs.Augmenter`."""

        def chance(columns: int) -> torch.Tensor:
            # Drawn where the generator lives and then moved: the same seed gives the same batch.
            drawn = torch.rand(len(images), columns, generator=generator, device=generator.device)
            return drawn.to(images.device)

        chosen = chance(1)[:, 0] < self.share
        changed = self.change(images, chance)
        stained: torch.Tensor = torch.where(chosen[:, None, None, None], changed, images)
        return stained

    def change(self, images: torch.Tensor, chance: _Chance) -> torch.Tensor:
        """Change the stain of a batch."""
        raise NotImplementedError

    def draw_reference(self, chance: _Chance) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw a reference for each image, (B, 6 or 8), and how far to go towards it, (B, 1)."""
        drawn = chance(2)
        bank = self.bank.to(drawn)
        index = (drawn[:, 0] * len(bank)).long().clamp(max=len(bank) - 1)
        return bank[index], drawn[:, 1:] * self.reach


class _MeasuredJitter(_StainAugmenter):
    """What the two that measure an image share: its white is set aside, and changed by itself.

    Parameters
    ----------
    light : float
        Largest change of each colour of the white, as a share of it.
    share, references, reach
        As in all.
    """

    def __init__(self, share: float, references: str, reach: float, light: float) -> None:
        super().__init__(share, references, reach)
        self.light = light

    def change(self, images: torch.Tensor, chance: _Chance) -> torch.Tensor:
        """Change the stain of a batch, and the light."""
        white = measure_white(images)
        factor = 1 + self.light * (2 * chance(3) - 1)
        changed = self.change_stain(balance_white(images, white), chance)
        return (changed * white * factor[:, :, None, None]).clamp(0, 1)

    def change_stain(self, images: torch.Tensor, chance: _Chance) -> torch.Tensor:
        """Change the stain of a batch with a white background."""
        raise NotImplementedError


class HedJitter(_StainAugmenter):
    """Change the amount of each stain: a factor and a summand per image and stain.

    After Tellez et al., Whole-slide mitosis detection in H&E breast histology using PHH3 as a reference to train
    distilled stain-invariant convolutional networks, IEEE Trans Med Imaging 37, 2018. Stains are fixed ones
    (Ruifrok and Johnston 2001), as scikit-image has them; amounts below 0 are kept, so that no change is none.

    Parameters
    ----------
    stains : str
        Which of scikit-image's matrices: ``hed``; ``bex`` is Giemsa's methylene blue and eosin.
    scale : float
        Factors are uniform in 1 - scale to 1 + scale.
    bias : float
        Summands are uniform in -bias to bias, in natural optical density.
    share
        As in all.
    """

    def __init__(
        self,
        stains: str = "hed",
        scale: float = 0.2,
        bias: float = 0.05,
        share: float = 1.0,
    ) -> None:
        super().__init__(share)
        self.scale, self.bias = scale, bias
        self.rgb_from_stains, self.stains_from_rgb = stain_matrix(stains)

    def change(self, images: torch.Tensor, chance: _Chance) -> torch.Tensor:
        """Change the stain of a batch."""
        factor = 1 + self.scale * (2 * chance(3) - 1)
        summand = self.bias * (2 * chance(3) - 1)
        amounts = mix(density(images), self.stains_from_rgb)
        amounts = amounts * factor[:, :, None, None] + summand[:, :, None, None]
        return transmission(mix(amounts, self.rgb_from_stains))


class ReinhardJitter(_MeasuredJitter):
    """Change mean and deviation of what is stained, in CIELAB.

    Without references the statistics are moved at random around the image's own, as the virtual templates of Shen et
    al., RandStainNA, MICCAI 2022; with them, some of the way to one that is drawn.

    Parameters
    ----------
    lightness, colour : float
        Largest shift of the means of L*, and of a* and b*.
    contrast : float
        Largest change of the deviations, as a share.
    light, references, reach, share
        As in all.
    """

    method = "reinhard"

    def __init__(
        self,
        lightness: float = 8.0,
        colour: float = 8.0,
        contrast: float = 0.2,
        references: str = "",
        reach: float = 1.0,
        light: float = 0.05,
        share: float = 1.0,
    ) -> None:
        super().__init__(share, references, reach, light)
        self.shift, self.contrast = (lightness, colour, colour), contrast

    def change_stain(self, images: torch.Tensor, chance: _Chance) -> torch.Tensor:
        """Change the stain of a batch with a white background."""
        own = measure_colours(images)
        if self.references:
            drawn, way = self.draw_reference(chance)
            mean = own.mean + way * (drawn[:, :3] - own.mean)
            deviation = own.deviation + way * (drawn[:, 3:] - own.deviation)
        else:
            mean = own.mean + (2 * chance(3) - 1) * torch.tensor(self.shift, device=images.device)
            deviation = own.deviation * (1 + self.contrast * (2 * chance(3) - 1))
        return match_colours(images, mean, deviation, own)


class MacenkoJitter(_MeasuredJitter):
    """Change colour and amount of the two stains that are found in each image.

    Parameters
    ----------
    turn : float
        Largest change of each of a stain's three absorptions, before its length is made 1 again.
    strength : float
        Largest change of the amounts, in natural logarithms.
    light, references, reach, share
        As in all.
    """

    method = "macenko"

    def __init__(
        self,
        turn: float = 0.1,
        strength: float = 0.3,
        references: str = "",
        reach: float = 1.0,
        light: float = 0.05,
        share: float = 1.0,
    ) -> None:
        super().__init__(share, references, reach, light)
        self.turn, self.strength = turn, strength

    def change_stain(self, images: torch.Tensor, chance: _Chance) -> torch.Tensor:
        """Change the stain of a batch with a white background."""
        own = measure_stains(images)
        flat = own.vectors.flatten(1)
        if self.references:
            drawn, way = self.draw_reference(chance)
            vectors = flat + way * (drawn[:, :6] - flat)
            # Amounts are factors: half of the way between 1 and 4 is 2.
            amounts = own.amounts * (drawn[:, 6:] / own.amounts) ** way
        else:
            vectors = (flat + self.turn * (2 * chance(6) - 1)).clamp(min=0)
            amounts = own.amounts * (self.strength * (2 * chance(2) - 1)).exp()
        vectors = vectors.reshape(-1, 2, 3)
        vectors = vectors / vectors.norm(dim=2, keepdim=True).clamp(min=1e-6)
        return exchange_stains(images, vectors, amounts, own)
