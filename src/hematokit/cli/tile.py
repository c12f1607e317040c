"""``hematokit tile``: whole fields into a patch store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hematokit.cli.common import JsonOption, print_result, progress_bar
from hematokit.cli.options import (
    CodecOption,
    DetectorOption,
    FieldsArgument,
    ForcePixelSizeOption,
    PatchSizeOption,
    PixelSizeOption,
    SetOption,
    SmearsOption,
    options_help,
    plugin_options,
)

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("tile", epilog=options_help("detector"))(tile_command)


def tile_command(
    fields: FieldsArgument,
    store: Annotated[Path, typer.Argument(help="Store to create or to add to.")],
    detector: DetectorOption = "nuclei",
    assignments: SetOption = None,
    cells: Annotated[
        Path | None,
        typer.Option(help="Known cells instead: .csv, .geojson, .xml (VOC), .txt (YOLO), or a folder of such files."),
    ] = None,
    class_map: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=CODE", help="What a class name in --cells means; NAME= for no class; or a YAML file."
        ),
    ] = None,
    class_names: Annotated[
        Path | None, typer.Option(help="Names of YOLO classes [default: classes.txt or data.yaml beside them].")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="CLASS", help="Take only these classes of --cells; repeatable.")
    ] = None,
    smears: SmearsOption = None,
    pixel_size: PixelSizeOption = None,
    force_pixel_size: ForcePixelSizeOption = False,
    taxonomy: Annotated[Path | None, typer.Option(help="YAML file with your own classes, for a new store.")] = None,
    patch_size: PatchSizeOption = None,
    codec: CodecOption = None,
    near_duplicates: Annotated[
        bool,
        typer.Option("--near-duplicates/--no-near-duplicates", help="Search for fields that show the same cell."),
    ] = True,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace the cells of fields that are in the store with others.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Put whole fields into a patch store: image, cells, and a patch around each cell.

    The cells are found by the detector, or given with --cells. Fields and cells that cannot be used go into the
    store's table of rejects, each with its reason. Running it again adds what is new, and finishes what was
    interrupted.

    Example: hematokit tile smears/ marrow.zarr --pixel-size 0.17

    Corrected annotations: hematokit tile smears/ marrow.zarr --cells corrected.csv --replace
    """
    from hematokit.pipelines.tile import tile_fields
    from hematokit.taxonomy import load_taxonomy

    with progress_bar("tiling", "fields") as progress:
        summary = tile_fields(
            fields,
            store,
            detector=detector,
            detector_options=plugin_options(assignments or [], "detector"),
            cells=cells,
            class_map=class_map,
            class_names=class_names,
            only=only,
            smears=smears,
            pixel_size_um=pixel_size,
            force_pixel_size=force_pixel_size,
            taxonomy=load_taxonomy(taxonomy) if taxonomy else None,
            patch_size=patch_size,
            codec=codec,
            near_duplicates=near_duplicates,
            replace=replace,
            progress=progress,
        )
    print_result(summary, as_json)
