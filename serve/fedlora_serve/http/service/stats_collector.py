"""The gauges of `/metrics`: what the generator and the adapter store tell of themselves when somebody asks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fedlora_serve.adapters.store import AdapterStore
from fedlora_serve.batching.request import Generator, GeneratorStats
from fedlora_serve.http.service.metrics import PREFIX

_MAX_NAMES = 64  # of adapters, in one label


class StatsCollector(Collector):
    """Reads a generator, where the base has one, and a store."""

    def __init__(
        self, base_name: str, store: AdapterStore, generator: Generator | None, clock: Callable[[], float] = time.time
    ) -> None:
        self._base_name, self._store, self._generator, self._clock = base_name, store, generator, clock

    def describe(self) -> Iterable[Metric]:
        return ()  # the names do not clash; without this, registering would collect

    def collect(self) -> Iterator[Metric]:
        if self._generator is not None:
            yield from self._of_generator(self._generator.stats())
        stats = self._store.stats()
        yield self._gauge("adapters_loaded", "Names of adapters.", stats.loaded)
        yield self._gauge("adapters_resident", "Adapters whose values are in memory.", stats.resident)
        yield self._gauge("adapter_cache_bytes", "Memory of adapters.", stats.resident_bytes)
        yield self._gauge("adapter_cache_max_bytes", "Memory that adapters may take.", stats.budget_bytes)
        yield self._counter("adapter_cache_queries", "Adapters that were asked for.", stats.lookups)
        yield self._counter("adapter_cache_hits", "And were in memory.", stats.hits)
        yield self._counter("adapter_cache_evictions", "Adapters that made room for others.", stats.evictions)

    def _of_generator(self, stats: GeneratorStats) -> Iterator[Metric]:
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
