"""What an adapter store tells of itself and of each adapter."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


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
