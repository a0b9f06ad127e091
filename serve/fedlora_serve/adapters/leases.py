"""What a name stands for, and who uses it: the records of a store, and what it hands out of them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fedlora_serve.adapters.cache import CachedAdapter
from fedlora_serve.adapters.status import AdapterStatus, AdapterVersion


@dataclass(slots=True, kw_only=True, eq=False)
class Entry:
    """What a name stands for, from its first load until it is unloaded."""

    name: str
    cached: CachedAdapter
    number: int
    source: Path
    loaded_at: float
    last_used_at: float | None = None
    users: int = 0  # leases under this name, of all its versions
    is_unloaded: bool = False

    @property
    def is_resident(self) -> bool:
        """Its values are in memory."""
        return self.cached.values is not None

    def status(self) -> AdapterStatus:
        """What there is to tell of it now."""
        cached = self.cached
        return AdapterStatus(
            name=self.name,
            number=self.number,
            digest=cached.digest,
            rank=cached.rank,
            size_bytes=cached.size_bytes,
            source=self.source,
            pinned=self.name in cached.pinned,
            resident=self.is_resident,
            users=self.users,
            loaded_at=self.loaded_at,
            last_used_at=self.last_used_at,
        )

    def version(self) -> AdapterVersion:
        """The version that the name has now, of a content in memory; made once, and kept with the content."""
        cached = self.cached
        known = cached.versions.get(self.name)
        if known is not None:
            return known
        if cached.values is None:
            raise AssertionError(f"{self.name}: its values are not in memory")
        version = cached.versions[self.name] = AdapterVersion(
            name=self.name,
            digest=cached.digest,
            number=self.number,
            values=cached.values,
            rank=cached.rank,
            size_bytes=cached.size_bytes,
            source=self.source,
        )
        return version


class StoreLease:
    """The lease of a store: `give_back` takes it, and does nothing with one that it has had."""

    __slots__ = ("_give_back", "cached", "entry", "is_released", "version")

    def __init__(self, entry: Entry, give_back: Callable[[StoreLease], None]) -> None:
        self.entry, self.cached, self.version = entry, entry.cached, entry.version()
        self.is_released = False
        self._give_back = give_back

    def release(self) -> None:
        """Done with it. A second time does nothing."""
        self._give_back(self)


class Unloading:
    """A name that was taken away, whose last requests may still run."""

    def __init__(self, unused: threading.Condition, entry: Entry) -> None:
        self._unused, self._named = unused, entry

    def wait(self, timeout_s: float | None = None) -> bool:
        """No request uses it any more; False where some still do after `timeout_s`."""
        with self._unused:
            return self._unused.wait_for(lambda: not self._named.users, timeout_s)
