"""``hematokit detect``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hematokit.cli.common import JsonOption, print_result, progress_bar
from hematokit.cli.options import InputsArgument, add_command

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    from hematokit.pipelines.settings import DetectSettings

    add_command(app, "detect", detect_command, DetectSettings, plugins=("detector",))


def detect_command(
    inputs: InputsArgument,
    output: Annotated[Path, typer.Option(help="Folder to write.")],
    given: dict[str, Any],
    as_json: JsonOption = False,
) -> None:
    """Detect the nucleated cells of fields; writes cells.parquet, cells.csv, fields.csv and an overlay per field.

    Called again after an interruption, it continues with the fields that are not done.

    Example: hematokit detect fields/ --output detected

    An option of the detector: hematokit detect field.png --output detected --set detector.min_diameter_um=5
    """
    from hematokit.pipelines.detect import detect

    with progress_bar("detect", "fields") as progress:
        result = detect(inputs, output, progress=progress, **given)
    print_result(result, as_json)
