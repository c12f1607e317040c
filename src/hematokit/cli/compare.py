"""``hematokit compare``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hematokit.cli.common import JsonOption, print_json, progress_bar
from hematokit.cli.options import add_command

if TYPE_CHECKING:
    from rich.console import Console

    from hematokit.pipelines.compare import CompareResult

__all__ = ["print_comparison", "register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    from hematokit.pipelines.settings import CompareSettings

    add_command(app, "compare", compare_command, CompareSettings)


def compare_command(
    models: Annotated[list[Path], typer.Argument(help="Two or more run folders.")],
    given: dict[str, Any],
    output: Annotated[Path, typer.Option(help="Folder to write.")] = Path("comparison"),
    as_json: JsonOption = False,
) -> None:
    """Compare models on the same cells, test their differences, name the best; writes JSON, CSV, HTML.

    Example: hematokit compare runs/coatnet runs/efficientnetv2 runs/resnext50
    """
    from hematokit.pipelines.compare import compare

    with progress_bar("evaluate", "cells") as progress:
        result = compare(models, output, progress=progress, **given)
    if as_json:
        print_json(result.to_dict())
    else:
        print_comparison(result)


def print_comparison(result: CompareResult, console: Console | None = None) -> None:
    """Print the runs side by side, the tests, the verdict and the path of the report.

    Parameters
    ----------
    result : CompareResult
    console : rich.console.Console, optional
        Standard output by default. Off a terminal it is as wide as the table needs.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from hematokit.evaluation.metrics import LOW_SUPPORT, OVERALL_METRICS
    from hematokit.reports.rendering import METRIC_NAMES
    from hematokit.reports.text import figure, interval

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
    for line in result.lines()[1 + len(names) :]:
        console.print(Text(line, style="bold" if line == comparison.verdict else ""), soft_wrap=True)
