"""Figures of the checks of explanations: cascades, maps beside each other, deletion and insertion, shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import matplotlib
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hematokit.explanation.checks.data_randomisation import DataRandomisation
from hematokit.explanation.checks.faithfulness import BASELINES, CENTRED
from hematokit.explanation.checks.sanity import REPEATED, ParameterRandomisation
from hematokit.explanation.checks.similarity import has_signs, normalised
from hematokit.reports.rendering import GRID, INK, MUTED, STYLE

__all__ = ["cascade_figure", "cascade_maps_figure", "curves_figure", "label_maps_figure", "shares_figure"]

_COLOURS: Final = ("#1d5a8c", "#c8553d", "#3f8f5b", "#8e5ea2", "#b8860b", "#4aa3a2", "#7a4a2b")
_CONTROL: Final = "#8d99a6"
_BASELINE_STYLES: Final[Mapping[str, Any]] = dict(
    zip(BASELINES, ((0, (1, 1.2)), (0, (4, 1.5, 1, 1.5)), (0, (5, 2))), strict=True)
)


def method_colours(methods: Sequence[str], control: str = "") -> dict[str, str]:
    """Give each method a colour, the control grey."""
    own = [method for method in methods if method != control]
    colours = {method: _COLOURS[place % len(_COLOURS)] for place, method in enumerate(own)}
    return {**colours, control: _CONTROL} if control in methods else colours


def cascade_figure(results: Mapping[str, ParameterRandomisation], control: str = "") -> Figure:
    """Draw the similarity to the trained network's maps while the network is randomised from head to stem.

    Bands are 95 % intervals; the short lines on the right are the similarity of maps of different cells.
    """
    colours = method_colours(list(results), control)
    table = next(iter(results.values())).table
    names = ["trained" if block == REPEATED else str(block) for block in table["block"]]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.4, 4.1), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for axes, (measure, title) in zip(
            panels, (("spearman", "Rank correlation of absolute maps"), ("ssim", "SSIM of absolute maps")), strict=True
        ):
            places = np.arange(len(names))
            for place, (method, result) in enumerate(results.items()):
                steps = result.table
                style: Any = (0, (3, 1.5)) if method == control else "-"
                axes.plot(
                    places, steps[measure], color=colours[method], linewidth=1.8, marker="o", markersize=3.5,
                    linestyle=style, label=method,
                )  # fmt: skip
                low, high = steps[f"{measure}_low"], steps[f"{measure}_high"]
                axes.fill_between(places, low, high, color=colours[method], alpha=0.14, linewidth=0)
                if result.other_cells:
                    right = len(names) - 0.55 + 0.12 * place
                    other = result.other_cells[measure].mean
                    axes.plot([right, right + 0.5], [other, other], color=colours[method], linewidth=2.2)
            axes.axhline(0, color=MUTED, linewidth=0.7)
            axes.set_title(title, loc="left", fontsize=10)
            axes.set_xticks(places, names, rotation=35, ha="right", rotation_mode="anchor", fontsize=8)
            axes.set_xlim(-0.3, len(names) + 0.12 * len(results))
            axes.grid(axis="y", color=GRID, linewidth=0.7)
            axes.set_axisbelow(True)
        panels[0].set(ylabel="Similarity to the trained network's map")
        panels[0].set_ylim(top=1.05)
        panels[0].set_xlabel("Random from the head up to this block")
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, frameon=False, fontsize=8, loc="outside upper center", ncols=len(names))
    return figure


def cascade_maps_figure(
    picture: npt.NDArray[np.floating], results: Mapping[str, ParameterRandomisation], example: int
) -> Figure:
    """Show one cell's maps: a row per method, a column per step of the cascade.

    Parameters
    ----------
    picture : ndarray (S, S, 3), float in [0, 1]
        The cell.
    results : mapping of str to ParameterRandomisation
        By method, with examples.
    example : int
        Which of their examples.
    """
    steps = list(next(iter(results.values())).examples)
    columns = ["cell", *("trained" if step == REPEATED else step for step in steps)]
    with matplotlib.rc_context(STYLE):
        figure = _sheet(len(results), len(columns))
        grid = figure.subplots(len(results), len(columns), squeeze=False)
        for row, (method, result) in zip(grid, results.items(), strict=True):
            _show(row[0], picture)
            for axes, step in zip(row[1:], steps, strict=True):
                _show_map(axes, result.examples[step][example], signed=result.signed)
            row[0].set_ylabel(method.replace(" (", "\n("), fontsize=7.5)
        for axes, name in zip(grid[0], columns, strict=True):
            axes.set_title(name, fontsize=7.5)
    return figure


def label_maps_figure(
    pictures: npt.NDArray[np.floating], codes: Sequence[str], results: Mapping[str, DataRandomisation]
) -> Figure:
    """Show maps of models trained on true and on shuffled labels: a row per cell, for each method a column per model.

    Parameters
    ----------
    pictures : ndarray (k, S, S, 3), float in [0, 1]
        The example cells.
    codes : sequence of str
        Class explained, for each.
    results : mapping of str to DataRandomisation
        By method, with examples.
    """
    plan = [(method, model) for method, result in results.items() for model in result.examples]
    with matplotlib.rc_context(STYLE):
        figure = _sheet(len(pictures), len(plan) + 1)
        grid = figure.subplots(len(pictures), len(plan) + 1, squeeze=False)
        for number, row in enumerate(grid):
            _show(row[0], pictures[number])
            row[0].set_ylabel(codes[number], fontsize=8)
            for axes, (method, model) in zip(row[1:], plan, strict=True):
                _show_map(axes, results[method].examples[model][number], signed=results[method].signed)
        grid[0][0].set_title("cell", fontsize=7.5)
        for axes, (method, model) in zip(grid[0][1:], plan, strict=True):
            axes.set_title(f"{method}\n{model}", fontsize=7)
    return figure


def curves_figure(curves: pd.DataFrame, methods: Sequence[str]) -> Figure:
    """Draw mean deletion and insertion curves over all cells; baselines are dashed.

    Parameters
    ----------
    curves : DataFrame
        `hematokit.explanation.checks.faithfulness.Faithfulness.curves`.
    methods : sequence of str
        The methods; everything else in the table is a baseline.
    """
    colours = method_colours(methods)
    overall = curves[curves["label"] == ""]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.4, 3.9), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        titles = ("Deletion: low is good", "Insertion: high is good")
        for axes, kind, title in zip(panels, ("deletion", "insertion"), titles, strict=True):
            for method, part in overall.groupby("method", sort=False):
                known = method in colours
                axes.plot(
                    part["fraction"], part[kind], label=str(method),
                    color=colours.get(str(method), INK if method == CENTRED else MUTED),
                    linewidth=2.0 if known else 1.3,
                    linestyle="-" if known else _BASELINE_STYLES.get(str(method), "--"),
                )  # fmt: skip
            axes.set(xlim=(0, 1), xlabel=f"Share of pixels {'replaced' if kind == 'deletion' else 'put back'}")
            axes.set_title(title, loc="left", fontsize=10)
            axes.grid(color=GRID, linewidth=0.7)
            axes.set_axisbelow(True)
        panels[0].set(ylabel="Probability of the target class", ylim=(0, 1))
        panels[1].legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def shares_figure(summary: pd.DataFrame, region: str, methods: Sequence[str]) -> Figure:
    """Draw the share of attribution inside the nucleus or the cell, per class, beside the area's share.

    Parameters
    ----------
    summary : DataFrame
        `hematokit.explanation.checks.localisation.Localisation.summary`.
    region : {"nucleus", "cell"}
    methods : sequence of str
        Methods in the order drawn; the centred Gaussian comes last.
    """
    order = [*methods, CENTRED]
    labels = [label for label in dict.fromkeys(summary["label"]) if label] + [""]
    colours = {**method_colours(methods), CENTRED: INK}
    width = 0.8 / len(order)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(6.4, 1.8 + (0.35 + 0.24 * len(order)) * len(labels)), 3.5), layout="constrained")
        axes = figure.add_subplot()
        rows = summary.set_index(["method", "label"])
        for place, method in enumerate(order):
            part = rows.loc[[(method, label) for label in labels]]
            where = np.arange(len(labels)) - 0.4 + width * (place + 0.5)
            share, low, high = (part[f"{region}{end}"].to_numpy(np.float64) for end in ("", "_low", "_high"))
            reach = np.nan_to_num(np.stack([share - low, high - share]))
            axes.errorbar(
                where, share, yerr=reach, fmt="D" if method == CENTRED else "o", color=colours[method], markersize=4.5,
                elinewidth=1.1, label=method, markerfacecolor="white" if method == CENTRED else colours[method],
            )  # fmt: skip
        area = rows.loc[[(CENTRED, label) for label in labels]][f"{region}_area"].to_numpy(np.float64)
        axes.bar(np.arange(len(labels)), area, 0.86, color="#e3e8ed", zorder=0, label=f"area of the {region}")
        axes.set_xticks(range(len(labels)), [label or "all" for label in labels])
        axes.tick_params(axis="x", length=0)
        axes.set(ylim=(0, 1), ylabel=f"Share inside the {region}", xlim=(-0.5, len(labels) - 0.5))
        axes.grid(axis="y", color=GRID, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _sheet(rows: int, columns: int) -> Figure:
    return Figure(figsize=(max(3.0, 1.12 * columns), 0.35 + 1.12 * rows), layout="constrained")


def _show(axes: Axes, picture: npt.NDArray[np.floating]) -> None:
    axes.imshow(np.clip(picture, 0, 1))
    _bare(axes)


def _show_map(axes: Axes, values: npt.NDArray[np.floating], *, signed: bool) -> None:
    shown = normalised(values[None], signed=signed)[0]
    if signed and has_signs(values):
        axes.imshow(shown, cmap="RdBu_r", vmin=-1, vmax=1)
    else:
        axes.imshow(np.abs(shown), cmap="gray", vmin=0, vmax=1)
    _bare(axes)


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
