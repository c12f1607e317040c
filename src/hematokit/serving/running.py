"""Running the server: the address is taken before anything else, and Ctrl-C ends it in good order."""

from __future__ import annotations

import errno
import gc
import importlib.util
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hematokit.errors import ServingError
from hematokit.imaging.reading import printable
from hematokit.serving.settings import ServeSettings, is_every_interface

if TYPE_CHECKING:
    import uvicorn

__all__ = ["serve"]

_PACKAGES: Final = {"fastapi": "fastapi", "uvicorn": "uvicorn", "python_multipart": "python-multipart"}
_FIRST_FREE_TO_ALL: Final = 1024
_PATIENCE: Final = 30
"""Seconds that requests under way have when the server is told to stop."""


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
    """Load a model and serve it until the process is told to stop (Ctrl-C, SIGTERM).

    Parameters
    ----------
    model : path
        Run, bundle, or exported model.
    settings : ServeSettings, optional
    runtime, device : str
        What computes the model.
    access_log : bool
        Write a line for each request to standard error.
    started : callable
        Told an address that a browser on this machine can open, whatever `ServeSettings.host` is, and what
        ``/v1/model`` answers, once requests are accepted.

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
        from hematokit.serving.app import build_app
        from hematokit.serving.connections import http_protocol
        from hematokit.serving.describing import describe_model

        loaded: Any = cached_model(model, device, runtime)
        config = uvicorn.Config(
            build_app(loaded, settings),
            http=http_protocol(settings.head_seconds),
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
    """Where a browser of this machine finds the server: nobody can open the address that means all of them."""
    bound, port = listening.getsockname()[:2]
    shown = "127.0.0.1" if is_every_interface(bound) else host.strip("[]")
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"


def _log_config() -> dict[str, Any]:
    """Everything to standard error, in lines: standard output is for what the verb itself says."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"plain": {"format": "%(asctime)s %(levelname)s %(message)s"}},
        "handlers": {"error": {"class": "logging.StreamHandler", "formatter": "plain", "stream": "ext://sys.stderr"}},
        "loggers": {
            "uvicorn": {"handlers": ["error"], "level": "INFO", "propagate": False},
            "uvicorn.access": {"handlers": ["error"], "level": "INFO", "propagate": False},
            "hematokit.serving": {"handlers": ["error"], "level": "INFO", "propagate": False},
            # Of a damaged form the client is told; here it would be anybody's words in our log.
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
