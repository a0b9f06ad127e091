"""The adapters of a service, by name: loaded, leased to requests, replaced under load, evicted and read again.

    name --> one version at a time --> an adapter, by its digest --> in memory, or a source to read it from again

A request leases the newest version, and keeps it, as it is, until it is released. Safe to call from any thread: the lock is
held for the bookkeeping only, never while a file is read or hashed.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from fedlora.base.pack import BasePack
from fedlora.counted import counted
from fedlora.errors import (
    AdapterError,
    AdapterExistsError,
    AdapterStoreFullError,
    AdapterTooLargeError,
    ConfigError,
    UnknownAdapterError,
)
from fedlora.nearest import hint
from fedlora.row_lora.layout import LayoutDtype

from fedlora_serve.adapters.cache import AdapterCache, CachedAdapter
from fedlora_serve.adapters.leases import AdapterStatus, Entry, Lease, StoreStats, Unloading, check_adapter_name
from fedlora_serve.adapters.loading import AdapterLoader, LoadedAdapter, load_adapter, most_file_bytes
from fedlora_serve.adapters.signed import SignedNames
from fedlora_serve.adapters.single_flight import SingleFlight
from fedlora_serve.adapters.together import copied, with_values_of

__all__ = ["AdapterStatus", "AdapterStore", "StoreStats", "Unloading"]


class AdapterStore:
    """Many adapters of one base."""

    def __init__(
        self,
        base: BasePack,
        *,
        budget_bytes: int,  # of values in memory; what is just being read comes on top
        max_adapters: int = 10_000,  # names, those among them whose values were evicted
        layout: LayoutDtype | None = None,  # for the graph `kernel`; None: inputs, for all others
        clock: Callable[[], float] = time.time,
        read: AdapterLoader = load_adapter,
        signed: SignedNames | None = None,  # which names must be signed releases; None: none
    ) -> None:
        for field, value in (("budget_bytes", budget_bytes), ("max_adapters", max_adapters)):
            if value < 1:
                raise ConfigError(f"{field} must be at least 1, got {value}")
        self._max_adapters, self._clock, self._signed = max_adapters, clock, signed
        self._read = partial(read, base=base, max_bytes=budget_bytes, layout=layout)
        self._most_file_bytes = partial(most_file_bytes, base, budget_bytes, layout)
        self._lock = threading.Lock()
        self._unused = threading.Condition(self._lock)  # a name that was unloaded has no users any more
        self._names: dict[str, Entry] = {}
        self._cache = AdapterCache(budget_bytes)
        self._readings: SingleFlight[LoadedAdapter] = SingleFlight()
        self._hits = self._lookups = 0

    def load(self, name: str, path: str | Path, *, replace: bool = True, pin: bool = False) -> LoadedAdapter:
        """Read and verify an adapter; from then on `name` stands for it, and for its leases to come.

        An adapter of the digest that the name has already is no new version: it keeps its number, and is read again from
        `path` from now on. Of two loads at a time the one that ends last has the name. A name that is pinned stays so.

        Raises ConfigError for a name that cannot be, AdapterExistsError for one that is there unless `replace`,
        AdapterError where the adapter cannot be used, or is not signed and must be, AdapterStoreFullError; all of these
        change nothing.
        """
        check_adapter_name(name)
        with self._lock:
            self._check_place(name, replace)
        source = Path(os.path.realpath(path))  # a link may show elsewhere when this version is read again
        vouched = self._signed.vouch(name, source) if self._signed else None
        source = vouched.path if vouched else source
        read = self._read(source)
        if vouched and read.digest != vouched.values_sha256:
            raise AdapterError(
                f"adapter {name}: its values are {read.digest:.16}; expected {vouched.values_sha256:.16}, as "
                "they were signed"
            )
        with self._lock:
            self._check_place(name, replace)
            entry = self._names.get(name)
            old = entry.cached if entry else None
            pinned = pin or (old is not None and name in old.pinned)
            cached = self._cache.assign(name, read, old=old, pinned=pinned)
            if entry is None:
                entry = Entry(name=name, cached=cached, number=0, source=source, chat=read.chat, loaded_at=0.0)
                self._names[name] = entry
            if cached is not old:
                entry.cached, entry.number, entry.loaded_at = cached, entry.number + 1, self._clock()
            entry.source, entry.chat = source, read.chat
            entry.release = vouched.release if vouched else None
            cached.versions.pop(name, None)  # it may name another source, and speak otherwise
            return entry.version()

    def most_file_bytes(self, is_directory: bool) -> int:
        """The largest file of values that is read: of a PEFT directory, or an .onnx_adapter file."""
        return self._most_file_bytes(is_directory=is_directory)

    def unload(self, name: str) -> Unloading:
        """Take a name away at once, pinned or not. What requests have leased stays until they release it.

        A name that is loaded again later begins at number 1. Raises UnknownAdapterError.
        """
        with self._known(name) as entry:
            del self._names[name]
            entry.is_unloaded = True
            self._cache.unassign(name, entry.cached)
            return Unloading(self._unused, entry)

    def pin(self, name: str) -> None:
        """Keep an adapter, and each that replaces it, in memory; one that was evicted is read again. Raises as `lease`."""
        while True:
            lease = self.lease(name)
            try:
                with self._known(name) as entry:
                    if entry.is_resident:  # a newer version may have been evicted meanwhile
                        self._cache.pin(name, entry.cached, True)
                        return
            finally:
                lease.release()

    def unpin(self, name: str) -> None:
        """Let an adapter be evicted again. Raises UnknownAdapterError."""
        with self._known(name) as entry:
            self._cache.pin(name, entry.cached, False)

    def lease(self, name: str) -> Lease:
        """The newest version of an adapter, to be used until it is released.

        One that was evicted is read from its source again, once for all who ask for it meanwhile. Raises
        UnknownAdapterError; AdapterError where the source has changed or is gone; AdapterStoreFullError.
        """
        with self._known(name) as entry:
            self._lookups += 1
            if entry.is_resident:
                self._hits += 1
                return self._leased(entry)
        return self._lease_evicted(name)

    def lease_copy(self, whole: LoadedAdapter) -> Lease:
        """Hold several adapters as one (`together`) with values of its own: copied once, and counted once in the budget,
        however many hold it at a time, each by the names that it gave.

        When the last lease is released the copy is forgotten. Raises AdapterTooLargeError where it never fits beside its
        parts, AdapterStoreFullError where it does not now.
        """
        with self._lock:
            cached = self._cache.hold_known(whole.digest)
        if cached is None:
            made = self._readings.do(whole.digest, partial(copied, whole))
            self._check_fits_beside_parts(whole, made.size_bytes)
            with self._lock:
                cached = self._cache.hold_unnamed(made)
        if cached.adapter is None:
            raise AssertionError(f"{whole.name}: in use, and not in memory")
        return Lease(with_values_of(whole, cached.adapter), partial(self._forget, cached))

    def status(self, name: str) -> AdapterStatus | None:
        """What there is to tell of a name; None where there is none such."""
        with self._lock:
            entry = self._names.get(name)
            return entry.status() if entry else None

    def list(self) -> tuple[AdapterStatus, ...]:
        """Every name, in alphabetical order."""
        with self._lock:
            found = [entry.status() for entry in self._names.values()]
        return tuple(sorted(found, key=lambda status: status.name))

    def stats(self) -> StoreStats:
        with self._lock:
            return StoreStats(
                loaded=len(self._names),
                resident=self._cache.resident,
                resident_bytes=self._cache.size_bytes,
                budget_bytes=self._cache.budget_bytes,
                lookups=self._lookups,
                hits=self._hits,
                evictions=self._cache.evictions,
            )

    def _lease_evicted(self, name: str) -> Lease:
        while True:
            with self._known(name) as entry:
                if entry.is_resident:
                    return self._leased(entry)
                digest, source = entry.cached.digest, entry.source
            try:
                read = self._readings.do((digest, source), partial(self._read_again, source, digest))
            except AdapterError:
                with self._known(name) as entry:
                    if (entry.cached.digest, entry.source) == (digest, source) and not entry.is_resident:
                        raise
                continue  # it was loaded anew meanwhile, from a source that can be read
            with self._known(name) as entry:
                if entry.cached.digest == digest:
                    if not entry.is_resident:
                        self._cache.restore(entry.cached, read)
                    return self._leased(entry)

    def _read_again(self, source: Path, digest: str) -> LoadedAdapter:
        try:
            read = self._read(source)
        except AdapterError as error:
            raise AdapterError(f"an adapter that was evicted cannot be read again: {error}; load it again") from None
        if read.digest != digest:
            raise AdapterError(
                f"{source}: an adapter with digest {digest[:16]} was loaded from here and evicted, and now it is "
                f"{read.digest[:16]}: the file changed since it was loaded; load it again"
            )
        return read

    def _check_fits_beside_parts(self, whole: LoadedAdapter, copy_bytes: int) -> None:
        parts = {part.adapter.digest: part.adapter.size_bytes for part in whole.parts}
        beside, most = sum(parts.values()), self._cache.budget_bytes
        if copy_bytes + beside > most:
            raise AdapterTooLargeError(
                f"adapters: {whole.name} takes {copy_bytes} bytes beside the {beside} of its parts, all adapters together "
                f"may have {most}; name fewer, or raise the budget"
            )

    def _leased(self, entry: Entry) -> Lease:
        entry.users += 1
        entry.last_used_at = self._clock()
        self._cache.hold(entry.cached)
        return Lease(entry.version(), partial(self._give_back, entry, entry.cached))

    def _forget(self, cached: CachedAdapter) -> None:
        with self._lock:
            self._cache.let_go(cached)

    def _give_back(self, entry: Entry, cached: CachedAdapter) -> None:
        with self._lock:
            entry.users -= 1
            entry.last_used_at = self._clock()
            self._cache.let_go(cached)
            if entry.is_unloaded and not entry.users:
                self._unused.notify_all()

    def _check_place(self, name: str, replace: bool) -> None:
        if name in self._names:
            if not replace:
                raise AdapterExistsError(f"adapter {name} is loaded already; unload it first, or replace it")
        elif len(self._names) >= self._max_adapters:
            raise AdapterStoreFullError(
                f"adapter {name}: {counted(len(self._names), 'adapter')} loaded, the limit; unload one, or raise "
                "max_adapters"
            )

    @contextmanager
    def _known(self, name: str) -> Iterator[Entry]:
        """Hold the lock, and give what the name stands for. Raises UnknownAdapterError."""
        with self._lock:
            entry = self._names.get(name)
            if entry is not None:
                yield entry
                return
            names = list(self._names)
        near = hint(name, names, f"{len(names)} are loaded, none with a name like it", most=3)
        raise UnknownAdapterError(f"no adapter is called {name!r:.140}; {near}")
