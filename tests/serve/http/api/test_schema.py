"""Every route against its description: requests that fit it and requests that do not, made by schemathesis.

Whatever comes, the answer is one that the description declares, of a declared type and shape, and no failure of the service
but a 503 that says when to come again.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from fedlora.exported.profiles import Profile
from fedlora_serve.limits import Limits
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.core.result import Ok
from schemathesis.generation import GenerationMode
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.serve.http.own_server import served
from tests.serve.http.real_services import ADMIN_KEY, WEB_KEY, opened

CHECKS = [
    content_type_conformance, response_headers_conformance, response_schema_conformance, status_code_conformance,
]  # fmt: skip
LIMITS = Limits(max_tokens=16, unload_timeout_s=0.5)
NAMES = ["base", "one", "two", "none"]
# Where a body or a path has one of these, some requests take a value that means something.
KNOWN: dict[str, list[Any]] = {
    "model": NAMES, "name": NAMES, "lora_name": ["base", "none", "three", "team/four"],
    "lora_path": ["adapter-0", "adapter-3", "none", "../adapter-0"],
    "prompt": ["ab", [1, 2], ["a", "b"]], "input": ["ab", [1, 2], ["a", "b"]],
    "messages": [[{"role": "user", "content": "Hi"}], [{"role": "secret", "content": "Hi"}]],
    "max_tokens": [1, 16], "max_completion_tokens": [None], "n": [1, 2], "best_of": [None], "stream_options": [None],
    "top_logprobs": [None], "dimensions": [None], "logprobs": [None], "min_tokens": [None, 1],
    "stop_token_ids": [None, [1]], "adapters": [None, [{"name": "one", "weight": 0.5}, {"name": "two"}]],
}  # fmt: skip
KEYS = [ADMIN_KEY] * 6 + [WEB_KEY, "nobody"]

Statuses = dict[str, Counter[int]]  # of each route


@pytest.fixture
def decoder_url(folders: dict[Profile, Path], adapter_folder: Path) -> Iterator[str]:
    adapters = {name: str(adapter_folder / f"adapter-{number}") for number, name in enumerate(("one", "two"))}
    options: dict[str, Any] = {"adapter_folder": str(adapter_folder), "limits": LIMITS, "adapter_memory": "1MiB"}
    with opened(folders["kernel"], adapters=adapters, **options) as state, served(state) as (host, port):
        yield f"http://{host}:{port}"


@pytest.fixture
def encoder_url(encoder_model: Path) -> Iterator[str]:
    with opened(encoder_model, limits=LIMITS) as state, served(state) as (host, port):
        yield f"http://{host}:{port}"


def answered(url: str, examples: int, *, only: str = "") -> Statuses:
    """Ask each route, or `only` one, so many times; fails at the first answer that is not as described."""
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    statuses: Statuses = defaultdict(Counter)
    for result in schema.get_all_operations():
        assert isinstance(result, Ok)
        operation = result.ok()
        if only in ("", operation.path):
            ask(operation, examples, statuses[operation.label])
    return statuses


def ask(operation: APIOperation[Any, Any, Any, Any], examples: int, statuses: Counter[int]) -> None:
    varies = bool(operation.body or operation.path_parameters)

    @settings(
        max_examples=examples if varies else max(examples // 5, 10),  # else nothing but the key differs
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.data())
    def each(data: st.DataObject) -> None:
        chance = data.draw(st.randoms(use_true_random=True))  # evenly, which hypothesis does not do
        mode = GenerationMode.NEGATIVE if varies and chance.random() < 0.4 else GenerationMode.POSITIVE
        case = data.draw(operation.as_strategy(generation_mode=mode))
        # By what is sent: hypothesis draws few different seeds, and then few different keys and names.
        chance = random.Random(repr((chance.random(), case.body, case.path_parameters)))
        if chance.random() < 0.7:
            sent: tuple[Any, ...] = (case.body, case.path_parameters)
            for values in sent:
                for name in sorted(values.keys() & KNOWN.keys()) if isinstance(values, dict) else ():
                    values[name] = chance.choice(KNOWN[name])
        response = case.call(headers={"Authorization": f"Bearer {chance.choice(KEYS)}"}, timeout=30)
        statuses[response.status_code] += 1
        if response.status_code >= 500:
            assert response.status_code == 503, response.text
            assert int(response.headers["retry-after"][0]) > 0
        case.validate_response(response, checks=CHECKS)

    each()


CLASSIFIES = {"POST /v1/classify", "POST /classify"}  # which no base of these does


def check(statuses: Statuses, *, refused: AbstractSet[str] = frozenset()) -> None:
    """Each route was asked for something that it did, but those that this base never does."""
    for route, counts in statuses.items():
        assert any(status < 300 for status in counts) != (route in refused), (route, counts)


def test_every_answer_of_a_decoder_is_as_its_description_says(decoder_url: str) -> None:
    check(answered(decoder_url, 35), refused={"POST /v1/embeddings", *CLASSIFIES})


def test_every_embedding_of_an_encoder_is_as_its_description_says(encoder_url: str) -> None:
    check(answered(encoder_url, 60, only="/v1/embeddings"))


@pytest.mark.slow
def test_every_answer_is_as_described_for_many_more_requests(decoder_url: str, encoder_url: str) -> None:
    generates = {"POST /v1/completions", "POST /v1/chat/completions"}
    loads = {f"POST /v1/{verb}_lora_adapter" for verb in ("load", "unload")}
    pins = {f"POST /v1/adapters/{{name}}/{verb}" for verb in ("pin", "unpin")}
    check(answered(decoder_url, 1000), refused={"POST /v1/embeddings", *CLASSIFIES})
    check(answered(encoder_url, 200), refused=generates | loads | pins | CLASSIFIES)
