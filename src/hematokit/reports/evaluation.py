"""The evaluation report: one HTML file that opens offline, and one picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from hematokit.evaluation.evaluating import Evaluation
from hematokit.evaluation.metrics import CLASS_METRICS, LOW_SUPPORT, OVERALL_METRICS
from hematokit.reports import evaluation_figures as figures
from hematokit.reports import rendering as drawing
from hematokit.reports import text
from hematokit.reports.rendering import METRIC_NAMES, data_url, environment, thumbnail

__all__ = ["render_picture", "render_report"]

WORST_SHOWN: Final = 24
_WORST_PER_PAIR: Final = 4
_FILES_NAMED: Final = 50


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
        A whole HTML document: styles and pictures are inside, nothing is fetched, no script is run.
    """
    scores = evaluation.scores
    predicted = evaluation.predictions["predicted"].value_counts()
    return (
        environment()
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
    picture = figures.overview_figure(
        _shortened(_title(model), 80),
        _shortened(f"{_subject(evaluation)}; {scores.n:,} cells in {len(scores.codes)} classes", 150),
        headline,
        labels,
        probabilities,
        scores,
        evaluation.taxonomy,
    )
    return drawing.to_png(picture, dpi=110)


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
                figures.precision_recall_figure(labels, probabilities, scores, taxonomy),
                f"Precision-recall curves; average precision: {curves}",
            ),
            "counts": (figures.confusion_figure(scores, normalised=False), "Confusion matrix in cells"),
            "shares": (
                figures.confusion_figure(scores, normalised=True),
                "Confusion matrix in percent of each true class",
            ),
            "reliability": (
                figures.reliability_figure(scores),
                f"Reliability diagram; expected calibration error {text.figure(scores.expected_calibration_error)}",
            ),
        }
    if len(evaluation.distribution):
        order = [*taxonomy.codes, *(evaluation.training.left_out or ())]
        made["distribution"] = (
            figures.distribution_figure(evaluation.distribution, order),
            "Cells per class and split, as bars; the table below holds the numbers",
        )
    return {
        name: _Figure(data_url(drawing.to_svg(drawn), "image/svg+xml"), alt, round(96 * drawn.get_figwidth()))
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
        # An image vanished since it was classified; pictures beside other cells' names would be worse than none.
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
