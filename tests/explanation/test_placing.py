"""Maps go back to where the network's input came from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hematokit.explanation.field_map import maps_to_patch
from hematokit.models.classifier import fit_to_input
from hematokit.plugins.specs import Fit, InputSpec


@given(
    st.integers(16, 60),
    st.integers(16, 60),
    st.sampled_from(["resize", "reflect-pad", "crop", "auto"]),
    st.integers(0, 99),
)
def test_a_bright_spot_returns_to_its_place(side: int, size: int, fit: Fit, seed: int) -> None:
    spec = InputSpec(size, divisor=1, fit=fit)
    start, length = spec.region(side)
    low, high = max(start, 0) + 2, min(start + length, side) - 5
    y, x = np.random.default_rng(seed).integers(low, high, 2)
    patch = np.zeros((side, side), np.float32)
    patch[y : y + 3, x : x + 3] = 1.0
    shown = fit_to_input(torch.from_numpy(patch).expand(1, 3, side, side).contiguous(), spec)[0, 0].numpy()

    back = maps_to_patch(shown, side, spec)

    assert back.shape == (side, side)
    rows, columns = np.indices(back.shape) + 0.5
    # A margin that was made by reflection may show the spot twice; the patch itself has it once.
    centre = (rows * back).sum() / back.sum(), (columns * back).sum() / back.sum()
    assert centre == pytest.approx((y + 1.5, x + 1.5), abs=0.75)


@pytest.mark.parametrize(("side", "size", "fit"), [(250, 256, "reflect-pad"), (32, 32, "auto"), (64, 32, "crop")])
def test_without_resampling_values_are_the_same(side: int, size: int, fit: Fit) -> None:
    spec = InputSpec(size, divisor=1, fit=fit)
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    shown = fit_to_input(images, spec)[:, 0].numpy()
    back = maps_to_patch(shown, side, spec)
    start, length = spec.region(side)
    inside = slice(max(start, 0), min(start + length, side))
    np.testing.assert_array_equal(back[:, inside, inside], images[:, 0, inside, inside].numpy())
    outside = back.copy()
    outside[:, inside, inside] = 0
    assert not outside.any()


def test_a_patch_that_took_fewer_pixels_of_the_field_is_made_smaller() -> None:
    spec = InputSpec(32, divisor=1, fit="resize")
    maps = np.full((3, 32, 32), 2.5, np.float32)
    back = maps_to_patch(maps, 64, spec, side=40)
    assert back.shape == (3, 40, 40)
    np.testing.assert_allclose(back, 2.5, rtol=1e-5)
