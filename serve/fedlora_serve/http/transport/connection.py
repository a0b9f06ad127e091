"""A connection that cannot be held without asking anything.

uvicorn bounds the time between two requests, but not the time that a head may take, nor how many connections are open: a
client that opens many and says nothing would keep all others out. So a connection is a place only while its request is
answered: where all places are taken, one more takes that of a connection that waits, for a request or for the rest of one.
Of these the peer with the most gives way, with the oldest of its own. The HTTP parser is h11's, which bounds what it keeps
of an unfinished head; httptools does not.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
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
    waiting: dict[BoundedConnection, None]  # of this server, the longest first
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # A send waits until the system has all of the one before, so that a client that leaves a rest unread is noticed
        # while its request still runs: what is in the buffer of a transport when it is closed holds it for ever.
        transport.set_write_buffer_limits(high=0)
        if len(self.connections) > self.max_connections:
            leaving = self._who_gives_way() or self
            leaving._leave()
            if leaving is self:
                return
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch_place()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_watching()
        super().connection_lost(exc)

    @property
    def _has_request(self) -> bool:
        """Whether a request's head has come and its answer has not ended."""
        return self.cycle is not None and not self.cycle.response_complete

    def _watch(self) -> None:
        if self._has_request:
            self._stop_head_timer()
        elif self._head_timer is None and not self.transport.is_closing():
            self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._head_is_late)
        self._watch_place()

    def _watch_place(self) -> None:
        if self.transport.is_closing() or (self._has_request and not self.cycle.more_body):
            self.waiting.pop(self, None)
        else:
            self.waiting.setdefault(self)

    def _stop_watching(self) -> None:
        self.waiting.pop(self, None)
        self._stop_head_timer()

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if not self._has_request:
            self.transport.close()

    def _who_gives_way(self) -> BoundedConnection | None:
        """None where every connection has a request that is being answered."""
        if not self.waiting:
            return None
        [(peer, _)] = Counter(map(_peer, self.waiting)).most_common(1)
        return next(each for each in self.waiting if _peer(each) == peer)

    def _leave(self) -> None:
        self._stop_watching()
        if self.cycle is None:  # else what it hears next is an answer to something that it asked
            self.transport.write(_TOO_MANY)
        self.transport.close()


def _peer(connection: BoundedConnection) -> str:
    """The other end's address, without its port."""
    return str(connection.client[0]) if connection.client else ""


def bounded_connection(max_connections: int) -> type[asyncio.Protocol]:
    """The protocol of a server that keeps so many connections."""
    attributes: dict[str, Any] = {"max_connections": max_connections, "waiting": {}}
    return type("BoundedConnection", (BoundedConnection,), attributes)
