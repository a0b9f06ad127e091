"""Places that answer without end, told apart by neither client: what `fedlora publish` reads of them is bounded."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from fedlora.errors import ReleaseError
from fedlora_server.distribution import bounded_answers, oci_registry
from fedlora_server.distribution.bounded_answers import Answers, bound_requests, bounded_hub

from tests.tiny.static_server import StaticServer, given_out

Get = Callable[[str, Answers], Any]


def with_requests(url: str, answers: Answers) -> Any:
    requests = pytest.importorskip("requests", reason="not installed: pip install fedlora[oci]")
    with requests.Session() as session:
        bound_requests(session, answers)
        return session.get(url).json()


def with_httpx(url: str, answers: Answers) -> Any:
    hub = pytest.importorskip("huggingface_hub", reason="not installed: pip install fedlora[hub]")
    with bounded_hub(answers):
        return hub.get_session().get(url).json()


CLIENTS = pytest.mark.parametrize("get", [with_requests, with_httpx])


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StaticServer]:
    for name, bound in (("MAX_ANSWER_BYTES", 1 << 18), ("MAX_BYTES", 1 << 19), ("MAX_ANSWERS", 20)):
        monkeypatch.setattr(bounded_answers, name, bound)
    with given_out(tmp_path) as server:
        yield server


def answers_with(
    content: bytes, *headers: tuple[str, str], times: int = 1
) -> Callable[[SimpleHTTPRequestHandler], bool]:
    def answer(request: SimpleHTTPRequestHandler) -> bool:
        request.send_response(200)
        for name, value in headers:
            request.send_header(name, value)
        request.end_headers()
        try:
            for _ in range(times):
                request.wfile.write(content)
        except OSError:  # the client has gone
            pass
        return True

    return answer


@CLIENTS
def test_a_sound_answer_is_read_by_the_client_s_own_means(get: Get, server: StaticServer) -> None:
    packed = gzip.compress(json.dumps({"a": [1, 2]}).encode())
    server.instead = answers_with(packed, ("Content-Encoding", "gzip"), ("Content-Length", str(len(packed))))
    answers = Answers()
    assert get(server.url, answers) == {"a": [1, 2]}
    assert (answers.count, answers.size_bytes) == (1, len('{"a": [1, 2]}'))


@CLIENTS
@pytest.mark.parametrize(
    "answer",
    [
        answers_with(b"[" * (1 << 16), times=1 << 14),
        answers_with(gzip.compress(bytes(1 << 22)), ("Content-Encoding", "gzip")),
    ],
    ids=["endless", "expanding"],
)
def test_an_answer_without_end_is_left(get: Get, server: StaticServer, answer: Callable[..., bool]) -> None:
    server.instead = answer
    with pytest.raises(OSError, match="an answer of more than 262144 bytes"):
        get(server.url, Answers())


@CLIENTS
def test_all_answers_together_are_bounded(get: Get, server: StaticServer) -> None:
    server.instead = answers_with(b'"' + b"x" * 200_000 + b'"')
    answers = Answers()
    with pytest.raises(OSError, match="or 524288 in all"):
        for _ in range(3):
            get(server.url, answers)
    server.instead = answers_with(b"{}")
    answers = Answers()
    with pytest.raises(OSError, match="more than 20 answers"):
        for _ in range(21):
            get(server.url, answers)


def test_a_registry_without_end_is_one_error(server: StaticServer, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("oras", reason="not installed: pip install fedlora[oci]")
    server.instead = answers_with(b"[" * (1 << 16), times=1 << 14)
    place = oci_registry.Registry(f"{server.url.removeprefix('http://')}/tone", plain=True)
    with (
        pytest.raises(ReleaseError, match="cannot be pushed to: OSError: an answer of more than"),
        oci_registry._told("x"),
    ):
        place._client("x")
