"""``hematokit train``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from hematokit.cli.common import JsonOption, echo, keep_freed_memory, print_json, progress_bar, recorded_command
from hematokit.cli.options import options_help
from hematokit.errors import shell_word

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("train", epilog=options_help("backbone", "augmenter"))(train_command)


def train_command(
    store: Annotated[Path | None, typer.Argument(help="Patch store with a split.")] = None,
    output: Annotated[Path | None, typer.Option(help="Run folder to write.")] = None,
    backbone: Annotated[str | None, typer.Option(help="Backbone, NAME or NAME:VARIANT; timm:MODEL for any.")] = None,
    variant: Annotated[str | None, typer.Option(help="Size or flavour; hematokit plugins lists them.")] = None,
    augmenter: Annotated[str | None, typer.Option(help="hematonet, flips, none, a plugin's; or several: a,b.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Side of the network's input in pixels.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs in all. [default: 30]")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Cells per step over all processes. [default: 64]")] = None,
    lr: Annotated[float | None, typer.Option(help="Highest learning rate. [default: 5e-4]")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="AdamW's. [default: 0.05]")] = None,
    warmup: Annotated[float | None, typer.Option(help="Epochs of warm-up. [default: 2]")] = None,
    balance: Annotated[
        str | None, typer.Option(help="none, weighted-loss, logit-adjustment or oversample. [default: oversample]")
    ] = None,
    target_per_class: Annotated[
        int | None, typer.Option(help="Draws per class and epoch with oversample. [default: largest class, max 20000]")
    ] = None,
    exclude: Annotated[
        str | None, typer.Option(help="Codes to leave out, ART,OTH,NIF; or none. [default: the taxonomy's rejects]")
    ] = None,
    one_vs_rest: Annotated[str | None, typer.Option(help="Train CODE against all others.")] = None,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="Start from published weights.")] = False,
    weights: Annotated[Path | None, typer.Option(help="Start from a local weights file.")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, fp32, bf16 or fp16. [default: auto]")] = None,
    compile_: Annotated[bool, typer.Option("--compile", help="Use torch.compile.")] = False,
    workers: Annotated[int | None, typer.Option(help="Threads that read ahead. [default: 2]")] = None,
    cache: Annotated[
        str | None, typer.Option(help="Keep patches on: auto, device, host, none. [default: auto]")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random. [default: 0]")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1. [default: auto]")] = None,
    patience: Annotated[int | None, typer.Option(help="Stop after so many epochs without gain; 0 never.")] = None,
    stop_after: Annotated[int | None, typer.Option(help="Stop, resumable, after this epoch.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --output.")] = False,
    config: Annotated[Path | None, typer.Option(help="YAML file of settings.")] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any setting; backbone.X, augmenter.X for plugins'."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train a classifier and write a run with its bundle.

    Ctrl-C saves and stops; --resume goes on where it stopped. Several processes: torchrun --nproc-per-node 2 -m
    hematokit train ..., or accelerate launch.

    Example: hematokit train bm.zarr --backbone coatnet --variant pico --output runs/coatnet --epochs 30
    """
    from hematokit.pipelines.train import train
    from hematokit.training.settings import load_settings, parse_assignments

    keep_freed_memory()
    settings: dict[str, Any] = dict(load_settings(config)) if config is not None else {}
    flags: dict[str, Any] = {
        "store": None if store is None else str(store),
        "output": None if output is None else str(output),
        "backbone": backbone,
        "variant": variant,
        "augmenter": augmenter,
        "image_size": image_size,
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "weight_decay": weight_decay,
        "warmup": warmup,
        "balance": balance,
        "target_per_class": target_per_class,
        "exclude": exclude,
        "one_vs_rest": one_vs_rest,
        "pretrained": pretrained or None,
        "weights": None if weights is None else str(weights),
        "precision": precision,
        "compile": compile_ or None,
        "workers": workers,
        "cache": cache,
        "seed": seed,
        "device": device,
        "patience": patience,
        "stop_after": stop_after,
    }
    for layer in (parse_assignments(assignments or []), flags):
        for key, value in layer.items():
            if isinstance(value, dict):
                settings[key] = {**settings.get(key, {}), **value}
            elif value is not None:
                settings[key] = value
    say = _to_stderr if as_json else echo
    with progress_bar("training", "cells") as progress:
        result = train(resume=resume, progress=progress, log=say, settings=settings, command=recorded_command())
    # Of several processes one speaks.
    main = os.environ.get("RANK", "0") == "0"
    if as_json and main:
        print_json(
            {
                "run": str(result.run),
                "bundle": None if result.bundle is None else str(result.bundle),
                "finished": result.finished,
                "epochs": result.epochs,
                "best_epoch": result.best_epoch,
                "best": result.best,
                "seconds": result.seconds,
                "warnings": result.warnings,
            }
        )
    elif result.finished and main:
        echo(f"Bundle: {result.bundle} (epoch {result.best_epoch} of {result.epochs})")
        echo(f"Next: hematokit evaluate {shell_word(result.run)}")
    elif main:
        echo(
            f"Stopped after {result.epochs} epochs. Go on with: "
            f"hematokit train --resume --output {shell_word(result.run)}"
        )
    planned = settings.get("stop_after")
    if not result.finished and (planned is None or result.epochs < int(planned)):
        raise typer.Exit(130)


def _to_stderr(line: str) -> None:
    typer.echo(line, err=True)
