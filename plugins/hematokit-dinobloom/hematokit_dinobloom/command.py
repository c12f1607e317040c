"""``hematokit dinobloom-probe``; imports torch only when it is called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

__all__ = ["register"]

_File = Optional[Path]  # noqa: UP045 - read at run time by the parser
_Text = Optional[str]  # noqa: UP045
_Whole = Optional[int]  # noqa: UP045


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("dinobloom-probe")(dinobloom_probe)


def dinobloom_probe(
    store: Annotated[Path, typer.Argument(help="Patch store with a split.")],
    output: Annotated[Path, typer.Option(help="Bundle folder to write.")],
    weights: Annotated[_File, typer.Option(help="DinoBloom-S.pth or another DinoBloom or DINOv2 checkpoint.")] = None,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="Fetch the weights from the hub.")] = False,
    variant: Annotated[str, typer.Option(help="s, b, l or g.")] = "s",
    head: Annotated[str, typer.Option(help="linear or knn.")] = "linear",
    neighbours: Annotated[int, typer.Option(help="Cells that a k-NN head asks.", min=1)] = 20,
    image_size: Annotated[_Whole, typer.Option(help="Side of the input in pixels, a multiple of 14.")] = None,
    exclude: Annotated[_Text, typer.Option(help="Codes to leave out, ART,OTH; or none.")] = None,
    embeddings: Annotated[_File, typer.Option(help="Where embeddings are kept. [default: beside the output]")] = None,
    batch_size: Annotated[int, typer.Option(help="Cells embedded at a time.", min=1)] = 32,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
    seed: Annotated[int, typer.Option(help="Of a transformer without weights.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object to standard output.")] = False,
) -> None:
    """Fit a head on frozen DinoBloom embeddings, and write a bundle.

    Each cell is embedded once; the embeddings are kept, so that the next head takes seconds.

    Example: hematokit dinobloom-probe marrow.zarr --weights DinoBloom-S.pth --output probes/linear
    """
    from dataclasses import asdict

    from hematokit.cli.common import echo, print_json, progress_bar, recorded_command
    from hematokit_dinobloom.probing import probe

    codes = None
    if exclude is not None:
        codes = (
            [] if exclude.strip().lower() == "none" else [code.strip() for code in exclude.split(",") if code.strip()]
        )
    with progress_bar("embedding cells") as progress:
        result = probe(
            store,
            output,
            weights=weights,
            pretrained=pretrained,
            variant=variant,
            head=head,
            neighbours=neighbours,
            image_size=image_size,
            exclude=codes,
            embeddings=embeddings,
            batch_size=batch_size,
            device=device,
            seed=seed,
            progress=progress,
            log=lambda line: typer.echo(line, err=True),
            command=recorded_command(),
        )
    if json:
        print_json(asdict(result))
        return
    echo(f"Bundle {result.bundle}: {head} head on {result.cells} cells in {result.seconds} s")
    if result.validation:
        echo(
            "Validation: "
            + ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in result.validation.items())
        )
    echo(f"Next: hematokit evaluate {result.bundle} --output FOLDER")
