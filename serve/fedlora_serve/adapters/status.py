"""What an adapter may be called, and what there is to tell of one and of all."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from fedlora.errors import ConfigError

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
