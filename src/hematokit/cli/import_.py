"""``hematokit import``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hematokit.cli.common import JsonOption, print_result, progress_bar
from hematokit.cli.options import add_command

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    from hematokit.store.settings import ImportSettings

    add_command(app, "import", import_command, ImportSettings)


def import_command(
    inputs: Annotated[Path, typer.Argument(help="Folder of class folders, .csv of paths and labels, or .zip.")],
    store: Annotated[Path, typer.Argument(help="Store to create or to add to.")],
    given: dict[str, Any],
    taxonomy: Annotated[Path | None, typer.Option(help="YAML file of the classes of a new store.")] = None,
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

    with progress_bar("import", "files") as progress:
        result = import_crops(inputs, store, taxonomy=taxonomy, progress=progress, **given)
    print_result(result, as_json)
