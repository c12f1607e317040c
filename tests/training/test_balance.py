"""Class balance, label smoothing and the learning rate: against numbers worked out by hand."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from hematokit import load_model, open_store, train
from hematokit.training import balance
from hematokit.training.balance import BalancedLoss, class_weights, epoch_batches, epoch_order, log_priors
from hematokit.training.loop import learning_rate
from tinykit import TINY

LABELS = np.repeat(np.array([0, 1, 3]), [6, 3, 1])
"""Ten cells: six, three, none and one of the four classes."""

LOGITS = [[2.0, 0.5, -1.0, 0.0], [0.3, -0.2, 0.9, 1.4], [-1.5, 0.7, 0.1, 0.6]]
TARGETS = [0, 3, 1]


# --- which cells an epoch draws --------------------------------------------------------------------------------------


def draws(labels: np.ndarray, *, target: int | None = None, epoch: int = 0, seed: int = 0) -> list[list[int]]:
    """How often each cell is drawn in an epoch with oversampling, by class."""
    order = epoch_order(labels, epoch=epoch, seed=seed, oversample=True, target=target)
    times = np.bincount(order, minlength=len(labels))
    return [sorted(times[labels == index].tolist()) for index in range(4)]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        # Up to the largest class: 6 = 6 x 1 = 3 x 2 = 1 x 6.
        (None, [[1] * 6, [2, 2, 2], [], [6]]),
        # 7 = 6 x 1 + 1 = 3 x 2 + 1 = 1 x 7: the remainder goes to different cells.
        (7, [[1, 1, 1, 1, 1, 2], [2, 2, 3], [], [7]]),
        (20, [[3, 3, 3, 3, 4, 4], [6, 7, 7], [], [20]]),
        # Classes that have more than the target keep all of their cells.
        (2, [[1] * 6, [1, 1, 1], [], [2]]),
    ],
)
def test_oversampling_draws_each_class_up_to_the_target(target: int | None, expected: list[list[int]]) -> None:
    assert draws(LABELS, target=target) == expected


def test_the_remainder_is_drawn_at_random_and_evenly() -> None:
    labels = np.zeros(5, dtype=np.int64)
    extra = np.zeros(5, dtype=np.int64)
    for epoch in range(500):
        order = epoch_order(labels, epoch=epoch, seed=1, oversample=True, target=7)
        times = np.bincount(order, minlength=5)
        assert sorted(times) == [1, 1, 1, 2, 2]
        extra += times - 1
    # Two of five cells are drawn twice in each epoch: each cell 200 times in 500 epochs, give or take 4 x 11.
    assert extra.sum() == 1000
    assert np.abs(extra - 200).max() < 44


def test_the_largest_class_is_the_target_up_to_that_of_the_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    assert balance.PAPER_TARGET == 20_000
    labels = np.repeat([0, 1], [20_001, 10])
    assert np.bincount(labels[epoch_order(labels, epoch=0, seed=0, oversample=True)]).tolist() == [20_001, 20_000]
    monkeypatch.setattr(balance, "PAPER_TARGET", 4)
    assert draws(LABELS) == [[1] * 6, [1, 1, 2], [], [4]]


@pytest.mark.parametrize("oversample", [False, True])
def test_the_order_is_random_and_follows_from_seed_and_epoch(oversample: bool) -> None:
    def order(epoch: int, seed: int) -> list[int]:
        return epoch_order(LABELS, epoch=epoch, seed=seed, oversample=oversample).tolist()

    assert order(3, 5) == order(3, 5)
    others = [order(4, 5), order(3, 6), order(5, 3)]
    assert order(3, 5) not in others
    assert all(sorted(other) == sorted(order(3, 5)) or oversample for other in others)
    assert order(3, 5) != sorted(order(3, 5))
    if not oversample:
        # What a run of an earlier version draws after it was resumed.
        assert order(3, 5) == np.random.default_rng([5, 3]).permutation(10).tolist()


@pytest.mark.parametrize(
    ("cells", "batch", "sizes"),
    [(10, 5, [5, 5]), (11, 5, [4, 4, 3]), (10, 4, [4, 3, 3]), (4, 5, [4]), (1, 1, [1]), (6, 1, [1] * 6)],
)
def test_batches_are_of_nearly_equal_size_and_hold_every_cell_once(cells: int, batch: int, sizes: list[int]) -> None:
    order = np.random.default_rng(0).permutation(cells)
    batches = epoch_batches(order, batch)
    assert [len(part) for part in batches] == sizes
    assert np.concatenate(batches).tolist() == order.tolist()


# --- how the loss weighs classes -------------------------------------------------------------------------------------


def test_class_weights_are_the_balanced_ones() -> None:
    # As scikit-learn's compute_class_weight("balanced") over the classes that are there: 10 / (3 x n_c).
    weights = class_weights(LABELS, 4)
    assert weights.dtype == np.float32
    assert weights == pytest.approx([10 / 18, 10 / 9, 1.0, 10 / 3])
    assert weights[LABELS].mean() == pytest.approx(1.0)
    assert class_weights(np.array([1, 1]), 2) == pytest.approx([1.0, 1.0])


def test_log_priors_are_the_logarithm_of_smoothed_frequencies() -> None:
    priors = log_priors(LABELS, 4)
    assert priors.dtype == np.float32
    # (n_c + 1) / (n + C)
    assert priors == pytest.approx(np.log([7 / 14, 4 / 14, 1 / 14, 2 / 14]))
    assert np.exp(priors).sum() == pytest.approx(1.0)


def loss(smoothing: float = 0.0, balance: str = "none") -> float:
    module = BalancedLoss(LABELS, 4, balance=balance, label_smoothing=smoothing)
    return module(torch.tensor(LOGITS), torch.tensor(TARGETS)).item()


def by_hand(smoothing: float = 0.0, balance: str = "none") -> float:
    """The same loss, written out one cell and one class at a time."""
    weights = [10 / 18, 10 / 9, 1.0, 10 / 3] if balance == "weighted-loss" else [1.0] * 4
    counts = [7, 4, 1, 2] if balance == "logit-adjustment" else [1] * 4
    total = 0.0
    for logits, target in zip(LOGITS, TARGETS, strict=True):
        chances = [count * math.exp(logit) for count, logit in zip(counts, logits, strict=True)]
        for index, chance in enumerate(chances):
            share = smoothing / 4 + (1 - smoothing) * (index == target)
            total -= share * weights[index] * math.log(chance / sum(chances))
    return total


@pytest.mark.parametrize("balance", ["none", "oversample", "weighted-loss", "logit-adjustment"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])
def test_the_loss_is_the_one_written_out_by_hand(balance: str, smoothing: float) -> None:
    assert loss(smoothing, balance) == pytest.approx(by_hand(smoothing, balance), rel=1e-5)


def test_label_smoothing_is_torchs_and_pulls_towards_even_probabilities() -> None:
    logits, targets = torch.tensor(LOGITS), torch.tensor(TARGETS)
    expected = functional.cross_entropy(logits, targets, label_smoothing=0.2, reduction="none").sum().item()
    assert loss(0.2) == pytest.approx(expected)
    # The mean loss over all classes, in nats per cell, mixed with that of the true class.
    even = -functional.log_softmax(logits, dim=1).mean(dim=1).sum().item()
    assert loss(0.2) == pytest.approx(0.8 * loss(0.0) + 0.2 * even)
    # A cell that is almost certainly right costs more when labels are smoothed, one that is certainly wrong less.
    for logit, sign in ((9.0, 1), (-9.0, -1)):
        cell = torch.tensor([[logit, 0.0, 0.0, 0.0]]), torch.tensor([0])
        plain, smoothed = (BalancedLoss(LABELS, 4, label_smoothing=share)(*cell).item() for share in (0.0, 0.2))
        assert (smoothed - plain) * sign > 0


def test_logit_adjustment_asks_more_of_rare_classes() -> None:
    """The best logits are then those of equally frequent classes: equal where the cells say nothing."""
    module = BalancedLoss(LABELS, 4, balance="logit-adjustment")
    logits = torch.zeros(1, 4, requires_grad=True)
    sum(module(logits, torch.tensor([int(label)])) for label in LABELS).backward()
    # softmax(priors) x 10 cells, less the cells of each class; what is left is the smoothing of the frequencies.
    assert logits.grad is not None
    assert logits.grad[0].numpy() == pytest.approx(10 * np.array([7, 4, 1, 2]) / 14 - [6, 3, 0, 1], abs=1e-5)


@pytest.mark.parametrize(
    ("name", "smoothing"), [("none", 0.3), ("weighted-loss", 0.0), ("logit-adjustment", 0.0), ("oversample", 0.0)]
)
def test_a_training_computes_that_loss(tiny_store: Path, tmp_path: Path, name: str, smoothing: float) -> None:
    """In one step with a learning rate of next to nothing the loss is that of the model which the bundle holds."""
    settings: dict[str, Any] = {
        "backbone": "timm:test_vit",
        "image_size": 160,
        "batch_size": 512,
        "lr": 1e-12,
        "augmenter": "none",
    }
    settings |= {"epochs": 1, "balance": name, "label_smoothing": smoothing}
    train(tiny_store, tmp_path / "run", settings=TINY | settings)
    with (tmp_path / "run" / "metrics.csv").open() as file:
        (row,) = csv.DictReader(file)
    model = load_model(tmp_path / "run", "cpu")
    store = open_store(tiny_store)
    cells = store.cells.query("split == 'train' and label != 'ART'").sort_values("cell_id")
    labels = np.array([model.codes.index(code) for code in cells["label"]])
    # The weights are random; the losses of balances still differ by far more than the tolerance.
    logits = np.array(model.logits(store.patches(cells["cell_id"])), dtype=np.float64)
    counts = np.bincount(labels)
    n, classes = len(labels), len(counts)
    if name == "logit-adjustment":
        logits = logits + np.log((counts + 1) / (n + classes))
    losses = np.log(np.exp(logits).sum(axis=1, keepdims=True)) - logits
    of_cells = (1 - smoothing) * losses[np.arange(n), labels] + smoothing * losses.mean(axis=1)
    weights = n / (classes * counts) if name == "weighted-loss" else np.ones(classes)
    drawn = epoch_order(labels, epoch=0, seed=0, oversample=name == "oversample")
    assert float(row["train_loss"]) == pytest.approx((weights[labels] * of_cells)[drawn].mean(), rel=1e-3)


# --- learning rate ---------------------------------------------------------------------------------------------------


def test_the_learning_rate_rises_in_the_warm_up_and_falls_along_a_cosine() -> None:
    def rate(step: int, warmup: float = 2.0) -> float:
        return learning_rate(step, per_epoch=10, epochs=12, warmup=warmup, peak=1.0)

    # 20 of 120 steps of warm-up: a twentieth more with each.
    assert [rate(step) for step in (0, 1, 9, 19, 20)] == pytest.approx([1 / 20, 2 / 20, 10 / 20, 1.0, 1.0])
    # 100 steps of the cosine, from the peak to a hundredth of it: half-way is half of both.
    assert rate(70) == pytest.approx(0.01 + 0.99 * 0.5)
    assert rate(45) == pytest.approx(0.01 + 0.99 * 0.5 * (1 + math.sqrt(0.5)))
    assert rate(120) == pytest.approx(0.01)
    assert rate(119) == pytest.approx(0.01 + 0.99 * 0.5 * (1 - math.cos(math.pi / 100)))
    assert all(rate(step + 1) < rate(step) for step in range(20, 119))
    # Half of the training at most.
    assert [rate(step, warmup=100.0) for step in (0, 59, 60)] == pytest.approx([1 / 60, 1.0, 1.0])
    assert rate(0, warmup=0.0) == pytest.approx(1.0)
