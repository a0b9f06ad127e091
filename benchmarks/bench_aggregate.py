"""What does aggregating a round cost, and how does that grow with the number of clients?

    python benchmarks/bench_aggregate.py

Three routes over the same random adapters of rank 16, at the shapes of a 135M and of a 1B model, for 10, 100 and 1000
clients: ours (bytes in, decoded, checked, added, the round's error and result out), flwr's `FedAvg.aggregate_train`
(messages in, arrays out), and the dense reference of `svd` (form each product, add, `numpy.linalg.svd` of each sum). The
time is that of aggregating; making the clients is not counted, and they come one at a time where the route lets them. A
peak is what Python's allocations (tracemalloc) reached above the start, in adapters, with the replies that are there at a
time (ours: one; flwr: all). A
route that keeps every client, or a dense matrix per module, sees as many of the model's layers as fit; all routes of a row
see the same. The limit is a plain in-order read-and-add of the same bytes. Medians of the repeats; routes take turns. The
last line is one JSON object: speeds are the lowest over clients and shapes, the peak is the highest.
"""

from __future__ import annotations

import argparse
import logging
import math
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from fedlora.lora.adapter import Adapter
from fedlora.wire.update import decode_update
from fedlora_server.aggregation.aggregation import Aggregation
from fedlora_server.checks import Expectation
from fedlora_server.means.ring_sums import give_back_spare
from flwr.app import Message
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity

from aggregate.clients import BASE, RANK, RUN, SHAPES, Clients
from harness.record import record

COUNTS = (10, 100, 1000)
REPEATS = {10: 5, 100: 3, 1000: 1}
# Of clients, for routes that keep all of them.
MOST_BYTES = 3 << 30
SVD_LAYERS = {"135M": 3, "1B": 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=COUNTS, help="how many  [default: 10 100 1000]")
    counts: list[int] = parser.parse_args().clients
    logging.getLogger("flwr").setLevel(logging.ERROR)
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1  # a message must come from somewhere
    figures = fedavg_table(counts) | svd_table(counts)
    configuration = {"clients": counts, "rank": 16, "svd layers": SVD_LAYERS, "most bytes of clients": MOST_BYTES}
    record("aggregate", configuration, figures)


def fedavg_table(counts: list[int]) -> dict[str, float]:
    print("\nfedavg, milliseconds a round\n")
    print(
        "| shape | layers | clients | ours | flwr | limit | flwr / ours | limit / ours | peak, adapters: ours | flwr |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    speeds, shares, peaks = [], [], []
    for shape in SHAPES:
        for count in counts:
            layers = min(shape.layers, max(1, int(MOST_BYTES / count / Clients(shape, 1).adapter_bytes)))
            clients = Clients(shape, layers)
            seconds = medians(clients, count, REPEATS.get(count, 1))
            own, theirs = (peak / clients.adapter_bytes for peak in peaks_bytes(clients, count))
            speeds.append(seconds["flwr"] / seconds["ours"])
            shares.append(seconds["limit"] / seconds["ours"])
            peaks.append(own)
            cells = [shape.name, layers, count, *(f"{seconds[route] * 1e3:.1f}" for route in ROUTES)]
            cells += [f"x{speeds[-1]:.2f}", f"{shares[-1]:.2f}", f"{own:.2f}", f"{theirs:.1f}"]
            print("|", " | ".join(map(str, cells)), "|", flush=True)
    return {
        "fedavg_speed_vs_flwr": round(min(speeds), 2),
        "fedavg_peak_adapters": round(max(peaks), 2),
        "fold_share_of_limit": round(min(shares), 3),
    }


def svd_table(counts: list[int]) -> dict[str, float]:
    print("\nsvd, seconds a round\n")
    print("| shape | layers | clients | ours | dense | dense / ours | distance from the mean: ours / the optimum |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    speeds: dict[int, list[float]] = {}
    for shape in SHAPES:
        for count in counts:
            layers = SVD_LAYERS[shape.name]
            clients = Clients(shape, layers)
            times: dict[str, list[float]] = {"ours": [], "dense": []}
            for _ in range(REPEATS.get(count, 1)):
                fast, slow = ours(clients, "svd", clients.updates(count)), dense(clients, count)
                times["ours"].append(fast.seconds)
                times["dense"].append(slow.seconds)
            seconds = {route: statistics.median(values) for route, values in times.items()}
            speeds.setdefault(count, []).append(seconds["dense"] / seconds["ours"])
            cells = [shape.name, layers, count, *(f"{value:.3f}" for value in seconds.values())]
            cells += [f"x{speeds[count][-1]:.1f}", f"{distance(fast.adapter, slow) / slow.optimum:.6f}"]
            print("|", " | ".join(map(str, cells)), "|", flush=True)
    figures = {"svd_speed_vs_dense": round(min(min(values) for values in speeds.values()), 1)}
    return figures | ({"svd_speed_vs_dense_n10": round(min(speeds[10]), 1)} if 10 in speeds else {})


@dataclass(frozen=True)
class Aggregated:
    """What a route took, and what it made."""

    seconds: float
    adapter: Adapter


@dataclass(frozen=True)
class Reference:
    seconds: float
    means: dict[str, np.ndarray]  # {module: [O, I]}
    optimum: float  # the distance of the best rank-16 matrices from them, over all modules


class Clock:
    """Adds up the time inside its blocks."""

    seconds = 0.0

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *exception: object) -> None:
        self.seconds += time.perf_counter() - self._started


def ours(clients: Clients, method: str, replies: Iterable[bytes]) -> Aggregated:
    """What the server does with the replies of a round."""
    clock = Clock()
    aggregation = Aggregation(clients.config(method), clients.first)  # once a run
    with clock:
        this = aggregation.round(aggregation.start(), 1)
        expectation = Expectation(run=RUN, server_round=1, base_fingerprint=BASE, adapter=this.down.adapter)
    for data in replies:
        with clock:
            update = decode_update(data)
            expectation.check(update)
            this.add(update.adapter, update.num_examples)
        del update
    with clock:
        committed = aggregation.committed(this.result())
        this.error(committed)
    return Aggregated(clock.seconds, committed)


def flowers(messages: list[Message]) -> float:
    clock = Clock()
    with clock:
        FedAvg().aggregate_train(1, messages)
    return clock.seconds


def limit(clients: Clients, count: int) -> float:
    """total += numbers, over the same bytes."""
    total, clock = np.zeros(clients.adapter_bytes // 4, np.float32), Clock()
    for data in clients.updates(count):
        numbers = np.frombuffer(data, np.float32, len(total), len(data) - clients.adapter_bytes)
        with clock:
            np.add(total, numbers, out=total)
    return clock.seconds


def dense(clients: Clients, count: int) -> Reference:
    """The weighted mean of the products, formed, and its singular value decomposition."""
    means = {module: np.zeros(dims, np.float32) for module, dims in clients.modules.items()}
    total, clock = sum(map(clients.examples, range(count))), Clock()
    for number in range(count):
        adapter, share = clients.adapter(number), np.float32(clients.examples(number) / total)
        with clock:
            for module, pair in adapter.pairs.items():
                scaling = np.float32(adapter.config.scaling_of(module))
                means[module] += (share * scaling * pair.lora_B) @ pair.lora_A
    squared = 0.0
    with clock:
        for mean in means.values():
            _, values, _ = np.linalg.svd(mean, full_matrices=False)
            squared += float(np.sum(np.square(values[RANK:], dtype=np.float64)))
    return Reference(clock.seconds, means, math.sqrt(squared))


def distance(adapter: Adapter, reference: Reference) -> float:
    """The Frobenius distance of the adapter's products from the means, over all modules."""
    squares = [
        np.sum(np.square(adapter.product(m).dense() - mean, dtype=np.float64)) for m, mean in reference.means.items()
    ]
    return math.sqrt(float(sum(squares)))


ROUTES: dict[str, Callable[[Clients, int], float]] = {
    "ours": lambda clients, count: ours(clients, "fedavg", clients.updates(count)).seconds,
    "flwr": lambda clients, count: flowers(clients.messages(count)),
    "limit": limit,
}


def medians(clients: Clients, count: int, repeats: int) -> dict[str, float]:
    """Seconds of each route; the routes take turns."""
    times: dict[str, list[float]] = {name: [] for name in ROUTES}
    for _ in range(repeats):
        for name, route in ROUTES.items():
            times[name].append(route(clients, count))
    return {name: statistics.median(values) for name, values in times.items()}


def peaks_bytes(clients: Clients, count: int) -> tuple[int, int]:
    """(ours, flwr's): the bytes allocated while aggregating, and those of the replies held at a time."""
    few = min(count, 10)
    replies, messages = list(clients.updates(few)), clients.messages(few)
    own = allocated_bytes(lambda: ours(clients, "fedavg", replies)) + clients.adapter_bytes
    return own, allocated_bytes(lambda: flowers(messages)) + count * clients.adapter_bytes


def allocated_bytes(work: Callable[[], object]) -> int:
    give_back_spare()
    tracemalloc.start()
    work()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


if __name__ == "__main__":
    main()
