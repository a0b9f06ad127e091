"""What it costs that a row takes another adapter of the store, and that a file becomes an adapter of the store."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

from fedlora.base.pack import BasePack
from fedlora.exported.inputs import digest_of, input_values
from fedlora.peft.directory import WEIGHTS
from fedlora.peft.for_base import adapter_of
from fedlora.row_lora.layout import adapter_layout
from fedlora_serve.adapters.loading import load_adapter
from fedlora_serve.adapters.store import AdapterStore

from serve.rows import RowsEngine


def measure_swap(
    engine: RowsEngine, adapters: list[str], rows: int, context: int, count: int, clock: Callable[[], float]
) -> dict[str, Any]:
    """Seconds of steps of `rows` rows, and of steps for which the last row first took an adapter that no row had.

    In turns. The other rows keep the first one. All of `adapters` are in the store; a swap leases one, tells the graph
    of it, and lets the one before go.
    """
    store = AdapterStore(engine.base, budget_bytes=8 << 30, layout="float32" if engine.lays_out_adapters else None)
    for path in adapters:
        store.load(Path(path).name, Path(path))
    engine.use(adapters[:1] * rows, "float32")
    taken = engine.graph.adapters
    others = cycle([Path(path).name for path in adapters[1:]])
    lease = store.lease(next(others))
    old, engine.adapters[-1] = engine.adapters[-1], lease.version
    if old:
        taken.leave(old)
    taken.join(lease.version)
    engine.at(context)
    engine.step()
    plain, swapped = [], []
    for _ in range(count):
        started = clock()
        engine.step()
        plain.append(clock() - started)
        before = lease
        started = clock()
        lease = store.lease(next(others))
        taken.join(lease.version)
        engine.adapters[-1] = lease.version
        engine.step()
        swapped.append(clock() - started)
        taken.leave(before.version)
        before.release()
    engine.use([], "float32")
    lease.release()
    return {"seconds": plain, "swapped": swapped}


def load_times(base: BasePack, path: Path, *, lays_out: bool, repeats: int) -> dict[str, list[float]]:
    """Seconds of each part of loading a PEFT directory that the page cache holds, and of loading it, as the store does."""
    adapter, _ = adapter_of(path, base)
    adapter_inputs, modules = input_values(adapter), base.shape.linear_modules()
    parts: dict[str, Callable[[], object]] = {
        "read": (path / WEIGHTS).read_bytes,
        "read and verify": lambda: adapter_of(path, base),
        "scale and transpose": lambda: input_values(adapter),
        "digest": lambda: digest_of(adapter_inputs),
        "lay out": lambda: adapter_layout(adapter_inputs, modules) if lays_out else None,
        "load": lambda: load_adapter(path, base, layout="float32" if lays_out else None),
    }
    found: dict[str, list[float]] = {part: [] for part in parts}
    for _ in range(repeats):
        for part, call in parts.items():
            started = time.perf_counter()
            call()
            found[part].append(time.perf_counter() - started)
    return found
