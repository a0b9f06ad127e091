"""Which of a model's layers get an adapter, by their numbers: those of its blocks, from 0."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from fedlora.counted import counted
from fedlora.errors import ConfigError

_ENTRY = re.compile(r"(-?\d{1,6})(?:-(-?\d{1,6}))?")
_NUMBER = re.compile(r"(?:[^.]+\.)+?(\d{1,6})\.")  # where PEFT's layers_to_transform looks for it


def layer_of(module: str) -> int | None:
    """The number of the layer that a module stands in; None where it stands in none."""
    found = _NUMBER.match(module)
    return int(found[1]) if found else None


def layers_of(modules: Iterable[str]) -> tuple[int, ...]:
    """The layers that `modules` stand in, in order."""
    return tuple(sorted({layer for layer in map(layer_of, modules) if layer is not None}))


def check_entries(entries: Sequence[str], where: str) -> None:
    """Raise ConfigError for an entry that is neither a layer's number nor a range of them."""
    for entry in entries:
        if not _ENTRY.fullmatch(entry):
            raise ConfigError(
                f"{where} takes numbers of layers and ranges, such as 0-3 or -1 (the last), got {entry!r}"
            )


def chosen_layers(entries: Sequence[str], modules: Iterable[str], where: str) -> tuple[int, ...]:
    """The layers that `entries` name, in order: "5", "-1" (the last), or "0-3" (3 is one of them).

    Raises ConfigError for one that a model with these modules does not have.
    """
    count = max(layers_of(modules), default=-1) + 1
    chosen: set[int] = set()
    for entry in entries:
        found = _ENTRY.fullmatch(entry)
        assert found is not None
        first, last = (_counted(int(text), count, entry, where) for text in (found[1], found[2] or found[1]))
        if last < first:
            raise ConfigError(f"{where}: {entry} ends before it begins; write {last}-{first}")
        chosen.update(range(first, last + 1))
    return tuple(sorted(chosen))


def _counted(number: int, count: int, entry: str, where: str) -> int:
    if not -count <= number < count:
        raise ConfigError(f"{where}: the base has {counted(count, 'layer')}, from 0 to {count - 1}; got {entry}")
    return number + count if number < 0 else number
