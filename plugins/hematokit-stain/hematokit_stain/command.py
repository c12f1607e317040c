"""``hematokit stain-reference``: pictures in, a line of numbers out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["add_command"]


def add_command(app: typer.Typer) -> None:
    """Add the command to the command line."""

    @app.command("stain-reference")
    def stain_reference(
        pictures: Annotated[Path, typer.Argument(help="A picture, or a folder of pictures.")],
        method: Annotated[str, typer.Option(help="reinhard or macenko.")] = "reinhard",
    ) -> None:
        """Measure the stain of pictures; prints the numbers for --set backbone.reference=NUMBERS.

        Example: hematokit stain-reference our-lab/ --method macenko
        """
        from hematokit_stain.references import measure_pictures, write_reference

        typer.echo(write_reference(measure_pictures(pictures, method)))
