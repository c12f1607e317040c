"""``hematokit demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hematokit.cli.common import JsonOption, print_result, progress_bar
from hematokit.cli.options import add_command

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    from hematokit.pipelines.settings import DemoSettings

    add_command(app, "demo", demo_command, DemoSettings)


def demo_command(
    given: dict[str, Any],
    output: Annotated[Path, typer.Option(help="Folder for all files.")] = Path("hematokit-demo"),
    as_json: JsonOption = False,
) -> None:
    """Run the main steps on drawn cells: store, training, evaluation, a classified field. Minutes on two CPU cores.

    Example: hematokit demo --output hematokit-demo
    """
    from hematokit.pipelines.demo import run_demo

    def log(line: str) -> None:
        typer.echo(line, err=as_json)

    with progress_bar("demo", "cells") as progress:
        result = run_demo(output, progress=progress, log=log, **given)
    print_result(result, as_json)
