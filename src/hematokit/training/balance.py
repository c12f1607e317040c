"""Class balance: which cells an epoch draws, and how the loss weighs classes.

HematoNet (Tripathi et al. 2022) brings every class to about 20,000 images by augmentation. Done before the split, that
puts copies of one cell on both sides of it; here cells are drawn more often instead, from the training split only,
and every draw is augmented afresh.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

__all__ = ["PAPER_TARGET", "BalancedLoss", "class_weights", "epoch_batches", "epoch_order", "log_priors"]

PAPER_TARGET = 20_000
"""Images per class that the paper augments to."""


def epoch_order(
    labels: npt.NDArray[np.int64], *, epoch: int, seed: int, oversample: bool, target: int | None = None
) -> npt.NDArray[np.int64]:
    """Return the order in which an epoch draws the training cells.

    Parameters
    ----------
    labels : ndarray (n,), int64
        Class index of each training cell.
    epoch, seed : int
        The order depends on these and nothing else, so that a resumed training draws the same.
    oversample : bool
        Draw classes that have fewer than `target` cells up to it: every cell equally often, but for a remainder that
        is drawn without replacement. Classes that have more keep all of theirs.
    target : int, optional
        Draws per class; by default the size of the largest class, `PAPER_TARGET` at most.

    Returns
    -------
    ndarray (m,), int64
        Positions in `labels`.
    """
    random = np.random.default_rng([seed, epoch])
    if not oversample:
        return random.permutation(len(labels))
    counts = np.bincount(labels)
    goal = target if target is not None else min(PAPER_TARGET, int(counts.max()))
    drawn = []
    for index in np.flatnonzero(counts):
        members = np.flatnonzero(labels == index)
        repeats, remainder = divmod(max(goal, len(members)), len(members))
        drawn.append(np.tile(members, repeats))
        drawn.append(random.choice(members, remainder, replace=False))
    order = np.concatenate(drawn)
    random.shuffle(order)
    return order


def epoch_batches(order: npt.NDArray[np.int64], batch_size: int) -> list[npt.NDArray[np.int64]]:
    """Cut an order into batches of nearly equal size, none larger than `batch_size`.

    Nearly equal, because a last batch of one or two cells would upset batch normalisation, and dropping it would
    leave cells out.
    """
    return np.array_split(order, max(1, -(-len(order) // batch_size)))


def class_weights(labels: npt.NDArray[np.int64], classes: int) -> npt.NDArray[np.float32]:
    """Weights inverse to class frequency, with mean 1 over the cells.

    Returns
    -------
    ndarray (classes,), float32
        ``n / (present classes * n_c)``; 1 for a class without cells.
    """
    counts = np.bincount(labels, minlength=classes)
    present = int((counts > 0).sum())
    weights = np.ones(classes)
    weights[counts > 0] = len(labels) / (present * counts[counts > 0])
    return weights.astype(np.float32)


def log_priors(labels: npt.NDArray[np.int64], classes: int) -> npt.NDArray[np.float32]:
    """Logarithm of class frequencies, for the logit-adjusted loss (Menon et al. 2021, equation 10).

    Added to the logits in training only: the network then learns what distinguishes the classes, not how frequent
    they are.
    """
    counts = np.bincount(labels, minlength=classes)
    priors: npt.NDArray[np.float32] = np.log((counts + 1.0) / (counts.sum() + classes)).astype(np.float32)
    return priors


class BalancedLoss(torch.nn.Module):
    """Cross-entropy with class balance and label smoothing, summed over the cells of a batch.

    Parameters
    ----------
    labels : ndarray (n,), int64
        Class index of each training cell.
    classes : int
        Number of classes.
    balance : str
        ``"weighted-loss"`` weighs each cell by `class_weights`, ``"logit-adjustment"`` adds `log_priors` to the logits;
        any other balance is none of the loss's.
    label_smoothing : float
        Share of a cell's label that is spread evenly over all classes.
    """

    weights: torch.Tensor | None
    priors: torch.Tensor | None

    def __init__(
        self, labels: npt.NDArray[np.int64], classes: int, *, balance: str = "none", label_smoothing: float = 0.0
    ) -> None:
        super().__init__()
        weighted, adjusted = balance == "weighted-loss", balance == "logit-adjustment"
        self.register_buffer("weights", torch.from_numpy(class_weights(labels, classes)) if weighted else None)
        self.register_buffer("priors", torch.from_numpy(log_priors(labels, classes)) if adjusted else None)
        self.label_smoothing = label_smoothing

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the summed loss (a scalar) of logits (B, C), float32, and class indices (B,), int64."""
        if self.priors is not None:
            logits = logits + self.priors
        return functional.cross_entropy(
            logits, targets, weight=self.weights, reduction="sum", label_smoothing=self.label_smoothing
        )
