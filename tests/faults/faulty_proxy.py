"""A network that fails: a TCP proxy which resets, delays and cuts a share of the requests that go through it."""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_PIECE_BYTES = 1 << 16
_LONGEST_DELAY_S = 3.0
KINDS = ("reset", "delayed", "cut")


class FaultyProxy:
    """Between devices and the port `to`. Bytes stay as they are: TLS goes through it.

    What a client sends after it last heard something is a request. Of a share of these, drawn with a seed, one third is
    lost with its connection (reset), one third comes late, and of one third half of the answer arrives (cut).
    """

    def __init__(self, to: int) -> None:
        self._to, self.share, self._random = to, 0.0, random.Random(0)
        self._lock = threading.Lock()
        self.done = Counter[str]()  # by kind, and "requests"
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @contextmanager
    def faulty(self, share: float, seed: int) -> Iterator[Counter[str]]:
        """In the block, that share of the requests fails; what was done is counted."""
        self.seed(seed)
        self.share = share
        try:
            yield self.done
        finally:
            self.share = 0.0

    def seed(self, seed: int) -> None:
        with self._lock:
            self._random, self.done = random.Random(seed), Counter()

    def close(self) -> None:
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _drawn(self) -> tuple[str, float]:
        """What becomes of a request, and by how many seconds it is late."""
        with self._lock:
            self.done["requests"] += 1
            kind = self._random.choice(KINDS) if self._random.random() < self.share else ""
            self.done[kind or "well"] += 1
            return kind, self._random.uniform(0.1, _LONGEST_DELAY_S)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._to), 10)
                server.settimeout(None)
            except OSError:
                client.close()
                continue
            pair = _Pair(client, server, self)
            for way in (pair.up, pair.down):
                threading.Thread(target=way, daemon=True).start()


class _Pair:
    """One connection of a client and the one to the server that belongs to it."""

    def __init__(self, client: socket.socket, server: socket.socket, proxy: FaultyProxy) -> None:
        self._client, self._server, self._proxy = client, server, proxy
        self._heard, self._requests, self._cuts = True, 0, False

    def up(self) -> None:
        with suppress(OSError, ValueError):
            while piece := self._client.recv(_PIECE_BYTES):
                if self._heard:
                    self._heard, self._requests = False, self._requests + 1
                    if self._requests > 1:  # the first says hello
                        kind, late_s = self._proxy._drawn()
                        if kind == "reset":
                            break
                        if kind == "delayed":
                            time.sleep(late_s)
                        self._cuts = kind == "cut"
                self._server.sendall(piece)
        self._close()

    def down(self) -> None:
        with suppress(OSError, ValueError):
            while piece := self._server.recv(_PIECE_BYTES):
                if self._cuts:
                    self._client.sendall(piece[: len(piece) // 2])
                    break
                self._client.sendall(piece)
                self._heard = True
        self._close()

    def _close(self) -> None:
        """Of both at once, with a reset: neither side is told that it was the end."""
        for one in (self._client, self._server):
            with suppress(OSError):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
