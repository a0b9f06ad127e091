"""`adapters` in a request: several answer together, each by the caller's right to it, and given back when all has ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fedlora.base.pack import BasePack
from fedlora_serve.adapters.store import AdapterStore
from fedlora_serve.http.access.keys import ApiKey, key_digest
from prometheus_client.parser import text_string_to_metric_families

from tests.serve.http.fake_engine import FakeEngine, words
from tests.serve.http.services import BASE, Client, fake_adapter, refusal, service

BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "x"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}]},
}
SHARES = [{"name": "poet", "weight": 0.7}, {"name": "cook", "weight": -0.3}]


@pytest.mark.parametrize("path", BODIES)
def test_several_adapters_answer_together_and_the_answer_says_which(base: BasePack, path: str) -> None:
    engine = FakeEngine(words("hello", speaker=True))
    state = service(base, engine, adapters=["poet", "cook"])
    client = Client(state)
    response = client.post(path, {"model": BASE, **BODIES[path], "n": 2, "adapters": SHARES})
    answer, digests = response.json(), {status.name: status.digest for status in state.store.list()}
    texts = [choice.get("text") or choice["message"]["content"] for choice in answer["choices"]]
    assert texts == ["0.7 poet + -0.3 cook: hello"] * 2
    assert answer["model"] == BASE
    assert response.headers["X-Adapters"].split(", ") == sorted(
        (f"poet=0.7 {digests['poet']}", f"cook=-0.3 {digests['cook']}"), key=lambda told: told.split()[1]
    )
    assert response.headers["X-Adapter-Digest"] not in digests.values()
    assert answer["system_fingerprint"] == f"fp-{base.fingerprint[:12]}-{response.headers['X-Adapter-Digest'][:12]}"
    assert not any(status.users for status in state.store.list())
    counted = {
        sample.labels["model_name"]: sample.value
        for family in text_string_to_metric_families(state.metrics.text().decode())
        for sample in family.samples
        if sample.name == "fedlora:generation_tokens_total"
    }
    assert counted["cook+poet"] == 2 * 6
    assert counted[BASE] == 0
    for nothing in ("[]", "null"):
        body = {"model": BASE, **BODIES[path], "adapters": json.loads(nothing)}
        assert client.post(path, body).headers["X-Adapter-Digest"] == "none"


@pytest.mark.parametrize(
    ("fields", "status", "param", "told"),
    [
        ({"model": "poet"}, 400, "adapters", "only where model names the base, got 'poet'; name it among the adapters"),
        (
            {"adapters": [*SHARES, {"name": "pet"}]},
            404,
            "adapters.2.name",
            "the model 'pet' does not exist; did you mean",
        ),
        ({"adapters": [{"name": BASE}]}, 400, "adapters.0.name", f"{BASE} is the base, which is in every answer"),
        (
            {"adapters": [{"name": "poet"}] * 9},
            400,
            "adapters",
            "expected at most 8, which is this service's limit, got 9",
        ),
        ({"adapters": [{"name": "poet"}] * 2}, 400, "adapters", "poet is named twice"),
        ({"adapters": [{"name": "poet", "weight": 0}]}, 400, "adapters", "one of them with a weight other than 0"),
        ({"adapters": [{"name": "poet", "weight": 101}]}, 400, "adapters.0.weight", "adapters.0.weight"),
        ({"adapters": [{"name": "poet", "weight": "1"}]}, 400, "adapters.0.weight", "adapters.0.weight"),
        ({"adapters": [{"name": "poet", "scale": 1}]}, 400, "adapters.0.scale", "adapters.0.scale"),
        ({"adapters": {"poet": 1}}, 400, "adapters", "adapters"),
    ],
)
def test_what_cannot_be_had_together_is_refused_by_its_place(
    base: BasePack, fields: dict[str, Any], status: int, param: str, told: str
) -> None:
    engine = FakeEngine()
    state = service(base, engine, adapters=["poet", "cook"])
    error = refusal(
        Client(state).post("/v1/completions", {"model": BASE, "prompt": "x", "adapters": SHARES, **fields}), status
    )
    assert error["param"] == param
    assert told in error["message"]
    assert engine.requests == []
    assert not any(status.users for status in state.store.list())


def test_a_key_needs_the_right_to_each_adapter_and_to_the_base(base: BasePack) -> None:
    keys = [
        ApiKey(name="team", digest=key_digest("t"), models=(BASE, "team-*")),
        ApiKey(name="narrow", digest=key_digest("n"), models=("team-*",)),
    ]
    state = service(base, FakeEngine(), adapters=["team-a", "team-b", "secret"], keys=keys)
    both = {"adapters": [{"name": "team-a"}, {"name": "team-b", "weight": 2}]}
    asked = {"model": BASE, "prompt": "x"}
    team = Client(state, authorization="Bearer t")
    assert team.post("/v1/completions", {**asked, **both}).status_code == 200
    messages = [
        refusal(team.post("/v1/completions", {**asked, "adapters": [{"name": "team-a"}, {"name": name}]}), 404)[
            "message"
        ]
        for name in ("secret", "secrex")
    ]
    assert messages[0] == messages[1].replace("secrex", "secret")  # whether it is there is not told
    narrow = Client(state, authorization="Bearer n")
    assert refusal(narrow.post("/v1/completions", {**asked, **both}), 404)["param"] == "model"
    assert not any(status.users for status in state.store.list())


def test_where_there_is_no_room_in_memory_it_is_not_told_what_others_use(base: BasePack) -> None:
    state = service(base, FakeEngine(), keys=[ApiKey(name="team", digest=key_digest("t"), models=("team-*",))])
    state.store = AdapterStore(base, budget_bytes=100, read=fake_adapter)  # room for one
    for name in ("team-a", "secret"):
        state.store.load(name, Path("somewhere") / name)
    lease = state.store.lease("secret")
    asked = {"model": "team-a", "prompt": "x"}
    team = Client(state, authorization="Bearer t")
    response = team.post("/v1/completions", asked)
    error = refusal(response, 503)
    assert (error["code"], response.headers["Retry-After"]) == ("adapter_memory_full", "1")
    assert error["message"] == "team-a: there is no room in memory for it; try again when other requests have ended"
    lease.release()
    assert team.post("/v1/completions", asked).status_code == 200
