"""The values of adapters in memory, each once however many names it has, under one budget.

What nobody uses and nobody pinned is idle: the least recently used of it goes when room is needed. The rest stays. Not
for several threads: the store holds its lock around every call.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from fedlora.errors import AdapterStoreFullError

from fedlora_serve.adapters.loading import LoadedAdapter

_SHOWN = 8  # names in a message


@dataclass(slots=True, kw_only=True, eq=False)
class CachedAdapter:
    """The adapter that has one digest. It is known while it has a name or a user, in memory or not."""

    digest: str
    rank: int
    size_bytes: int
    adapter: LoadedAdapter | None = None  # under whatever name it was read; None: evicted
    names: set[str] = field(default_factory=set)
    pinned: set[str] = field(default_factory=set)  # those of the names that keep it in memory
    users: int = 0
    versions: dict[str, LoadedAdapter] = field(default_factory=dict)  # {name: what is leased}; empty where evicted

    @property
    def is_busy(self) -> bool:
        """In use, or pinned: it must stay."""
        return self.users > 0 or bool(self.pinned)

    def is_busy_without(self, name: str) -> bool:
        """It must stay once `name` stands for another adapter, too."""
        return self.users > 0 or not self.pinned <= {name}


class AdapterCache:
    """Every adapter that a store knows. `size_bytes`, of those in memory, is never above `budget_bytes`."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.size_bytes = self.resident = self.evictions = 0
        self._by_digest: dict[str, CachedAdapter] = {}
        self._idle: OrderedDict[CachedAdapter, None] = OrderedDict()  # the least recently used first
        self._idle_bytes = 0

    def assign(self, name: str, read: LoadedAdapter, *, old: CachedAdapter | None, pinned: bool) -> CachedAdapter:
        """What was read, in memory and under `name`, which had `old`. Raises AdapterStoreFullError, and changes nothing."""
        cached = self._by_digest.get(read.digest)
        if cached is None:
            cached = CachedAdapter(digest=read.digest, rank=read.rank, size_bytes=read.size_bytes)
        other = old if old is not cached else None
        if cached.adapter is None:
            leaving = other if other is not None and not other.is_busy_without(name) else None
            self._check_room(cached.size_bytes, leaving)
        if other is not None:
            self.unassign(name, other)  # before others are evicted in its place
        if cached.adapter is None:
            self._bring_in(cached, read)
        cached.names.add(name)
        self._by_digest[cached.digest] = cached
        self.pin(name, cached, pinned)
        return cached

    def unassign(self, name: str, cached: CachedAdapter) -> None:
        """Take a name away; what has neither name nor user is forgotten."""
        cached.names.remove(name)
        cached.pinned.discard(name)
        cached.versions.pop(name, None)
        self._settle(cached)

    def restore(self, cached: CachedAdapter, read: LoadedAdapter) -> None:
        """Bring an evicted adapter back. Raises AdapterStoreFullError."""
        self._check_room(cached.size_bytes)
        self._bring_in(cached, read)
        self._settle(cached)

    def hold(self, cached: CachedAdapter) -> None:
        """One more user."""
        cached.users += 1
        if cached.users == 1:
            self._settle(cached)

    def hold_known(self, digest: str) -> CachedAdapter | None:
        """One more user of what is in memory; None where it is not."""
        cached = self._by_digest.get(digest)
        if cached is None or cached.adapter is None:
            return None
        self.hold(cached)
        return cached

    def hold_unnamed(self, made: LoadedAdapter) -> CachedAdapter:
        """One more user of what has no name, which goes with its last one. Raises AdapterStoreFullError."""
        cached = self._by_digest.get(made.digest)
        if cached is None:
            cached = CachedAdapter(digest=made.digest, rank=made.rank, size_bytes=made.size_bytes)
            self._check_room(cached.size_bytes)
            self._bring_in(cached, made)
            self._by_digest[cached.digest] = cached
        self.hold(cached)
        return cached

    def let_go(self, cached: CachedAdapter) -> None:
        """One user less."""
        cached.users -= 1
        if not cached.users:
            self._settle(cached)

    def pin(self, name: str, cached: CachedAdapter, pinned: bool) -> None:
        """Keep an adapter in memory for the sake of `name`, or no longer."""
        (cached.pinned.add if pinned else cached.pinned.discard)(name)
        self._settle(cached)

    def _settle(self, cached: CachedAdapter) -> None:
        """Put an adapter where its users, pins and names say that it belongs."""
        if cached in self._idle:
            del self._idle[cached]
            self._idle_bytes -= cached.size_bytes
        if cached.names or cached.users:
            if cached.adapter is not None and not cached.is_busy:
                self._idle[cached] = None  # last: it was used just now
                self._idle_bytes += cached.size_bytes
        else:
            self._take_out(cached)
            self._by_digest.pop(cached.digest, None)

    def _check_room(self, size_bytes: int, leaving: CachedAdapter | None = None) -> None:
        """Raise AdapterStoreFullError unless `size_bytes` fit beside what must stay when `leaving` need not."""
        kept = self.size_bytes - self._idle_bytes
        if leaving is not None and leaving.adapter is not None and leaving not in self._idle:
            kept -= leaving.size_bytes
        if size_bytes > self.budget_bytes - kept:
            raise AdapterStoreFullError(self._full(size_bytes, kept))

    def _bring_in(self, cached: CachedAdapter, read: LoadedAdapter) -> None:
        """Put an adapter in memory, for which there is room once others are evicted."""
        while self.size_bytes + cached.size_bytes > self.budget_bytes:
            self._take_out(next(iter(self._idle)))
            self.evictions += 1
        cached.adapter = read
        self.size_bytes += cached.size_bytes
        self.resident += 1

    def _take_out(self, cached: CachedAdapter) -> None:
        if cached in self._idle:
            del self._idle[cached]
            self._idle_bytes -= cached.size_bytes
        if cached.adapter is not None:
            cached.adapter = None
            cached.versions.clear()
            self.size_bytes -= cached.size_bytes
            self.resident -= 1

    def _full(self, size_bytes: int, kept: int) -> str:
        busy = [cached for cached in self._by_digest.values() if cached.adapter is not None and cached.is_busy]
        pinned = sorted(name for cached in busy for name in cached.pinned)
        used = sorted(
            name for cached in busy if cached.users for name in cached.names or {"(a version without a name)"}
        )
        return (
            f"an adapter of {size_bytes} bytes does not fit: of the budget of {self.budget_bytes} bytes {kept} must stay, "
            f"pinned: {_listed(pinned)}; in use: {_listed(used)}; "
            "wait until requests have ended, unpin or unload adapters, or raise the budget"
        )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more if names else "none"
