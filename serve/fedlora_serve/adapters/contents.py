"""The values of adapters in memory, each once however many names it has, under one budget.

What nobody uses and nobody pinned is idle: the least recently used of it goes when room is needed. The rest stays. Not
for several threads: the store holds its lock around every call.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from fedlora.errors import AdapterStoreFullError

from fedlora_serve.adapters.source import AdapterContent
from fedlora_serve.adapters.version import AdapterValues, AdapterVersion

_SHOWN = 8  # names in a message


@dataclass(slots=True, kw_only=True, eq=False)
class Content:
    """What has one digest. It is known while it has a name or a user, in memory or not."""

    digest: str
    rank: int
    size_bytes: int
    values: AdapterValues | None = None  # None: evicted
    names: set[str] = field(default_factory=set)
    pinned: set[str] = field(default_factory=set)  # those of the names that keep it in memory
    users: int = 0
    versions: dict[str, AdapterVersion] = field(default_factory=dict)  # {name: what is leased}; empty where evicted

    @property
    def is_busy(self) -> bool:
        """In use, or pinned: it must stay."""
        return self.users > 0 or bool(self.pinned)

    def is_busy_without(self, name: str) -> bool:
        """It must stay once `name` has another content, too."""
        return self.users > 0 or not self.pinned <= {name}


class Contents:
    """Every content that a store knows. `size_bytes`, of those in memory, is never above `budget_bytes`."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.size_bytes = self.resident = self.evictions = 0
        self._by_digest: dict[str, Content] = {}
        self._idle: OrderedDict[Content, None] = OrderedDict()  # the least recently used first
        self._idle_bytes = 0

    def assign(self, name: str, read: AdapterContent, *, old: Content | None, pinned: bool) -> Content:
        """What was read, in memory and under `name`, which had `old`. Raises AdapterStoreFullError, and changes nothing."""
        content = self._by_digest.get(read.digest)
        if content is None:
            content = Content(digest=read.digest, rank=read.rank, size_bytes=read.size_bytes)
        other = old if old is not content else None
        if content.values is None:
            leaving = other if other is not None and not other.is_busy_without(name) else None
            self._check_room(content.size_bytes, leaving)
        if other is not None:
            self.unassign(name, other)  # before others are evicted in its place
        if content.values is None:
            self._bring_in(content, read.values)
        content.names.add(name)
        self._by_digest[content.digest] = content
        self.pin(name, content, pinned)
        return content

    def unassign(self, name: str, content: Content) -> None:
        """Take a name away; what has neither name nor user is forgotten."""
        content.names.remove(name)
        content.pinned.discard(name)
        content.versions.pop(name, None)
        self._settle(content)

    def restore(self, content: Content, read: AdapterContent) -> None:
        """Bring an evicted content back. Raises AdapterStoreFullError."""
        self._check_room(content.size_bytes)
        self._bring_in(content, read.values)
        self._settle(content)

    def hold(self, content: Content) -> None:
        """One more user."""
        content.users += 1
        if content.users == 1:
            self._settle(content)

    def let_go(self, content: Content) -> None:
        """One user less."""
        content.users -= 1
        if not content.users:
            self._settle(content)

    def pin(self, name: str, content: Content, pinned: bool) -> None:
        """Keep a content in memory for the sake of `name`, or no longer."""
        (content.pinned.add if pinned else content.pinned.discard)(name)
        self._settle(content)

    def _settle(self, content: Content) -> None:
        """Put a content where its users, pins and names say that it belongs."""
        if content in self._idle:
            del self._idle[content]
            self._idle_bytes -= content.size_bytes
        if content.names or content.users:
            if content.values is not None and not content.is_busy:
                self._idle[content] = None  # last: it was used just now
                self._idle_bytes += content.size_bytes
        else:
            self._take_out(content)
            self._by_digest.pop(content.digest, None)

    def _check_room(self, size_bytes: int, leaving: Content | None = None) -> None:
        """Raise AdapterStoreFullError unless `size_bytes` fit beside what must stay when `leaving` need not."""
        kept = self.size_bytes - self._idle_bytes
        if leaving is not None and leaving.values is not None and leaving not in self._idle:
            kept -= leaving.size_bytes
        if size_bytes > self.budget_bytes - kept:
            raise AdapterStoreFullError(self._full(size_bytes, kept))

    def _bring_in(self, content: Content, values: AdapterValues) -> None:
        """Put a content in memory, for which there is room once others are evicted."""
        while self.size_bytes + content.size_bytes > self.budget_bytes:
            self._take_out(next(iter(self._idle)))
            self.evictions += 1
        content.values = values
        self.size_bytes += content.size_bytes
        self.resident += 1

    def _take_out(self, content: Content) -> None:
        if content in self._idle:
            del self._idle[content]
            self._idle_bytes -= content.size_bytes
        if content.values is not None:
            content.values = None
            content.versions.clear()
            self.size_bytes -= content.size_bytes
            self.resident -= 1

    def _full(self, size_bytes: int, kept: int) -> str:
        busy = [content for content in self._by_digest.values() if content.values is not None and content.is_busy]
        pinned = sorted(name for content in busy for name in content.pinned)
        used = sorted(
            name for content in busy if content.users for name in content.names or {"(a version without a name)"}
        )
        return (
            f"an adapter of {size_bytes} bytes does not fit: of the budget of {self.budget_bytes} bytes {kept} must stay, "
            f"pinned: {_listed(pinned)}; in use: {_listed(used)}; "
            "wait until requests have ended, unpin or unload adapters, or raise the budget"
        )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more if names else "none"
