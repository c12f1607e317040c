"""``hematokit detect``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hematokit.cli.common import JsonOption, print_result, progress_bar
from hematokit.cli.options import (
    DetectorOption,
    FieldsArgument,
    ForcePixelSizeOption,
    PixelSizeOption,
    SchedulerOption,
    SetOption,
    SmearsOption,
    options_help,
    plugin_options,
)

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("detect", epilog=options_help("detector"))(detect_command)


def detect_command(
    fields: FieldsArgument,
    output: Annotated[Path, typer.Option(help="Folder to write.")],
    detector: DetectorOption = "nuclei",
    assignments: SetOption = None,
    pixel_size: PixelSizeOption = None,
    force_pixel_size: ForcePixelSizeOption = False,
    smears: SmearsOption = None,
    scheduler: SchedulerOption = "local",
    as_json: JsonOption = False,
) -> None:
    """Find the nucleated cells of fields; writes cells.parquet, cells.csv, fields.csv and a picture a field.

    Called again after a stop, it goes on with the fields that are not done.

    Example: hematokit detect fields/ --output detected

    A detector's option: hematokit detect field.png --output detected --set detector.min_diameter_um=5
    """
    from hematokit.pipelines.detect import detect

    with progress_bar("detect", "fields") as progress:
        result = detect(
            fields,
            output,
            detector=detector,
            detector_options=plugin_options(assignments or [], "detector"),
            pixel_size_um=pixel_size,
            force_pixel_size=force_pixel_size,
            smears=smears,
            scheduler=scheduler,
            progress=progress,
        )
    print_result(result, as_json)
