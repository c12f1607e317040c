"""``hematokit evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hematokit.cli.common import JsonOption, print_result, progress_bar
from hematokit.cli.options import add_command

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    from hematokit.pipelines.settings import EvaluateSettings

    add_command(app, "evaluate", evaluate_command, EvaluateSettings)


def evaluate_command(
    model: Annotated[Path, typer.Argument(help="Run folder, bundle, or exported ONNX file.")],
    given: dict[str, Any],
    store: Annotated[Path | None, typer.Option(help="Store, if not the one trained on.")] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="A folder of images instead; folders named after a class give labels."),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder to write. [default: RUN/evaluation/...]")] = None,
    as_json: JsonOption = False,
) -> None:
    """Evaluate a trained classifier; writes metrics.json, predictions.parquet, table2.csv, report.html, report.png.

    Example: hematokit evaluate runs/coatnet

    Other data: hematokit evaluate runs/coatnet --store other.zarr --split all

    Images: hematokit evaluate runs/coatnet --images crops/
    """
    from hematokit.pipelines.evaluate import evaluate

    with progress_bar("evaluate", "cells") as progress:
        result = evaluate(model, output, store=store, images=images, progress=progress, **given)
    print_result(result, as_json)
