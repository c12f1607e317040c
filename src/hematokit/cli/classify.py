"""``hematokit classify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hematokit.cli.common import JsonOption, print_result, progress_bar
from hematokit.cli.options import InputsArgument, add_command

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    from hematokit.pipelines.settings import ClassifySettings

    add_command(app, "classify", classify_command, ClassifySettings, plugins=("detector",))


def classify_command(
    inputs: InputsArgument,
    model: Annotated[Path, typer.Option(help="Run folder, bundle, or exported ONNX file.")],
    output: Annotated[Path, typer.Option(help="Folder to write.")],
    given: dict[str, Any],
    as_json: JsonOption = False,
) -> None:
    """Detect and classify the cells of fields; writes tables, GeoJSON, an overlay per field, and the differential.

    Called again after an interruption, it continues with the fields that are not done.

    Example: hematokit classify fields/ --model runs/coatnet --output results

    Smears of several fields: hematokit classify fields/ --model runs/coatnet --output results --smears smears.csv
    """
    from hematokit.pipelines.classify import classify

    with progress_bar("classify", "fields") as progress:
        result = classify(inputs, model, output, progress=progress, **given)
    print_result(result, as_json)
