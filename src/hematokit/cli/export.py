"""``hematokit export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from hematokit.cli.common import JsonOption, print_result, progress_bar
from hematokit.errors import ModelError

__all__ = ["register"]

Format = Literal["onnx", "bioimageio", "wsinfer", "huggingface"]
Input = Literal["patches", "images"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("export")(export_command)


def export_command(
    model: Annotated[Path, typer.Argument(help="Run folder, or a bundle.")],
    output: Annotated[
        Path, typer.Option(help="File (.onnx, .zip for bioimageio) or folder (wsinfer, huggingface) to make.")
    ],
    format: Annotated[Format, typer.Option(help="What to write.")] = "onnx",
    layout: Annotated[
        Input,
        typer.Option("--input", help="ONNX: patches, uint8 (N, P, P, 3), or images, float32 (N, 3, S, S) from 0 to 1."),
    ] = "patches",
    embeddings: Annotated[bool, typer.Option("--embeddings", help="ONNX: a third output, embeddings.")] = False,
    fp16: Annotated[bool, typer.Option("--fp16", help="ONNX: half the size; what it costs is measured.")] = False,
    int8: Annotated[
        bool,
        typer.Option("--int8", help="ONNX: a quarter of the size; changes some answers: how many is measured."),
    ] = False,
    licence: Annotated[
        str,
        typer.Option("--license", help="Licence of the weights, such as CC-BY-4.0; goes along in every format."),
    ] = "",
    store: Annotated[
        Path | None,
        typer.Option(help="Training store, if it is not where the model says: crops to compare and calibrate on."),
    ] = None,
    taxonomy: Annotated[
        Path | None,
        typer.Option(help="Taxonomy file whose names and colours replace the model's."),
    ] = None,
    pixel_size: Annotated[
        float | None,
        typer.Option(help="Micrometres per pixel of the training images, if the model does not say."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that exists.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a trained model for other programs, compared with torch before it is kept, and its model card.

    Example: hematokit export runs/coatnet --output coatnet.onnx

    QuPath: hematokit export runs/coatnet --format wsinfer --pixel-size 0.1 --output coatnet-wsinfer
    """
    if fp16 and int8:
        raise ModelError("--fp16 and --int8 were given; give one of them")
    from hematokit.pipelines.export import export

    with progress_bar("export", "steps") as progress:
        steps = 0

        def log(text: str) -> None:
            nonlocal steps
            progress(steps, None, text)
            steps += 1

        result = export(
            model,
            output,
            format=format,
            layout=layout,
            embeddings=embeddings,
            precision="fp16" if fp16 else "int8" if int8 else "fp32",
            licence=licence,
            store=store,
            taxonomy=taxonomy,
            pixel_size_um=pixel_size,
            overwrite=overwrite,
            log=log,
        )
    print_result(result, as_json)
