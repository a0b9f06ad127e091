"""What a name may be, what it stands for, who uses it, and what is told of it: the records of a store, and what it hands
out of them."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from fedlora.data.chat_settings import ChatSettings
from fedlora.errors import ConfigError

from fedlora_serve.adapters.cache import CachedAdapter
from fedlora_serve.adapters.loading import LoadedAdapter
from fedlora_serve.adapters.signed import ReleaseInfo

_NAME = re.compile(r"(?!.*(\.\.|//))[A-Za-z0-9]([A-Za-z0-9._:/-]{0,126}[A-Za-z0-9._:-])?")


def check_adapter_name(name: str) -> None:
    """Raise ConfigError unless `name` is like `team/billing-v2`: at most 128 letters, digits and `. _ : / -`."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"an adapter cannot be called {name!r:.140}; a name is 1 to 128 of A-Z a-z 0-9 . _ : / -, begins with a letter "
            "or a digit, ends with no slash, and has neither '..' nor '//'"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterStatus:
    """One name of a store."""

    name: str
    number: int  # of the version that has the name now
    digest: str
    rank: int
    size_bytes: int
    source: Path
    pinned: bool
    resident: bool  # its values are in memory
    users: int  # leases under this name, those on versions that were replaced among them
    loaded_at: float  # seconds since 1970
    last_used_at: float | None  # when it was last leased or released; None: never
    release: ReleaseInfo | None = None  # the signed release that it comes from


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreStats:
    """A store as a whole. What several names share counts once."""

    loaded: int  # names
    resident: int  # adapters in memory, those among them that have no name any more but are still in use
    resident_bytes: int
    budget_bytes: int
    lookups: int  # leases that were asked for, of names that are known
    hits: int  # of these, whose adapter was in memory
    evictions: int


@dataclass(slots=True, kw_only=True, eq=False)
class Entry:
    """What a name stands for, from its first load until it is unloaded."""

    name: str
    cached: CachedAdapter
    number: int
    source: Path
    chat: ChatSettings
    loaded_at: float
    release: ReleaseInfo | None = None
    last_used_at: float | None = None
    users: int = 0  # leases under this name, of all its versions
    is_unloaded: bool = False

    @property
    def is_resident(self) -> bool:
        """Its values are in memory."""
        return self.cached.adapter is not None

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
            release=self.release,
        )

    def version(self) -> LoadedAdapter:
        """The version that the name has now, of an adapter in memory; made once, and kept with the values."""
        cached = self.cached
        known = cached.versions.get(self.name)
        if known is not None:
            return known
        if cached.adapter is None:
            raise AssertionError(f"{self.name}: its values are not in memory")
        version = replace(
            cached.adapter, name=self.name, number=self.number, source=self.source, chat=self.chat, release=self.release
        )
        cached.versions[self.name] = version
        return version


class Lease:
    """A version of an adapter in use: it stays in memory, as it is, until everyone who holds the lease released it."""

    __slots__ = ("_give_back", "_holders", "_is_released", "_lock", "version")

    def __init__(self, version: LoadedAdapter, give_back: Callable[[], object]) -> None:
        """`give_back` is called once, by the last to release it."""
        self.version = version
        self._give_back, self._holders, self._is_released = give_back, 1, False
        self._lock = threading.Lock()

    def share(self) -> Lease:
        """A part of this lease, which is released by itself; to the store both are one user.

        Only who holds it may share it: the store may have let go of what was released.
        """
        with self._lock:
            if not self._holders:
                raise AssertionError(f"{self.version.name}: a lease that was released cannot be shared")
            self._holders += 1
        return Lease(self.version, self._let_go)

    def release(self) -> None:
        """Done with it. A second time does nothing."""
        with self._lock:
            was_released, self._is_released = self._is_released, True
        if not was_released:
            self._let_go()

    def _let_go(self) -> None:
        with self._lock:
            self._holders -= 1
            is_last = not self._holders
        if is_last:
            self._give_back()


class Unloading:
    """A name that was taken away, whose last requests may still run."""

    def __init__(self, unused: threading.Condition, entry: Entry) -> None:
        self._unused, self._entry = unused, entry

    def wait(self, timeout_s: float | None = None) -> bool:
        """No request uses it any more; False where some still do after `timeout_s`."""
        with self._unused:
            return self._unused.wait_for(lambda: not self._entry.users, timeout_s)
