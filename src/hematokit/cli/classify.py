"""``hematokit classify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hematokit.cli.common import JsonOption, print_result, progress_bar
from hematokit.cli.options import (
    BatchSizeOption,
    DetectorOption,
    DeviceOption,
    FieldsArgument,
    ForcePixelSizeOption,
    MinProbabilityOption,
    ModelPixelSizeOption,
    PixelSizeOption,
    RuntimeOption,
    SchedulerOption,
    SetOption,
    SmearsOption,
    options_help,
    plugin_options,
)

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("classify", epilog=options_help("detector"))(classify_command)


def classify_command(
    fields: FieldsArgument,
    model: Annotated[Path, typer.Option(help="Run folder, a bundle, or an exported ONNX file.")],
    output: Annotated[Path, typer.Option(help="Folder to write.")],
    detector: DetectorOption = "nuclei",
    assignments: SetOption = None,
    min_probability: MinProbabilityOption = 0.5,
    exclude_border: Annotated[
        bool, typer.Option("--exclude-border", help="Do not count cells that the border of their field cuts.")
    ] = False,
    pixel_size: PixelSizeOption = None,
    force_pixel_size: ForcePixelSizeOption = False,
    model_pixel_size: ModelPixelSizeOption = None,
    smears: SmearsOption = None,
    runtime: RuntimeOption = "auto",
    device: DeviceOption = "auto",
    batch_size: BatchSizeOption = 64,
    scheduler: SchedulerOption = "local",
    as_json: JsonOption = False,
) -> None:
    """Find and classify the cells of fields; writes tables, GeoJSON and a picture a field, and the differential.

    Called again after a stop, it goes on with the fields that are not done.

    Example: hematokit classify fields/ --model runs/coatnet --output results

    Smears of several fields: hematokit classify fields/ --model runs/coatnet --output results --smears smears.csv
    """
    from hematokit.pipelines.classify import classify

    with progress_bar("classify", "fields") as progress:
        result = classify(
            fields,
            model,
            output,
            detector=detector,
            detector_options=plugin_options(assignments or [], "detector"),
            min_probability=min_probability,
            exclude_border=exclude_border,
            pixel_size_um=pixel_size,
            force_pixel_size=force_pixel_size,
            model_pixel_size_um=model_pixel_size,
            smears=smears,
            runtime=runtime,
            device=device,
            batch_size=batch_size,
            scheduler=scheduler,
            progress=progress,
        )
    print_result(result, as_json)
