"""An adapter store against a model of it, in sequences that hypothesis makes up."""

from __future__ import annotations

from pathlib import Path

import pytest
from fedlora.errors import AdapterStoreFullError, UnknownAdapterError
from fedlora.exported.inputs import digest_of
from fedlora_serve.adapters.leases import Lease
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.serve.adapters.fake_source import UNIT, FakeSource, inputs_of, store_of

BUDGET = 5
SIZES = {1: 1, 2: 2, 3: 3, 4: 6, 5: 1}  # {seed: size} of the files
NAMES = st.sampled_from("abcd")
SEEDS = st.sampled_from(sorted(SIZES))


class StoreMachine(RuleBasedStateMachine):
    """What a store must be after any sequence of calls: names, numbers, users, and what must be in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.source = FakeSource()
        self.digests = {}
        for seed, size in SIZES.items():
            self.source.put(str(seed), seed, size)
            self.digests[seed] = self.source.table[str(seed)].digest
        self.store = store_of(self.source, budget=BUDGET)
        self.names: dict[str, tuple[int, int]] = {}  # {name: (seed, number)}
        self.pinned: set[str] = set()
        self.leases: list[tuple[Lease, str, int]] = []  # (lease, name and number it was asked under, seed)

    def kept(self) -> set[int]:
        """The seeds that must be in memory."""
        return {seed for _, _, seed in self.leases} | {self.names[name][0] for name in self.pinned}

    def has_room_for(self, seed: int, leaving: str | None = None) -> bool:
        kept = {seed for _, _, seed in self.leases}
        kept |= {self.names[name][0] for name in self.pinned if name != leaving}
        return SIZES[seed] + sum(SIZES[other] for other in kept - {seed}) <= BUDGET

    @rule(name=NAMES, seed=SEEDS, pin=st.booleans())
    def load(self, name: str, seed: int, pin: bool) -> None:
        if not self.has_room_for(seed, name):
            with pytest.raises(AdapterStoreFullError):
                self.store.load(name, Path("/adapters") / str(seed), pin=pin)
            return
        version = self.store.load(name, Path("/adapters") / str(seed), pin=pin)
        old_seed, old_number = self.names.get(name, (0, 0))
        self.names[name] = (seed, old_number + (seed != old_seed))
        assert (version.digest, version.number) == (self.digests[seed], self.names[name][1])
        if pin:
            self.pinned.add(name)

    @rule(name=NAMES)
    def lease(self, name: str) -> None:
        if name not in self.names:
            with pytest.raises(UnknownAdapterError):
                self.store.lease(name)
            return
        seed, number = self.names[name]
        if not self.has_room_for(seed):
            with pytest.raises(AdapterStoreFullError):
                self.store.lease(name)
            return
        lease = self.store.lease(name)
        assert (lease.version.name, lease.version.number) == (name, number)
        self.leases.append((lease, name, seed))

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        lease, _, _ = self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1)))
        lease.release()
        lease.release()

    @precondition(lambda self: self.names)
    @rule(data=st.data(), pin=st.booleans())
    def pin_or_unpin(self, data: st.DataObject, pin: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.names)))
        if not pin:
            self.store.unpin(name)
            self.pinned.discard(name)
        elif self.has_room_for(self.names[name][0]):
            self.store.pin(name)
            self.pinned.add(name)

    @precondition(lambda self: self.names)
    @rule(data=st.data())
    def unload(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.names)))
        self.store.unload(name)
        del self.names[name]
        self.pinned.discard(name)

    @invariant()
    def names_are_those_of_the_model(self) -> None:
        got = {status.name: (status.digest, status.number, status.pinned) for status in self.store.list()}
        assert got == {
            name: (self.digests[seed], number, name in self.pinned) for name, (seed, number) in self.names.items()
        }

    @invariant()
    def the_budget_holds_and_counts_what_is_there(self) -> None:
        stats = self.store.stats()
        resident = {s.digest: s.size_bytes for s in self.store.list() if s.resident}
        resident |= {self.digests[seed]: SIZES[seed] * UNIT for _, _, seed in self.leases}
        assert stats.resident_bytes == sum(resident.values()) <= BUDGET * UNIT
        assert stats.resident == len(resident)
        assert {self.digests[seed] for seed in self.kept()} <= resident.keys()

    @invariant()
    def leases_hold_what_they_were_given(self) -> None:
        for lease, _, seed in self.leases:
            assert digest_of(inputs_of(lease.version.values)) == self.digests[seed] == lease.version.digest


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
