"""What do sums that do not depend on the order cost?

    python benchmarks/bench_order.py

A round of `fedavg` over the same random adapters of rank 16, by two routes: the server's, whose sums are integers, and its
peer with float32 sums (`aggregate/float_sums.py`), which gives other last bits when updates arrive in another order. Both
take bytes, decode, check and add them, and make the adapter and the round's error. The cost is the ratio of their times;
the routes take turns, and a figure is the median of the ratios of neighbouring runs. Times are those that the process had a
processor for: other work on the machine changes them less than a clock's. The last line is one JSON object, with the
highest cost of all rows.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from fedlora.lora.adapter import Adapter
from fedlora.wire.update import decode_update
from fedlora_server.aggregation.aggregation import Aggregation
from fedlora_server.checks import Expectation
from threadpoolctl import threadpool_limits

from aggregate.clients import BASE, RUN, SHAPES, Clients
from aggregate.float_sums import FloatRound
from harness.record import record

COUNTS = (10, 30)
REPLIES = 10  # that are in memory; more clients send them again
PAIRS = 9

Replies = Callable[[], Iterable[bytes]]


@dataclass(frozen=True)
class Cost:
    """Milliseconds a round, and the median of their ratios."""

    order_free_ms: float
    float_ms: float
    ratio: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=COUNTS, help="how many  [default: 10 30]")
    parser.add_argument("--pairs", type=int, default=PAIRS, help=f"how often the routes take turns  [default: {PAIRS}]")
    arguments = parser.parse_args()
    print("\nfedavg, milliseconds a round\n")
    print("| shape | clients | integers | float32 | integers / float32 |")
    print("|---|--:|--:|--:|--:|")
    costs: dict[str, list[float]] = {}
    for shape in SHAPES:
        clients = Clients(shape, shape.layers)
        for count in arguments.clients:
            cost = order_free_cost(clients, count, arguments.pairs)
            costs.setdefault(shape.name, []).append(cost.ratio)
            cells = [shape.name, count, f"{cost.order_free_ms:.1f}", f"{cost.float_ms:.1f}", f"x{cost.ratio:.2f}"]
            print("|", " | ".join(map(str, cells)), "|", flush=True)
    figures = {f"order_free_cost_{name}": round(max(ratios), 3) for name, ratios in costs.items()}
    record(
        "order",
        {"clients": arguments.clients, "pairs": arguments.pairs, "rank": 16},
        {"order_free_cost": max(figures.values()), **figures},
    )


def order_free_cost(clients: Clients, count: int = 10, pairs: int = PAIRS) -> Cost:
    """Of a round with so many clients."""
    few = list(clients.updates(min(count, REPLIES)))
    replies = [few[number % len(few)] for number in range(count)]
    ours(clients, replies), floats(clients, replies)  # what is done once: the kernel is loaded
    with threadpool_limits(1, "blas"):  # threads that wait for each other would be counted, too
        times = [(ours(clients, replies), floats(clients, replies)) for _ in range(pairs)]
    own, theirs = (statistics.median(route) * 1e3 for route in zip(*times, strict=True))
    return Cost(own, theirs, statistics.median(one / other for one, other in times))


def ours(clients: Clients, replies: Iterable[bytes]) -> float:
    """Seconds of the server's round."""
    aggregation = Aggregation(clients.config("fedavg"), clients.first)  # once a run
    begun = time.process_time()
    this = aggregation.round(aggregation.start(), 1)
    for adapter, num_examples in _sound(clients.first, replies):
        this.add(adapter, num_examples)
    committed = aggregation.committed(this.result())
    this.error(committed)
    return time.process_time() - begun


def floats(clients: Clients, replies: Iterable[bytes]) -> float:
    """Seconds of its peer's."""
    config = clients.config("fedavg")
    begun = time.process_time()
    this = FloatRound(clients.first, config.aggregation.max_weight, np.random.default_rng([config.seed, 1, 2]))
    for adapter, num_examples in _sound(clients.first, replies):
        this.add(adapter, num_examples)
    this.error(this.result())
    return time.process_time() - begun


def _sound(down: Adapter, replies: Iterable[bytes]) -> Iterable[tuple[Adapter, int]]:
    """What both do with every reply."""
    expectation = Expectation(run=RUN, server_round=1, base_fingerprint=BASE, adapter=down)
    for data in replies:
        update = decode_update(data)
        expectation.check(update)
        yield update.adapter, update.num_examples


if __name__ == "__main__":
    main()
