"""Adapters that are read from a table instead of a disk, and a store of them."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import cast

import numpy as np
from fedlora.base.pack import BasePack
from fedlora.errors import AdapterError, AdapterStoreFullError
from fedlora.exported.inputs import digest_of
from fedlora.row_lora.layout import LayoutDtype
from fedlora_serve.adapters.leases import AdapterStatus
from fedlora_serve.adapters.loading import AdapterValues, LoadedAdapter
from fedlora_serve.adapters.store import AdapterStore
from numpy.typing import NDArray

UNIT = 800  # bytes of an adapter of size 1
NO_BASE = cast(BasePack, None)  # a table needs none


def content_of(seed: int, size: int = 1) -> LoadedAdapter:
    """An adapter that is known by its seed, of `size` times UNIT bytes."""
    values = {
        "m.lora_A.weight": np.full((50 * size, 2), seed, np.float32),
        "m.lora_B.weight": np.full((2, 50 * size), -seed, np.float32),
    }
    for value in values.values():
        value.flags.writeable = False
    return LoadedAdapter(
        name=str(seed),
        source=Path(str(seed)),
        digest=digest_of(values),
        values=MappingProxyType(values),
        rank=2,
        size_bytes=UNIT * size,
    )


def inputs_of(values: AdapterValues) -> Mapping[str, NDArray[np.float32]]:
    """Values that are not laid out."""
    assert isinstance(values, Mapping)
    return values


def seed_of(version: LoadedAdapter) -> float:
    """By which `content_of` knows it."""
    return float(inputs_of(version.values)["m.lora_A.weight"][0, 0])


class FakeSource:
    """{file name: what is read from it}, and how often it was; `before` runs in each reading."""

    def __init__(self) -> None:
        self.table: dict[str, LoadedAdapter] = {}
        self.reads: Counter[str] = Counter()
        self.before: Callable[[str], None] = lambda _: None
        self._lock = threading.Lock()

    def put(self, file: str, seed: int, size: int = 1) -> Path:
        self.table[file] = content_of(seed, size)
        return Path("/adapters") / file

    def __call__(self, path: Path, base: BasePack, *, max_bytes: int, layout: LayoutDtype | None) -> LoadedAdapter:
        with self._lock:
            self.reads[path.name] += 1
        content = self.table.get(path.name)
        self.before(path.name)
        if content is None:
            raise AdapterError(f"{path}: no such file")
        if content.size_bytes > max_bytes:
            raise AdapterStoreFullError(f"{path}: {content.size_bytes} bytes")
        return content


class Clock:
    """A time that stands still until it is set."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def store_of(source: FakeSource, *, budget: int, clock: Clock | None = None, max_adapters: int = 100) -> AdapterStore:
    """A store with room for `budget` adapters of size 1."""
    return AdapterStore(
        NO_BASE, budget_bytes=budget * UNIT, max_adapters=max_adapters, clock=clock or Clock(), read=source
    )


def status_of(store: AdapterStore, name: str) -> AdapterStatus:
    (found,) = [status for status in store.list() if status.name == name]
    return found


def residents(store: AdapterStore) -> str:
    return "".join(status.name for status in store.list() if status.resident)


def filled(source: FakeSource, names: str, *, budget: int, clock: Clock | None = None) -> AdapterStore:
    """A store in which each letter of `names` is an adapter of size 1, from a file of its own."""
    store = store_of(source, budget=budget, clock=clock)
    for seed, name in enumerate(names):
        store.load(name, source.put(name, seed + 1))
    return store
