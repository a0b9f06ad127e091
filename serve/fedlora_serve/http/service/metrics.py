"""What the service counts, as Prometheus reads it. Names are vLLM's, with `fedlora:` before them.

What happens (tokens, latencies, ends) is counted as it happens; what is (the queue, the caches, the adapters) is read when
somebody asks (`StatsCollector`). A label is never a text from a request: a model's name is one only once the model
was found, and at most `max_models` of them have series of their own; the others share "other", which is nobody's name: a
model that is called so is "'other'".
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fedlora_serve.adapters.store import AdapterStore
from fedlora_serve.batching.request import EngineStats, TextEngine

PREFIX = "fedlora:"
OTHER = "other"
JOINT = "+"  # between the names of adapters that answer together: in no name

_MODEL = ("model_name",)
_REASONS = ("stop", "length", "cancelled", "error")
# Seconds. A CPU takes 2 ms to 1 s for a token, and a long prompt minutes.
_FIRST_TOKEN_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640)
_BETWEEN_TOKENS_S = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 10)
_REQUEST_S = (0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960)
_MAX_NAMES = 64  # of adapters, in one label


@dataclass(frozen=True, slots=True)
class _Series:
    """The series of one model."""

    first_token: Histogram
    between_tokens: Histogram
    latency: Histogram
    prompt_tokens: Counter
    generation_tokens: Counter
    ended: dict[str, Counter]  # {reason: answers}


class Metrics:
    """What a service has counted since it started. Safe to call from any thread."""

    def __init__(self, base_name: str, *, max_models: int = 64, max_combinations: int = 16) -> None:
        self.registry = CollectorRegistry()
        self._base_name, self._max_models, self._max_combinations = base_name, max_models, max_combinations
        self._lock = threading.Lock()
        self._histograms = [
            self._histogram("time_to_first_token_seconds", "From a request to its first token.", _FIRST_TOKEN_S),
            self._histogram(
                "inter_token_latency_seconds", "From one token of an answer to its next.", _BETWEEN_TOKENS_S
            ),
            self._histogram("e2e_request_latency_seconds", "From a request to the end of its answer.", _REQUEST_S),
        ]
        self._counters = [
            self._counter("prompt_tokens", "Tokens of prompts that were answered."),
            self._counter("generation_tokens", "Tokens of answers."),
        ]
        self._ended = self._counter("request_success", "Answers that ended, by what ended them.", "finished_reason")
        self._responses = Counter(
            f"{PREFIX}http_requests",
            "HTTP requests, by the status of their answer.",
            ("status",),
            registry=self.registry,
        )
        self._others = self._new_series(OTHER)
        self._by_model = {base_name: self._new_series(_label(base_name))}

    def request_started(self, model: str) -> None:
        """An answer of a model that was found is wanted: it may have series of its own.

        Adapters that answer together have series by their names, with a + between them, and places of their own: whoever
        tries many combinations takes none from the adapters.
        """
        with self._lock:
            if model in self._by_model:
                return
            combinations = sum(map(self._is_joint, self._by_model))
            singles = len(self._by_model) - combinations - 1  # beside the base
            has_place = combinations < self._max_combinations if self._is_joint(model) else singles < self._max_models
            if has_place:
                self._by_model[model] = self._new_series(_label(model))

    def first_token(self, model: str, seconds: float) -> None:
        self._series(model).first_token.observe(seconds)

    def token(self, model: str, seconds_since_last: float) -> None:
        self._series(model).between_tokens.observe(seconds_since_last)

    def request_finished(
        self, model: str, reason: str, seconds: float, prompt_tokens: int, completion_tokens: int
    ) -> None:
        """An answer has ended; `reason` is a FinishReason, anything else counts as "error". A prompt to which nothing was
        answered does not count."""
        series = self._series(model)
        series.latency.observe(seconds)
        series.prompt_tokens.inc(prompt_tokens if completion_tokens else 0)
        series.generation_tokens.inc(completion_tokens)
        series.ended.get(reason, series.ended["error"]).inc()

    def embedded(self, model: str, seconds: float, prompt_tokens: int) -> None:
        """Texts have their vectors."""
        series = self._series(model)
        series.latency.observe(seconds)
        series.prompt_tokens.inc(prompt_tokens)
        series.ended["stop"].inc()

    def http_response(self, status: int) -> None:
        self._responses.labels(str(status)).inc()

    def add(self, collector: Collector) -> None:
        """Read `collector` too, whenever somebody asks."""
        self.registry.register(collector)

    def forget(self, model: str) -> None:
        """An adapter was unloaded: its series go, and those of its combinations; others may have theirs."""
        with self._lock:
            gone = [
                each
                for each in self._by_model
                if each == model or (self._is_joint(each) and model in each.split(JOINT))
            ]
            for known in gone:
                del self._by_model[known]
                label = _label(known)
                for metric in (*self._histograms, *self._counters):
                    metric.remove(label)
                for reason in _REASONS:
                    self._ended.remove(label, reason)

    def text(self) -> bytes:
        """All of it, in Prometheus's text format."""
        return generate_latest(self.registry)

    def _is_joint(self, model: str) -> bool:
        """Whether it is several adapters; the base is called as its folder, which may have a + in its name."""
        return JOINT in model and model != self._base_name

    def _series(self, model: str) -> _Series:
        """Those of a model whose answers still come after it was forgotten are the others'."""
        return self._by_model.get(model, self._others)

    def _new_series(self, label: str) -> _Series:
        first, between, latency = (histogram.labels(label) for histogram in self._histograms)
        prompt, generation = (counter.labels(label) for counter in self._counters)
        ended = {reason: self._ended.labels(label, reason) for reason in _REASONS}
        return _Series(first, between, latency, prompt, generation, ended)

    def _histogram(self, name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(PREFIX + name, what, _MODEL, buckets=buckets, registry=self.registry)

    def _counter(self, name: str, what: str, *labels: str) -> Counter:
        return Counter(PREFIX + name, what, (*_MODEL, *labels), registry=self.registry)


def _label(model: str) -> str:
    """A name has no quotes: none comes to be another's label."""
    return f"'{model}'" if model == OTHER else model


class StatsCollector(Collector):
    """Reads an engine, where the base has one, and a store."""

    def __init__(
        self, base_name: str, store: AdapterStore, engine: TextEngine | None, clock: Callable[[], float] = time.time
    ) -> None:
        self._base_name, self._store, self._engine, self._clock = base_name, store, engine, clock

    def describe(self) -> Iterable[Metric]:
        return ()  # the names do not clash; without this, registering would collect

    def collect(self) -> Iterator[Metric]:
        if self._engine is not None:
            yield from self._of_engine(self._engine.stats())
        stats = self._store.stats()
        yield self._gauge("adapters_loaded", "Names of adapters.", stats.loaded)
        yield self._gauge("adapters_resident", "Adapters whose values are in memory.", stats.resident)
        yield self._gauge("adapter_cache_bytes", "Memory of adapters.", stats.resident_bytes)
        yield self._gauge("adapter_cache_max_bytes", "Memory that adapters may take.", stats.budget_bytes)
        yield self._counter("adapter_cache_queries", "Adapters that were asked for.", stats.lookups)
        yield self._counter("adapter_cache_hits", "And were in memory.", stats.hits)
        yield self._counter("adapter_cache_evictions", "Adapters that made room for others.", stats.evictions)

    def _of_engine(self, stats: EngineStats) -> Iterator[Metric]:
        yield self._gauge("num_requests_running", "Answers in the batch.", stats.running)
        yield self._gauge("num_requests_waiting", "Requests in the queue.", stats.waiting)
        yield self._gauge("num_requests_max", "Answers that fit into a batch.", stats.rows)
        yield self._gauge("kv_cache_bytes", "Memory of keys and values.", stats.cache_bytes)
        yield self._gauge("kv_cache_max_bytes", "Memory that keys and values may take.", stats.cache_budget_bytes)
        share = stats.cache_bytes / stats.cache_budget_bytes if stats.cache_budget_bytes else 0.0
        yield self._gauge("kv_cache_usage_perc", "The one over the other; 1 is full.", share)
        yield self._counter("prefix_cache_queries", "Tokens of prompts that were looked for.", stats.prefix_lookups)
        yield self._counter("prefix_cache_hits", "And whose keys and values were there.", stats.prefix_hits)
        info = GaugeMetricFamily(
            f"{PREFIX}lora_requests_info",
            "Adapters of running and of waiting requests; the value is the time.",
            labels=("max_lora", "running_lora_adapters", "waiting_lora_adapters"),
        )
        running, waiting = _names(stats.running_adapters), _names(stats.waiting_adapters)
        info.add_metric((str(stats.rows), running, waiting), self._clock())
        yield info

    def _gauge(self, name: str, what: str, value: float) -> Metric:
        family = GaugeMetricFamily(PREFIX + name, what, labels=("model_name",))
        family.add_metric((self._base_name,), value)
        return family

    def _counter(self, name: str, what: str, value: float) -> Metric:
        family = CounterMetricFamily(PREFIX + name, what, labels=("model_name",))
        family.add_metric((self._base_name,), value)
        return family


def _names(adapters: dict[str, int]) -> str:
    return ",".join(sorted(adapters)[:_MAX_NAMES])
