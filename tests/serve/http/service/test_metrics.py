"""What the service counts, and whether it is well."""

from __future__ import annotations

import pytest
from fedlora.base.pack import BasePack
from fedlora_serve.http.access.keys import ApiKey, Keys, key_digest
from fedlora_serve.http.api.metrics import CountResponses
from fedlora_serve.http.service.metrics import Metrics, StatsCollector
from fedlora_serve.http.transport.body_limit import BodyLimit
from prometheus_client.parser import text_string_to_metric_families

from tests.serve.http.fake_engine import FakeEngine
from tests.serve.http.services import BASE, Client, FakeEmbedder, service

WEB, TEAM = "web-key-0123456789", "team-key-0123456789"


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"fedlora:{name}", labels)


def models_of(metrics: Metrics) -> set[str]:
    families = text_string_to_metric_families(metrics.text().decode())
    return {
        sample.labels["model_name"] for family in families for sample in family.samples if "model_name" in sample.labels
    }


def test_an_answer_is_counted_with_its_tokens_and_its_times() -> None:
    metrics = Metrics("base")
    metrics.request_started("tone")
    metrics.first_token("tone", 0.2)
    for _ in range(3):
        metrics.token("tone", 0.01)
    metrics.request_finished("tone", "length", 0.5, prompt_tokens=7, completion_tokens=4)
    assert value(metrics, "prompt_tokens_total", model_name="tone") == 7
    assert value(metrics, "generation_tokens_total", model_name="tone") == 4
    assert value(metrics, "inter_token_latency_seconds_count", model_name="tone") == 3
    assert value(metrics, "time_to_first_token_seconds_sum", model_name="tone") == pytest.approx(0.2)
    assert value(metrics, "e2e_request_latency_seconds_bucket", model_name="tone", le="0.5") == 1
    assert value(metrics, "request_success_total", model_name="tone", finished_reason="length") == 1
    assert value(metrics, "request_success_total", model_name="base", finished_reason="length") == 0


def test_a_reason_that_nobody_knows_counts_as_an_error() -> None:
    metrics = Metrics("base")
    metrics.request_finished("base", "anything\n", 1, 1, 1)
    assert value(metrics, "request_success_total", model_name="base", finished_reason="error") == 1


def test_the_series_are_bounded_whatever_models_come() -> None:
    metrics = Metrics("base", max_models=3)
    for number in range(100):
        metrics.request_started(f"adapter-{number}")
        metrics.first_token(f"adapter-{number}", 0.1)
    assert models_of(metrics) == {"base", "other", "adapter-0", "adapter-1", "adapter-2"}
    assert value(metrics, "time_to_first_token_seconds_count", model_name="other") == 97


def test_an_adapter_that_is_forgotten_makes_room_for_another() -> None:
    metrics = Metrics("base", max_models=1)
    metrics.request_started("a")
    metrics.forget("a")
    metrics.forget("a")
    metrics.forget("never-seen")
    metrics.forget("other")
    metrics.request_started("b")
    assert models_of(metrics) == {"base", "other", "b"}


def test_combinations_have_places_of_their_own_and_go_with_any_of_their_adapters() -> None:
    metrics = Metrics("folder+b", max_models=1, max_combinations=2)
    for label in ("a+b", "a+c", "b+c", "a", "b"):
        metrics.request_started(label)
    assert models_of(metrics) == {"folder+b", "other", "a+b", "a+c", "a"}
    metrics.forget("b")
    assert models_of(metrics) == {"folder+b", "other", "a+c", "a"}


def test_what_still_comes_of_a_forgotten_adapter_is_counted_as_the_others_and_takes_no_place() -> None:
    metrics = Metrics("base", max_models=1)
    for number in range(3):
        metrics.request_started(f"a-{number}")
        metrics.forget(f"a-{number}")  # it was unloaded while a request used it
        metrics.request_finished(f"a-{number}", "stop", 1.0, prompt_tokens=2, completion_tokens=3)
    metrics.request_started("b")
    assert models_of(metrics) == {"base", "other", "b"}
    assert value(metrics, "generation_tokens_total", model_name="other") == 9


def test_a_prompt_to_which_nothing_was_answered_does_not_count() -> None:
    metrics = Metrics("base")
    metrics.request_finished("base", "cancelled", 1.0, prompt_tokens=1000, completion_tokens=0)
    assert value(metrics, "prompt_tokens_total", model_name="base") == 0


def test_a_request_for_an_unknown_model_makes_no_series(base: BasePack) -> None:
    state = service(base, FakeEngine())
    for path, extra in (
        ("completions", {"prompt": "a"}),
        ("chat/completions", {"messages": []}),
        ("embeddings", {"input": "a"}),
    ):
        assert Client(state).post(f"/v1/{path}", {"model": "stranger", **extra}).status_code in (400, 404)
    assert b"stranger" not in state.metrics.text()
    assert models_of(state.metrics) == {BASE, "other"}


def test_gauges_are_read_from_the_engine_and_the_store_when_somebody_asks(base: BasePack) -> None:
    state = service(base, FakeEngine(), adapters=["tone", "cook"])
    state.metrics.add(StatsCollector(BASE, state.store, state.engine, clock=lambda: 123.0))
    state.store.lease("tone")
    at = {"model_name": BASE}
    assert value(state.metrics, "num_requests_running", **at) == 0
    assert value(state.metrics, "kv_cache_usage_perc", **at) == pytest.approx(2**-10)
    assert value(state.metrics, "prefix_cache_queries_total", **at) == 100
    assert value(state.metrics, "prefix_cache_hits_total", **at) == 25
    assert value(state.metrics, "adapters_loaded", **at) == 2
    assert value(state.metrics, "adapter_cache_bytes", **at) == 200
    assert value(state.metrics, "adapter_cache_hits_total", **at) == 1
    adapters = {"max_lora": "16", "running_lora_adapters": "", "waiting_lora_adapters": ""}
    assert value(state.metrics, "lora_requests_info", **adapters) == 123.0


def test_without_an_engine_the_rest_is_told(base: BasePack) -> None:
    state = service(base, None)
    state.metrics.add(StatsCollector(BASE, state.store, None))
    assert value(state.metrics, "adapters_loaded", model_name=BASE) == 0
    assert value(state.metrics, "num_requests_running", model_name=BASE) is None


def test_metrics_are_texts_that_prometheus_reads(base: BasePack) -> None:
    response = Client(service(base, FakeEngine())).get("/metrics")
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    names = {family.name for family in text_string_to_metric_families(response.text)}
    assert names >= {"fedlora:time_to_first_token_seconds", "fedlora:request_success", "fedlora:generation_tokens"}


def test_metrics_name_all_adapters_so_they_need_a_key_for_all(base: BasePack) -> None:
    state = service(base, FakeEngine())
    state.keys = Keys(
        [ApiKey(name="web", digest=key_digest(WEB)), ApiKey(name="team", digest=key_digest(TEAM), models=("team",))]
    )
    statuses = [
        Client(state, **headers).get("/metrics").status_code
        for headers in ({}, {"Authorization": f"Bearer {TEAM}"}, {"Authorization": f"Bearer {WEB}"})
    ]
    assert statuses == [401, 403, 200]


def test_health_is_ok_until_the_engine_closes_or_dies(base: BasePack) -> None:
    for engine in (FakeEngine(), None):
        response = Client(service(base, engine)).get("/health")
        assert (response.status_code, response.json()["status"]) == (200, "ok")
    engine = FakeEngine()
    engine.close(0)
    response = Client(service(base, engine)).get("/health")
    assert (response.status_code, response.json()["status"]) == (503, "unavailable")
    assert "Retry-After" in response.headers


def test_every_answer_is_counted_by_its_status(base: BasePack) -> None:
    state = service(base, FakeEngine())
    client = Client(state)
    client._app = CountResponses(BodyLimit(client._app, state.limits), state.metrics)  # type: ignore[assignment]
    for path in ("/health", "/health", "/nowhere"):
        client.get(path)
    assert value(state.metrics, "http_requests_total", status="200") == 2
    assert value(state.metrics, "http_requests_total", status="404") == 1


def test_embeddings_are_counted_by_their_model(base: BasePack) -> None:
    state = service(base, None, embedder=FakeEmbedder(), adapters=["poet"])
    for model in ("poet", "poet", BASE):
        assert Client(state).post("/v1/embeddings", {"model": model, "input": ["ab", "c"]}).status_code == 200
    assert value(state.metrics, "prompt_tokens_total", model_name="poet") == 6
    assert value(state.metrics, "request_success_total", model_name="poet", finished_reason="stop") == 2
    assert value(state.metrics, "e2e_request_latency_seconds_count", model_name=BASE) == 1


def test_an_adapter_that_is_called_as_the_others_are_together_has_series_of_its_own() -> None:
    metrics = Metrics("base", max_models=1)
    for model in ("other", "beyond"):
        metrics.request_started(model)
        metrics.request_finished(model, "stop", 1, prompt_tokens=5, completion_tokens=1)
    assert models_of(metrics) == {"base", "other", "'other'"}
    assert value(metrics, "prompt_tokens_total", model_name="'other'") == 5
    assert value(metrics, "prompt_tokens_total", model_name="other") == 5
    metrics.forget("other")
    assert models_of(metrics) == {"base", "other"}
    metrics.request_started("third")
    metrics.request_finished("third", "stop", 1, prompt_tokens=2, completion_tokens=1)
    assert value(metrics, "prompt_tokens_total", model_name="third") == 2
