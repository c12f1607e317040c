"""The histogram of cell types: a differential as one picture."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from hematokit.reporting.drawing import GRID, INK, MUTED, STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hematokit.fields.differential import Differential, Summary

__all__ = ["cell_types_figure"]


def cell_types_figure(differential: Differential, summary: Summary | None = None, *, titled: bool = True) -> Figure:
    """Draw the histogram of cell types.

    One bar a class in the taxonomy's order, with its 95 % interval (cells grouped by field where there are several)
    and, thin, the interval that holds for all classes together; brackets name the lineages. Only class codes, lineages
    and numbers are written.

    Parameters
    ----------
    differential : Differential
        Gives classes and colours.
    summary : Summary, optional
        Which of its summaries is drawn; all fields by default.
    titled : bool
        With a title and a line on what was counted; without them for a page that says so itself.

    Returns
    -------
    Figure

    References
    ----------
    Tayebi RM, Mu Y, Dehkharghanian T, et al. (2022). Automated bone marrow cytology using deep learning to generate a
    histogram of cell types. Communications Medicine 2, 45.
    """
    entry = differential.overall if summary is None else summary
    codes = differential.groups.counted
    with matplotlib.rc_context(STYLE):
        # In inches: what is above and below the axes keeps its size.
        width, above, plot, below = max(5.5, 1.6 + 0.47 * len(codes)), 0.72 if titled else 0.12, 2.55, 0.85
        height = above + plot + below
        figure = Figure(figsize=(width, height))
        left = 0.78 / width
        axes = figure.add_axes((left, below / height, 0.985 - left, plot / height))
        if titled:
            figure.text(left, 1 - 0.24 / height, "Histogram of cell types", fontsize=12, weight="bold", va="center")
            figure.text(left, 1 - 0.48 / height, _subtitle(differential, entry), fontsize=8.5, color=MUTED, va="center")
        if not entry.counted:
            axes.axis("off")
            axes.text(0.5, 0.5, "No cell was counted", ha="center", va="center", color=MUTED, fontsize=11)
            return figure
        top = _bars(axes, differential, entry)
        axes.set_xlim(-0.6, len(codes) - 0.4)
        axes.set_ylim(0, top * 1.12)
        axes.set_xticks(range(len(codes)), codes, fontsize=9 if len(codes) <= 22 else 7)
        room = 0.9 * figure.get_figwidth() / len(codes)
        upright = max(map(len, codes)) * 0.085 > room
        if upright:
            axes.tick_params(axis="x", labelrotation=90)
        axes.tick_params(axis="x", length=0)
        axes.set_ylabel("% of counted cells")
        axes.grid(axis="y", color=GRID, linewidth=0.7)
        axes.set_axisbelow(True)
        if not upright:
            _brackets(axes, differential, letter=0.064 / room)
    return figure


def _subtitle(differential: Differential, entry: Summary) -> str:
    parts = [f"{entry.counted:,} cells in {entry.fields:,} field{'s' if entry.fields != 1 else ''}"]
    if entry.unsure:
        parts.append(f"{entry.unsure:,} more unsure (probability below {differential.unsure_below:g})")
    if entry.apart:
        parts.append(f"{entry.apart:,} counted apart")
    return "; ".join(parts) + ".  Thick lines: 95 % intervals; thin: for all classes together."


def _bars(axes: Axes, differential: Differential, entry: Summary) -> float:
    """Draw the bars; return the height that the axis must reach, in per cent."""
    top = 0.0
    for place, code in enumerate(differential.groups.counted):
        share = entry.classes[code]
        height = 100 * (share.share or 0.0)
        axes.bar(place, height, 0.74, color=differential.taxonomy[code].colour, edgecolor=INK, linewidth=0.5)
        highest = height
        for bounds, width in ((share.simultaneous, 0.7), (share.grouped or share.interval, 2.0)):
            if bounds is None:
                continue
            low, high = 100 * np.asarray(bounds)
            # An empty class keeps its upper bound: not seen is not absent.
            axes.plot([place, place], [low, high], color=INK, linewidth=width, solid_capstyle="butt", zorder=3)
            highest = max(highest, float(high))
        text = f"{height:.1f}" if share.count else "0"
        axes.annotate(
            text,
            (place, highest),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=7.5,
            color=INK if share.count else MUTED,
        )
        top = max(top, highest)
    return max(top, 1.0)


def _brackets(axes: Axes, differential: Differential, letter: float) -> None:
    """Name the lineages below the codes; neighbours of one lineage share a bracket. `letter` is as wide as one."""
    across: Any = axes.get_xaxis_transform()
    lineages = [differential.taxonomy[code].lineage for code in differential.groups.counted]
    start, ends = 0, [-1.0, -1.0, -1.0]
    for lineage, members in groupby(lineages):
        stop = start + len(list(members)) - 1
        line = {"transform": across, "color": MUTED, "linewidth": 0.9, "clip_on": False}
        axes.plot([start - 0.36, stop + 0.36], [-0.12, -0.12], **line)
        for end in (start - 0.36, stop + 0.36):
            axes.plot([end, end], [-0.12, -0.1], **line)
        # A name that would run into the one before goes a line lower.
        middle, reach = (start + stop) / 2, letter * (len(lineage) + 1) / 2
        level = next((place for place, end in enumerate(ends) if middle - reach > end), len(ends) - 1)
        ends[level] = middle + reach
        axes.text(
            middle,
            -0.15 - 0.075 * level,
            lineage or "–",
            transform=across,
            ha="center",
            va="top",
            fontsize=7.5,
            color=MUTED,
        )
        start = stop + 1
