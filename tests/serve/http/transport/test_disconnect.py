"""Clients that leave, and clients that do not read, on a real server."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fedlora.base.pack import BasePack
from fedlora_serve.batching.request import Event, Finished, Piece

from tests.serve.http.fake_engine import FakeEngine, endless
from tests.serve.http.services import BASE, running, service


def soon(condition: Callable[[], bool], timeout_s: float = 10) -> bool:
    """Whether it comes true."""
    end = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def connected(url: str, body: dict[str, Any], receive_bytes: int | None = None) -> socket.socket:
    """A connection that has asked, and has read nothing."""
    host, port = url.removeprefix("http://").split(":")
    connection = socket.socket()
    if receive_bytes:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    connection.connect((host, int(port)))
    content = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    return connection


def rest_of(connection: socket.socket) -> bytes:
    """What still comes of a connection that ends: what the two kernels hold."""
    connection.settimeout(10)
    got = bytearray()
    try:
        while part := connection.recv(1 << 16):
            got += part
    except ConnectionResetError:
        pass
    return bytes(got)


@pytest.mark.parametrize("stream", [True, False], ids=["streaming", "whole"])
def test_a_client_that_leaves_has_its_answers_cancelled(base: BasePack, stream: bool) -> None:
    engine = FakeEngine(endless(), pause_s=0.01)
    state = service(base, engine, adapters=["poet"])
    with running(state) as url:
        connection = connected(url, {"model": "poet", "prompt": "x", "n": 2, "stream": stream})
        assert soon(lambda: engine.running == 2)
        if stream:
            assert connection.recv(100)
        connection.close()
        assert soon(lambda: engine.running == 0)
        assert len(engine.cancelled) == 2
        assert soon(lambda: state.store.list()[0].users == 0)
        assert httpx.get(f"{url}/v1/models").status_code == 200


def test_a_client_that_does_not_read_is_cut_off(base: BasePack) -> None:
    engine = FakeEngine(endless("x" * 20_000), pause_s=0.001)
    state = service(base, engine, limits={"send_timeout_s": 0.3})
    with running(state) as url, connected(url, {"model": BASE, "prompt": "x", "stream": True}, 4096) as connection:
        assert soon(lambda: engine.running == 1)
        assert soon(lambda: engine.running == 0)
        assert len(engine.cancelled) == 1
        assert b"[DONE]" not in rest_of(connection)


def test_a_client_that_does_not_read_a_whole_answer_is_cut_off_too(base: BasePack) -> None:
    engine = FakeEngine(max_tokens=64)
    state = service(base, engine, limits={"send_timeout_s": 0.3})
    text = "x" * (16 << 20)
    engine.script = lambda request: iter(_long(text))
    with running(state) as url, connected(url, {"model": BASE, "prompt": "x"}, 4096) as connection:
        time.sleep(1)  # more than the timeout
        assert len(rest_of(connection)) < len(text)


def test_a_client_that_reads_slowly_gets_all_of_it(base: BasePack) -> None:
    engine = FakeEngine(max_tokens=64)
    pieces = [f"{index:04d}" * 2000 for index in range(100)]
    engine.script = lambda request: iter(_long(*pieces))
    state = service(base, engine, limits={"send_timeout_s": 5})
    with running(state) as url, httpx.Client(timeout=20) as client:
        body = {"model": BASE, "prompt": "x", "stream": True}
        got = bytearray()
        with client.stream("POST", f"{url}/v1/completions", json=body) as response:
            for part in response.iter_raw(chunk_size=50_000):
                got += part
                time.sleep(0.01)
    datas = [event.removeprefix("data: ") for event in got.decode().strip().split("\n\n")]
    assert datas[-1] == "[DONE]"
    assert "".join(json.loads(data)["choices"][0]["text"] for data in datas[:-1]) == "".join(pieces)


def _long(*pieces: str) -> list[Event]:
    """An answer of these pieces."""
    return [*(Piece(text=piece) for piece in pieces), Finished(reason="stop", completion_tokens=len(pieces))]
