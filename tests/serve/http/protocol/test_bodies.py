"""Bodies that are none, and bodies with mistakes: what is told of them."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest
from fedlora.base.pack import BasePack

from tests.serve.http.fake_engine import FakeEngine
from tests.serve.http.services import BASE, Client, refusal, service

JSON = {"content-type": "application/json"}


@pytest.fixture
def client(base: BasePack) -> Client:
    return Client(service(base, FakeEngine()))


def send(client: Client, content: bytes, headers: dict[str, str] | None = None) -> Any:
    return client.request("POST", "/v1/completions", content=content, headers=JSON if headers is None else headers)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"\xff\xfe",
        b'{"model": "tiny", "prompt": "\xc3\x28"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"model": "tiny", "prompt": ' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"model": "tiny", "prompt": "x", "max_tokens": ' + b"9" * 5000 + b"}",
        b'{"model": "tiny", "prompt": "x", "temperature": 1e999}',
        b'{"model": "tiny", "prompt": "x", "temperature": NaN}',
        b'{"model": "tiny", "prompt": "x", "temperature": ' + b"9" * 400 + b"}",
        b'{"model": "tiny", "prompt": "x", "logit_bias": {"1": -Infinity}}',
        b'{"model": "tiny", "prompt": [' + b"9" * 400 + b"]}",
        b'{"model": "tiny", "prompt": "x"} and more',
        json.dumps({"model": "x" * 300, "prompt": "x"}).encode(),
    ],
    ids=lambda content: repr(content[:40]),
)
def test_what_is_no_sensible_body_is_400(client: Client, content: bytes) -> None:
    assert refusal(send(client, content))["type"] == "invalid_request_error"


def test_a_deep_value_that_nobody_asked_for_does_no_harm(client: Client) -> None:
    deep = b"[" * 500 + b"]" * 500 + b"}"
    assert refusal(send(client, b'{"model": "tiny", "prompt": "x", "more": ' + deep))["param"] == "more"
    assert send(client, b'{"model": "tiny", "prompt": "x", "metadata": {"a": ' + deep + b"}").status_code == 200


def test_nul_is_a_character_like_others(client: Client) -> None:
    assert send(client, json.dumps({"model": BASE, "prompt": "a\0b"}).encode()).status_code == 200


@pytest.mark.parametrize("headers", [{}, {"content-type": "text/plain"}, {"content-type": "application/xml"}])
def test_a_body_that_is_not_announced_as_json_is_415(client: Client, headers: dict[str, str]) -> None:
    error = refusal(send(client, b'{"model": "tiny", "prompt": "x"}', headers), 415)
    assert "application/json" in error["message"]


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate"])
def test_a_body_that_is_compressed_is_415_and_told_so(client: Client, encoding: str) -> None:
    packed = gzip.compress(b'{"model": "tiny", "prompt": "x"}') if encoding == "gzip" else b"\x0b\x02\x80{}\x03"
    error = refusal(send(client, packed, {**JSON, "content-encoding": encoding}), 415)
    assert encoding in error["message"]
    assert (
        send(client, b'{"model": "tiny", "prompt": "x"}', {**JSON, "content-encoding": "identity"}).status_code == 200
    )


def test_many_wrong_fields_are_told_in_one_short_sentence(client: Client) -> None:
    wrong = {field: ["no"] for field in ("n", "top_p", "top_k", "min_p", "seed", "user")}
    message = refusal(client.post("/v1/completions", {"model": BASE, "prompt": "x", **wrong}))["message"]
    assert "and 2 more" in message
