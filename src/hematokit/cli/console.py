"""What a terminal shows of an evaluation and of a comparison."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hematokit.evaluation.evaluating import Evaluation
from hematokit.evaluation.metrics import LOW_SUPPORT, OVERALL_METRICS
from hematokit.pipelines.compare import RunComparison
from hematokit.reports.rendering import METRIC_NAMES
from hematokit.reports.text import figure, interval, p_value

__all__ = ["evaluation_lines", "print_comparison"]


def evaluation_lines(evaluation: Evaluation) -> list[str]:
    """Say in a few lines what came out and where it lies."""
    scores = evaluation.scores
    lines = [f"Warning: {note}" for note in evaluation.notes]
    if scores is None:
        lines.append(
            f"{len(evaluation.predictions):,} images classified; none has a label, so there is nothing to score"
        )
    else:
        lines.append(f"{scores.n:,} cells, {len(scores.codes)} classes; 95 % intervals in brackets")
        for name in OVERALL_METRICS:
            lines.append(
                f"  {METRIC_NAMES[name]:<18} {figure(getattr(scores, name))}  [{interval(scores.intervals[name])}]"
            )
        without = [code for code, entry in scores.per_class.items() if not entry.support]
        if without:
            lines.append(f"No test cell: {', '.join(without)}; nothing can be said of them")
        few = [code for code, entry in scores.per_class.items() if entry.low_support and entry.support]
        if few:
            lines.append(f"Fewer than {LOW_SUPPORT} test cells: {', '.join(few)}; take their figures with care")
    if evaluation.left_out:
        parts = [f"{label or 'no label'} {count:,}" for label, count in evaluation.left_out.items()]
        lines.append(f"Left out, of classes the model does not know: {', '.join(parts)}")
    if "picture" in evaluation.paths:
        lines.append(f"Picture: {evaluation.paths['picture']}")
    if "report" in evaluation.paths:
        lines.append(f"Report:  {evaluation.paths['report']}")
    lines.append("For research use only")
    return lines


def print_comparison(result: RunComparison, console: Console | None = None) -> None:
    """Print the runs side by side, the tests, the verdict and where the files lie.

    Parameters
    ----------
    result : RunComparison
    console : rich.console.Console, optional
        Standard output by default. Off a terminal it is as wide as the table needs.
    """
    console = console or Console(highlight=False)
    if not console.is_terminal:
        console = Console(file=console.file, width=max(100, 28 + 22 * len(result.comparison.scores)), highlight=False)
    comparison = result.comparison
    names = list(comparison.scores)
    # Text, not str: a run's name may hold what rich would take for markup.
    table = Table("class", title="F1 (precision / recall)")
    for name in [*names, "cells"]:
        table.add_column(Text(name), justify="right")
    for code in comparison.codes:
        entries = {name: comparison.scores[name].per_class.get(code) for name in names}
        highest = max((entry.f1 for entry in entries.values() if entry and entry.f1 is not None), default=None)
        support = next(entry.support for entry in entries.values() if entry)
        cells = []
        for entry in entries.values():
            if entry is None:
                cells.append(Text("–"))
                continue
            style = "bold" if entry.f1 is not None and entry.f1 == highest else ""
            cells.append(Text(f"{figure(entry.f1)} ({figure(entry.precision)} / {figure(entry.recall)})", style=style))
        table.add_row(Text(f"{code} *" if support < LOW_SUPPORT else code), *cells, Text(f"{support:,}"))
    table.add_section()
    for metric in OVERALL_METRICS:
        values = {name: getattr(comparison.scores[name], metric) for name in names}
        highest = max((value for value in values.values() if value is not None), default=None)
        cells = [
            Text(
                f"{figure(values[name])} [{interval(comparison.scores[name].intervals[metric])}]",
                style="bold" if values[name] == highest else "",
            )
            for name in names
        ]
        table.add_row(Text(METRIC_NAMES[metric]), *cells, Text(f"{comparison.cells:,}"))
    console.print(table)
    console.print(Text(f"* fewer than {LOW_SUPPORT} test cells. [..]: 95 % intervals."))
    for name, count in comparison.dropped.items():
        if count:
            console.print(Text(f"Not in common with the others, and left out: {count:,} cells of {name}"))
    for pair in comparison.pairs:
        bounds = f" [{pair.interval[0]:+.3f}, {pair.interval[1]:+.3f}]" if pair.interval else ""
        console.print(
            Text(
                f"{pair.first} - {pair.second}: macro F1 {pair.macro_f1_difference:+.3f}{bounds}, "
                f"p {_said(pair.macro_f1_p_adjusted)}; accuracy (McNemar) p {_said(pair.mcnemar_p_adjusted)}"
            )
        )
    console.print(Text(comparison.verdict, style="bold"), soft_wrap=True)
    console.print(Text(f"Report: {result.paths['report']}"), soft_wrap=True)


def _said(value: float) -> str:
    shown = p_value(value)
    return shown if shown.startswith("<") else f"= {shown}"
