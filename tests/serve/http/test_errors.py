"""Bodies that are none, routes that are not there, and the description of it all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fedlora.base.pack import BasePack
from fedlora.data.chat_template import ChatTemplate
from fedlora_serve.adapters.source import AdapterContent
from fedlora_serve.adapters.store import AdapterStore
from fedlora_serve.http.access.keys import ApiKey, key_digest

from tests.serve.http.fake_engine import FakeEngine, failing
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
    deep = b'{"model": "tiny", "prompt": "x", "more": ' + b"[" * 500 + b"]" * 500 + b"}"
    assert send(client, deep).status_code == 200


def test_nul_is_a_character_like_others(client: Client) -> None:
    assert send(client, json.dumps({"model": BASE, "prompt": "a\0b"}).encode()).status_code == 200


@pytest.mark.parametrize("headers", [{}, {"content-type": "text/plain"}, {"content-type": "application/xml"}])
def test_a_body_that_is_not_announced_as_json_is_415(client: Client, headers: dict[str, str]) -> None:
    error = refusal(send(client, b'{"model": "tiny", "prompt": "x"}', headers), 415)
    assert "application/json" in error["message"]


def test_routes_that_are_not_there_are_404_in_the_same_shape(client: Client) -> None:
    for path in ("/v1/nothing", "/docs", "/redoc", "/v1/completions/"):
        assert path in refusal(client.get(path), 404)["message"]


def test_methods_that_are_not_there_are_405_and_say_which_are(client: Client) -> None:
    response = client.get("/v1/completions")
    assert "POST" in refusal(response, 405)["message"]
    assert response.headers["Allow"] == "POST"


def test_many_wrong_fields_are_told_in_one_short_sentence(client: Client) -> None:
    wrong = {field: ["no"] for field in ("n", "top_p", "top_k", "min_p", "seed", "user")}
    message = refusal(client.post("/v1/completions", {"model": BASE, "prompt": "x", **wrong}))["message"]
    assert "and 2 more" in message


def test_an_error_tells_no_folder_of_this_machine(base: BasePack) -> None:
    state = service(base, FakeEngine())
    place = base.directory / "chat_template.jinja"
    state.template = ChatTemplate("{{ raise_exception('no') }}", str(place), {})
    body = {"model": BASE, "messages": [{"role": "user", "content": "x"}]}
    message = refusal(Client(state).post("/v1/chat/completions", body))["message"]
    assert "chat_template.jinja" in message
    assert str(base.directory) not in message


def test_the_description_tells_every_route_its_body_and_its_errors(client: Client) -> None:
    document = client.get("/openapi.json").json()
    for path in ("/v1/completions", "/v1/chat/completions", "/v1/embeddings"):
        operation = document["paths"][path]["post"]
        assert set(operation["responses"]) == {
            "200", "400", "401", "403", "404", "408", "413", "415", "429", "500", "503"
        }  # fmt: skip
        assert "application/json" in operation["requestBody"]["content"]
        error = operation["responses"]["400"]["content"]["application/json"]["schema"]
        assert error == {"$ref": "#/components/schemas/ErrorBody"}
    streamed = document["paths"]["/v1/completions"]["post"]["responses"]["200"]["content"]
    assert set(streamed) == {"application/json", "text/event-stream"}
    assert "security" not in document["paths"]["/v1/completions"]["post"]  # this service has no keys
    assert "422" not in json.dumps(document)
    assert "HTTPValidationError" not in json.dumps(document)


def test_a_service_with_keys_says_so_in_its_description(base: BasePack) -> None:
    state = service(base, FakeEngine(), keys=[ApiKey(name="k", digest=key_digest("k"))])
    document = Client(state).get("/openapi.json").json()
    assert document["paths"]["/v1/models"]["get"]["security"]


def test_an_answer_that_fails_tells_no_folder_either(base: BasePack) -> None:
    state = service(base, FakeEngine())
    state.store.load("poet", Path("/srv/hidden/poet"))
    state.engine = FakeEngine(failing(f"/srv/hidden/poet: too large for {base.directory}/rows.onnx"))
    response = Client(state).post("/v1/completions", {"model": "poet", "prompt": "x"})
    assert refusal(response, 500)["message"] == "poet: too large for rows.onnx"


def test_an_adapter_that_cannot_be_read_again_is_the_services_fault_and_tells_no_folder(
    base: BasePack, caplog: pytest.LogCaptureFixture
) -> None:
    state = service(base, FakeEngine())
    digests = iter("abc")  # somebody changes the file

    def read(path: Path, *_: Any, **__: Any) -> AdapterContent:
        return AdapterContent(values={}, digest=next(digests), rank=1, size_bytes=60)

    state.store = AdapterStore(base, budget_bytes=100, read=read)  # there is room for one
    for name in ("poet", "cook"):
        state.store.load(name, Path("/srv/hidden") / name)
    error = refusal(Client(state).post("/v1/completions", {"model": "poet", "prompt": "x"}), 500)
    assert (error["code"], "/srv/hidden" in error["message"]) == ("adapter_unreadable", False)
    assert "/srv/hidden/poet" in caplog.text
