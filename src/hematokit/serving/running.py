"""Running the server: the address is taken before anything else, and Ctrl-C ends it in good order."""

from __future__ import annotations

import asyncio
import errno
import gc
import importlib.util
import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hematokit.errors import ServingError, printable
from hematokit.serving.settings import ServeSettings, is_every_interface

if TYPE_CHECKING:
    import uvicorn

__all__ = ["serve"]

_PACKAGES: Final = {
    "fastapi": "fastapi",
    "prometheus_client": "prometheus-client",
    "python_multipart": "python-multipart",
    "uvicorn": "uvicorn",
}
_FIRST_FREE_TO_ALL: Final = 1024
_PATIENCE: Final = 30
"""Seconds that requests under way have when the server is to stop."""

_HEAD_BYTES: Final = 64 * 1024
"""Where h11 gives up, too; httptools gathers what comes."""

_BODY: Final = json.dumps({"error": f"the head has more than {_HEAD_BYTES:,} bytes", "reason": "too-large"}).encode()
_TOO_LARGE: Final = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\nconnection: close\r\n"
    b"content-length: %d\r\n\r\n%s" % (len(_BODY), _BODY)
)


def _quiet(url: str, about: dict[str, Any]) -> None:
    """Say nothing."""


def serve(
    model: str | Path,
    settings: ServeSettings | None = None,
    *,
    runtime: str = "auto",
    device: str = "auto",
    access_log: bool = False,
    started: Callable[[str, dict[str, Any]], None] = _quiet,
) -> None:
    """Load a model and serve it until the process is stopped (Ctrl-C, SIGTERM).

    Parameters
    ----------
    model : path
        Run, bundle, or exported model.
    settings : ServeSettings, optional
    runtime, device : str
        Runtime and device of the model.
    access_log : bool
        Write a line for each request to standard error.
    started : callable
        Called once requests are accepted, with an address that a browser on this machine can open, whatever
        `ServeSettings.host` is, and the answer of ``/v1/model``.

    Raises
    ------
    ServingError
        If a package is missing or the address cannot be had.
    ModelError, PluginError
        If the model or the detector cannot be loaded.
    """
    settings = settings or ServeSettings()
    missing = [name for module, name in _PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ServingError(f"serving needs {', '.join(missing)}; run: pip install 'hematokit[serve]'")
    listening = _listen(settings)
    try:
        import uvicorn

        from hematokit.models import cached_model
        from hematokit.serving.app import build_app, describe_model

        loaded = cached_model(model, device, runtime)
        config = uvicorn.Config(
            build_app(loaded, settings),
            http=_http_protocol(settings.head_seconds),
            log_level="info" if access_log else "warning",
            access_log=access_log,
            log_config=_log_config(),
            limit_concurrency=settings.most_connections,
            timeout_graceful_shutdown=_PATIENCE,
            proxy_headers=False,
            server_header=False,
            ws="none",
        )
        server = uvicorn.Server(config)
        try:
            # Requests that come from now on wait in the socket's line for the moment that is left.
            listening.listen(config.backlog)
        except OSError as error:
            # Somebody who took the port at the same time was faster.
            raise _cannot_listen(settings, error) from error
        with _signals_end_quietly(server), _model_left_to_stay():
            started(_address(listening, settings.host), describe_model(loaded, settings))
            server.run(sockets=[listening])
    finally:
        listening.close()


def _listen(settings: ServeSettings) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host.strip("[]"), settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        made = socket.socket(family, kind, protocol)
        try:
            if os.name == "posix":
                # Elsewhere it would share the port with whoever has it.
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if address[0] == "::":
                # Every interface means those with IPv4 addresses, too, whatever the system's default is.
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            made.bind(address)
        except BaseException:
            made.close()
            raise
    except (OSError, UnicodeError) as error:
        raise _cannot_listen(settings, error) from error
    return made


def _cannot_listen(settings: ServeSettings, error: OSError | UnicodeError) -> ServingError:
    said = getattr(error, "strerror", None) or error
    if isinstance(error, PermissionError) and settings.port < _FIRST_FREE_TO_ALL:
        advice = f"ports below {_FIRST_FREE_TO_ALL} are the administrator's; give another --port"
    elif getattr(error, "errno", None) == errno.EADDRINUSE:
        advice = "another program has it; give another --port, or 0 for a free one"
    else:
        advice = "give another --host or --port"
    return ServingError(f"cannot listen on {printable(settings.host)} port {settings.port} ({said}); {advice}")


def _address(listening: socket.socket, host: str) -> str:
    """Return the address for a browser on this machine; wildcard addresses cannot be opened."""
    bound, port = listening.getsockname()[:2]
    shown = "127.0.0.1" if is_every_interface(bound) else host.strip("[]")
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"


def _log_config() -> dict[str, Any]:
    """Everything to standard error, in lines: standard output is for what the command itself prints."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"plain": {"format": "%(asctime)s %(levelname)s %(message)s"}},
        "handlers": {"error": {"class": "logging.StreamHandler", "formatter": "plain", "stream": "ext://sys.stderr"}},
        "loggers": {
            "uvicorn": {"handlers": ["error"], "level": "INFO", "propagate": False},
            "uvicorn.access": {"handlers": ["error"], "level": "INFO", "propagate": False},
            "hematokit.serving": {"handlers": ["error"], "level": "INFO", "propagate": False},
            # The client learns of a damaged form; here it would put anybody's text into the log.
            "python_multipart": {"handlers": [], "level": "CRITICAL", "propagate": False},
        },
    }


@contextmanager
def _model_left_to_stay() -> Iterator[None]:
    """Keep the garbage collector off what was loaded before: going through it stopped every request for 0.1 s."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def _signals_end_quietly(server: uvicorn.Server) -> Iterator[None]:
    """Keep the signal that ended the server from ending the process as a failure: uvicorn raises it once more.

    One that comes before uvicorn listens to signals ends it as well.
    """

    def end(number: int, frame: object) -> None:
        server.should_exit = True

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# uvicorn itself bears connections that send nothing, and heads without end.


class _HeadInTime(asyncio.Protocol):
    """Hangs up where the head of a request is too large or late; `Guard` does so for bodies."""

    head_seconds: float
    # Of uvicorn's protocols, both that with httptools and that with h11.
    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    cycle: Any

    _late: asyncio.TimerHandle | None = None
    _head_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        self._head_bytes = 0 if self._at_work() else self._head_bytes + len(data)
        if self._head_bytes > _HEAD_BYTES and not self.transport.is_closing():
            self.transport.write(_TOO_LARGE)
            self.transport.close()
        self._watch()

    def connection_lost(self, error: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(error)

    def _at_work(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _watch(self) -> None:
        if self._at_work():
            self._unwatch()
        elif self._late is None:
            self._late = self.loop.call_later(self.head_seconds, self._hang_up)

    def _unwatch(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _hang_up(self) -> None:
        self._late = None
        if not self._at_work():
            self.transport.close()


def _http_protocol(head_seconds: float) -> type[asyncio.Protocol]:
    """Make uvicorn's protocol, with a limit on the time until the head of a request has come."""
    from uvicorn.protocols.http.auto import AutoHTTPProtocol

    return type("HttpProtocol", (_HeadInTime, AutoHTTPProtocol), {"head_seconds": head_seconds})
