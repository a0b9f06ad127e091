"""Routes that are not there, what an error tells and what it does not, and the description of it all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fedlora.base.pack import BasePack
from fedlora.data.chat_template import ChatTemplate
from fedlora_serve.adapters.loading import LoadedAdapter
from fedlora_serve.adapters.store import AdapterStore
from fedlora_serve.http.access.keys import ApiKey, key_digest

from tests.serve.http.fake_engine import FakeEngine, failing
from tests.serve.http.services import BASE, Client, refusal, service


@pytest.fixture(scope="module")
def client(base: BasePack) -> Client:
    """One service: what is asked here changes nothing in it."""
    return Client(service(base, FakeEngine()))


def test_routes_that_are_not_there_are_404_in_the_same_shape(client: Client) -> None:
    for path in ("/v1/nothing", "/docs", "/redoc", "/v1/completions/"):
        assert path in refusal(client.get(path), 404)["message"]


@pytest.mark.parametrize(
    ("path", "instead"),
    [
        ("/v1/responses", "/v1/chat/completions"),
        ("/v1/responses/resp_1", "/v1/chat/completions"),
        ("/v1/messages", "/v1/chat/completions"),
        ("/generate", "/v1/completions"),
        ("/generate_stream", "/v1/completions"),
        ("/completion", "/v1/completions"),
        ("/api/chat", "/v1/chat/completions"),
        ("/embedding", "/v1/embeddings"),
        ("/chat/completions", "/v1/chat/completions"),
        ("/completions", "/v1/completions"),
        ("/v1/v1/chat/completions", "/v1/chat/completions"),
        ("/v1/chat/completions/", "/v1/chat/completions"),
        ("/openai/v1/embeddings", "/v1/embeddings"),
        ("/load_lora_adapter", "/v1/load_lora_adapter"),
        ("/lora-adapters", "/v1/adapters"),
        ("/models", "/v1/models"),
        ("/healthz", "/health"),
        ("/v1/audio/speech", "speech"),
        ("/v1/images/generations", "pictures"),
        ("/v1/moderations", "moderation"),
        ("/rerank", "ranking"),
        ("/tokenize", "token ids"),
        ("/v1/nothing", "/openapi.json"),
        ("/", "use GET"),
    ],
)
def test_a_route_of_another_service_is_told_what_there_is_instead(client: Client, path: str, instead: str) -> None:
    response = client.post(path, {"model": BASE, "input": "Hi"})
    message = refusal(response, 405 if path == "/" else 404)["message"]
    assert instead in message
    assert path in message


def test_a_long_path_is_told_in_short(client: Client) -> None:
    assert len(refusal(client.get("/v1/" + "a/" * 5000), 404)["message"]) < 500


def test_head_is_wherever_get_is_and_has_no_body(client: Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    got = [path.format(model=BASE) for path, operations in paths.items() if "get" in operations]
    for path in [*got, "/", "/page/page.js", "/openapi.json", "/v1/models/none", "/nothing"]:
        head, get = client.request("HEAD", path), client.get(path)
        assert (head.status_code, head.content) == (get.status_code, b"")
        if path != "/metrics":
            assert head.headers == get.headers
    assert refusal(client.get("/v1/completions"), 405)
    assert client.request("HEAD", "/v1/completions").status_code == 405
    assert client.post("/health", {}).headers["Allow"] == "GET, HEAD"


def test_methods_that_are_not_there_are_405_and_say_which_are(client: Client) -> None:
    response = client.get("/v1/completions")
    assert "POST" in refusal(response, 405)["message"]
    assert response.headers["Allow"] == "POST"
    for path in ("/v1/models", "/openapi.json"):
        allowed = client.post(path, {}).headers["Allow"].split(", ")
        assert sorted(allowed) == ["GET", "HEAD"]


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

    def read(path: Path, *_: Any, **__: Any) -> LoadedAdapter:
        return LoadedAdapter(name=path.name, source=path, digest=next(digests), values={}, rank=1, size_bytes=60)

    state.store = AdapterStore(base, budget_bytes=100, read=read)  # there is room for one
    for name in ("poet", "cook"):
        state.store.load(name, Path("/srv/hidden") / name)
    error = refusal(Client(state).post("/v1/completions", {"model": "poet", "prompt": "x"}), 500)
    assert (error["code"], "/srv/hidden" in error["message"]) == ("adapter_unreadable", False)
    assert "/srv/hidden/poet" in caplog.text


def test_a_route_for_the_operator_is_described_with_the_admin_key_alone(base: BasePack) -> None:
    state = service(base, FakeEngine(), keys=[ApiKey(name="k", digest=key_digest("k"))])
    paths = Client(state).get("/openapi.json").json()["paths"]
    keys = {path: operation.get("security") for path, kinds in paths.items() for operation in kinds.values()}
    admin = {path for path in keys if "lora_adapter" in path or path.endswith("pin")}
    assert len(admin) == 4
    for path, asked in keys.items():
        assert (asked == [{"AdminKey": []}]) == (path in admin), path
