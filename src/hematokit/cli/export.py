"""``hematokit export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hematokit.cli.common import JsonOption, print_result, progress_bar
from hematokit.cli.options import add_command

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    from hematokit.pipelines.settings import ExportSettings

    add_command(app, "export", export_command, ExportSettings)


def export_command(
    model: Annotated[Path, typer.Argument(help="Run folder or bundle.")],
    output: Annotated[
        Path, typer.Option(help="File (.onnx, .zip for bioimageio) or folder (wsinfer, huggingface) to write.")
    ],
    given: dict[str, Any],
    as_json: JsonOption = False,
) -> None:
    """Write a trained model for other programs, compared with torch before it is kept, and its model card.

    Example: hematokit export runs/coatnet --output coatnet.onnx

    QuPath: hematokit export runs/coatnet --format wsinfer --pixel-size 0.1 --output coatnet-wsinfer
    """
    from hematokit.pipelines.export import export

    with progress_bar("export", "steps") as progress:
        steps = 0

        def log(text: str) -> None:
            nonlocal steps
            progress(steps, None, text)
            steps += 1

        result = export(model, output, log=log, **given)
    print_result(result, as_json)
