"""Settings of a server: address, key, detector and limits."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from hematokit.errors import ServingError, printable
from hematokit.imaging.reading import MAX_PIXELS

__all__ = [
    "KEY_VARIABLE",
    "SHORTEST_KEY",
    "ServeSettings",
    "is_every_interface",
    "is_loopback",
    "read_api_key",
    "read_port",
]

KEY_VARIABLE: Final = "HEMATOKIT_API_KEY"
SHORTEST_KEY: Final = 16
_MAKE_ONE: Final = "python -c 'import secrets; print(secrets.token_urlsafe(32))'"
_MIB: Final = 1024 * 1024
_PORTS: Final = "give one from 1 to 65535, or 0 for a free one"


@dataclass(frozen=True)
class ServeSettings:
    """How a model is served.

    Attributes
    ----------
    host, port : str, int
        Where to listen; port 0 takes a free one.
    api_key : str or None
        The key that requests must show. Needed for every address but loopback.
    detector, detector_options
        Name and options of the detector of cells.
    model_pixel_size_um : float or None
        Pixel size of the model's training images, if its bundle does not state it.
    batch_size : int, optional
        Patches that the model gets at a time, from however many requests. By default 16 on a CPU, 64 elsewhere.
    batch_window_s : float
        How long the first patch of a batch waits for others, in seconds.
    most_waiting_patches, most_waiting_fields : int
        Length of the queues; requests beyond it are refused.
    most_connections : int
        Connections at a time.
    most_crops : int
        Crops in one request.
    crop_bytes, field_bytes : int
        Largest body of a request with crops, and with a field.
    field_pixels : int
        Largest height x width of a field.
    field_cells : int
        Most cells of a field that are classified.
    field_seconds, upload_seconds, head_seconds : float
        Longest time that one field is worked on, that one body may take to arrive, and that a connection may take to
        send the head of a request.

    Raises
    ------
    ServingError
        If the port, the key or a limit cannot be, or an address that others can reach is given without a key.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = field(default=None, repr=False)
    detector: str = "nuclei"
    detector_options: Mapping[str, Any] = field(default_factory=dict)
    model_pixel_size_um: float | None = None
    batch_size: int | None = None
    batch_window_s: float = 0.004
    most_waiting_patches: int = 1024
    most_waiting_fields: int = 8
    most_connections: int = 256
    most_crops: int = 256
    crop_bytes: int = 64 * _MIB
    field_bytes: int = 256 * _MIB
    field_pixels: int = MAX_PIXELS
    field_cells: int = 20_000
    field_seconds: float = 600.0
    upload_seconds: float = 120.0
    head_seconds: float = 20.0

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ServingError(f"port {self.port} does not exist; {_PORTS}")
        if not self.host.strip("[] "):
            raise ServingError("the host is empty; give an address to listen on, such as 127.0.0.1")
        for name in (
            *("batch_size", "most_waiting_patches", "most_waiting_fields", "most_connections", "most_crops"),
            *("crop_bytes", "field_bytes", "field_pixels", "field_cells", "field_seconds", "upload_seconds"),
            "head_seconds",
        ):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ServingError(f"{name} is {value}; a limit is more than 0")
        if self.api_key is not None:
            _check_key(self.api_key, "the API key")
        elif not is_loopback(self.host):
            raise ServingError(
                f"{printable(self.host)} can be reached by others, so an API key is needed; write one ({_MAKE_ONE}) to "
                f"a file and name it with --api-key-file, or set {KEY_VARIABLE}"
            )


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address.

    Examples
    --------
    >>> [is_loopback(host) for host in ("127.0.0.1", "localhost", "::1", "0.0.0.0", "example.org")]
    [True, True, True, False, False]
    """
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        # A name may mean another address tomorrow.
        return False


def is_every_interface(host: str) -> bool:
    """Return whether an address stands for all addresses of this machine.

    Examples
    --------
    >>> [is_every_interface(host) for host in ("0.0.0.0", "::", "[::]", "127.0.0.1", "lab.example")]
    [True, True, True, False, False]
    """
    try:
        return ipaddress.ip_address(host.strip("[]")).is_unspecified
    except ValueError:
        return False


def read_port(word: str) -> int:
    """Read a port from the command line.

    Raises
    ------
    ServingError
        If it is no number.
    """
    try:
        return int(word)
    except ValueError as error:
        raise ServingError(f"port {printable(word)} is no number; {_PORTS}") from error


def read_api_key(file: Path | None) -> str | None:
    """Read the API key from a file, else from the environment (``HEMATOKIT_API_KEY``); None where there is neither.

    Never from the command line, which every user of the machine can read.

    Raises
    ------
    ServingError
        If the file cannot be read or holds no usable key.
    """
    if file is None:
        key = os.environ.get(KEY_VARIABLE, "").strip()
        return _check_key(key, KEY_VARIABLE) if key else None
    shown = printable(str(file))
    try:
        with file.open(encoding="utf-8") as opened:
            text = opened.read(4097)
    except (OSError, UnicodeDecodeError) as error:
        said = getattr(error, "strerror", None) or "no text"
        raise ServingError(f"{shown} cannot be read ({said}); write the API key into it, as one line") from error
    return _check_key(text.strip(), shown)


def _check_key(key: str, where: str) -> str:
    if len(key) > 4096 or not key.isascii() or not key.isprintable() or " " in key:
        raise ServingError(f"{where} is no API key: one word of ASCII letters, digits and signs; make one: {_MAKE_ONE}")
    if len(key) < SHORTEST_KEY:
        raise ServingError(
            f"{where} has {len(key)} characters, which can be guessed; take {SHORTEST_KEY} or more: {_MAKE_ONE}"
        )
    return key
