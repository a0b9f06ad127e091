"""POST /v1/embeddings, and what a base does not do."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fedlora.base.pack import BasePack
from fedlora_serve.adapters.loading import WeightedAdapter
from fedlora_serve.adapters.together import together

from tests.serve.http.fake_engine import FakeEngine
from tests.serve.http.services import BASE, Client, FakeEmbedder, refusal, service, unit


@pytest.fixture
def client(base: BasePack) -> Client:
    return Client(service(base, None, embedder=FakeEmbedder(), adapters=["poet"], template=False))


def ask(client: Client, **fields: Any) -> Any:
    return client.post("/v1/embeddings", {"model": BASE, "input": "abc", **fields})


def test_a_text_has_a_vector(client: Client) -> None:
    answer = ask(client).json()
    assert answer["object"] == "list"
    assert answer["data"] == [{"object": "embedding", "index": 0, "embedding": unit(3, 97)}]
    assert answer["usage"] == {"prompt_tokens": 3, "total_tokens": 3}


@pytest.mark.parametrize(
    ("given", "vectors"),
    [
        (["a", "bc"], [unit(1, 97), unit(2, 98)]),
        ([5, 6], [unit(2, 5)]),
        ([[5], [6, 7]], [unit(1, 5), unit(2, 6)]),
    ],
)
def test_texts_and_tokens_have_their_vectors_in_order(client: Client, given: Any, vectors: Any) -> None:
    assert [one["embedding"] for one in ask(client, input=given).json()["data"]] == vectors


def test_base64_is_float32_little_endian(client: Client) -> None:
    data = ask(client, encoding_format="base64").json()["data"][0]["embedding"]
    assert np.frombuffer(base64.b64decode(data), "<f4").tolist() == unit(3, 97)


def test_an_adapter_embeds_and_is_given_back(base: BasePack) -> None:
    state = service(base, None, embedder=FakeEmbedder(), adapters=["poet"])
    response = ask(Client(state), model="poet")
    assert response.json()["data"][0]["embedding"] == unit(97, 3)
    [status] = state.store.list()
    assert response.headers["X-Adapter-Digest"] == status.digest
    assert status.users == 0


def test_adapters_embed_together_in_a_copy_that_counts_while_it_is_used(base: BasePack) -> None:
    embedder = FakeEmbedder()
    state = service(base, None, embedder=embedder, adapters=["poet", "cook"])
    seen = []

    def embed(rows: Any, adapter: Any = None) -> Any:
        seen.append((adapter.inputs, state.store.stats().resident))
        return FakeEmbedder.embed(embedder, rows, adapter)

    embedder.embed = embed  # type: ignore[method-assign]
    response = ask(Client(state), adapters=[{"name": "poet"}, {"name": "cook", "weight": 0.5}])
    assert response.json()["data"][0]["embedding"] == unit(97, 3)
    assert response.json()["model"] == BASE
    assert response.headers["X-Adapters"].count("=") == 2
    assert seen == [({}, 3)]
    assert state.store.stats().resident == 2
    assert not any(status.users for status in state.store.list())


def test_of_a_copy_that_others_use_too_each_is_told_the_names_that_they_gave(base: BasePack) -> None:
    state = service(base, None, embedder=FakeEmbedder(), adapters=["poet", "cook"])
    state.store.load("twin", Path("elsewhere") / "poet")  # of the same values
    shares = {"poet": 0.1234567, "cook": 1.0}
    leases = {name: state.store.lease(name) for name in shares}
    parts = [WeightedAdapter(adapter=leases[name].version, weight=weight) for name, weight in shares.items()]
    held = state.store.lease_copy(together(parts))
    response = ask(Client(state), adapters=[{"name": "twin", "weight": 0.1234567}, {"name": "cook"}])
    assert response.headers["X-Adapter-Digest"] == held.version.digest
    told = {part.split()[0] for part in response.headers["X-Adapters"].split(", ")}
    assert told == {"twin=0.1234567", "cook=1.0"}
    for lease in (held, *leases.values()):
        lease.release()
    assert state.store.stats().resident == 2


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"dimensions": 3}, "dimensions"),
        ({"encoding_format": "int8"}, "encoding_format"),
        ({"input": []}, "input"),
        ({"input": None}, "input"),
        ({"input": "\ud834"}, "input"),
        ({"input": ""}, "input"),
        ({"input": "x" * 33}, "input"),
        ({"input": ["x"] * 65}, "input"),
    ],
)
def test_what_cannot_be_embedded_is_refused_by_its_field(client: Client, fields: dict[str, Any], param: str) -> None:
    assert refusal(ask(client, **fields))["param"] == param


def test_the_size_that_the_base_has_may_be_asked_for(client: Client) -> None:
    assert ask(client, dimensions=2).status_code == 200


@pytest.mark.parametrize("is_unit", [True, False])
@pytest.mark.parametrize("field", ["normalize", "use_activation"])
def test_whether_vectors_have_length_1_may_be_asked_for(base: BasePack, is_unit: bool, field: str) -> None:
    embedder = FakeEmbedder()
    embedder.normalized = is_unit
    client = Client(service(base, None, embedder=embedder))
    pooled = pytest.approx([3, 97])
    for asked, expected in ((None, unit(3, 97) if is_unit else pooled), (True, unit(3, 97)), (False, pooled)):
        assert ask(client, **{field: asked}).json()["data"][0]["embedding"] == expected
    assert ask(client, normalize=True, use_activation=True).status_code == 200
    assert refusal(ask(client, normalize=True, use_activation=False))["param"] == "use_activation"


def test_tokens_of_another_tokenizer_are_refused_by_their_field(client: Client, base: BasePack) -> None:
    for given in ([5, base.model.vocab_size], [[5], [base.model.vocab_size]]):
        error = refusal(ask(client, input=given))
        assert error["param"] == "input"
        assert "send texts" in error["message"]


def test_an_encoder_generates_nothing_and_says_what_it_does(client: Client) -> None:
    for path, body in (
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
    ):
        error = refusal(client.post(path, {"model": BASE, **body}))
        assert "/v1/embeddings" in error["message"]
        assert error["code"] == "unsupported_model"


def test_a_decoder_gives_no_embeddings_and_says_what_it_does(base: BasePack) -> None:
    error = refusal(ask(Client(service(base, FakeEngine()))))
    assert "/v1/completions" in error["message"]
