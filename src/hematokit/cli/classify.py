"""``hematokit classify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hematokit.cli.common import JsonOption, echo, plugin_options, print_json, progress_bar
from hematokit.cli.field_options import (
    DetectorOption,
    FieldsArgument,
    ForcePixelSizeOption,
    PixelSizeOption,
    SchedulerOption,
    SetOption,
    SmearsOption,
)
from hematokit.cli.option_words import options_help

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
    unsure_below: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Probability below which a cell counts as unsure.")
    ] = 0.5,
    exclude_border: Annotated[
        bool, typer.Option("--exclude-border", help="Do not count cells that the border of their field cuts.")
    ] = False,
    pixel_size: PixelSizeOption = None,
    force_pixel_size: ForcePixelSizeOption = False,
    model_pixel_size: Annotated[
        float | None,
        typer.Option(help="Micrometres per pixel of the images the model was trained on, if it does not say."),
    ] = None,
    smears: SmearsOption = None,
    runtime: Annotated[str, typer.Option(help="auto, torch, onnxruntime or openvino.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Cells classified at a time.")] = 64,
    scheduler: SchedulerOption = "local",
    as_json: JsonOption = False,
) -> None:
    """Find and classify the cells of fields; writes tables, GeoJSON and a picture a field, and the differential.

    Called again after a stop, it goes on with the fields that are not done.

    Example: hematokit classify fields/ --model runs/coatnet --output results

    Smears of several fields: hematokit classify fields/ --model runs/coatnet --output results --smears smears.csv
    """
    from hematokit.pipelines.classify import classify as run_classification

    with progress_bar("classify", "fields") as progress:
        result = run_classification(
            fields,
            model,
            output,
            detector=detector,
            detector_options=plugin_options(assignments or [], "detector"),
            unsure_below=unsure_below,
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
    if as_json:
        print_json(result.to_dict())
        return
    for line in result.lines():
        echo(line)
