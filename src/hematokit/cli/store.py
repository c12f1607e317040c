"""``hematokit store info``, ``verify``, ``corrections``, ``set-pixel-size`` and ``set-smears``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hematokit.cli.common import JsonOption, echo, print_json, print_result, progress_bar

__all__ = ["register"]

_Store = Annotated[Path, typer.Argument(help="The store.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(
        help="Look into a patch store, check it, and state its pixel size, smears and patients.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    group.command("info")(info_command)
    group.command("verify")(verify_command)
    group.command("corrections")(corrections_command)
    group.command("set-pixel-size")(set_pixel_size_command)
    group.command("set-smears")(set_smears_command)
    app.add_typer(group, name="store")


def info_command(
    store: _Store,
    rejects: Annotated[bool, typer.Option("--rejects", help="List the files that imports refused, and why.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show the contents of a store: counts, classes, sizes, split, rejects, hash.

    Example: hematokit store info marrow.zarr
    """
    from hematokit.store import describe_store

    info = describe_store(store, rejects=rejects)
    print_result(info, as_json)


def verify_command(store: _Store, as_json: JsonOption = False) -> None:
    """Read every patch and compare it with the hash taken at import; exit code 1 if one is damaged.

    Example: hematokit store verify marrow.zarr
    """
    from hematokit.store import verify_store

    with progress_bar("verifying") as progress:
        report = verify_store(store, progress=progress)
    print_result(report, as_json)
    if not report.ok:
        raise typer.Exit(1)


def corrections_command(store: _Store, as_json: JsonOption = False) -> None:
    """List the corrections in a store: time, person, cell, old and new class, and whether it was undone.

    Example: hematokit store corrections marrow.zarr
    """
    from hematokit.store import open_store
    from hematokit.store.corrections import corrections_table

    table = corrections_table(open_store(store).corrections)
    if as_json:
        print_json(table.to_dict("records"))
        return
    for row in table.to_dict("records"):
        change = f"{row['before'] or 'no class'} to {row['after'] or 'no cell'}"
        undone = " (undone)" if row["undone"] else ""
        echo(f"{row['when']}  {row['who'] or 'unknown'}: {row['kind']} {row['cell_id']}, {change}{undone}")
    echo(f"{len(table)} corrections, of which {int(table['undone'].sum())} were undone" if len(table) else "none")


def set_pixel_size_command(
    store: _Store,
    pixel_size: Annotated[float, typer.Argument(metavar="UM", help="Micrometres per pixel of the patches.")],
    force: Annotated[bool, typer.Option("--force", help="Also replace known pixel sizes.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Set the pixel size of cells that have none; the patches do not change.

    Models record the pixel size of the cells they are trained on, and fields are rescaled to it.

    Example: hematokit store set-pixel-size marrow.zarr 0.086
    """
    from hematokit.store import set_pixel_size

    change = set_pixel_size(store, pixel_size, force=force)
    print_result(change, as_json)


def set_smears_command(
    store: _Store,
    table: Annotated[Path, typer.Argument(help="CSV with the columns file, smear_id, patient_id.")],
    as_json: JsonOption = False,
) -> None:
    """Set the smears and patients of fields and crops in a store, where they are wrong or missing.

    Rows name files as they were given to tile or import, or the store's field ids; a table of labels for import also
    works. Files that the table does not name stay unchanged. A split that then divides a patient is removed.

    Example: hematokit store set-smears marrow.zarr smears.csv
    """
    from hematokit.store import set_smears

    with progress_bar("searching duplicates") as progress:
        summary = set_smears(store, table, progress=progress)
    print_result(summary, as_json)
