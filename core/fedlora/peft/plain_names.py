"""Names of modules, and their ends, as keys of a pattern: the first that fits a module, in time that is linear in its name.

    q_proj    mlp.up_proj    model\\.layers\\.0\\.mlp\\.up_proj    ^model.layers.0.mlp.up_proj$

To PEFT a key is a regular expression, which fits a name, or the end of one after a dot. One that is a name has nothing to
repeat, but a bare dot is any character: such a key has one length, so it can fit one end of a module and no other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from fedlora.errors import ConfigError

# A letter can be read in one way only, and none is given back.
_PLAIN = re.compile(r"\^?(?:[\w.-]|\\[.-])*+\$?")
_BARE_DOT = re.compile(r"(?<!\\)\.")
_MAX_STEPS = 1_000_000  # parts between bare dots that are compared, over all keys and modules: a second


def is_plain(key: str) -> bool:
    """Whether a key is a name, or the end of one, its dots escaped or not."""
    return _PLAIN.fullmatch(key) is not None


class PlainNames:
    """Plain keys, each with its place among all keys of a pattern."""

    def __init__(self, places: Mapping[str, int]) -> None:
        self._exact: dict[str, int] = {}  # {name or end of one: place}
        self._dotted: dict[
            int, list[tuple[int, bool, list[str]]]
        ] = {}  # {length: place, whether of a whole name, parts}
        self._steps = 0
        for key, place in places.items():
            is_whole, text = key.startswith("^"), key.removeprefix("^").removesuffix("$")
            parts = [part.replace("\\", "") for part in _BARE_DOT.split(text)]
            if len(parts) == 1 and not is_whole:
                self._exact.setdefault(parts[0], place)
            else:
                length = sum(map(len, parts)) + len(parts) - 1
                self._dotted.setdefault(length, []).append((place, is_whole, parts))

    def first(self, module: str) -> int | None:
        """The place of the first key that fits. Raises ConfigError once all modules have taken too many steps."""
        found = [self._exact[end] for end in ends(module) if end in self._exact]
        for end in ends(module) if self._dotted else ():
            for place, is_whole, parts in self._dotted.get(len(end), ()):
                if (end is module or not is_whole) and self._fits(end, parts):
                    found.append(place)
                    break  # those of one length are in order
        return min(found, default=None)

    def _fits(self, end: str, parts: list[str]) -> bool:
        at = 0
        for part in parts:
            self._steps += 1
            if not end.startswith(part, at):
                break
            at += len(part) + 1
        if self._steps > _MAX_STEPS:
            raise ConfigError(
                f"a pattern with more than {_MAX_STEPS} parts of names to compare; write each dot as \\., as PEFT does"
            )
        return at == len(end) + 1


def ends(module: str) -> Iterator[str]:
    """The module's name, and what of it follows each of its dots."""
    yield module
    place = module.find(".")
    while place >= 0:
        yield module[place + 1 :]
        place = module.find(".", place + 1)
