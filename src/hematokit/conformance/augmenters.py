"""Rules for augmenters: what the training loop relies on."""

from __future__ import annotations

import random
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import torch

from hematokit.conformance.rules import Broken, Caution, NotTried, Rule, rule
from hematokit.conformance.specs import check_spec
from hematokit.errors import HematokitError
from hematokit.plugins import load_plugins

__all__ = ["RULES", "AugmenterSubject"]

RULES: Final[list[Rule]] = []

_SIDE: Final = 96


class AugmenterSubject:
    """An augmenter under trial.

    Parameters
    ----------
    name : str
        As registered.
    options : mapping
        Its options.
    """

    def __init__(self, name: str, options: Mapping[str, object]) -> None:
        from hematokit.models.parity import sample_patches

        self.name, self.options = name, dict(options)
        self.spec = load_plugins().augmenters.get(name)
        patches = torch.from_numpy(sample_patches(_SIDE)[2:])
        self.images = patches.permute(0, 3, 1, 2).float() / 255

    def make(self, changed: Mapping[str, object] = MappingProxyType({})) -> Any:
        """Make it, with some options changed."""
        return load_plugins().augmenters.make(self.name, {**self.options, **changed}).value

    def run(
        self, images: torch.Tensor, seed: int = 0, changed: Mapping[str, object] = MappingProxyType({})
    ) -> torch.Tensor:
        """Make it and augment a copy of a batch."""
        found: torch.Tensor = self.make(changed)(images.clone(), torch.Generator().manual_seed(seed))
        return found

    @property
    def is_idle(self) -> bool:
        """Whether it changes nothing."""
        return torch.equal(self.run(self.images), self.images)


@rule(RULES, "spec", first=True)
def _spec(subject: AugmenterSubject) -> str:
    """Its description and options are complete and agree with each other."""
    return check_spec(subject.spec)


@rule(RULES, "builds", first=True)
def _builds(subject: AugmenterSubject) -> str:
    """It is made from its options, without the network."""
    return type(subject.make()).__name__


@rule(RULES, "shape", first=True)
def _shape(subject: AugmenterSubject) -> str:
    """A batch (B, 3, H, W) of float32 comes back as one of the same shape, type and device, for any H, W and B."""
    wide = torch.rand(2, 3, 64, 80, generator=torch.Generator().manual_seed(0))
    for images in (subject.images, subject.images[:1], wide):
        found = subject.run(images)
        if not isinstance(found, torch.Tensor) or found.shape != images.shape:
            what = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
            raise Broken(f"{tuple(images.shape)} came back as {what}")
        if found.dtype != torch.float32 or found.device != images.device:
            raise Broken(f"float32 on {images.device} came back as {found.dtype} on {found.device}")
    return "batches of 5, 1 and 2, square and not"


@rule(RULES, "range")
def _range(subject: AugmenterSubject) -> str:
    """Values stay finite and in [0, 1], for blank and for black images, too."""
    extremes = torch.stack([torch.zeros(3, _SIDE, _SIDE), torch.ones(3, _SIDE, _SIDE)])
    low, high = float("inf"), float("-inf")
    for seed in range(8):
        found = subject.run(torch.cat([subject.images, extremes]), seed)
        if not found.isfinite().all():
            raise Broken("some values are not finite")
        low, high = min(low, float(found.min())), max(high, float(found.max()))
    if low < -1e-3 or high > 1 + 1e-3:
        raise Broken(f"values from {low:.3g} to {high:.3g}; clamp them to 0 and 1")
    return f"from {max(low, 0):.2g} to {min(high, 1):.2g}"


@rule(RULES, "determinism")
def _determinism(subject: AugmenterSubject) -> str:
    """The same seed gives the same batch: all chance comes from the generator that it is given."""
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - the state that a plugin might draw from
        random.seed(seed)
        found.append(subject.run(subject.images, 5))
    if not torch.equal(*found):
        raise Broken("the same generator gave two different batches; draw with generator=generator only")
    if subject.is_idle:
        raise NotTried("it changes nothing")
    if torch.equal(found[0], subject.run(subject.images, 6)):
        raise Caution("two seeds gave the same batch; if it is meant to vary, draw from the generator")
    return "one seed repeats, two differ"


@rule(RULES, "per-image")
def _per_image(subject: AugmenterSubject) -> str:
    """Parameters are drawn for each image, not one set for the batch."""
    same = subject.images[3:4].repeat(8, 1, 1, 1)
    found = subject.run(same)
    if torch.equal(found, same):
        raise NotTried("it changes nothing")
    if all(torch.equal(found[0], image) for image in found):
        raise Broken(
            "eight copies of an image came back alike; draw one parameter for each: torch.rand(len(images), ...)"
        )
    return "eight copies of an image came back different"


@rule(RULES, "options")
def _options(subject: AugmenterSubject) -> str:
    """It works at both ends of each of its options, and with each of their choices."""
    tried = 0
    for name, option in subject.spec.options.items():
        values = [True, False] if option.type is bool else [*option.choices, option.minimum, option.maximum]
        for value in values:
            if value is None:
                continue
            try:
                found = subject.run(subject.images[:2], changed={name: value})
            except HematokitError:
                continue  # two options that exclude each other, said in a line
            if found.shape != subject.images[:2].shape or not found.isfinite().all():
                raise Broken(f"{name}={value}: {tuple(found.shape)}, or values that are not finite")
            tried += 1
    return f"{tried} values tried"


@rule(RULES, "devices")
def _devices(subject: AugmenterSubject) -> str:
    """It works on the device of the batch, with a generator there or on the CPU."""
    if not torch.cuda.is_available():
        raise NotTried("no GPU here")
    images = subject.images.cuda()
    for place in ("cpu", "cuda"):
        found = subject.make()(images.clone(), torch.Generator(place).manual_seed(0))
        if found.device != images.device or found.shape != images.shape:
            raise Broken(f"a batch on {images.device} came back as {tuple(found.shape)} on {found.device}")
    return "on the GPU"
