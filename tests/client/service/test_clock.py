"""A clock that is not the server's is told by how much, from what any HTTP server says of its time."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from fedlora_client.service.clock import clock_fault
from fedlora_client.service.config import ServerSection


@contextmanager
def telling(date: str | None) -> Iterator[ServerSection]:
    """A server that says 404 to whatever it is asked, and that it is `date`; without one, nothing of its time."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response_only(404)
            if date is not None:
                self.send_header("Date", date)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield ServerSection(superlink=f"127.0.0.1:{server.server_address[1]}", insecure=True)
        finally:
            server.shutdown()


@pytest.mark.parametrize(
    ("server_is_ahead_s", "told"),
    [
        (0.0, ""),
        (-3.0, ""),  # SuperLink takes 5 s ahead
        (290.0, ""),  # and 305 s behind
        (-600.0, "is 10 minutes ahead of the server's"),
        (600.0, "is 10 minutes behind the server's"),
        (-30.0, " s ahead of the server's"),
        (2 * 86400.0, "is 48.0 hours behind the server's"),
    ],
)
def test_the_clocks_fault_is_told_by_how_much_and_with_what_to_do(server_is_ahead_s: float, told: str) -> None:
    with telling(formatdate(time.time() + server_is_ahead_s, usegmt=True)) as server:
        said = clock_fault(server)
    assert told in said
    assert bool(said) == bool(told)
    if said:
        assert "set this device's clock" in said


@pytest.mark.parametrize("date", [None, "", "yesterday", "Thu, 99 Foo 2026 77:00:00 GMT"])
def test_of_a_server_that_does_not_tell_its_time_nothing_is_said(date: str | None) -> None:
    with telling(date) as server:
        assert clock_fault(server) == ""


def test_of_a_server_that_is_not_there_nothing_is_said() -> None:
    assert clock_fault(ServerSection(superlink="127.0.0.1:1", insecure=True)) == ""
    assert clock_fault(ServerSection(superlink="127.0.0.1:99999", insecure=True)) == ""
