"""The part of regular expressions that names of modules need, matched within a bound.

PEFT finds a module's rank and alpha by regular expressions. One from a stranger can make Python's own matcher run for
ever, so these are matched here: every part of a pattern takes the set of places where it may begin to the set of places
where it may end. Known are characters, `.`, `\\d`, `\\w`, `\\s`, classes, groups, `|`, `* + ? {m,n}`, `^` and `$`; what
else there is (lookaround, back references) is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from fedlora.errors import ConfigError

_MAX_LENGTH = 512  # of a pattern
_MAX_DEPTH = 32  # of brackets
_MAX_REPEATS = 64
_MAX_STEPS = 500_000  # over all names that a pattern is matched against
_QUANTIFIER = re.compile(r"(?:[*+?]|\{(\d{1,3})(,(\d{0,3}))?\})\??")
_KINDS: dict[str, Callable[[str], bool]] = {
    "d": str.isdecimal, "w": lambda c: c.isalnum() or c == "_", "s": str.isspace,
}  # fmt: skip

Places = frozenset[int]
Part = Callable[[str, Places], Places]  # (name, where it may begin) -> where it may end


class NamePattern:
    """A pattern as PEFT takes one: it fits a name, or the end of one after a dot."""

    def __init__(self, pattern: str) -> None:
        """Raises ConfigError for what is no pattern of the part that is known."""
        self.pattern = pattern
        self._at = self._steps = 0
        if len(pattern) > _MAX_LENGTH:
            raise self._refusal(f"it is longer than {_MAX_LENGTH} characters")
        self._whole = self._alternatives(0)
        if self._at < len(pattern):
            raise self._refusal("a bracket closes that did not open")

    def matches(self, name: str) -> bool:
        """Raises ConfigError once the matching has taken too many steps."""
        begins = {0, *(place for place, character in enumerate(name, 1) if character == ".")}
        return len(name) in self._whole(name, frozenset(begins))

    def _alternatives(self, depth: int) -> Part:
        if depth > _MAX_DEPTH:
            raise self._refusal(f"more than {_MAX_DEPTH} brackets lie in each other")
        branches = [self._sequence(depth)]
        while self._take("|"):
            branches.append(self._sequence(depth))
        if len(branches) == 1:
            return branches[0]
        return lambda name, places: frozenset[int]().union(*(branch(name, places) for branch in branches))

    def _sequence(self, depth: int) -> Part:
        parts: list[Part] = []
        while self._at < len(self.pattern) and self.pattern[self._at] not in "|)":
            atom = self._atom(depth)
            quantifier = _QUANTIFIER.match(self.pattern, self._at)
            if quantifier:
                self._at = quantifier.end()
                atom = self._repeated(atom, *self._bounds(quantifier))
            parts.append(atom)

        def sequence(name: str, places: Places) -> Places:
            for part in parts:
                if not places:
                    break
                places = part(name, places)
            return places

        return sequence

    def _atom(self, depth: int) -> Part:
        character = self._next()
        if character == "(":
            if self._take("?") and not self._take(":"):
                raise self._refusal("lookaround and flags are not known")
            inside = self._alternatives(depth + 1)
            if not self._take(")"):
                raise self._refusal("a bracket does not close")
            return inside
        if character == "^":
            return lambda name, places: places & {0}
        if character == "$":
            return lambda name, places: places & {len(name)}
        if character == ".":
            return self._one(lambda c: c != "\n")
        if character == "[":
            return self._one(self._class())
        if character in "*+?{":
            raise self._refusal(f"{character!r} has nothing to repeat")
        return self._one(self._escaped() if character == "\\" else character.__eq__)

    def _one(self, test: Callable[[str], bool]) -> Part:
        """One character."""

        def one(name: str, places: Places) -> Places:
            self._steps += len(places)
            if self._steps > _MAX_STEPS:
                raise self._refusal("it takes too many steps to match; write it more simply")
            return frozenset(place + 1 for place in places if place < len(name) and test(name[place]))

        return one

    def _repeated(self, part: Part, least: int, most: int | None) -> Part:
        def repeated(name: str, places: Places) -> Places:
            for _ in range(least):
                places = part(name, places)
            found, fresh, count = places, places, least
            while fresh and (most is None or count < most):
                fresh = part(name, fresh) - found
                found, count = found | fresh, count + 1
            return found

        return repeated

    def _bounds(self, quantifier: re.Match[str]) -> tuple[int, int | None]:
        kind = quantifier[0][0]
        if kind != "{":
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[kind]
        least = int(quantifier[1])
        most = least if quantifier[2] is None else int(quantifier[3]) if quantifier[3] else None
        if max(least, most or 0) > _MAX_REPEATS or (most is not None and most < least):
            raise self._refusal(f"{quantifier[0]} repeats more than {_MAX_REPEATS} times, or less than its least")
        return least, most

    def _escaped(self) -> Callable[[str], bool]:
        character = self._next()
        if character in _KINDS:
            return _KINDS[character]
        if character.isalnum():
            raise self._refusal(f"\\{character} is not known")
        return character.__eq__

    def _class(self) -> Callable[[str], bool]:
        negated, tests = self._take("^"), list[Callable[[str], bool]]()
        while not tests or not self._take("]"):  # a bracket that comes first stands for itself
            low = self._next()
            if low == "\\":
                tests.append(self._escaped())
            elif self.pattern[self._at : self._at + 1] == "-" and self.pattern[self._at + 1 : self._at + 2] != "]":
                self._next()
                tests.append(_between(low, self._next()))
            else:
                tests.append(low.__eq__)
        return lambda c: any(test(c) for test in tests) != negated

    def _next(self) -> str:
        if self._at == len(self.pattern):
            raise self._refusal("it ends too early")
        self._at += 1
        return self.pattern[self._at - 1]

    def _take(self, character: str) -> bool:
        taken = self.pattern[self._at : self._at + 1] == character
        self._at += taken
        return taken

    def _refusal(self, why: str) -> ConfigError:
        return ConfigError(f"{self.pattern!r:.120} in a pattern is not understood: {why}")


def _between(low: str, high: str) -> Callable[[str], bool]:
    return lambda c: low <= c <= high
