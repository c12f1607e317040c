"""``hematokit compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hematokit.cli.common import JsonOption, print_json, progress_bar

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("compare")(compare_command)


def compare_command(
    runs: Annotated[list[Path], typer.Argument(help="Two or more run folders.")],
    split: Annotated[str, typer.Option(help="train, val, test, or all.")] = "test",
    output: Annotated[Path, typer.Option(help="Folder to write.")] = Path("comparison"),
    common: Annotated[
        bool, typer.Option("--common", help="Compare the cells in common where the runs have different ones.")
    ] = False,
    device: Annotated[str, typer.Option(help="For runs that are not evaluated yet: auto, cpu, cuda.")] = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Cells classified at a time.")] = 64,
    as_json: JsonOption = False,
) -> None:
    """Put runs side by side on the same cells, test their differences, name the best; writes JSON, CSV, HTML.

    Example: hematokit compare runs/coatnet runs/efficientnetv2 runs/resnext50
    """
    from hematokit.pipelines.compare import compare as run_comparison

    with progress_bar("evaluate", "cells") as progress:
        result = run_comparison(
            runs,
            split=split,
            output=output,
            common=common,
            device=device,
            batch_size=batch_size,
            progress=progress,
        )
    if as_json:
        print_json({**result.metrics, "paths": {name: str(path) for name, path in result.paths.items()}})
        return
    from hematokit.cli.console import print_comparison

    print_comparison(result)
