"""Augmenters: one warp, per-image parameters, the labelled cell in view, the same seed the same batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hematokit.errors import PluginError
from hematokit.plugins import load_plugins
from hematokit.training.augmenters import HematonetAugmenter


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(name: str, **options: object) -> object:
    spec = load_plugins().augmenters.get(name)
    return spec.factory(**spec.resolve_options(options))


@pytest.mark.parametrize("name", ["hematonet", "flips", "none"])
def test_contract(name: str) -> None:
    images = torch.rand(5, 3, 64, 64, generator=seeded(1))
    kept = images.clone()
    augmenter = make(name)
    first, second, other = (augmenter(images, seeded(seed)) for seed in (7, 7, 8))
    assert first.shape == images.shape
    assert first.dtype == torch.float32
    assert first.min() >= 0
    assert first.max() <= 1
    assert torch.equal(first, second)
    assert torch.equal(images, kept), "the batch it was given must stay as it is"
    assert torch.equal(first, other) is (name == "none")


def test_parameters_are_drawn_per_image() -> None:
    image = torch.rand(1, 3, 64, 64, generator=seeded(0)).expand(8, -1, -1, -1)
    changed = make("hematonet")(image, seeded(0))
    differences = [(changed[0] - other).abs().max().item() for other in changed[1:]]
    assert min(differences) > 0.05


def test_without_change_it_is_the_identity() -> None:
    still = make("hematonet", rotation=0, zoom_out=1, zoom_in=1, translation=0, flip=False)
    images = torch.rand(3, 3, 50, 50, generator=seeded(0))
    assert torch.allclose(still(images, seeded(0)), images, atol=1e-5)


def test_flips_keep_every_pixel() -> None:
    images = torch.rand(16, 3, 20, 20, generator=seeded(0))
    flipped = make("flips")(images, seeded(3))
    kinds = set()
    for before, after in zip(images, flipped, strict=True):
        options = {"same": before, "h": before.flip(2), "v": before.flip(1), "both": before.flip(1, 2)}
        kinds |= {name for name, option in options.items() if torch.equal(option, after)}
    assert kinds == {"same", "h", "v", "both"}


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    extent=st.floats(0.2, 0.79),
    translation=st.floats(0.0, 0.5),
    angle=st.floats(0, 2 * np.pi),
)
def test_the_labelled_cell_stays_in_view(seed: int, extent: float, translation: float, angle: float) -> None:
    """Any point of the disc that the cell may fill is inside the output, whatever is drawn."""
    augmenter = HematonetAugmenter(cell_extent=extent, translation=translation)
    inverse = augmenter.matrices(32, seeded(seed), torch.device("cpu")).double()
    point = torch.tensor([extent * np.cos(angle), extent * np.sin(angle)], dtype=torch.float64)
    # The warp maps output to input; solved for the output position of the cell's point.
    position = torch.linalg.solve(inverse[:, :, :2], (point - inverse[:, :, 2])[:, :, None])[:, :, 0]
    assert position.abs().max() <= 1 + 1e-5


def test_zoom_and_rotation_are_what_was_asked_for() -> None:
    inverse = HematonetAugmenter(flip=False).matrices(4000, seeded(0), torch.device("cpu")).double()
    scale = torch.linalg.det(inverse[:, :, :2]).rsqrt()
    assert 0.8 - 1e-5 <= scale.min() < 0.82
    assert 1.23 < scale.max() <= 1.25 + 1e-5
    angle = torch.rad2deg(torch.atan2(inverse[:, 0, 1], inverse[:, 0, 0]))
    assert angle.min() >= -1e-4
    assert angle.max() <= 90 + 1e-4
    assert angle.max() - angle.min() > 85


def test_borders_are_reflected() -> None:
    """Zooming out of a bright image shows no dark frame."""
    bright = torch.full((4, 3, 64, 64), 0.9)
    assert torch.allclose(make("hematonet", zoom_out=0.5, zoom_in=1.0)(bright, seeded(0)), bright, atol=1e-4)


def test_zoom_limits_the_wrong_way_round() -> None:
    with pytest.raises(PluginError, match="swap them"):
        HematonetAugmenter(zoom_out=1.2, zoom_in=1.1)
