"""Connections that send nothing, or heads without end: uvicorn bears both, and there is only so much room."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Final

__all__ = ["http_protocol"]

_HEAD_BYTES: Final = 64 * 1024
"""Where h11 gives up, too; httptools gathers what comes."""

_BODY: Final = json.dumps({"error": f"the head has more than {_HEAD_BYTES:,} bytes", "reason": "too-large"}).encode()
_TOO_LARGE: Final = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\nconnection: close\r\n"
    b"content-length: %d\r\n\r\n%s" % (len(_BODY), _BODY)
)


class _HeadInTime(asyncio.Protocol):
    """Hangs up where the head of a request is too large or late; whose body is, `Guard` tells."""

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
