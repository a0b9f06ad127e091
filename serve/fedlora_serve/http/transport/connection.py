"""A connection that cannot be held without asking anything.

uvicorn bounds the time between two requests and the size of a request's head, but not the time that a head may take, nor
how many connections are open: a client that opens many and says nothing would keep all others out. The HTTP parser is
h11's, which bounds the head; httptools does not.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_TIMEOUT_S = 20.0  # for the first line and the headers of a request
RETRY_AFTER_S = 5

_BODY = json.dumps(
    {
        "error": {
            "message": f"too many connections are open; try again in {RETRY_AFTER_S} s",
            "type": "server_error",
            "param": None,
            "code": "too_many_connections",
        }
    }
).encode()
_TOO_MANY = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nConnection: close\r\n"
    b"Retry-After: %d\r\nContent-Length: %d\r\n\r\n%s" % (RETRY_AFTER_S, len(_BODY), _BODY)
)


class BoundedConnection(H11Protocol):
    """One of `max_connections`, which has HEAD_TIMEOUT_S to send a request once it begins one."""

    max_connections = 512
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # A send waits until the system has all of the one before, so that a client that leaves a rest unread is noticed
        # while its request still runs: what is in the buffer of a transport when it is closed holds it for ever.
        transport.set_write_buffer_limits(high=0)
        if len(self.connections) > self.max_connections:
            transport.write(_TOO_MANY)
            transport.close()
            return
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_watching()
        super().connection_lost(exc)

    def _watch_head(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:  # a request is being answered
            self._stop_watching()
        elif self._head_timer is None and not self.transport.is_closing():
            self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._head_is_late)

    def _stop_watching(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


def bounded_connection(max_connections: int) -> type[asyncio.Protocol]:
    """The protocol of a server that keeps so many connections."""
    attributes: dict[str, Any] = {"max_connections": max_connections}
    return type("BoundedConnection", (BoundedConnection,), attributes)
