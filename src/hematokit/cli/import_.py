"""``hematokit import``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hematokit.cli.common import JsonOption, print_result, progress_bar
from hematokit.cli.options import CodecOption, ForcePixelSizeOption, PatchSizeOption

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("import")(import_command)


def import_command(
    src: Annotated[Path, typer.Argument(help="Folder of class folders, .csv of paths and labels, or .zip.")],
    store: Annotated[Path, typer.Argument(help="Store to create or to add to.")],
    labels: Annotated[
        Path | None,
        typer.Option(help="CSV of path, label[, smear_id, patient_id, pixel_size_um] for the files in SRC."),
    ] = None,
    taxonomy: Annotated[Path | None, typer.Option(help="YAML file of the classes of a new store.")] = None,
    patch_size: PatchSizeOption = None,
    resize: Annotated[bool, typer.Option("--resize", help="Resize crops of another size.")] = False,
    pad: Annotated[bool, typer.Option("--pad", help="Pad smaller crops by reflection.")] = False,
    codec: CodecOption = None,
    near_duplicates: Annotated[
        bool,
        typer.Option("--near-duplicates/--no-near-duplicates", help="Search for crops that show the same cell."),
    ] = True,
    pixel_size: Annotated[
        float | None, typer.Option(help="Micrometres per pixel of the files, where their metadata do not state it.")
    ] = None,
    force_pixel_size: ForcePixelSizeOption = False,
    as_json: JsonOption = False,
) -> None:
    """Import single-cell crops (JPEG, PNG, TIFF, BMP) into a patch store.

    The class of a crop is the innermost folder named after a class code, as in BLA/0001-1000/BLA_00001.jpg; or the
    column 'label' of a .csv. Files that cannot be used are listed in the store's table of rejects, each with its
    reason. A second call adds new files and completes an interrupted import.

    Models record the pixel size of the cells they are trained on, and fields are rescaled to it.

    Example: hematokit import BM_cytomorphology_data marrow.zarr --pixel-size 0.086
    """
    from hematokit.store import import_crops
    from hematokit.taxonomy import load_taxonomy

    with progress_bar("importing", "files") as progress:
        summary = import_crops(
            src,
            store,
            labels=labels,
            taxonomy=load_taxonomy(taxonomy) if taxonomy else None,
            patch_size=patch_size,
            resize=resize,
            pad=pad,
            codec=codec,
            near_duplicates=near_duplicates,
            pixel_size_um=pixel_size,
            force_pixel_size=force_pixel_size,
            progress=progress,
        )
    print_result(summary, as_json)
