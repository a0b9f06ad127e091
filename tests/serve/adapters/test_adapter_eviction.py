"""The budget of an adapter store: who goes, who stays, and how it comes back."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
from fedlora.base.pack import BasePack
from fedlora.errors import (
    AdapterError,
    AdapterStoreFullError,
    UnknownAdapterError,
)
from fedlora.row_lora.layout import LayoutDtype
from fedlora_serve.adapters.cache import CachedAdapter
from fedlora_serve.adapters.loading import LoadedAdapter
from fedlora_serve.adapters.store import AdapterStore

from tests.serve.adapters.fake_source import (
    NO_BASE,
    UNIT,
    FakeSource,
    content_of,
    filled,
    inputs_of,
    residents,
    seed_of,
    status_of,
    store_of,
)


def test_names_that_share_a_content_are_evicted_and_come_back_together(source: FakeSource) -> None:
    store = filled(source, "ab", budget=2)
    store.load("c", source.put("c", 1))  # as a
    store.load("d", source.put("d", 9, size=2))
    assert residents(store) == "d"
    store.lease("c").release()
    assert residents(store) == "ac"
    assert source.reads == {"a": 1, "b": 1, "c": 2, "d": 1}


def test_the_least_recently_used_is_evicted_first(source: FakeSource) -> None:
    store = filled(source, "abc", budget=3)
    store.lease("a").release()
    store.load("d", source.put("d", 9))
    assert residents(store) == "acd"
    store.load("e", source.put("e", 10, size=2))
    assert residents(store) == "de"
    assert store.stats().evictions == 3


def test_a_lease_counts_as_use_when_it_ends(source: FakeSource) -> None:
    store = filled(source, "ab", budget=2)
    lease = store.lease("a")
    store.lease("b").release()
    lease.release()
    store.load("c", source.put("c", 9))
    assert residents(store) == "ac"


def test_what_was_evicted_is_read_again_when_it_is_leased(source: FakeSource) -> None:
    store = filled(source, "ab", budget=1)
    assert residents(store) == "b"
    lease = store.lease("a")
    assert seed_of(lease.version) == 1
    assert (lease.version.number, residents(store)) == (1, "a")
    stats = store.stats()
    assert (stats.lookups, stats.hits, stats.evictions) == (1, 0, 2)
    store.lease("a").release()
    assert (store.stats().lookups, store.stats().hits) == (2, 1)


def test_a_source_that_has_changed_is_refused_and_can_be_loaded_again(source: FakeSource) -> None:
    store = filled(source, "ab", budget=1)
    source.put("a", 7)
    with pytest.raises(AdapterError, match=r"/adapters/a: .* the file changed since it was loaded; load it again"):
        store.lease("a")
    assert residents(store) == "b"
    assert store.load("a", Path("/adapters/a")).number == 2
    assert seed_of(store.lease("a").version) == 7


def test_a_source_that_is_gone_is_refused_with_its_path(source: FakeSource) -> None:
    store = filled(source, "ab", budget=1)
    del source.table["a"]
    with pytest.raises(AdapterError, match=r"cannot be read again: /adapters/a: no such file"):
        store.lease("a")


def test_what_is_in_use_or_pinned_is_not_evicted(source: FakeSource) -> None:
    store = filled(source, "abc", budget=3)
    lease = store.lease("a")
    store.pin("b")
    store.load("d", source.put("d", 9))
    assert residents(store) == "abd"
    with pytest.raises(AdapterStoreFullError) as caught:
        store.load("e", source.put("e", 10, size=2))
    message = str(caught.value)
    assert (
        f"an adapter of {2 * UNIT} bytes does not fit: of the budget of {3 * UNIT} bytes {2 * UNIT} must stay"
        in message
    )
    assert (
        "pinned: b; in use: a; wait until requests have ended, unpin or unload adapters, or raise the budget" in message
    )
    assert residents(store) == "abd"  # nothing was evicted in vain
    with pytest.raises(UnknownAdapterError):
        store.lease("e")
    lease.release()
    store.load("e", source.put("e", 10, size=2))
    assert residents(store) == "be"
    store.unpin("b")
    store.load("f", source.put("f", 11, size=3))
    assert residents(store) == "f"


def test_the_message_of_a_full_store_is_short_whatever_is_pinned(source: FakeSource) -> None:
    store = filled(source, "abcdefghijkl", budget=12)
    for name in "abcdefghijkl":
        store.pin(name)
    with pytest.raises(AdapterStoreFullError, match=r"pinned: a, b, c, d, e, f, g, h and 4 more; in use: none"):
        store.load("m", source.put("m", 99))


def test_a_lease_for_which_there_is_no_room_is_refused(source: FakeSource) -> None:
    store = filled(source, "ab", budget=1)
    lease = store.lease("b")
    with pytest.raises(AdapterStoreFullError, match="in use: b"):
        store.lease("a")
    lease.release()
    assert store.lease("a").version.name == "a"


def test_an_adapter_larger_than_the_whole_budget_evicts_nothing(source: FakeSource) -> None:
    store = filled(source, "ab", budget=2)
    with pytest.raises(AdapterStoreFullError):
        store.load("c", source.put("c", 9, size=3))
    assert residents(store) == "ab"


def test_a_version_that_nobody_uses_makes_room_for_the_next_even_if_it_was_pinned(source: FakeSource) -> None:
    store = filled(source, "ab", budget=2)
    store.pin("a")
    assert store.load("a", source.put("new", 9)).number == 2
    assert residents(store) == "ab"  # and b was not evicted for it
    assert store.stats().evictions == 0
    assert status_of(store, "a").pinned


def test_a_content_that_only_the_name_pinned_makes_room_for_the_names_next_version(source: FakeSource) -> None:
    store = store_of(source, budget=2)
    store.load("a", source.put("1", 1), pin=True)
    store.load("b", Path("/adapters/1"))
    assert store.load("a", source.put("2", 2, size=2)).number == 2
    assert residents(store) == "a"


def test_a_version_that_does_not_fit_leaves_the_old_one(source: FakeSource) -> None:
    store = filled(source, "a", budget=2)
    lease = store.lease("a")
    with pytest.raises(AdapterStoreFullError, match="in use: a"):
        store.load("a", source.put("new", 9, size=2))
    assert status_of(store, "a").number == 1
    lease.release()
    assert store.load("a", Path("/adapters/new")).number == 2


def test_a_pin_stays_with_the_name_until_it_is_taken_away(source: FakeSource) -> None:
    store = store_of(source, budget=2)
    store.load("a", source.put("1", 1), pin=True)
    store.load("a", source.put("2", 2))  # pin=False takes nothing away
    store.load("b", source.put("3", 3))
    store.load("c", source.put("4", 4))
    assert residents(store) == "ac"
    store.unpin("a")
    store.load("d", source.put("5", 5, size=2))
    assert residents(store) == "d"


def test_a_pin_brings_back_what_was_evicted(source: FakeSource) -> None:
    store = filled(source, "ab", budget=1)
    store.pin("a")
    assert residents(store) == "a"
    assert status_of(store, "a").users == 0
    with pytest.raises(AdapterStoreFullError, match="pinned: a"):
        store.lease("b")


def test_what_is_evicted_and_unloaded_is_forgotten(source: FakeSource) -> None:
    store = filled(source, "ab", budget=1)
    assert store.unload("a").wait(0)
    assert store.load("a", source.put("a", 1)).number == 1
    assert residents(store) == "a"


def test_values_that_are_evicted_replaced_or_unloaded_leave_the_memory() -> None:
    alive: list[weakref.ref[object]] = []

    def read(path: Path, base: BasePack, *, max_bytes: int, layout: LayoutDtype | None) -> LoadedAdapter:
        content = content_of(int(path.name))
        alive.extend(weakref.ref(value) for value in inputs_of(content.values).values())
        return content

    def living() -> int:
        return sum(ref() is not None for ref in alive) // 2  # an A and a B each

    def records() -> int:
        return sum(type(each) is CachedAdapter for each in gc.get_objects())

    gc.collect()  # what other tests left
    before = records()
    store = AdapterStore(NO_BASE, budget_bytes=2 * UNIT, read=read)
    for seed in range(5):
        store.load(f"name-{seed % 3}", Path(str(seed)))
        store.lease(f"name-{seed % 3}").release()
    assert living() == store.stats().resident == 2
    lease = store.lease("name-2")
    for status in store.list():
        store.unload(status.name)
    assert living() == 1
    lease.release()
    del lease
    assert living() == 0
    assert records() == before
