"""Transforms of torchvision, and modules that draw from the global generators, as augmenters."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from hematokit import AugmenterSpec
from hematokit.conformance import check_plugin
from hematokit.errors import PluginError
from hematokit.plugins import registered
from hematokit.training.augmenters import Augmenters, SeededTransform, make_augmenters


class BatchJitter(torch.nn.Module):
    """As kornia's augmentations: draws for each image of a batch, further arguments are optional."""

    def __init__(self, same_on_batch: bool = False) -> None:
        super().__init__()
        self.same_on_batch = same_on_batch
        self.calls = 0

    def forward(self, input: torch.Tensor, params: dict | None = None, **kwargs: object) -> torch.Tensor:
        self.calls += 1
        count = 1 if self.same_on_batch else len(input)
        return input * torch.rand(count, 1, 1, 1) * 2


class MixedSources(torch.nn.Module):
    """Draws from NumPy and Python, and changes its images in place."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mul_(random.random()).add_(float(np.random.rand()) / 10)  # noqa: NPY002


class WithGenerator(torch.nn.Module):
    """An augmenter that is a module."""

    def forward(self, images: torch.Tensor, chance: torch.Generator) -> torch.Tensor:
        return images * torch.rand(len(images), 1, 1, 1, generator=chance)


TRANSFORMS: dict[str, Callable[[], object]] = {
    "rotation": lambda: v2.RandomRotation(45),
    "jitter": lambda: v2.Compose([v2.ColorJitter(0.5, 0.5, 0.5, 0.1), v2.RandomHorizontalFlip(), v2.GaussianNoise()]),
    "batch": BatchJitter,
    "same-on-batch": lambda: BatchJitter(same_on_batch=True),
    "mixed": MixedSources,
    "function": lambda: lambda images: images * torch.rand(1),
}


@pytest.fixture(params=TRANSFORMS)
def augmenter(request: pytest.FixtureRequest) -> Iterator[Augmenters]:
    with registered(AugmenterSpec(request.param, "A transform", TRANSFORMS[request.param])):
        yield make_augmenters(request.param, {})


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_generator_decides_and_the_global_generators_stay(augmenter: Augmenters) -> None:
    images = torch.rand(4, 3, 32, 32, generator=seeded(1))
    kept = images.clone()
    found = []
    for state, seed in ((1, 7), (2, 7), (3, 8)):
        random.seed(state)
        np.random.seed(state)  # noqa: NPY002
        torch.manual_seed(state)
        expected = random.random(), np.random.rand(), float(torch.rand(1))  # noqa: NPY002
        random.seed(state)
        np.random.seed(state)  # noqa: NPY002
        torch.manual_seed(state)
        found.append(augmenter(images, seeded(seed)))
        assert (random.random(), np.random.rand(), float(torch.rand(1))) == expected  # noqa: NPY002
    assert found[0].dtype == torch.float32
    assert 0 <= found[0].min() <= found[0].max() <= 1
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert torch.equal(images, kept)


def test_each_image_has_parameters_of_its_own(augmenter: Augmenters) -> None:
    images = torch.rand(1, 3, 32, 32, generator=seeded(1)).repeat(4, 1, 1, 1)
    found = augmenter(images, seeded(0))
    assert all(not torch.equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize("name", TRANSFORMS)
def test_it_conforms(name: str) -> None:
    with registered(AugmenterSpec(name, "A transform", TRANSFORMS[name])):
        results = check_plugin(name)
    assert len(results) > 5
    assert [str(result) for result in results if result.outcome not in ("passed", "skipped")] == []


def test_a_transform_that_draws_for_each_image_is_called_once_per_batch() -> None:
    images = torch.rand(4, 3, 8, 8)
    for same, calls in ((False, 1), (True, 4)):
        transform = BatchJitter(same)
        SeededTransform(transform)(images, seeded(0))
        assert transform.calls == calls


def test_a_module_with_a_generator_is_used_as_it_is() -> None:
    with registered(AugmenterSpec("own", "A module", WithGenerator)):
        assert isinstance(make_augmenters("own", {}).parts[0].value, WithGenerator)


def test_a_transform_that_changes_the_shape_is_refused() -> None:
    with (
        registered(AugmenterSpec("crop", "A transform", lambda: v2.CenterCrop(8))),
        pytest.raises(PluginError, match=r"CenterCrop made \(1, 3, 8, 8\).*keeps the shape"),
    ):
        make_augmenters("crop", {})(torch.rand(2, 3, 16, 16), seeded(0))
