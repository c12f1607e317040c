"""Access control, size limits and metrics of every request, in front of the application.

Written as plain ASGI, because it has to see the body as it arrives: a body that is too large is refused while it
comes, not after it has filled the disk.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from typing import Any, Final
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, Metric, generate_latest

from hematokit.errors import ServingError
from hematokit.serving.settings import ServeSettings, is_loopback

__all__ = ["Guard", "Metrics"]

_log = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_DRAIN_SECONDS: Final = 5.0
_DRAIN_BYTES: Final = 1 << 30
_SMALL_BODY: Final = 64 * 1024

_HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
        b"form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    ),
)

_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)
_PATCHES: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)


class Metrics:
    """Counters, histograms and gauges of one server, in a separate registry; any thread may add to them.

    Parameters
    ----------
    model : mapping of str to str
        Labels of ``hematokit_model_info``.
    """

    def __init__(self, model: Mapping[str, str]) -> None:
        registry = CollectorRegistry()
        self._registry = registry
        Info("hematokit_model", "The model that is served.", registry=registry).info(dict(model))
        Gauge(
            "hematokit_start_time_seconds", "When the server started, in seconds since 1970.", registry=registry
        ).set_to_current_time()
        self.waiting_patches = Gauge("hematokit_waiting_patches", "Patches that wait for the model.", registry=registry)
        self.waiting_fields = Gauge("hematokit_waiting_fields", "Fields that wait or are worked on.", registry=registry)
        self.requests = Counter(
            "hematokit_requests", "Requests answered, by route and status.", ("route", "status"), registry=registry
        )
        self.refusals = Counter(
            "hematokit_refusals", "Requests refused or failed, by reason.", ("reason",), registry=registry
        )
        self.patches = Counter("hematokit_patches", "Patches classified.", registry=registry)
        self.fields = Counter("hematokit_fields", "Fields worked on to the end.", registry=registry)
        self.field_cells = Counter("hematokit_field_cells", "Cells detected in fields.", registry=registry)
        self.request_seconds = Histogram(
            "hematokit_request_seconds", "Time to answer, by route.", ("route",), registry=registry, buckets=_SECONDS
        )
        self.batch_seconds = Histogram(
            "hematokit_batch_seconds", "Time that the model takes for a batch.", registry=registry, buckets=_SECONDS
        )
        self.batch_patches = Histogram(
            "hematokit_batch_patches", "Patches in a batch.", registry=registry, buckets=_PATCHES
        )

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics without the time at which each was created, which would double their number."""
        for metric in self._registry.collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format, version 0.0.4."""
        return generate_latest(self)


class Guard:
    """Wraps the application.

    - The ``Host`` of a server without a key must be this machine, so that a web page that gives its own name the
      address 127.0.0.1 reaches nothing; a page of another origin may not post either.
    - The key is compared in constant time. Only ``/health`` and the page's own files go without.
    - Bodies are limited in size and in time.
    - What is answered before its body has come is answered, and the rest of the body is thrown away.

    Parameters
    ----------
    app : ASGI application
    settings : ServeSettings
    metrics : Metrics
    limits : mapping of str to int
        Largest body in bytes by path; other paths take 64 KiB.
    open_paths : collection of str
        Paths that need no key.
    known_paths : collection of str
        Paths that have a name of their own in the metrics.
    """

    def __init__(
        self,
        app: App,
        settings: ServeSettings,
        metrics: Metrics,
        *,
        limits: dict[str, int],
        open_paths: frozenset[str],
        known_paths: frozenset[str],
    ) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics
        self._limits, self._open, self._known = limits, open_paths, known_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = str(scope["path"])
        watched = _Exchange(receive, send, self._limits.get(path, _SMALL_BODY), self._settings.upload_seconds)
        started = time.perf_counter()
        headers = {name.lower(): value for name, value in scope["headers"]}
        try:
            self._admit(path, str(scope["method"]), headers)
            watched.check_length(headers.get(b"content-length"))
            await self._app(scope, watched.receive, watched.send)
        except ServingError as error:
            self._metrics.refusals.labels(error.reason).inc()
            await watched.refuse(error)
        except Exception:
            _log.exception("%s %r failed", scope["method"], path)
            self._metrics.refusals.labels("internal").inc()
            await watched.refuse(ServingError("the server failed; its log says why", "internal", 500))
        finally:
            route = path if path in self._known else "other"
            self._metrics.requests.labels(route, watched.status or 499).inc()
            self._metrics.request_seconds.labels(route).observe(time.perf_counter() - started)

    def _admit(self, path: str, method: str, headers: dict[bytes, bytes]) -> None:
        key = self._settings.api_key
        host = headers.get(b"host", b"").decode("latin-1")
        origin = headers.get(b"origin")
        if key is None and not is_loopback(_host_name(host)):
            raise ServingError("this server answers to localhost only; start it with an API key", "wrong-host", 421)
        if origin is not None and method not in ("GET", "HEAD") and not _same_site(origin.decode("latin-1"), host):
            raise ServingError("pages of other sites may not use this server", "wrong-origin", 403)
        if key is not None and path not in self._open and not _shows(headers, key):
            raise ServingError(
                "this needs the API key, as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'", "unauthorised", 401
            )


def _host_name(host: str) -> str:
    """Return the name without the port; empty if it is invalid."""
    try:
        return "" if "@" in host else urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _same_site(origin: str, host: str) -> bool:
    try:
        return urlsplit(origin).netloc == host
    except ValueError:
        return False


def _shows(headers: dict[bytes, bytes], key: str) -> bool:
    scheme, _, shown = headers.get(b"authorization", b"").partition(b" ")
    bearer = shown.strip() if scheme.lower() == b"bearer" else b""
    # Both are compared, whichever is there: what is done does not depend on the key.
    first = hmac.compare_digest(bearer, key.encode())
    second = hmac.compare_digest(headers.get(b"x-api-key", b"").strip(), key.encode())
    return first or second


class _Exchange:
    """One request and its answer, with the body counted as it arrives."""

    def __init__(self, receive: Receive, send: Send, most: int, seconds: float) -> None:
        self._receive, self._send, self._most, self._seconds = receive, send, most, seconds
        self._until = time.monotonic() + seconds
        self._seen = 0
        self._whole = False
        self.status = 0

    def check_length(self, stated: bytes | None) -> None:
        """Refuse by the header what states that it is too large."""
        if stated is not None and stated.isdigit() and int(stated) > self._most:
            raise self._too_large()

    def _too_large(self) -> ServingError:
        return ServingError(f"the request has more than {self._most:,} bytes; send less at once", "too-large", 413)

    async def receive(self) -> Message:
        """Pass on the next part of the body."""
        if self._whole:
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), max(0.0, self._until - time.monotonic()))
        except TimeoutError as error:
            raise ServingError(
                f"the request did not arrive within {self._seconds:g} s; send less at once", "too-slow", 408
            ) from error
        self._note(message)
        if self._seen > self._most:
            raise self._too_large()
        return message

    def _note(self, message: Message) -> None:
        if message["type"] == "http.request":
            self._seen += len(message.get("body", b""))
            self._whole = not message.get("more_body", False)
        else:
            self._whole = True

    async def send(self, message: Message) -> None:
        """Pass on a part of the answer."""
        if message["type"] == "http.response.start":
            self.status = int(message["status"])
            extra = list(_HEADERS)
            if not self._whole:
                extra.append((b"connection", b"close"))
            message = {**message, "headers": [*message.get("headers", []), *extra]}
        elif not self._whole and not message.get("more_body", False):
            # The answer goes out, then what still comes is thrown away: a client that is cut off while it sends
            # often never reads why.
            await self._send({**message, "more_body": True})
            await self._drain()
            message = {"type": "http.response.body", "body": b""}
        await self._send(message)

    async def _drain(self) -> None:
        until, most = time.monotonic() + _DRAIN_SECONDS, self._seen + _DRAIN_BYTES
        while not self._whole and self._seen < most:
            try:
                self._note(await asyncio.wait_for(self._receive(), max(0.0, until - time.monotonic())))
            except TimeoutError:
                return

    async def refuse(self, error: ServingError) -> None:
        """Answer with an error, if nothing has been answered yet."""
        if self.status:
            return
        body = json.dumps({"error": str(error), "reason": error.reason}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        if error.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        if error.status == 503:
            headers.append((b"retry-after", b"1"))
        await self.send({"type": "http.response.start", "status": error.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})
