"""Frames on a Unix socket: a JSON header and bytes, each with its length before it.

    b"FLDV" | version uint8 | 3 zero bytes | N uint32 | M uint64, little endian | N bytes of JSON | M bytes

Lengths are looked at before anything is read for them, and memory is taken as bytes arrive, not as they are announced.
"""

from __future__ import annotations

import json
import select
import socket
import struct
import time
from collections.abc import Mapping
from typing import Any

from fedlora.errors import CourierError

_HEAD = struct.Struct("<4sB3xIQ")
_MAGIC, _VERSION = b"FLDV", 1
MAX_HEADER_BYTES = 1 << 20
MAX_DATA_BYTES = 4 << 30
_PIECE_BYTES = 1 << 20


def send_frame(connection: socket.socket, header: Mapping[str, Any], data: bytes | bytearray, seconds: float) -> None:
    """Send one frame. Raises OSError where the peer is gone, CourierError where it does not take it within `seconds`."""
    try:
        text = json.dumps(header, allow_nan=False).encode()
    except ValueError as error:
        raise CourierError(f"the header is no JSON: {error}; expected finite numbers and text") from None
    if len(text) > MAX_HEADER_BYTES or len(data) > MAX_DATA_BYTES:
        raise CourierError(
            f"a frame of {len(text)} + {len(data)} bytes; at most {MAX_HEADER_BYTES} + {MAX_DATA_BYTES} are sent"
        )
    deadline = time.monotonic() + seconds
    for part in (_HEAD.pack(_MAGIC, _VERSION, len(text), len(data)) + text, data):
        view = memoryview(part)
        while view:
            _wait_until(connection, deadline)
            try:
                view = view[connection.send(view[:_PIECE_BYTES]) :]
            except TimeoutError:
                raise _late() from None


def receive_frame(
    connection: socket.socket, seconds: float, *, max_data_bytes: int = MAX_DATA_BYTES
) -> tuple[dict[str, Any], bytearray]:
    """(header, data) of one frame.

    Raises CourierError for anything else and for what is not there within `seconds`, OSError where the peer is gone.
    """
    deadline = time.monotonic() + seconds
    magic, version, header_bytes, data_bytes = _HEAD.unpack(_received(connection, _HEAD.size, deadline))
    if magic != _MAGIC or version != _VERSION:
        raise CourierError(
            f"{magic!r} and version {version}; expected {_MAGIC!r} and {_VERSION}, of the same version of fedlora"
        )
    if header_bytes > MAX_HEADER_BYTES or data_bytes > max_data_bytes:
        raise CourierError(
            f"a frame of {header_bytes} + {data_bytes} bytes; at most {MAX_HEADER_BYTES} + {max_data_bytes} are read"
        )
    text = _received(connection, header_bytes, deadline)
    try:
        header = json.loads(bytes(text))
    except (ValueError, RecursionError) as error:
        raise CourierError(f"the header is not JSON: {error}; expected a JSON object") from None
    if not isinstance(header, dict):
        raise CourierError(f"the header is {type(header).__name__}; expected a JSON object")
    return header, _received(connection, data_bytes, deadline)


def has_hung_up(connection: socket.socket) -> bool:
    """Whether the peer has gone. What it may have sent stays to be read."""
    try:
        ready = select.poll()
        ready.register(connection, select.POLLIN)  # the socket's own timeout would be waited for
        return bool(ready.poll(0)) and connection.recv(1, socket.MSG_PEEK) == b""
    except (OSError, ValueError):
        return True


def _received(connection: socket.socket, size: int, deadline: float) -> bytearray:
    data = bytearray()
    while len(data) < size:
        _wait_until(connection, deadline)
        try:
            piece = connection.recv(min(_PIECE_BYTES, size - len(data)))
        except TimeoutError:
            raise _late() from None
        if not piece:
            raise ConnectionError(f"the peer hung up after {len(data)} of {size} bytes")
        data += piece
    return data


def _wait_until(connection: socket.socket, deadline: float) -> None:
    left = deadline - time.monotonic()
    if left <= 0:
        raise _late()
    connection.settimeout(left)


def _late() -> CourierError:
    return CourierError("the frame was not whole in time; expected its peer to take part")
