"""``hematokit tile``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hematokit.cli.common import JsonOption, print_result, progress_bar
from hematokit.cli.options import InputsArgument, add_command

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    from hematokit.pipelines.settings import TileSettings

    add_command(app, "tile", tile_command, TileSettings, plugins=("detector",))


def tile_command(
    inputs: InputsArgument,
    store: Annotated[Path, typer.Argument(help="Store to create or to add to.")],
    given: dict[str, Any],
    cells: Annotated[
        Path | None,
        typer.Option(
            help="Annotations instead of detection: .csv, .geojson, .xml (VOC), .txt (YOLO), or a folder of them."
        ),
    ] = None,
    taxonomy: Annotated[Path | None, typer.Option(help="YAML file of the classes of a new store.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Tile whole fields into a patch store: the image, its cells, and a patch around each cell.

    The cells are detected, or given as annotations with --cells. Fields and cells that cannot be used are listed in the
    store's table of rejects, each with its reason. A second call adds new fields and completes an interrupted one.

    Example: hematokit tile smears/ marrow.zarr --pixel-size 0.17

    Corrected annotations: hematokit tile smears/ marrow.zarr --cells corrected.csv --replace
    """
    from hematokit.pipelines.tile import tile

    with progress_bar("tile", "fields") as progress:
        result = tile(inputs, store, cells=cells, taxonomy=taxonomy, progress=progress, **given)
    print_result(result, as_json)
