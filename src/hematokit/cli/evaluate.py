"""``hematokit evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hematokit.cli.common import JsonOption, echo, print_json, progress_bar
from hematokit.cli.options import BatchSizeOption, DeviceOption

if TYPE_CHECKING:
    from hematokit.evaluation.evaluating import Evaluation

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
    device: DeviceOption = "auto",
    batch_size: BatchSizeOption = 64,
    as_json: JsonOption = False,
) -> None:
    """Score a trained classifier; writes metrics.json, predictions.parquet, table2.csv, report.html, report.png.

    Example: hematokit evaluate runs/coatnet

    Other data: hematokit evaluate runs/coatnet --store other.zarr --split all

    Images: hematokit evaluate runs/coatnet --images crops/
    """
    from hematokit.pipelines.evaluate import evaluate

    with progress_bar("evaluate", "cells") as progress:
        result = evaluate(
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
    for line in _evaluation_lines(result):
        echo(line)


def _evaluation_lines(evaluation: Evaluation) -> list[str]:
    """Return the main figures of an evaluation and the paths of its files, as lines of text."""
    from hematokit.evaluation.metrics import LOW_SUPPORT, OVERALL_METRICS
    from hematokit.reports.rendering import METRIC_NAMES
    from hematokit.reports.text import figure, interval

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
