"""An adapter store, by many threads at a time."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path

import pytest
from fedlora.errors import AdapterError, AdapterStoreFullError, UnknownAdapterError
from fedlora.exported.inputs import digest_of
from fedlora_serve.adapters.leases import Lease
from fedlora_serve.adapters.single_flight import SingleFlight

from tests.serve.adapters.fake_source import UNIT, FakeSource, inputs_of, store_of

PATIENCE_S = 20.0  # how long a test waits for what comes at once


@pytest.fixture
def source() -> FakeSource:
    return FakeSource()


def together(count: int, call: Callable[[int], object]) -> list[object]:
    """What `call(i)` gives in `count` threads that begin at once, or what it raises."""
    barrier = threading.Barrier(count)

    def one(number: int) -> object:
        barrier.wait(PATIENCE_S)
        try:
            return call(number)
        except AdapterError as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


class Gate:
    """Holds the readings of one file until it is opened."""

    def __init__(self, source: FakeSource, file: str) -> None:
        self.reached, self._open = threading.Event(), threading.Event()

        def before(read: str) -> None:
            if read == file:
                self.reached.set()
                assert self._open.wait(PATIENCE_S)

        source.before = before

    def open(self) -> None:
        self._open.set()


def test_an_evicted_adapter_that_many_ask_for_is_read_once(source: FakeSource) -> None:
    store = store_of(source, budget=1)
    store.load("a", source.put("a", 1))
    store.load("b", source.put("b", 2))
    source.before = lambda _: time.sleep(0.05)  # long enough for all to come
    leases = together(8, lambda _: store.lease("a"))
    assert all(not isinstance(lease, AdapterError) for lease in leases)
    assert source.reads["a"] == 2
    (status,) = [status for status in store.list() if status.name == "a"]
    assert status.users == 8


def test_all_who_ask_for_an_adapter_that_cannot_be_read_are_told(source: FakeSource) -> None:
    store = store_of(source, budget=1)
    store.load("a", source.put("a", 1))
    store.load("b", source.put("b", 2))
    del source.table["a"]
    errors = together(6, lambda _: store.lease("a"))
    assert all("cannot be read again" in str(error) for error in errors)
    source.put("a", 1)
    assert store.lease("a").version.number == 1


def test_leases_go_on_while_a_file_is_read(source: FakeSource) -> None:
    store = store_of(source, budget=2)
    store.load("a", source.put("a", 1))
    gate = Gate(source, "b")
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(store.load, "b", source.put("b", 2))
        assert gate.reached.wait(PATIENCE_S)
        store.lease("a").release()
        assert store.stats().loaded == len(store.list()) == 1
        gate.open()
        assert loading.result(PATIENCE_S).number == 1


def test_of_two_loads_of_one_name_the_one_that_ends_last_has_it(source: FakeSource) -> None:
    store = store_of(source, budget=2)
    gate = Gate(source, "slow")
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(store.load, "a", source.put("slow", 1))
        assert gate.reached.wait(PATIENCE_S)
        assert store.load("a", source.put("fast", 2)).number == 1
        gate.open()
        assert slow.result(PATIENCE_S).number == 2
    assert store.lease("a").version.source == Path("/adapters/slow")
    assert source.reads == {"slow": 1, "fast": 1}


def test_a_load_that_must_not_replace_is_refused_where_another_came_first(source: FakeSource) -> None:
    store = store_of(source, budget=2)
    gate = Gate(source, "slow")
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(store.load, "a", source.put("slow", 1), replace=False)
        assert gate.reached.wait(PATIENCE_S)
        store.load("a", source.put("fast", 2))
        gate.open()
        with pytest.raises(AdapterError, match="loaded already"):
            slow.result(PATIENCE_S)
    assert store.lease("a").version.source == Path("/adapters/fast")


def test_a_lease_that_waits_for_a_reading_gets_the_version_that_was_loaded_meanwhile(source: FakeSource) -> None:
    store = store_of(source, budget=1)
    store.load("a", source.put("old", 1))
    store.load("b", source.put("b", 2))
    gate = Gate(source, "old")
    with ThreadPoolExecutor(1) as pool:
        lease = pool.submit(store.lease, "a")
        assert gate.reached.wait(PATIENCE_S)
        store.load("a", source.put("new", 3))
        gate.open()
        assert lease.result(PATIENCE_S).version.number == 2


@pytest.mark.parametrize("is_found", [True, False])
def test_a_lease_whose_source_has_changed_gets_the_version_that_was_loaded_of_it(
    source: FakeSource, is_found: bool
) -> None:
    store = store_of(source, budget=1)
    store.load("a", source.put("a", 1))
    store.load("b", source.put("b", 2))
    if is_found:
        source.put("a", 3)  # as the lease reads it, which expects 1
    else:
        del source.table["a"]
    gate = Gate(source, "a")
    with ThreadPoolExecutor(1) as pool:
        lease = pool.submit(store.lease, "a")
        assert gate.reached.wait(PATIENCE_S)
        store.load("a", source.put("new", 3))
        gate.open()
        assert lease.result(PATIENCE_S).version.number == 2


def test_a_name_that_is_unloaded_while_it_is_read_again_is_unknown(source: FakeSource) -> None:
    store = store_of(source, budget=1)
    store.load("a", source.put("a", 1))
    store.load("b", source.put("b", 2))
    gate = Gate(source, "a")
    with ThreadPoolExecutor(1) as pool:
        lease = pool.submit(store.lease, "a")
        assert gate.reached.wait(PATIENCE_S)
        store.unload("a")
        gate.open()
        with pytest.raises(UnknownAdapterError):
            lease.result(PATIENCE_S)
    assert store.stats().resident_bytes == UNIT


def test_an_unloading_waits_for_the_last_request(source: FakeSource) -> None:
    store = store_of(source, budget=2)
    store.load("a", source.put("a", 1))
    old = store.lease("a")
    store.load("a", source.put("new", 2))
    new = store.lease("a")
    unloading = store.unload("a")
    waiting = threading.Thread(target=unloading.wait, daemon=True)  # without a limit
    waiting.start()
    new.release()
    assert not unloading.wait(0.01)
    old.release()
    waiting.join(PATIENCE_S)
    assert not waiting.is_alive()
    assert store.stats().resident == 0


def test_whatever_a_shared_call_raises_reaches_all_and_is_not_remembered() -> None:
    flight: SingleFlight[int] = SingleFlight()

    def fail() -> int:
        time.sleep(0.02)
        raise AdapterError("no")

    assert [str(error) for error in together(4, lambda _: flight.do("k", fail))] == list(repeat("no", 4))
    assert flight.do("k", lambda: 1) == 1


def test_under_many_threads_the_budget_holds_and_a_lease_never_changes(source: FakeSource) -> None:
    """Loads, leases, unloads, pins and evictions of 8 names and 6 contents of three sizes, for two seconds."""
    budget = 6
    store = store_of(source, budget=budget)
    for seed in range(6):
        source.put(f"{seed}", seed + 1, size=1 + seed % 3)
    source.before = lambda _: time.sleep(random.random() * 0.001)
    digests = {f"{seed}": source.table[f"{seed}"].digest for seed in range(6)}
    end = time.monotonic() + 2
    counts = {"leased": 0, "full": 0, "unknown": 0}
    lock = threading.Lock()

    def check(lease: Lease) -> None:
        version = lease.version
        assert digests[version.source.name] == version.digest == digest_of(inputs_of(version.values))

    def play(number: int) -> None:
        dice, held, mine = random.Random(number), [], dict.fromkeys(counts, 0)
        while time.monotonic() < end:
            name, action = f"name-{dice.randrange(8)}", dice.random()
            try:
                if action < 0.6:
                    held.append(store.lease(name))
                    mine["leased"] += 1
                elif action < 0.85:
                    store.load(name, Path("/adapters") / str(dice.randrange(6)), pin=action > 0.84)
                elif action < 0.92:
                    store.unpin(name)
                elif action < 0.96:
                    store.unload(name)
                else:
                    assert all(status.users >= 0 for status in store.list())
            except AdapterStoreFullError:
                mine["full"] += 1
            except UnknownAdapterError:
                mine["unknown"] += 1
            assert store.stats().resident_bytes <= budget * UNIT
            if len(held) > dice.randrange(3):
                lease = held.pop(dice.randrange(len(held)))
                check(lease)
                lease.release()
        for lease in held:
            check(lease)
            lease.release()
        with lock:
            for key, count in mine.items():
                counts[key] += count

    assert together(6, play) == list(repeat(None, 6))
    assert all(counts.values()), counts
    assert store.stats().evictions > 0
    assert all(status.users == 0 for status in store.list())
    for status in store.list():
        assert store.unload(status.name).wait(0)
    left = store.stats()
    assert (left.loaded, left.resident, left.resident_bytes) == (0, 0, 0)
