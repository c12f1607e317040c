"""The pictures of a report, drawn with matplotlib.

Figures are made without pyplot, so that nothing global is changed and any thread may draw. Only class codes and
numbers are written into them: codes have a safe alphabet, names do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import matplotlib
import matplotlib.ticker
import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from torchmetrics.functional.classification import binary_precision_recall_curve

from hematokit.evaluation.metrics import LOW_SUPPORT, Scores
from hematokit.reports.rendering import GRID, INK, MUTED, STYLE
from hematokit.taxonomy import Taxonomy

__all__ = [
    "confusion_figure",
    "distribution_figure",
    "overview_figure",
    "precision_recall_figure",
    "reliability_figure",
]

SPLIT_COLOURS: Final = {"train": "#9fb8d1", "val": "#e0b35c", "test": "#2f6690", "no split": "#c9ced4"}

# Two classes of like colour differ by their dashes; also the only cue for who does not see colour.
_DASHES: Final = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
_CURVE_POINTS: Final = 300
_HEAT: Final = LinearSegmentedColormap.from_list("hematokit", ["#ffffff", "#cfe0ee", "#6fa3cc", "#1d5a8c"])


def precision_recall_figure(
    labels: npt.NDArray[np.object_], probabilities: npt.NDArray[np.floating], scores: Scores, taxonomy: Taxonomy
) -> Figure:
    """Draw the precision-recall curve of every class that has test cells (the paper's Fig. 7) in one panel.

    Parameters
    ----------
    labels : ndarray (n,) of str
        True class codes.
    probabilities : ndarray (n, C), float
        Columns in the order of ``scores.codes``.
    scores : Scores
        Gives average precision and support.
    taxonomy : Taxonomy
        Gives colours.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 5.6), layout="constrained")
        axes = figure.add_subplot()
        _precision_recall(axes, labels, probabilities, scores, taxonomy, columns=1)
    return figure


def _precision_recall(
    axes: Axes,
    labels: npt.NDArray[np.object_],
    probabilities: npt.NDArray[np.floating],
    scores: Scores,
    taxonomy: Taxonomy,
    columns: int,
) -> None:
    shown = [code for code in scores.codes if scores.per_class[code].average_precision is not None]
    # Best first, so that the legend reads as a ranking.
    shown.sort(key=lambda code: -(scores.per_class[code].average_precision or 0.0))
    for place, code in enumerate(shown):
        entry = scores.per_class[code]
        precision, recall = _curve(labels == code, probabilities[:, scores.codes.index(code)])
        few = " *" if entry.low_support else ""
        axes.plot(
            recall,
            precision,
            color=taxonomy[code].colour,
            linestyle=_DASHES[place % len(_DASHES)],
            linewidth=1.6,
            drawstyle="steps-pre",
            label=f"{code}  {entry.average_precision:.3f}{few}",
        )
    axes.set(xlim=(0, 1.01), ylim=(0, 1.03), xlabel="Recall", ylabel="Precision")
    axes.grid(color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    if shown:
        legend = axes.legend(
            title="Average precision",
            loc="upper left",
            bbox_to_anchor=(1.01, 1.0),
            frameon=False,
            fontsize=8 if len(shown) <= 22 else 6.5,
            ncols=columns if len(shown) <= 24 else 2,
            handlelength=2.6,
            labelspacing=0.45,
        )
        legend.get_title().set_fontsize(8.5)


def _curve(
    positive: npt.NDArray[np.bool_], scores: npt.NDArray[np.floating]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    precision, recall, _ = binary_precision_recall_curve(
        torch.from_numpy(np.clip(np.asarray(scores, dtype=np.float64), 0.0, 1.0)),
        torch.from_numpy(positive.astype(np.int64)),
    )
    # From the highest threshold on; torchmetrics appends the point (1, 0), which no threshold reaches. Of the
    # thresholds with one recall the first counts: the steps then enclose the average precision, exactly.
    heights, places = precision.numpy()[:-1][::-1], recall.numpy()[:-1][::-1]
    rises = np.flatnonzero(np.diff(places, prepend=0.0) > 0)
    heights, places = heights[rises], places[rises]
    if len(places) > _CURVE_POINTS:
        # A curve of thousands of steps is thinned for the eye; its start, where steps are tall, stays whole.
        even = np.searchsorted(places, np.linspace(places[0], 1.0, _CURVE_POINTS))
        keep = np.unique(np.concatenate([np.arange(20), even.clip(max=len(places) - 1), [len(places) - 1]]))
        heights, places = heights[keep], places[keep]
    return np.concatenate([[heights[0]], heights]), np.concatenate([[0.0], places])


def confusion_figure(scores: Scores, *, normalised: bool) -> Figure:
    """Draw the confusion matrix, rows being true classes.

    Parameters
    ----------
    scores : Scores
        Holds the matrix.
    normalised : bool
        Each row as shares of its sum, else counts.
    """
    classes = len(scores.codes)
    side = max(4.2, min(9.5, 1.7 + 0.4 * classes))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(side, side), layout="constrained")
        _confusion(figure.add_subplot(), scores, normalised=normalised)
    return figure


def _confusion(axes: Axes, scores: Scores, *, normalised: bool) -> None:
    counts = scores.confusion
    support = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, support, out=np.zeros(counts.shape), where=support > 0)
    classes = len(scores.codes)
    axes.imshow(shares, cmap=_HEAT, vmin=0, vmax=1, aspect="equal")
    size = 9 if classes <= 12 else 7 if classes <= 22 else 5
    for row in range(classes):
        for column in range(classes):
            count = int(counts[row, column])
            if not count:
                continue
            text = _percent(shares[row, column]) if normalised else f"{count}"
            colour = "white" if shares[row, column] > 0.55 else INK
            axes.text(
                column,
                row,
                text,
                ha="center",
                va="center",
                color=colour,
                fontsize=size if len(text) < 5 else size - 1.2,
            )
    labels = [code if support[index, 0] else f"({code})" for index, code in enumerate(scores.codes)]
    axes.set_xticks(range(classes), scores.codes, rotation=90, fontsize=size + 1)
    axes.set_yticks(range(classes), labels, fontsize=size + 1)
    axes.tick_params(length=0)
    axes.set(xlabel="Predicted class", ylabel="True class")
    axes.set_xticks(np.arange(classes + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(classes + 1) - 0.5, minor=True)
    axes.grid(which="minor", color=GRID, linewidth=0.6)
    axes.tick_params(which="minor", length=0)
    axes.spines[:].set_visible(False)


def _percent(share: float) -> str:
    percent = 100 * share
    return "<1" if percent < 0.5 else f"{percent:.0f}"


def distribution_figure(distribution: pd.DataFrame, order: Sequence[str]) -> Figure:
    """Draw how many cells each class has in each split (the paper's Fig. 2), on a logarithmic axis.

    Parameters
    ----------
    distribution : DataFrame
        Cells by class code (rows) and split (columns).
    order : sequence of str
        Codes in display order; others follow.
    """
    codes = [code for code in order if code in distribution.index]
    codes += [code for code in distribution.index if code not in codes]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(6.0, 1.4 + 0.42 * len(codes)), 3.6), layout="constrained")
        axes = figure.add_subplot()
        splits = list(distribution.columns)
        width = 0.8 / max(1, len(splits))
        for place, split in enumerate(splits):
            heights = distribution.loc[codes, split].to_numpy()
            where = np.arange(len(codes)) - 0.4 + width * (place + 0.5)
            axes.bar(where, heights, width, color=SPLIT_COLOURS.get(str(split), "#8d99a6"), label=str(split))
        axes.axhline(LOW_SUPPORT, color=MUTED, linewidth=0.8, linestyle=(0, (3, 2)))
        beside = axes.get_yaxis_transform()
        axes.text(1.005, LOW_SUPPORT, f"{LOW_SUPPORT}", transform=beside, va="center", fontsize=7, color=MUTED)
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.7)
        axes.set_xlim(-0.6, len(codes) - 0.4)
        axes.set_xticks(range(len(codes)), codes, rotation=90 if len(codes) > 10 else 0)
        axes.tick_params(axis="x", length=0)
        axes.set(ylabel="Cells (log scale)")
        axes.yaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
        axes.grid(axis="y", color=GRID, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.legend(frameon=False, ncols=len(splits), loc="lower right", bbox_to_anchor=(1.0, 1.0), fontsize=8)
    return figure


def reliability_figure(scores: Scores) -> Figure:
    """Draw how often the top class is right against how sure the classifier was, with the cells behind each bar."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 4.6), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3.4, 1])
        for entry in scores.reliability:
            middle, width = (entry.low + entry.high) / 2, entry.high - entry.low
            upper.bar(middle, entry.accuracy, width * 0.92, color="#6fa3cc")
            lower.bar(middle, entry.n, width * 0.92, color="#c9ced4")
        upper.plot([0, 1], [0, 1], color=MUTED, linewidth=0.9, linestyle=(0, (4, 2)))
        upper.plot(
            [entry.confidence for entry in scores.reliability],
            [entry.accuracy for entry in scores.reliability],
            "o",
            color="#1d5a8c",
            markersize=4.5,
        )
        upper.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="Share that is right")
        lower.set(xlabel="Probability of the predicted class", ylabel="Cells")
        for axes in (upper, lower):
            axes.grid(axis="y", color=GRID, linewidth=0.7)
            axes.set_axisbelow(True)
        if scores.expected_calibration_error is not None:
            line = f"Expected calibration error {scores.expected_calibration_error:.3f}"
            upper.set_title(line, loc="left", fontsize=9)
    return figure


def overview_figure(
    title: str,
    subtitle: str,
    headline: Sequence[tuple[str, str, str]],
    labels: npt.NDArray[np.object_],
    probabilities: npt.NDArray[np.floating],
    scores: Scores,
    taxonomy: Taxonomy,
) -> Figure:
    """Draw one page: headline figures, confusion matrix, precision-recall curves.

    Parameters
    ----------
    title, subtitle : str
        Two lines on top.
    headline : sequence of (name, value, interval)
        Figures as text.
    labels, probabilities, scores, taxonomy
        As in `precision_recall_figure`.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(14, 8.2))
        figure.text(0.035, 0.955, title, fontsize=17, weight="bold", va="center")
        figure.text(0.035, 0.915, subtitle, fontsize=10, color=MUTED, va="center")
        for place, (name, value, interval) in enumerate(headline):
            left = 0.035 + place * 0.94 / max(1, len(headline))
            figure.text(left, 0.862, name, fontsize=9.5, color=MUTED, va="center")
            figure.text(left, 0.822, value, fontsize=19, weight="bold", va="center")
            figure.text(left, 0.785, interval, fontsize=8.5, color=MUTED, va="center")
        matrix = figure.add_axes((0.06, 0.115, 0.40, 0.60))
        _confusion(matrix, scores, normalised=True)
        matrix.set_title("Confusion matrix, % of each true class", fontsize=10.5, loc="left", pad=8)
        curves = figure.add_axes((0.545, 0.115, 0.335, 0.60))
        _precision_recall(curves, labels, probabilities, scores, taxonomy, columns=1)
        curves.set_title("Precision-recall, one class against the rest", fontsize=10.5, loc="left", pad=8)
        figure.text(
            0.035,
            0.028,
            "For research use only; not for diagnosis. Below each figure: its 95 % interval. "
            f"* fewer than {LOW_SUPPORT} test cells. (CODE): no test cell.",
            fontsize=8.5,
            color=MUTED,
        )
    return figure
