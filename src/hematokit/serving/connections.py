"""Connections that send nothing: uvicorn lets them stay for ever, and there is only so much room."""

from __future__ import annotations

import asyncio
from typing import Any

__all__ = ["http_protocol"]


class _HeadInTime(asyncio.Protocol):
    """Hangs up where the head of a request has not come in time; whose body is late, `Guard` tells."""

    head_seconds: float
    # Of uvicorn's protocols, both that with httptools and that with h11.
    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    cycle: Any

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
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


def http_protocol(head_seconds: float) -> type[asyncio.Protocol]:
    """Make uvicorn's protocol, with a limit on the time until the head of a request has come.

    Parameters
    ----------
    head_seconds : float

    Returns
    -------
    type
        For ``uvicorn.Config(http=...)``.
    """
    from uvicorn.protocols.http.auto import AutoHTTPProtocol

    return type("HttpProtocol", (_HeadInTime, AutoHTTPProtocol), {"head_seconds": head_seconds})
