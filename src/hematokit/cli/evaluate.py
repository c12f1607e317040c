"""``hematokit evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hematokit.cli.common import JsonOption, echo, print_json, progress_bar

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("evaluate")(evaluate_command)


def evaluate_command(
    run: Annotated[Path, typer.Argument(help="Run folder, a bundle, or an exported ONNX file.")],
    split: Annotated[str, typer.Option(help="train, val, test, or all for every cell.")] = "test",
    store: Annotated[Path | None, typer.Option(help="Another store than the one trained on.")] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="A folder of images instead; folders named after a class give labels."),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder to write. [default: RUN/evaluation/...]")] = None,
    runtime: Annotated[
        str | None,
        typer.Option(help="torch, onnxruntime, openvino or auto. [default: torch; auto for an ONNX file]"),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Cells classified at a time.")] = 64,
    as_json: JsonOption = False,
) -> None:
    """Score a trained classifier; writes metrics.json, predictions.parquet, table2.csv, report.html, report.png.

    Example: hematokit evaluate runs/coatnet

    Other data: hematokit evaluate runs/coatnet --store other.zarr --split all

    Images: hematokit evaluate runs/coatnet --images crops/
    """
    from hematokit.pipelines.evaluate import evaluate as run_evaluation

    with progress_bar("evaluate", "cells") as progress:
        result = run_evaluation(
            run,
            store=store,
            split=split,
            images=images,
            output=output,
            runtime=runtime,
            device=device,
            batch_size=batch_size,
            progress=progress,
        )
    if as_json:
        print_json({**result.metrics, "paths": {name: str(path) for name, path in result.paths.items()}})
        return
    from hematokit.cli.console import evaluation_lines

    for line in evaluation_lines(result):
        echo(line)
