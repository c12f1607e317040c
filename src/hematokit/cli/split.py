"""``hematokit split``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hematokit.cli.common import JsonOption, print_result, progress_bar

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("split")(split_command)


def split_command(
    store: Annotated[Path, typer.Argument(help="The store.")],
    fractions: Annotated[
        tuple[float, float, float], typer.Option(help="Shares of train, val and test; they sum to 1.")
    ] = (0.7, 0.15, 0.15),
    seed: Annotated[int, typer.Option(help="Seed of the split.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Divide the cells of a store into train, val and test, stratified by class.

    All cells of a patient, and crops that are duplicates of each other, stay on one side. The same cells, shares and
    seed give the same split. An existing split is replaced, with a note.

    Example: hematokit split marrow.zarr --fractions 0.7 0.15 0.15 --seed 0
    """
    from hematokit.store import split_store

    with progress_bar("searching duplicates") as progress:
        summary = split_store(store, fractions, seed, progress=progress)
    print_result(summary, as_json)
