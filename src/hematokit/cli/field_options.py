"""Options that the verbs on whole fields share: detect, classify, tile."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

__all__ = [
    "DetectorOption",
    "FieldsArgument",
    "ForcePixelSizeOption",
    "PixelSizeOption",
    "SchedulerOption",
    "SetOption",
    "SmearsOption",
]

FieldsArgument = Annotated[
    list[Path],
    typer.Argument(metavar="FIELDS...", help="Images of fields (TIFF, OME-TIFF, OME-Zarr, PNG, JPEG), or folders."),
]
DetectorOption = Annotated[str, typer.Option(help="Detector; hematokit plugins lists them.")]
SetOption = Annotated[
    Optional[list[str]],  # noqa: UP045 - read at run time by the parser
    typer.Option("--set", metavar="detector.NAME=VALUE", help="An option of the detector."),
]
PixelSizeOption = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option(help="Micrometres per pixel, for fields whose file does not say."),
]
ForcePixelSizeOption = Annotated[
    bool, typer.Option("--force-pixel-size", help="Take --pixel-size even where the file says otherwise.")
]
SmearsOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(help="CSV that maps files to smear and patient: columns file, smear_id, patient_id."),
]
SchedulerOption = Annotated[str, typer.Option(help="local, or the address of a Dask scheduler: tcp://HOST:8786.")]
