"""A port that passes everything on to another one, and counts the bytes: what a fleet says over its network."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

_PIECE_BYTES = 1 << 16


class CountedPort:
    """Listens on 127.0.0.1; what comes goes to 127.0.0.1:`behind`, and back."""

    def __init__(self, behind: int) -> None:
        self.up = self.down = 0  # bytes, to the server and from it
        self._behind, self._counting = behind, threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    @property
    def total(self) -> int:
        return self.up + self.down

    def _accept(self) -> None:
        while True:
            try:
                device, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._behind))
            except OSError:  # it is not there yet: devices try again
                device.close()
                continue
            for direction in ("up", "down"):
                ends = (device, server) if direction == "up" else (server, device)
                threading.Thread(target=self._pass, args=(*ends, direction), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, direction: str) -> None:
        with suppress(OSError):
            while piece := source.recv(_PIECE_BYTES):
                with self._counting:
                    setattr(self, direction, getattr(self, direction) + len(piece))
                sink.sendall(piece)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
