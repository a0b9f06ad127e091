"""How much longer the aggregation of a round takes because its sums do not depend on the order."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
from fedlora.lora.adapter import Adapter
from fedlora.wire.update import decode_update
from fedlora_server.means.weighted_sum import FactorMean

from aggregate.clients import SHAPES, Clients
from bench_aggregate import ours

CLIENTS = 10


def order_free_cost(repeats: int) -> float:
    """(seconds of a round's aggregation) / (those with sums in float32, in the order of arrival) - 1, for fedavg, 135M."""
    shape = next(shape for shape in SHAPES if shape.name == "135M")
    clients = Clients(shape, shape.layers)
    taken: dict[str, list[float]] = {"round": [], "ring": [], "plain": []}
    for _ in range(repeats + 1):
        taken["round"].append(ours(clients, "fedavg", clients.updates(CLIENTS)).seconds)
        adapters = [decode_update(data).adapter for data in clients.updates(CLIENTS)]
        taken["ring"].append(_seconds(lambda some=adapters: _ring_mean(clients.first, some)))  # type: ignore[misc]
        taken["plain"].append(_seconds(lambda some=adapters: _plain_mean(some)))  # type: ignore[misc]
        del adapters
    seconds = {name: statistics.median(values[1:]) for name, values in taken.items()}  # the first one warms up
    return share_of_round(seconds["round"], seconds["ring"], seconds["plain"])


def share_of_round(round_s: float, ring_s: float, plain_s: float) -> float:
    """How much longer a round of `round_s`, `ring_s` of them sums, is than one with sums of `plain_s`."""
    return round_s / (round_s - ring_s + plain_s) - 1


def _ring_mean(like: Adapter, adapters: list[Adapter]) -> None:
    mean = FactorMean(like)
    for weight, adapter in enumerate(adapters, 1):
        mean.add(adapter, weight)
    mean.mean()


def _plain_mean(adapters: list[Adapter]) -> None:
    sums: dict[tuple[str, str], np.ndarray] = {}
    for weight, adapter in enumerate(adapters, 1):
        for module, pair in adapter.pairs.items():
            for factor, array in (("A", pair.lora_A), ("B", pair.lora_B)):
                if (module, factor) in sums:
                    sums[module, factor] += np.float32(weight) * array
                else:
                    sums[module, factor] = np.float32(weight) * array
    total = np.float32(sum(range(1, len(adapters) + 1)))
    for array in sums.values():
        array /= total


def _seconds(what: Callable[[], None]) -> float:
    started = time.perf_counter()
    what()
    return time.perf_counter() - started
