"""A service on the server that `fedlora serve` runs, in a thread of the test."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from fedlora_serve.http.api.server import bind, make_server
from fedlora_serve.http.service.state import ServiceState

Address = tuple[str, int]


@contextmanager
def served(state: ServiceState, *, send_buffer_bytes: int = 0) -> Iterator[Address]:
    """The address of the server, which is told to stop at the end, and does."""
    ready, bound = threading.Event(), bind("127.0.0.1", 0)
    if send_buffer_bytes:  # of the system, for each connection
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)
    server = make_server(state, when_ready=ready.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield bound.getsockname()
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()
