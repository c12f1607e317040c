"""Deletion and insertion on networks whose decisive pixels are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from checkkit import SIDE, linear_classifier, noise_images
from hematokit.explanation.checks.faithfulness import (
    BASELINES,
    CENTRED,
    baseline_maps,
    centred_gaussian,
    deletion_insertion,
    pixel_ranks,
    replacement_images,
)

COUNT = 12


@pytest.fixture(scope="module")
def decisive() -> np.ndarray:
    """A tenth of the pixels, away from the middle, decides."""
    random = np.random.default_rng(8)
    mask = random.random((SIDE, SIDE)) < 0.1
    mask[6:18, 6:18] = False
    return mask


@pytest.fixture(scope="module")
def found(decisive: np.ndarray):
    classifier = linear_classifier(np.repeat(decisive[None], 3, 0).astype(np.float32), scale=0.2)
    # Bright where it counts: the whole picture is of class 1, the replaced one is not.
    images = noise_images(COUNT, 5) * 0.5
    images[:, :, torch.from_numpy(decisive)] = 1.0
    knowing = np.repeat(decisive[None].astype(np.float32), COUNT, 0)
    return deletion_insertion(
        classifier,
        images,
        torch.ones(COUNT, dtype=torch.int64),
        {"knowing": knowing, "wrong": 1 - knowing},
        labels=["AAA"] * 4 + ["BBB"] * 8,
        steps=20,
        replacement="mean",
        batch_size=7,
    )


def test_a_map_that_knows_the_decisive_pixels_beats_all_baselines(found) -> None:
    gains = found.gains.set_index(["method", "baseline"])
    for baseline in BASELINES:
        assert gains.loc[("knowing", baseline), "deletion_low"] > 0.1
        assert gains.loc[("knowing", baseline), "insertion_low"] > 0.1
        assert gains.loc[("wrong", baseline), "deletion_high"] < 0
        assert gains.loc[("wrong", baseline), "insertion_high"] < 0


def test_curves_begin_and_end_with_the_whole_and_the_replaced_picture(found) -> None:
    curves = found.curves[found.curves["label"] == ""].set_index("method")
    for _, part in curves.groupby(level=0):
        assert part["fraction"].tolist() == pytest.approx(np.linspace(0, 1, 21))
        assert part["deletion"].iloc[0] == pytest.approx(part["insertion"].iloc[-1])
        assert part["deletion"].iloc[-1] == pytest.approx(part["insertion"].iloc[0])
    cells = found.cells
    assert (cells["whole"] > 0.9).all()
    assert (cells["replaced"] < cells["whole"]).all()
    # All decisive pixels are among the first tenth or so: from there on the curve is flat.
    knowing = curves.loc["knowing"]
    assert np.ptp(knowing["deletion"].iloc[3:]) < 0.02


def test_curves_are_those_of_pictures_made_by_hand(decisive: np.ndarray) -> None:
    classifier = linear_classifier(np.random.default_rng(0).standard_normal((3, SIDE, SIDE)), scale=0.05)
    images = noise_images(2, 9)
    order = np.random.default_rng(1).permutation(SIDE * SIDE).reshape(SIDE, SIDE)
    maps = np.repeat(-order[None], 2, 0).astype(np.float32)  # pixel number 0 first
    result = deletion_insertion(
        classifier, images, torch.tensor([0, 1]), {"map": maps}, steps=4, replacement="blur", baselines=False
    )
    blurred = replacement_images(images, "blur")
    for kind in ("deletion", "insertion"):
        heights = []
        for step in range(5):
            first = torch.from_numpy(order < step * SIDE * SIDE / 4)
            shown = torch.where(first if kind == "deletion" else ~first, blurred, images)
            probabilities = torch.softmax(classifier(shown), 1)[[0, 1], [0, 1]]
            heights.append(probabilities.mean().item())
        np.testing.assert_allclose(result.curves.query("label == ''")[kind], heights, atol=1e-6)
        areas = result.cells[kind].mean()
        assert areas == pytest.approx(np.trapezoid(heights, dx=0.25), abs=1e-6)


def test_batches_change_nothing(decisive: np.ndarray) -> None:
    classifier = linear_classifier(np.random.default_rng(0).standard_normal((3, SIDE, SIDE)), scale=0.05)
    given_maps = {"map": np.random.default_rng(2).standard_normal((3, SIDE, SIDE)).astype(np.float32)}
    areas = [
        deletion_insertion(
            classifier, noise_images(3, 9), torch.tensor([0, 1, 1]), given_maps, steps=6, batch_size=size
        ).cells["deletion"]
        for size in (1, 5, 64)
    ]
    np.testing.assert_allclose(areas[0], areas[1], atol=1e-6)
    np.testing.assert_allclose(areas[0], areas[2], atol=1e-6)


def test_figures_per_class_make_up_the_whole(found) -> None:
    summary = found.summary.set_index(["method", "label"])
    for method in ("knowing", CENTRED):
        one, other, whole = (summary.loc[(method, label)] for label in ("AAA", "BBB", ""))
        assert (one["n"], other["n"], whole["n"]) == (4, 8, 12)
        assert whole["deletion"] == pytest.approx((4 * one["deletion"] + 8 * other["deletion"]) / 12)
        assert whole["deletion_low"] <= whole["deletion"] <= whole["deletion_high"]


def test_magnitude_ranks_what_speaks_against_with_what_speaks_for() -> None:
    weights = np.zeros((3, SIDE, SIDE), np.float32)
    weights[:, 2:6, 2:6] = 1
    classifier = linear_classifier(weights, scale=0.2)
    images = noise_images(4, 2) * 0.3
    images[:, :, 2:6, 2:6] = 1.0
    maps = {"upside down": np.repeat(-weights[:1], 4, 0)}
    areas = [
        deletion_insertion(
            classifier, images, torch.ones(4, dtype=torch.int64), maps, order=order, baselines=False, replacement="mean"
        )
        .cells["deletion"]
        .mean()
        for order in ("value", "magnitude")
    ]
    assert areas[1] < areas[0] - 0.2


@given(st.integers(0, 1000))
def test_ranks_follow_values_and_ties_have_no_place(seed: int) -> None:
    random = np.random.default_rng(seed)
    values = random.integers(0, 4, (2, 9, 9)).astype(np.float32)
    ranks = pixel_ranks(values, seed)
    for value, rank in zip(values, ranks, strict=True):
        assert sorted(rank.ravel()) == list(range(81))
        order = value.ravel()[np.argsort(rank.ravel())]
        assert (np.diff(order) <= 0).all()


def test_ties_are_not_broken_from_top_to_bottom() -> None:
    ranks = pixel_ranks(np.zeros((1, 30, 30), np.float32))[0]
    assert abs(ranks[:15].mean() - ranks[15:].mean()) < 60  # row by row it would be 450


def test_replacements_keep_the_mean_colour_and_no_structure() -> None:
    images = noise_images(3, 1, 48)
    for replacement in ("blur", "mean"):
        replaced = replacement_images(images, replacement)
        assert replaced.shape == images.shape
        torch.testing.assert_close(replaced.mean((2, 3)), images.mean((2, 3)), atol=0.02, rtol=0)
        assert replaced.std() < 0.15 * images.std()


def test_baselines_differ_by_cell_but_for_the_gaussian() -> None:
    maps = baseline_maps(2, SIDE, 4)
    assert tuple(maps) == BASELINES
    hill = centred_gaussian(SIDE)
    np.testing.assert_allclose(hill, hill[::-1, ::-1], rtol=1e-6)
    assert np.unravel_index(hill.argmax(), hill.shape) in {(11, 11), (11, 12), (12, 11), (12, 12)}
    for name, values in maps.items():
        assert values.min() >= 0
        assert (values[0] == values[1]).all() == (name == CENTRED)
