"""Bodies of millions of values are refused before they are read."""

from __future__ import annotations

import json

import httpx
import pytest
from fastapi import HTTPException
from fedlora.base.pack import BasePack
from fedlora_serve.http.service.state import ServiceState
from fedlora_serve.http.transport.body_values import MAX_CONTAINERS, MAX_NAMES, check_values
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.serve.http.fake_engine import FakeEngine, words
from tests.serve.http.services import BASE, Client, service

BOMBS = {
    "lists": b'{"model":"m","prompt":[' + b"[]," * 600_000 + b"[]]}",
    "objects": b'{"model":"m","messages":[' + b"{}," * 600_000 + b"{}]}",
    "names": b"{" + b",".join(b'"%x":0' % number for number in range(200_000)) + b"}",
    "among strings": b'["a","[{:",[],' * 100_000,
    "strings": b'["' + b'","' * 500_000 + b'"]',
    "depth": b"[" * 1_900_000,
}


def sent(state: ServiceState, route: str, body: bytes) -> httpx.Response:
    return Client(state).request("POST", route, content=body, headers={"Content-Type": "application/json"})


@pytest.mark.parametrize("body", BOMBS.values(), ids=list(BOMBS))
@pytest.mark.parametrize("route", ["completions", "chat/completions", "embeddings"])
def test_a_body_of_too_many_values_is_refused(base: BasePack, body: bytes, route: str) -> None:
    response = sent(service(base, FakeEngine()), f"/v1/{route}", body)
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith(
        "the body has more than 65536 lists and objects, 65536 names in them, or 131072 strings"
    )


def test_brackets_in_a_text_are_no_lists(base: BasePack) -> None:
    state = service(base, FakeEngine(words("one"), max_tokens=1 << 20))
    text = '[{":\\"' * 20_000
    response = sent(state, "/v1/completions", json.dumps({"model": BASE, "prompt": text}).encode())
    assert response.status_code != 400 or "lists and objects" not in response.json()["error"]["message"]
    check_values(json.dumps([text] * 10).encode())


LISTS = b",".join([b"[]"] * MAX_CONTAINERS)


@pytest.mark.parametrize("filling", [0, 20_000, 2_000_000])  # read at once, elsewhere, and of many values
@pytest.mark.parametrize("route", ["completions", "chat/completions"])
def test_a_name_that_is_there_twice_is_refused(base: BasePack, route: str, filling: int) -> None:
    body = b'{"model":"other","model":"%s","prompt":"%s"}' % (BASE.encode(), b"a" * filling)
    deep = b'{"model":"m","x":[{"y":{"a":1,"b":2,"a":1}}],"prompt":"%s"}' % (b"a" * filling)
    for content, name in ((body, "model"), (deep, "a")):
        response = sent(service(base, FakeEngine(words("one"), max_tokens=1 << 22)), f"/v1/{route}", content)
        assert response.status_code == 400
        assert response.json()["error"]["message"].startswith(f"'{name}' is there more than once")


def test_many_names_twice_take_no_longer_than_once(base: BasePack) -> None:
    body = b"{" + b",".join(b'"%d":0' % number for number in range(MAX_NAMES // 2)) + b","
    body += b",".join(b'"%d":0' % number for number in range(MAX_NAMES // 2 - 1)) + b"}"
    response = sent(service(base, FakeEngine()), "/v1/completions", body)
    assert response.status_code == 400
    assert "is there more than once" in response.json()["error"]["message"]


@settings(deadline=None)
@given(st.recursive(st.text() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_what_a_body_holds_is_counted_as_it_is(value: object) -> None:
    content = json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
    check_values(content)
    with pytest.raises(HTTPException):
        check_values(b"[" + content + b"," + content + b"," + LISTS + b"]")


def test_names_are_counted_as_they_are() -> None:
    names = b"{" + b",".join(b'"%d":0' % number for number in range(MAX_NAMES + 1)) + b"}"
    with pytest.raises(HTTPException):
        check_values(names)
