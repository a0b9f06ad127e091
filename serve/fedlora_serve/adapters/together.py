"""Several adapters that answer together: W' = W + sum_i w_i gamma_i B_i A_i, with a weight for each.

To a graph they are one adapter of their joined rank, whose digest is that of its parts' digests and weights: what is cached
for one combination is used for no other. Nothing is copied here; a graph that takes A and B as inputs needs `copied`.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from fedlora.counted import counted
from fedlora.data.chat_settings import ChatSettings
from fedlora.errors import AdapterMismatchError, ConfigError
from fedlora.exported.inputs import is_of_head
from fedlora.lora.config import MAX_RANK

from fedlora_serve.adapters.loading import NO_CHAT, LoadedAdapter, WeightedAdapter
from fedlora_serve.adapters.signed import ReleaseInfo

MAX_WEIGHT = 100.0


def together(parts: Sequence[WeightedAdapter], where: str = "adapters") -> LoadedAdapter:
    """The sum of adapters, as one. In what order they are named changes nothing.

    Raises ConfigError for weights that are none, for a name that is there twice, and for a joined rank above 4096;
    AdapterMismatchError where their heads do not add up, or one scales modules. `where` begins the message.
    """
    _check(parts, where)
    _check_heads(parts, where)
    ordered = tuple(sorted(parts, key=lambda part: (part.adapter.digest, part.weight)))
    digest = hashlib.sha256(b"together")
    for part in ordered:
        digest.update(part.adapter.digest.encode() + struct.pack("<d", part.weight))
    return LoadedAdapter(
        name=" + ".join(f"{part.weight:g} {part.adapter.name}" for part in parts),
        source=parts[0].adapter.source,
        digest=digest.hexdigest(),
        values=ordered,
        made_of=ordered,
        rank=sum(part.adapter.rank for part in parts),
        size_bytes=0,  # what there is of it is counted where its parts are
        chat=_shared_chat(part.adapter.chat for part in parts),
        release=None,
    )


def copied(adapter: LoadedAdapter) -> LoadedAdapter:
    """The same sum with values of its own, for a graph that takes them as inputs."""
    values = dict(adapter.inputs)
    for value in values.values():
        value.flags.writeable = False
    size_bytes = sum(value.nbytes for value in values.values())
    return replace(adapter, values=MappingProxyType(values), size_bytes=size_bytes)


def with_values_of(adapter: LoadedAdapter, copy: LoadedAdapter) -> LoadedAdapter:
    """The same sum with the values of a copy that was made for somebody else, who may know its parts by other names."""
    return replace(adapter, values=copy.values, size_bytes=copy.size_bytes)


def releases_of(adapter: LoadedAdapter) -> list[ReleaseInfo]:
    """The signed releases behind an adapter; none where one of its parts comes from none."""
    releases = [part.adapter.release for part in adapter.parts]
    return [release for release in releases if release] if all(releases) else []


def _check(parts: Sequence[WeightedAdapter], where: str) -> None:
    if not any(part.weight for part in parts):
        raise ConfigError(f"{where}: expected one or more, and one of them with a weight other than 0; leave them out")
    for part in parts:
        if not math.isfinite(part.weight) or abs(part.weight) > MAX_WEIGHT:
            raise ConfigError(
                f"{where}: {part.adapter.name} has the weight {part.weight!r}; expected one from {-MAX_WEIGHT:g} to "
                f"{MAX_WEIGHT:g}"
            )
        if part.adapter.virtual_tokens:
            raise ConfigError(
                f"{where}: {part.adapter.name} is {counted(part.adapter.virtual_tokens, 'virtual token')} before the text, "
                "which have no sum with another adapter; ask for it alone"
            )
    names = [part.adapter.name for part in parts]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"{where}: {twice[0]} is named twice; name it once, with the sum of the weights")
    if scaled := [part.adapter.name for part in parts if part.adapter.scales]:
        raise AdapterMismatchError(
            f"{where}: {scaled[0]} scales what modules give (DoRA, IA3), of which there is no weighted sum; ask for it "
            "alone, or combine adapters of IA3 before: fedlora combine"
        )
    ranks = {part.adapter.name: part.adapter.rank for part in parts}
    if (total := sum(ranks.values())) > MAX_RANK:
        told = " + ".join(f"{rank} of {name}" for name, rank in ranks.items())
        raise ConfigError(
            f"{where}: together they have rank {total} ({told}); expected at most {MAX_RANK}: name fewer, or adapters of "
            "smaller ranks"
        )


def _check_heads(parts: Sequence[WeightedAdapter], where: str) -> None:
    heads = [_head(part.adapter) for part in parts]
    for part, head in zip(parts, heads, strict=True):
        if head != heads[0]:
            raise AdapterMismatchError(
                f"{where}: {part.adapter.name} has {_told(head)}, and {parts[0].adapter.name} has {_told(heads[0])}; heads "
                "add up where each adapter has one, for as many labels: name such adapters"
            )


def _head(adapter: LoadedAdapter) -> dict[str, tuple[int, ...]]:
    """{tensor: shape} of a head of its own: a decoder's adapter, which may be laid out, has none."""
    values = adapter.values if isinstance(adapter.values, Mapping) else {}
    return {name: value.shape for name, value in values.items() if is_of_head(name)}


def _told(head: dict[str, tuple[int, ...]]) -> str:
    return "a head with " + ", ".join(f"{name} {list(shape)}" for name, shape in head.items()) if head else "no head"


def _shared_chat(chats: Iterable[ChatSettings]) -> ChatSettings:
    """How all of them are spoken to; where they differ, as the base is."""
    first, *others = (replace(chat, place="") for chat in chats)
    return first if all(chat == first for chat in others) else NO_CHAT
