"""``hematokit serve``."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

import typer

from hematokit.cli.common import JsonOption, echo, print_json
from hematokit.cli.options import (
    DetectorOption,
    DeviceOption,
    ModelPixelSizeOption,
    RuntimeOption,
    SetOption,
    plugin_options,
)

__all__ = ["register"]

_KEY_HINT: Final = "Requests need the API key, as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'; the page asks for it"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("serve")(serve_command)


def serve_command(
    model: Annotated[Path, typer.Argument(help="Run folder, bundle, or exported model.")],
    host: Annotated[str, typer.Option(help="Address to listen on; any but loopback requires an API key.")] = (
        "127.0.0.1"
    ),
    port: Annotated[str, typer.Option(metavar="NUMBER", help="Port; 0 takes a free one.")] = "8000",
    api_key_file: Annotated[
        Path | None,
        typer.Option(help="File with the API key of requests; by default the variable HEMATOKIT_API_KEY."),
    ] = None,
    detector: DetectorOption = "nuclei",
    assignments: SetOption = None,
    model_pixel_size: ModelPixelSizeOption = None,
    runtime: RuntimeOption = "auto",
    device: DeviceOption = "auto",
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Cells classified at a time; by default 16 on a CPU, 64 elsewhere."),
    ] = None,
    max_upload: Annotated[int, typer.Option(min=1, help="Largest accepted field, in MiB.")] = 256,
    max_pixels: Annotated[int, typer.Option(min=1, help="Largest accepted field, in megapixels.")] = 64,
    access_log: Annotated[bool, typer.Option("--access-log", help="Log each request.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Serve a model over HTTP, for patches and fields, with a web page. Ctrl-C stops it.

    It listens on the loopback address only. Any other --host requires an API key, and a proxy for encryption.

    Example: hematokit serve runs/coatnet

    For others: hematokit serve runs/coatnet --host 0.0.0.0 --api-key-file key.txt
    """
    from hematokit.serving import ServeSettings, serve
    from hematokit.serving.settings import is_every_interface, read_api_key, read_port

    settings = ServeSettings(
        host=host,
        port=read_port(port),
        api_key=read_api_key(api_key_file),
        detector=detector,
        detector_options=plugin_options(assignments or [], "detector"),
        model_pixel_size_um=model_pixel_size,
        batch_size=batch_size,
        field_bytes=max_upload * 1024 * 1024,
        field_pixels=max_pixels * 1_000_000,
    )

    def started(url: str, about: dict[str, Any]) -> None:
        if as_json:
            print_json({"url": url, **about})
        else:
            echo(f"{about['name']}: {len(about['classes'])} classes, {about['runtime']} on {about['device']}")
            echo(f"Open {url} in a browser, or post images to {url}/v1/cells and {url}/v1/fields")
            if is_every_interface(host):
                echo(f"On every network interface; others open http://{socket.gethostname()}:{urlsplit(url).port}")
            echo(_KEY_HINT if settings.api_key else "Only this machine can reach it")
            echo("For research use only. Ctrl-C ends it")

    serve(model, settings, runtime=runtime, device=device, access_log=access_log, started=started)
