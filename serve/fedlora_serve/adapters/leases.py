"""What a name stands for, and who uses it: the records of a store, and what it hands out of them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fedlora_serve.adapters.contents import Content
from fedlora_serve.adapters.version import AdapterStatus, AdapterVersion


@dataclass(slots=True, kw_only=True, eq=False)
class Named:
    """What a name stands for, from its first load until it is unloaded."""

    name: str
    content: Content
    number: int
    source: Path
    loaded_at: float
    last_used_at: float | None = None
    users: int = 0  # leases under this name, of all its versions
    is_unloaded: bool = False

    @property
    def is_resident(self) -> bool:
        """Its values are in memory."""
        return self.content.values is not None

    def status(self) -> AdapterStatus:
        """What there is to tell of it now."""
        content = self.content
        return AdapterStatus(
            name=self.name,
            number=self.number,
            digest=content.digest,
            rank=content.rank,
            size_bytes=content.size_bytes,
            source=self.source,
            pinned=self.name in content.pinned,
            resident=self.is_resident,
            users=self.users,
            loaded_at=self.loaded_at,
            last_used_at=self.last_used_at,
        )

    def version(self) -> AdapterVersion:
        """The version that the name has now, of a content in memory; made once, and kept with the content."""
        content = self.content
        known = content.versions.get(self.name)
        if known is not None:
            return known
        if content.values is None:
            raise AssertionError(f"{self.name}: its values are not in memory")
        version = content.versions[self.name] = AdapterVersion(
            name=self.name,
            digest=content.digest,
            number=self.number,
            values=content.values,
            rank=content.rank,
            size_bytes=content.size_bytes,
            source=self.source,
        )
        return version


class StoreLease:
    """The lease of a store: `give_back` takes it, and does nothing with one that it has had."""

    __slots__ = ("_give_back", "content", "is_released", "named", "version")

    def __init__(self, named: Named, give_back: Callable[[StoreLease], None]) -> None:
        self.named, self.content, self.version = named, named.content, named.version()
        self.is_released = False
        self._give_back = give_back

    def release(self) -> None:
        """Done with it. A second time does nothing."""
        self._give_back(self)


class Unloading:
    """A name that was taken away, whose last requests may still run."""

    def __init__(self, unused: threading.Condition, named: Named) -> None:
        self._unused, self._named = unused, named

    def wait(self, timeout_s: float | None = None) -> bool:
        """No request uses it any more; False where some still do after `timeout_s`."""
        with self._unused:
            return self._unused.wait_for(lambda: not self._named.users, timeout_s)
