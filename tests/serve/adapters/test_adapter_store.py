"""An adapter store, by one thread: names, versions, leases, what it tells."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fedlora.base.pack import BasePack
from fedlora.errors import (
    AdapterError,
    AdapterExistsError,
    AdapterStoreFullError,
    ConfigError,
    UnknownAdapterError,
)
from fedlora.exported.inputs import input_values
from fedlora.peft.directory import PeftDirectory, write_peft
from fedlora.row_lora.layout import AdapterLayout, LayoutDtype
from fedlora_export.adapter_export import export_peft
from fedlora_serve.adapters.leases import AdapterStatus
from fedlora_serve.adapters.store import AdapterStore

from tests.serve.adapters.fake_source import (
    NO_BASE,
    UNIT,
    Clock,
    FakeSource,
    content_of,
    filled,
    inputs_of,
    seed_of,
    status_of,
    store_of,
)
from tests.tiny.adapters import random_adapter


def test_what_is_loaded_is_leased_as_it_was_read(base: BasePack, tmp_path: Path) -> None:
    adapter = random_adapter(base)
    write_peft(tmp_path / "peft", PeftDirectory(adapter=adapter, base_fingerprint=base.fingerprint))
    export_peft(tmp_path / "peft", tmp_path / "a.onnx_adapter")
    store = AdapterStore(base, budget_bytes=1 << 20)
    one = store.load("one", tmp_path / "peft")
    other = store.load("other", tmp_path / "a.onnx_adapter")
    assert (one.name, one.number, one.rank, one.source) == ("one", 1, 4, tmp_path / "peft")
    assert one.digest == other.digest
    lease = store.lease("one")
    assert lease.version is one
    assert all(
        np.array_equal(inputs_of(lease.version.values)[name], value) for name, value in input_values(adapter).items()
    )
    assert other.values is one.values
    assert store.stats().resident_bytes == one.size_bytes


@pytest.mark.parametrize(("layout", "width"), [("float32", 4), ("float16", 2)])
def test_a_store_for_the_kernel_lays_adapters_out_and_counts_that(
    base: BasePack, tmp_path: Path, layout: LayoutDtype, width: int
) -> None:
    write_peft(tmp_path / "peft", PeftDirectory(adapter=random_adapter(base), base_fingerprint=base.fingerprint))
    plain = AdapterStore(base, budget_bytes=1 << 20).load("a", tmp_path / "peft")
    store = AdapterStore(base, budget_bytes=1 << 20, layout=layout)
    version = store.load("a", tmp_path / "peft")
    assert isinstance(version.values, AdapterLayout)
    assert version.values.values.itemsize == width
    assert (version.digest, version.rank) == (plain.digest, plain.rank)
    assert version.size_bytes == version.values.size_bytes == store.stats().resident_bytes


def test_a_source_is_remembered_by_the_file_that_a_link_showed(base: BasePack, tmp_path: Path) -> None:
    for seed in (1, 2):
        content = PeftDirectory(adapter=random_adapter(base, seed=seed), base_fingerprint=base.fingerprint)
        write_peft(tmp_path / f"round-{seed}", content)
    (tmp_path / "newest").symlink_to("round-1")
    size = sum(value.nbytes for value in input_values(random_adapter(base)).values())
    store = AdapterStore(base, budget_bytes=size)  # room for one
    digest = store.load("a", tmp_path / "newest").digest
    (tmp_path / "newest").unlink()
    (tmp_path / "newest").symlink_to("round-2")
    store.load("b", tmp_path / "newest")
    assert not status_of(store, "a").resident
    assert store.lease("a").version.digest == digest


def test_a_new_version_is_leased_from_then_on_and_the_old_one_stays_as_it_is(source: FakeSource) -> None:
    store = store_of(source, budget=2)
    store.load("a", source.put("1", 1))
    old = store.lease("a")
    new = store.load("a", source.put("2", 2))
    assert new.number == 2
    assert store.lease("a").version is new
    assert old.version.number == 1
    assert seed_of(old.version) == 1
    assert status_of(store, "a").users == 2
    assert store.stats().resident_bytes == 2 * UNIT  # what is in use counts, under a name or not
    old.release()
    assert store.stats().resident_bytes == UNIT
    assert status_of(store, "a").users == 1


def test_the_same_content_under_the_same_name_is_no_new_version(source: FakeSource) -> None:
    clock = Clock()
    store = store_of(source, budget=1, clock=clock)
    first = store.load("a", source.put("1", 1))
    clock.now = 5
    again = store.load("a", source.put("copy", 1))
    assert (again.number, again.digest) == (1, first.digest)
    assert again.source == Path("/adapters/copy")
    assert status_of(store, "a").loaded_at == 0
    assert status_of(store, "a").source == Path("/adapters/copy")
    assert store.load("a", source.put("2", 2)).number == 2
    assert store.load("a", source.put("1", 1)).number == 3


def test_an_old_version_in_use_that_is_loaded_again_is_shared(source: FakeSource) -> None:
    store = store_of(source, budget=2)
    store.load("a", source.put("1", 1))
    lease = store.lease("a")
    store.load("a", source.put("2", 2))
    third = store.load("a", source.put("1", 1))
    assert third.number == 3
    assert third.values is lease.version.values
    assert store.stats().resident == 1


def test_one_content_under_several_names_is_counted_once(source: FakeSource) -> None:
    store = store_of(source, budget=1)
    one, other = store.load("a", source.put("1", 1)), store.load("b", source.put("2", 1))
    assert one.values is other.values
    assert (one.name, other.name) == ("a", "b")
    assert store.stats().resident_bytes == UNIT
    assert (store.stats().loaded, store.stats().resident) == (2, 1)
    store.unload("a")
    assert store.stats().resident_bytes == UNIT
    assert store.lease("b").version is other
    lease = store.lease("b")
    store.unload("b")
    assert store.stats().resident == 1
    lease.release()


def test_an_unloaded_name_is_gone_at_once_and_its_leases_last(source: FakeSource) -> None:
    store = filled(source, "a", budget=2)
    lease = store.lease("a")
    unloading = store.unload("a")
    with pytest.raises(UnknownAdapterError):
        store.lease("a")
    assert store.list() == ()
    assert not unloading.wait(0)
    assert seed_of(lease.version) == 1
    assert store.stats().resident_bytes == UNIT
    assert store.load("a", source.put("2", 2)).number == 1
    with pytest.raises(AdapterStoreFullError, match=r"in use: \(a version without a name\)"):
        store.load("b", source.put("3", 3, size=2))
    lease.release()
    assert unloading.wait(0)
    assert store.stats().resident_bytes == UNIT


def test_a_lease_that_is_released_twice_counts_once(source: FakeSource) -> None:
    store = filled(source, "a", budget=1)
    one, other = store.lease("a"), store.lease("a")
    one.release()
    one.release()
    assert status_of(store, "a").users == 1
    other.release()
    assert status_of(store, "a").users == 0


def test_a_lease_that_is_shared_is_one_user_until_the_last_part_is_released(source: FakeSource) -> None:
    store = filled(source, "a", budget=1)
    lease = store.lease("a")
    one, other = lease.share(), lease.share()
    assert one.version is lease.version
    lease.release()
    one.release()
    one.release()
    assert status_of(store, "a").users == 1
    part = other.share()
    other.release()
    assert status_of(store, "a").users == 1
    part.release()
    assert status_of(store, "a").users == 0


def test_an_unknown_name_is_refused_with_those_that_are_like_it(source: FakeSource) -> None:
    store = store_of(source, budget=1)
    store.load("billing-v1", source.put("1", 1))
    with pytest.raises(UnknownAdapterError, match="no adapter is called 'biling-v1'; did you mean billing-v1"):
        store.lease("biling-v1")
    for ask in (store.lease, store.unload, store.pin, store.unpin):
        with pytest.raises(
            UnknownAdapterError, match="no adapter is called 'x'; 1 are loaded, none with a name like it"
        ):
            ask("x")
    with pytest.raises(UnknownAdapterError) as caught:
        store.lease("x" * 100_000)
    assert len(str(caught.value)) < 300


def test_a_name_that_is_taken_or_cannot_be_is_refused_before_anything_is_read(source: FakeSource) -> None:
    store = filled(source, "a", budget=2)
    with pytest.raises(AdapterExistsError, match="adapter a is loaded already"):
        store.load("a", source.put("2", 2), replace=False)
    with pytest.raises(ConfigError):
        store.load("../a", Path("/adapters/2"))
    assert source.reads == {"a": 1}
    store.load("b", Path("/adapters/2"), replace=False)


def test_no_more_names_than_the_limit_are_taken(source: FakeSource) -> None:
    store = store_of(source, budget=1, max_adapters=2)
    store.load("a", source.put("1", 1))
    store.load("b", source.put("2", 2))
    with pytest.raises(AdapterStoreFullError, match="2 adapters loaded, the limit"):
        store.load("c", source.put("3", 3))
    store.load("b", Path("/adapters/1"))
    store.unload("a")
    store.load("c", Path("/adapters/3"))


def test_a_load_that_fails_changes_nothing(source: FakeSource) -> None:
    store = filled(source, "a", budget=1)
    before = store.list(), store.stats()
    with pytest.raises(AdapterError, match="no such file"):
        store.load("a", Path("/adapters/nowhere"))
    with pytest.raises(AdapterError, match="no such file"):
        store.load("b", Path("/adapters/nowhere"))
    assert (store.list(), store.stats()) == before


def test_a_status_tells_what_an_adapter_is_and_when_it_was_used(source: FakeSource) -> None:
    clock = Clock()
    store = store_of(source, budget=3, clock=clock)
    clock.now = 1.5
    store.load("b", source.put("1", 1, size=2), pin=True)
    store.load("a", source.put("2", 2))
    assert [status.name for status in store.list()] == ["a", "b"]
    expected = AdapterStatus(
        name="b", number=1, digest=content_of(1, 2).digest, rank=2, size_bytes=2 * UNIT, source=Path("/adapters/1"),
        pinned=True, resident=True, users=0, loaded_at=1.5, last_used_at=None,
    )  # fmt: skip
    assert status_of(store, "b") == expected
    clock.now = 2
    lease = store.lease("b")
    assert (status_of(store, "b").users, status_of(store, "b").last_used_at) == (1, 2)
    clock.now = 3
    lease.release()
    assert (status_of(store, "b").users, status_of(store, "b").last_used_at) == (0, 3)


@pytest.mark.parametrize(("budget_bytes", "max_adapters"), [(0, 1), (1, 0)])
def test_a_store_without_room_is_refused(budget_bytes: int, max_adapters: int) -> None:
    with pytest.raises(ConfigError, match="must be at least 1, got 0"):
        AdapterStore(NO_BASE, budget_bytes=budget_bytes, max_adapters=max_adapters)


def test_the_status_of_a_name_is_its_line_of_the_list(source: FakeSource) -> None:
    store = filled(source, "ab", budget=1)
    assert [store.status("a"), store.status("b")] == list(store.list())
    assert store.status("c") is None
