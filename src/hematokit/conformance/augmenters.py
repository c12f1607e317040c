"""Rules for augmenters: what the training loop relies on."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Final
from unittest import SkipTest

import numpy as np
import torch

from hematokit.conformance.packages import PluginUnderTest, builds, spec
from hematokit.conformance.rules import Rule, RuleBroken, RuleWarning
from hematokit.errors import HematokitError
from hematokit.models.runtimes.parity import sample_patches
from hematokit.plugins import MadeAugmenter
from hematokit.training.augmenters import make_augmenter

__all__ = ["RULES", "AugmenterUnderTest"]

_SIDE: Final = 96


class AugmenterUnderTest(PluginUnderTest):
    """An augmenter, and images (5, 3, 96, 96) to augment."""

    registry = "augmenters"

    def make(self, changed: Mapping[str, object] = MappingProxyType({})) -> MadeAugmenter:
        """Make it as a training does: a transform that takes no generator is adapted."""
        return make_augmenter(self.name, {**self.options, **changed})

    @cached_property
    def images(self) -> torch.Tensor:
        """Cells and noise, float32 in [0, 1]."""
        return torch.from_numpy(sample_patches(_SIDE)[2:]).permute(0, 3, 1, 2).float() / 255

    def run(
        self, images: torch.Tensor, seed: int = 0, changed: Mapping[str, object] = MappingProxyType({})
    ) -> torch.Tensor:
        """Make it and augment a copy of a batch."""
        found: torch.Tensor = self.make(changed).value(images.clone(), torch.Generator().manual_seed(seed))
        return found

    @property
    def is_idle(self) -> bool:
        """Whether it changes nothing."""
        return torch.equal(self.run(self.images), self.images)


def shape(plugin: AugmenterUnderTest) -> str:
    """A batch (B, 3, H, W) of float32 comes back as one of the same shape, type and device, for any H, W and B."""
    wide = torch.rand(2, 3, 64, 80, generator=torch.Generator().manual_seed(0))
    for images in (plugin.images, plugin.images[:1], wide):
        found = plugin.run(images)
        if not isinstance(found, torch.Tensor) or found.shape != images.shape:
            what = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
            raise RuleBroken(f"{tuple(images.shape)} came back as {what}")
        if found.dtype != torch.float32 or found.device != images.device:
            raise RuleBroken(f"float32 on {images.device} came back as {found.dtype} on {found.device}")
    return "batches of 5, 1 and 2, square and not"


def range_(plugin: AugmenterUnderTest) -> str:
    """Values stay finite and in [0, 1], for blank and for black images, too."""
    extremes = torch.stack([torch.zeros(3, _SIDE, _SIDE), torch.ones(3, _SIDE, _SIDE)])
    low, high = float("inf"), float("-inf")
    for seed in range(8):
        found = plugin.run(torch.cat([plugin.images, extremes]), seed)
        if not found.isfinite().all():
            raise RuleBroken("some values are not finite")
        low, high = min(low, float(found.min())), max(high, float(found.max()))
    if low < -1e-3 or high > 1 + 1e-3:
        raise RuleBroken(f"values from {low:.3g} to {high:.3g}; clamp them to 0 and 1")
    return f"from {max(low, 0):.2g} to {min(high, 1):.2g}"


def determinism(plugin: AugmenterUnderTest) -> str:
    """The same seed gives the same batch: all chance comes from the generator that it is given."""
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - the state that a plugin might draw from
        random.seed(seed)
        found.append(plugin.run(plugin.images, 5))
    if not torch.equal(*found):
        raise RuleBroken("the same generator gave two different batches; draw with generator=generator only")
    if plugin.is_idle:
        raise SkipTest("it changes nothing")
    if torch.equal(found[0], plugin.run(plugin.images, 6)):
        raise RuleWarning("two seeds gave the same batch; if it is meant to vary, draw from the generator")
    return "one seed repeats, two differ"


def per_image(plugin: AugmenterUnderTest) -> str:
    """Parameters are drawn for each image, not one set for the batch."""
    same = plugin.images[3:4].repeat(8, 1, 1, 1)
    found = plugin.run(same)
    if torch.equal(found, same):
        raise SkipTest("it changes nothing")
    if all(torch.equal(found[0], image) for image in found):
        raise RuleBroken(
            "eight copies of an image came back alike; draw one parameter for each: torch.rand(len(images), ...)"
        )
    return "eight copies of an image came back different"


def options(plugin: AugmenterUnderTest) -> str:
    """It works at both ends of each of its options, and with each of their choices."""
    tried = 0
    for name, option in plugin.spec.options.items():
        values = [True, False] if option.type is bool else [*option.choices, option.minimum, option.maximum]
        for value in values:
            if value is None:
                continue
            try:
                found = plugin.run(plugin.images[:2], changed={name: value})
            except HematokitError:
                continue  # two options that exclude each other, with a one-line error
            if found.shape != plugin.images[:2].shape or not found.isfinite().all():
                raise RuleBroken(f"{name}={value}: {tuple(found.shape)}, or values that are not finite")
            tried += 1
    return f"{tried} values tried"


def devices(plugin: AugmenterUnderTest) -> str:
    """It works on the device of the batch, with a generator there or on the CPU."""
    if not torch.cuda.is_available():
        raise SkipTest("no GPU here")
    images = plugin.images.cuda()
    for place in ("cpu", "cuda"):
        found = plugin.make().value(images.clone(), torch.Generator(place).manual_seed(0))
        if found.device != images.device or found.shape != images.shape:
            raise RuleBroken(f"a batch on {images.device} came back as {tuple(found.shape)} on {found.device}")
    return "on the GPU"


RULES: Final[Sequence[Rule]] = (
    spec, builds, shape, range_, determinism, per_image, options, devices,
)  # fmt: skip
