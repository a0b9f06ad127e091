"""What strangers may send: bodies, heads and connections, within their bounds of size, number and time."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

import pytest
from fedlora.base.pack import BasePack
from fedlora.errors import ConfigError
from fedlora_serve.batching.request import Event, Finished, Piece
from fedlora_serve.http.access.keys import ApiKey, Keys, key_digest
from fedlora_serve.http.api.server import bind, make_server
from fedlora_serve.http.transport import connection

from tests.serve.http.fake_engine import FakeEngine, endless, words
from tests.serve.http.own_server import Address, served
from tests.serve.http.services import service


@pytest.fixture
def serve(base: BasePack) -> Callable[..., Any]:
    def serve(engine: FakeEngine | None = None, keys: Keys | None = None, **limits: Any) -> Any:
        defaults = {"shutdown_timeout_s": 0.5}
        state = service(base, engine or FakeEngine(), limits={**defaults, **limits})
        state.keys = keys or state.keys
        return served(state)

    return serve


def opened(address: Address) -> socket.socket:
    return socket.create_connection(address, timeout=10)


def received(connected: socket.socket) -> bytes:
    """Everything until the other end closes."""
    result = b""
    with suppress(ConnectionResetError):
        while block := connected.recv(1 << 16):
            result += block
    return result


def answer(address: Address, request: bytes, *more: bytes) -> tuple[int, Any]:
    """The status and the JSON that come of raw bytes, sent in parts."""
    with opened(address) as connected:
        connected.sendall(request)
        for part in more:
            time.sleep(0.02)
            with suppress(ConnectionError):
                connected.sendall(part)
        head, _, body = received(connected).partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body) if body.startswith(b"{") else body


def post(headers: str, path: str = "/v1/completions") -> bytes:
    common = "Host: here\r\nConnection: close\r\nContent-Type: application/json\r\n"
    return f"POST {path} HTTP/1.1\r\n{common}{headers}\r\n\r\n".encode()


def body(prompt: str) -> bytes:
    return json.dumps({"model": "tiny", "prompt": prompt}).encode()


def test_a_body_within_the_bound_is_read_however_it_comes(serve: Callable[..., Any]) -> None:
    with serve(FakeEngine(words("fine"))) as address:
        text = body("a")
        assert answer(address, post(f"Content-Length: {len(text)}") + text)[0] == 200
        assert answer(address, post(f"Content-Length: {len(text)}"), text[:5], text[5:])[0] == 200
        chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(text), text)
        assert answer(address, post("Transfer-Encoding: chunked"), chunked)[0] == 200


def test_a_body_above_the_bound_is_413_before_it_is_read(serve: Callable[..., Any]) -> None:
    with serve(max_body_bytes=1000) as address:
        status, error = answer(address, post("Content-Length: 1001"))
        assert (status, "larger than 1000 bytes" in error["error"]["message"]) == (413, True)
        status, _ = answer(address, post("Content-Length: 99999999999999999999"))
        assert status == 413


def test_a_body_that_does_not_say_its_size_is_counted(serve: Callable[..., Any]) -> None:
    with serve(max_body_bytes=1000) as address:
        chunk = b"190\r\n" + b"a" * 400 + b"\r\n"
        assert answer(address, post("Transfer-Encoding: chunked"), chunk, chunk, chunk)[0] == 413
        load = post("Transfer-Encoding: chunked", "/v1/embeddings")
        assert answer(address, load, chunk * 3)[0] == 413


@pytest.mark.parametrize("length", ["abc", "-1", "1, 2", "1\r\nContent-Length: 2"])
def test_a_length_that_is_none_is_400(serve: Callable[..., Any], length: str) -> None:
    with serve() as address:
        assert answer(address, post(f"Content-Length: {length}") + b"{}")[0] == 400


def test_a_body_that_does_not_come_is_408(serve: Callable[..., Any]) -> None:
    with serve(body_timeout_s=0.1) as address:
        status, error = answer(address, post("Content-Length: 100") + b"{")
        assert (status, "0.1 s" in error["error"]["message"]) == (408, True)


def test_the_bound_of_the_time_is_for_the_body_not_for_the_answer(serve: Callable[..., Any]) -> None:
    with serve(FakeEngine(words("a b c"), pause_s=0.25), body_timeout_s=0.5) as address:
        text = body("a")
        assert answer(address, post(f"Content-Length: {len(text)}") + text)[0] == 200


def test_who_asks_is_known_before_the_body_is_read(serve: Callable[..., Any]) -> None:
    keys = Keys([ApiKey(name="web", digest=key_digest("web-key-0123456789"))])
    with serve(keys=keys, body_timeout_s=30) as address:
        for path in ("/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/v1/load_lora_adapter"):
            assert answer(address, post("Content-Length: 100000000", path))[0] in (401, 403)


def test_a_head_that_is_too_large_is_refused(serve: Callable[..., Any]) -> None:
    with serve(max_header_bytes=2000) as address:
        assert answer(address, b"GET /health HTTP/1.1\r\nHost: here\r\n" + b"X: y\r\n" * 1000)[0] == 400
        assert answer(address, b"GET /" + b"a" * 4000 + b" HTTP/1.1\r\n")[0] == 400


@pytest.mark.parametrize("size", [1200, 3000, 120_000])
def test_a_head_that_comes_whole_is_bounded_too(serve: Callable[..., Any], size: int) -> None:
    with serve(max_header_bytes=1000) as address:
        head = b"GET /health HTTP/1.1\r\nHost: here\r\nConnection: close\r\nX: %s\r\n\r\n"
        assert answer(address, head % (b"y" * size))[0] == 400
        assert answer(address, head % b"y")[0] == 200


def test_a_connection_that_says_nothing_is_closed(serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_TIMEOUT_S", 0.2)
    with serve() as address:
        with opened(address) as silent:
            assert received(silent) == b""
        with opened(address) as slow:
            began = time.monotonic()
            with suppress(ConnectionError):
                for byte in b"GET /health HTTP/1.1\r\nHost: here\r\nX-Slow: " + b"y" * 200:
                    slow.sendall(bytes([byte]))
                    time.sleep(0.02)
            assert received(slow) == b""
            assert time.monotonic() - began < 10


def test_an_answer_may_take_longer_than_a_head(serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_TIMEOUT_S", 0.1)
    with serve(FakeEngine(words("a b c d"), pause_s=0.1)) as address:
        text = body("a")
        assert answer(address, post(f"Content-Length: {len(text)}") + text)[0] == 200


def test_one_connection_too_many_is_503_with_a_time_to_wait_where_all_are_answered(serve: Callable[..., Any]) -> None:
    text = json.dumps({"model": "tiny", "prompt": "a", "stream": True}).encode()
    with serve(FakeEngine(endless(), pause_s=0.02), max_connections=2) as address, ExitStack() as stack:
        for _ in range(2):
            connected = stack.enter_context(opened(address))
            connected.sendall(post(f"Content-Length: {len(text)}") + text)
            assert connected.recv(100).startswith(b"HTTP/1.1 200")
        with opened(address) as third:
            head, _, content = received(third).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503")
        assert b"Retry-After: 5" in head
        assert set(json.loads(content)["error"]) == {"message", "type", "param", "code"}


WAITING = {
    "nothing": b"",
    "half a head": b"GET /health HTTP/1.1\r\nX: ",
    "half a body": post("Content-Length: 100") + b"{",
    "its next request": b"GET /health HTTP/1.1\r\nHost: here\r\n\r\n",
}


def whole_answer(connected: socket.socket) -> bytes:
    """What /health says on a connection that stays: head and body may come one after the other."""
    got = connected.recv(1000)
    while got and not got.endswith(b"}"):
        got += connected.recv(1000)
    return got


@pytest.mark.parametrize("sends", WAITING)
def test_who_asks_takes_the_place_of_one_that_waits(serve: Callable[..., Any], sends: str) -> None:
    asks = b"GET /health HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n"
    with serve(max_connections=4) as address, ExitStack() as stack:
        waiting = [stack.enter_context(opened(address)) for _ in range(4)]
        for connected in waiting:
            connected.sendall(WAITING[sends])
            if sends == "its next request":
                assert whole_answer(connected).startswith(b"HTTP/1.1 200")
        assert [answer(address, asks)[0] for _ in range(6)] == [200] * 6
        assert received(waiting[0])[:12] in (b"HTTP/1.1 503", b""), "the oldest has left"


def test_the_peer_with_the_most_that_wait_gives_way() -> None:
    protocol: Any = connection.bounded_connection(3)
    made = []
    for host in ("10.0.0.1", "10.0.0.2", "10.0.0.2"):
        one = protocol.__new__(protocol)
        one.client = (host, 1)
        protocol.waiting[one] = None
        made.append(one)
    assert made[0]._who_gives_way() is made[1], "the oldest of the peer that has two"


def test_a_server_that_stops_lets_answers_end_and_cancels_what_takes_too_long(base: BasePack) -> None:
    engine = FakeEngine(endless(), pause_s=0.02)
    state = service(base, engine, limits={"shutdown_timeout_s": 0.3})
    text = json.dumps({"model": "tiny", "prompt": "a", "stream": True}).encode()
    with served(state) as address:
        connected = opened(address)
        connected.sendall(post(f"Content-Length: {len(text)}") + text)
        assert connected.recv(100).startswith(b"HTTP/1.1 200")
    assert engine.is_closed
    assert len(engine.cancelled) == 1
    assert b"again" in received(connected)
    connected.close()


def test_a_server_that_stops_waits_for_a_short_answer(base: BasePack) -> None:
    engine = FakeEngine(words("one two three"), pause_s=0.1)
    text = json.dumps({"model": "tiny", "prompt": "a", "stream": True}).encode()
    with served(service(base, engine)) as address:
        connected = opened(address)
        connected.sendall(post(f"Content-Length: {len(text)}") + text)
        assert connected.recv(100).startswith(b"HTTP/1.1 200")
    assert b"three" in (whole := received(connected))
    assert b"[DONE]" in whole
    assert not engine.cancelled
    connected.close()


def test_a_port_that_is_taken_is_one_sentence() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(ConfigError, match=r"Address already in use.*--port"),
    ):
        bind("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(ConfigError, match=r"cannot listen on 192\.0\.2\.1"):
        bind("192.0.2.1", 0)
    with pytest.raises(ConfigError, match=r"cannot listen on no\.such\.host\.invalid"):
        bind("no.such.host.invalid", 0)


def test_a_request_whose_length_is_told_in_two_ways_is_refused_with_its_connection(serve: Callable[..., Any]) -> None:
    smuggled = b"GET /v1/models HTTP/1.1\r\nHost: here\r\n\r\n"
    head = b"Host: here\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
    with serve() as address:
        for request in (b"POST /v1/completions", b"GET /health"):
            with opened(address) as connected:
                connected.sendall(request + b" HTTP/1.1\r\n" + head + b"0\r\n\r\n" + smuggled)
                got = received(connected)
            assert got.startswith(b"HTTP/1.1 400")
            assert got.count(b"HTTP/1.1") == 1


def test_a_client_that_leaves_the_rest_of_an_answer_unread_does_not_hold_its_connection(
    base: BasePack, caplog: pytest.LogCaptureFixture
) -> None:
    long: list[Event] = [Piece(text="x" * 60_000), Finished(reason="stop", completion_tokens=1)]
    engine = FakeEngine(lambda request: long)
    state = service(base, engine, limits={"send_timeout_s": 0.3, "shutdown_timeout_s": 0.5})
    text = body("a")
    with served(state, send_buffer_bytes=4096) as address, socket.socket() as connected:
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connected.connect(address)
        connected.sendall(post(f"Content-Length: {len(text)}") + text)
        time.sleep(1.0)  # more than the timeout
        assert len(received(connected)) < 60_000
    assert not caplog.records


def test_of_two_services_that_start_at_a_time_on_one_port_one_says_that_it_is_taken(base: BasePack) -> None:
    with bind("127.0.0.1", 0) as first, bind("127.0.0.1", first.getsockname()[1]) as second:
        first.listen()
        with pytest.raises(ConfigError, match=r"cannot listen on 127\.0\.0\.1, port \d+: Address already in use"):
            make_server(service(base, FakeEngine())).run(sockets=[second])
