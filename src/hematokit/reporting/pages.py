"""The templates of all HTML pages, and the names that they share."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Final

import jinja2

from hematokit._version import __version__
from hematokit.reporting import text

__all__ = ["METRIC_NAMES", "environment"]

METRIC_NAMES: Final = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "macro_f1": "Macro F1",
    "weighted_f1": "Weighted F1",
    "precision": "Precision",
    "recall": "Recall",
    "f1": "F1",
    "ovr_accuracy": "One-vs-rest accuracy",
    "average_precision": "Average precision",
}


@cache
def environment() -> jinja2.Environment:
    """Templates of the reports. Everything put into them is escaped: class names and paths are other people's text."""
    folder = {
        entry.name: entry.read_text("utf-8") for entry in files("hematokit.reporting").joinpath("templates").iterdir()
    }
    made = jinja2.Environment(
        loader=jinja2.DictLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(figure=text.figure, interval=text.interval, moment=text.moment, p_value=text.p_value)
    made.globals.update(metric_names=METRIC_NAMES, research_use=text.RESEARCH_USE, version=__version__)
    return made
