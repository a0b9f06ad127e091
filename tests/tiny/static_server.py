"""A web server for one folder on a free port of 127.0.0.1, which a test may make slow, cut off or lie."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

Answer = Callable[[SimpleHTTPRequestHandler], bool]  # it answers a request and says so; False: the file is given out


class StaticServer:
    """Its address, what it was asked for, and how it misbehaves."""

    def __init__(self, folder: Path) -> None:
        self.asked: list[str] = []
        self.instead: Answer = lambda request: False
        outer = self

        class Handler(SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                if not outer.instead(self):
                    super().do_GET()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.server.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"


@contextmanager
def given_out(folder: Path) -> Iterator[StaticServer]:
    """The folder, served as long as the block runs."""
    server = StaticServer(folder)
    thread = threading.Thread(target=server.server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.server.shutdown()
        server.server.server_close()
        thread.join()
