"""Reports of an evaluation and of a comparison of runs: HTML pages that open offline, and one PNG overview.

Figures are made without pyplot, so that nothing global is changed and any thread may draw. Only class codes and
numbers are written into them: codes have a safe alphabet, names do not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import matplotlib
import matplotlib.ticker
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from hematokit.evaluation.comparison import Comparison
from hematokit.evaluation.evaluating import Evaluation
from hematokit.evaluation.metrics import CLASS_METRICS, LOW_SUPPORT, OVERALL_METRICS, Scores, precision_recall_curve
from hematokit.reports import text
from hematokit.reports.rendering import (
    GRID,
    INK,
    METRIC_NAMES,
    MUTED,
    STYLE,
    data_url,
    templates,
    thumbnail,
    to_png,
    to_svg,
)
from hematokit.taxonomy import CellClass, Taxonomy

__all__ = [
    "render_comparison",
    "render_picture",
    "render_report",
]

TABLE_METRICS: Final = ("precision", "recall", "f1", "ovr_accuracy", "average_precision")
WORST_SHOWN: Final = 24
_WORST_PER_PAIR: Final = 4
_FILES_NAMED: Final = 50

SPLIT_COLOURS: Final = {"train": "#9fb8d1", "val": "#e0b35c", "test": "#2f6690", "no split": "#c9ced4"}

# Two classes of like colour differ by their dashes; also the only cue for who does not see colour.
_DASHES: Final = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
_CURVE_POINTS: Final = 300
_HEAT: Final = LinearSegmentedColormap.from_list("hematokit", ["#ffffff", "#cfe0ee", "#6fa3cc", "#1d5a8c"])


@dataclass(frozen=True, slots=True)
class _Mistake:
    picture: str
    cell_id: str
    source: str
    label: str
    predicted: str
    probability: float


@dataclass(frozen=True, slots=True)
class _Figure:
    url: str
    alt: str
    width: int


def _labelled(evaluation: Evaluation) -> tuple[npt.NDArray[np.object_], npt.NDArray[np.float64]]:
    table = evaluation.predictions[evaluation.predictions["label"] != ""]
    columns = [f"p_{code}" for code in evaluation.taxonomy.codes]
    return table["label"].to_numpy(dtype=object), table[columns].to_numpy(dtype=np.float64)


def render_report(evaluation: Evaluation, model: str | Path, reproduce: list[str]) -> str:
    """Render the report.

    Parameters
    ----------
    evaluation : Evaluation
        What to report.
    model : str or Path
        The run or bundle, as the user named it.
    reproduce : list of str
        Commands that make the same evaluation again.

    Returns
    -------
    str
        A complete HTML document: styles and images are embedded, nothing is downloaded, no script is run.
    """
    scores = evaluation.scores
    predicted = evaluation.predictions["predicted"].value_counts()
    return (
        templates()
        .get_template("report.html.j2")
        .render(
            title=_title(model),
            subject=_subject(evaluation),
            evaluation=evaluation,
            about=evaluation.about,
            scores=scores,
            neighbours=scores.neighbour_confusions(evaluation.taxonomy) if scores else None,
            headline=OVERALL_METRICS,
            columns=CLASS_METRICS,
            low=LOW_SUPPORT,
            facts=text.training_facts(evaluation.training),
            pictures=_figures(evaluation),
            mistakes=_worst(evaluation),
            worst_per_pair=_WORST_PER_PAIR,
            predicted=[(code, int(predicted.get(code, 0))) for code in evaluation.taxonomy.codes],
            rejects=list(evaluation.rejects.head(_FILES_NAMED).itertuples(index=False)),
            reproduce=reproduce,
        )
    )


def render_picture(evaluation: Evaluation, model: str | Path) -> bytes | None:
    """Render the one-page overview as a PNG file; ``None`` where there are no scores."""
    scores = evaluation.scores
    if scores is None:
        return None
    labels, probabilities = _labelled(evaluation)
    headline = [
        (METRIC_NAMES[name], text.figure(getattr(scores, name)), text.interval(scores.intervals[name]))
        for name in OVERALL_METRICS
    ]
    headline.append(("Calibration error", text.figure(scores.expected_calibration_error), ""))
    picture = _overview_figure(
        _shortened(_title(model), 80),
        _shortened(f"{_subject(evaluation)}; {scores.n:,} cells in {len(scores.codes)} classes", 150),
        headline,
        labels,
        probabilities,
        scores,
        evaluation.taxonomy,
    )
    return to_png(picture, dpi=110)


def _title(model: str | Path) -> str:
    path = Path(model)
    name = path.resolve().name
    return path.resolve().parent.name if name == "bundle" else name


def _subject(evaluation: Evaluation) -> str:
    about = evaluation.about
    if about.get("images"):
        return f"images in {about['images']}"
    return f"{about['split']} split of {about['store']}" if about.get("split") != "all" else f"all of {about['store']}"


def _shortened(line: str, length: int) -> str:
    return line if len(line) <= length else f"{line[: length - 1]}…"


def _figures(evaluation: Evaluation) -> dict[str, _Figure]:
    scores, taxonomy = evaluation.scores, evaluation.taxonomy
    made: dict[str, tuple[Any, str]] = {}
    if scores is not None:
        labels, probabilities = _labelled(evaluation)
        ranked = sorted(scores.per_class.items(), key=lambda item: -(item[1].average_precision or 0))
        curves = ", ".join(f"{code} {text.figure(entry.average_precision)}" for code, entry in ranked)
        made = {
            "curves": (
                _precision_recall_figure(labels, probabilities, scores, taxonomy),
                f"Precision-recall curves; average precision: {curves}",
            ),
            "counts": (_confusion_figure(scores, normalised=False), "Confusion matrix in cells"),
            "shares": (
                _confusion_figure(scores, normalised=True),
                "Confusion matrix in percent of each true class",
            ),
            "reliability": (
                _reliability_figure(scores),
                f"Reliability diagram; expected calibration error {text.figure(scores.expected_calibration_error)}",
            ),
        }
    if len(evaluation.distribution):
        order = [*taxonomy.codes, *(evaluation.training.left_out or ())]
        made["distribution"] = (
            _distribution_figure(evaluation.distribution, order),
            "Cells per class and split, as bars; the table below holds the numbers",
        )
    return {
        name: _Figure(data_url(to_svg(drawn), "image/svg+xml"), alt, round(96 * drawn.get_figwidth()))
        for name, (drawn, alt) in made.items()
    }


def _worst(evaluation: Evaluation) -> list[_Mistake]:
    """The mistakes made with most confidence; no pair of classes fills the page alone."""
    table = evaluation.predictions.reset_index(drop=True)
    wrong = table[(table["label"] != "") & (table["label"] != table["predicted"])]
    wrong = wrong.sort_values(["probability", "cell_id"], ascending=[False, True])
    wrong = wrong.groupby(["label", "predicted"], sort=False).head(_WORST_PER_PAIR).head(WORST_SHOWN)
    if wrong.empty:
        return []
    patches = evaluation.read_patches(wrong.index.to_numpy(dtype=np.int64))
    if len(patches) != len(wrong):
        # An image was deleted since it was classified: no images, as they could be shown beside other cells.
        return []
    return [
        _Mistake(
            thumbnail(patch),
            str(row["cell_id"]),
            str(row["source"]),
            str(row["label"]),
            str(row["predicted"]),
            float(row["probability"]),
        )
        for patch, row in zip(patches, wrong.to_dict("records"), strict=True)
    ]


def render_comparison(
    comparison: Comparison,
    *,
    classes: Mapping[str, CellClass],
    supports: Mapping[str, int],
    split: str,
    runs: Mapping[str, str],
    reproduce: str,
) -> str:
    """Render the comparison of runs: a table of all metrics, and the tests of the differences.

    Parameters
    ----------
    comparison : Comparison
    classes : mapping of str to CellClass
        By code.
    supports : mapping of str to int
        Cells of each class.
    split : str
    runs : mapping of str to str
        Where each run is, by its name.
    reproduce : str
        The command that makes the same again.

    Returns
    -------
    str
        A whole HTML document.
    """
    return (
        templates()
        .get_template("compare.html.j2")
        .render(
            comparison=comparison,
            classes=classes,
            supports=supports,
            split=split,
            runs=runs,
            columns=TABLE_METRICS,
            low=LOW_SUPPORT,
            headline=OVERALL_METRICS,
            best=_best(comparison),
            reproduce=reproduce,
        )
    )


def _best(comparison: Comparison) -> dict[tuple[str, str], float]:
    """Highest value of each (class or "", metric), to be set in bold; a tie is shared."""
    best: dict[tuple[str, str], float] = {}
    for scores in comparison.scores.values():
        figures = [("", metric, getattr(scores, metric)) for metric in OVERALL_METRICS]
        figures += [
            (code, metric, getattr(entry, metric))
            for code, entry in scores.per_class.items()
            for metric in CLASS_METRICS
        ]
        for code, metric, value in figures:
            if value is not None:
                best[code, metric] = max(value, best.get((code, metric), 0.0))
    return best


def _precision_recall_figure(
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
    precision, recall = precision_recall_curve(positive, scores)
    if len(recall) > _CURVE_POINTS:
        # A curve of thousands of steps is thinned for the eye; its start, where steps are tall, stays whole.
        even = np.searchsorted(recall, np.linspace(recall[0], 1.0, _CURVE_POINTS))
        keep = np.unique(np.concatenate([np.arange(20), even.clip(max=len(recall) - 1), [len(recall) - 1]]))
        precision, recall = precision[keep], recall[keep]
    return np.concatenate([[precision[0]], precision]), np.concatenate([[0.0], recall])


def _confusion_figure(scores: Scores, *, normalised: bool) -> Figure:
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
            shown = _percent(shares[row, column]) if normalised else f"{count}"
            colour = "white" if shares[row, column] > 0.55 else INK
            axes.text(
                column,
                row,
                shown,
                ha="center",
                va="center",
                color=colour,
                fontsize=size if len(shown) < 5 else size - 1.2,
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


def _distribution_figure(distribution: pd.DataFrame, order: Sequence[str]) -> Figure:
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


def _reliability_figure(scores: Scores) -> Figure:
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


def _overview_figure(
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
        As in `_precision_recall_figure`.
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
