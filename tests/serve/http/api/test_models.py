"""GET /v1/models."""

from __future__ import annotations

from fedlora.base.pack import BasePack
from fedlora_serve.http.access.keys import ApiKey, key_digest

from tests.serve.http.fake_engine import FakeEngine
from tests.serve.http.services import BASE, Client, refusal, service

LIMITED = ApiKey(name="limited", digest=key_digest("k1"), models=(BASE, "team/*"))
EVERY = ApiKey(name="every", digest=key_digest("k2"))


def test_the_base_comes_first_and_is_the_parent_of_its_adapters(base: BasePack) -> None:
    state = service(base, FakeEngine(), adapters=["poet", "cook"])
    answer = Client(state).get("/v1/models").json()
    assert answer["object"] == "list"
    first, *others = answer["data"]
    assert first["id"] == BASE
    assert first["parent"] is None
    assert [model["id"] for model in others] == ["cook", "poet"]
    for model, status in zip(others, state.store.list(), strict=True):
        assert model["object"] == "model"
        assert model["owned_by"] == "fedlora"
        assert model["parent"] == BASE
        assert model["root"] == status.name  # the last part of its path
        assert model["created"] == int(status.loaded_at)
        assert model["max_model_len"] == 64
        assert model["digest"] == status.digest


def test_one_model_has_a_route_of_its_own_even_with_a_slash_in_its_name(base: BasePack) -> None:
    client = Client(service(base, FakeEngine(), adapters=["team/poet"]))
    response = client.get("/v1/models/team/poet")
    assert response.json()["id"] == "team/poet"
    assert response.headers["X-Adapter-Digest"] == response.json()["digest"]
    assert client.get(f"/v1/models/{BASE}").json()["id"] == BASE


def test_a_model_that_is_not_there_is_404(base: BasePack) -> None:
    client = Client(service(base, FakeEngine(), adapters=["poet"]))
    error = refusal(client.get("/v1/models/poem"), 404)
    assert error["code"] == "model_not_found"
    assert "poet" in error["message"]


def test_a_key_sees_and_uses_its_models_and_no_others(base: BasePack) -> None:
    state = service(base, FakeEngine(), adapters=["team/poet", "secret"], keys=[LIMITED, EVERY])
    limited, every = (Client(state, authorization=f"Bearer {key}") for key in ("k1", "k2"))
    assert [model["id"] for model in limited.get("/v1/models").json()["data"]] == [BASE, "team/poet"]
    assert len(every.get("/v1/models").json()["data"]) == 3
    assert every.get("/v1/models/secret").status_code == 200
    there = refusal(limited.get("/v1/models/secret"), 404)
    absent = refusal(limited.get("/v1/models/secrex"), 404)
    assert there["message"].replace("secret", "secrex") == absent["message"]  # nothing tells them apart
    body = {"model": "secret", "prompt": "x"}
    assert refusal(limited.post("/v1/completions", body), 404)["code"] == "model_not_found"
    assert every.post("/v1/completions", body).status_code == 200


def test_without_a_key_nothing_is_told_before_the_body_is_read(base: BasePack) -> None:
    client = Client(service(base, FakeEngine(), keys=[EVERY]))
    for response in (
        client.get("/v1/models"),
        client.get("/v1/models/x"),
        client.post("/v1/completions", {}),
        client.post("/v1/chat/completions", []),
        client.request("POST", "/v1/embeddings", content=b"\xff"),
    ):
        assert refusal(response, 401)["code"] == "invalid_api_key"


def test_a_used_up_key_is_429_with_retry_after(base: BasePack) -> None:
    engine = FakeEngine()
    key = ApiKey(name="slow", digest=key_digest("k"), requests_per_minute=1)
    state = service(base, engine, adapters=["poet"], keys=[key])
    client = Client(state, authorization="Bearer k")
    assert client.post("/v1/completions", {"model": "poet", "prompt": "x"}).status_code == 200
    response = client.post("/v1/completions", {"model": "poet", "prompt": "x"})
    assert refusal(response, 429)["code"] == "rate_limit_exceeded"
    assert int(response.headers["Retry-After"]) > 0
    assert len(engine.requests) == 1
    assert state.store.list()[0].users == 0


def test_a_request_that_is_refused_counts_before_it_is_read(base: BasePack) -> None:
    key = ApiKey(name="slow", digest=key_digest("k"), requests_per_minute=1)
    client = Client(service(base, FakeEngine(), keys=[key]), authorization="Bearer k")
    assert client.get("/v1/models").status_code == 200
    assert client.request("POST", "/v1/completions", content=b"\xff").status_code == 415
    assert client.post("/v1/completions", {"model": BASE, "prompt": "x"}).status_code == 429


def test_the_tokens_of_an_answer_count_for_its_key(base: BasePack) -> None:
    key = ApiKey(name="few", digest=key_digest("k"), tokens_per_minute=8)
    client = Client(service(base, FakeEngine(), keys=[key]), authorization="Bearer k")
    body = {"model": BASE, "prompt": [1, 2, 3]}  # and three words of an answer
    assert client.post("/v1/completions", body).status_code == 200
    assert client.post("/v1/completions", body).status_code == 429
