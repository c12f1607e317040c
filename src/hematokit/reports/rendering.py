"""Shared by all reports: the style of figures, figures as SVG or PNG, images as data URLs, and the HTML templates."""

from __future__ import annotations

import base64
import io
from functools import cache
from importlib.resources import files
from typing import Any, Final

import jinja2
import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from PIL import Image

from hematokit._version import __version__
from hematokit.reports import text

__all__ = ["GRID", "INK", "METRIC_NAMES", "MUTED", "STYLE", "data_url", "templates", "thumbnail", "to_png", "to_svg"]

INK: Final = "#1f2933"
MUTED: Final = "#66727f"
GRID: Final = "#e3e8ed"

STYLE: Final[Any] = {
    "font.size": 9,
    "font.family": "DejaVu Sans",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#b8c2cc",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "svg.fonttype": "path",
    # The same data gives the same bytes.
    "svg.hashsalt": "hematokit",
    # A dollar sign in a text is a dollar sign.
    "text.parse_math": False,
}


def to_svg(figure: Figure) -> bytes:
    """Return a figure as an SVG document; letters are outlines, so that it looks alike everywhere."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        canvas: Any = FigureCanvasSVG(figure)
        canvas.print_svg(buffer, metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def to_png(figure: Figure, dpi: int = 150) -> bytes:
    """Return a figure as a PNG file."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.set_dpi(dpi)
        canvas: Any = FigureCanvasAgg(figure)
        canvas.print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


THUMBNAIL_SIDE: Final = 144


def data_url(content: bytes, kind: str) -> str:
    """Return bytes as a data URL.

    Parameters
    ----------
    content : bytes
    kind : str
        MIME type. An SVG document shown through ``<img>`` can run no script, whatever it holds.
    """
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def thumbnail(patch: npt.NDArray[np.uint8], side: int = THUMBNAIL_SIDE) -> str:
    """Return a patch (P, P, 3) uint8, reduced to `side` pixels where larger, as the data URL of a JPEG image."""
    image = Image.fromarray(patch)
    if max(image.size) > side:
        image = image.resize((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return data_url(buffer.getvalue(), "image/jpeg")


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
def templates() -> jinja2.Environment:
    """Return the templates of the reports. All values are escaped, as class names and paths come from files."""
    folder = {
        entry.name: entry.read_text("utf-8") for entry in files("hematokit.reports").joinpath("templates").iterdir()
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
