"""``hematokit train``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from hematokit.cli.common import JsonOption, echo, keep_freed_memory, print_result, progress_bar, recorded_command
from hematokit.cli.options import add_command

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    from hematokit.training.settings import TrainSettings

    add_command(app, "train", train_command, TrainSettings, plugins=("backbone", "augmenter"))


def train_command(
    given: dict[str, Any],
    store: Annotated[Path | None, typer.Argument(help="Patch store with a split.")] = None,
    output: Annotated[Path | None, typer.Option(help="Run folder to write.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --output.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a classifier; writes a run with its bundle.

    Ctrl-C saves and stops; --resume continues. Several processes: torchrun --nproc-per-node 2 -m hematokit train ...,
    or accelerate launch.

    Example: hematokit train bm.zarr --backbone coatnet --variant pico --output runs/coatnet --epochs 30
    """
    from hematokit.pipelines.train import train

    keep_freed_memory()
    with progress_bar("train", "cells") as progress:
        result = train(
            store,
            output,
            settings=given,
            resume=resume,
            progress=progress,
            log=_to_stderr if as_json else echo,
            command=recorded_command(),
        )
    # Of several processes one prints.
    if os.environ.get("RANK", "0") == "0":
        print_result(result, as_json)
    planned = given.get("stop_after")
    if not result.finished and (planned is None or result.epochs < int(planned)):
        raise typer.Exit(130)


def _to_stderr(line: str) -> None:
    typer.echo(line, err=True)
