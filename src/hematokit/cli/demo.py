"""``hematokit demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hematokit.cli.common import JsonOption, echo, print_json, progress_bar

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("demo")(demo_command)


def demo_command(
    output: Annotated[Path, typer.Option(help="Folder for everything it makes.")] = Path("hematokit-demo"),
    seed: Annotated[int, typer.Option(help="Seed of sample, split and training.")] = 0,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs to train.")] = 9,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda.")] = "auto",
    as_json: JsonOption = False,
) -> None:
    """Run the main job on drawn cells: store, training, evaluation, a classified field. Minutes on two CPU cores.

    Example: hematokit demo --output hematokit-demo
    """
    from hematokit.pipelines.demo import run_demo

    with progress_bar("demo", "cells") as progress:
        result = run_demo(
            output,
            seed=seed,
            epochs=epochs,
            device=device,
            progress=progress,
            log=lambda line: typer.echo(line, err=as_json),
        )
    if as_json:
        print_json(
            {
                "sample": str(result.sample),
                "store": str(result.store),
                "run": str(result.run),
                "report": str(result.report),
                "picture": str(result.picture),
                "seconds": round(result.seconds, 1),
                "accuracy": result.metrics["accuracy"],
                "macro_f1": result.metrics["macro_f1"],
                "field": result.field.result.to_dict(),
                "overlay": str(result.field.overlay),
                "cells_drawn": result.field.drawn,
                "cells_found": result.field.found,
                "cells_right": result.field.right,
            }
        )
        return
    metrics = result.metrics
    echo(f"Accuracy {metrics['accuracy']:.3f}, macro F1 {metrics['macro_f1']:.3f} on {metrics['n']} unseen cells")
    echo(f"Report:  {result.report}")
    echo(f"Picture: {result.picture}")
    field = result.field
    echo(
        f"Field:   {field.found} of {field.drawn} drawn cells found, {field.detections - field.found} other "
        f"detections; {field.right} classified right"
    )
    for line in field.result.differential_lines():
        echo(f"  {line}")
    echo(f"Overlay: {field.overlay}")
    echo(f"Differential: {field.result.paths['report']}")
    echo(f"Took {result.seconds:.0f} s. The cells are drawn: the figures say that the program works, no more.")
