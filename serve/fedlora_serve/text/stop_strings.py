"""A text as it comes, up to the first stop string.

The first is the one that is complete first, and of those that are complete together the longest: what is cut off then does
not depend on the pieces in which the text came. A stop string that has special tokens is found where these are, although
the text that is sent is without them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

from fedlora_serve.text.stop_finder import Found, StopFinder


class StopStrings:
    """Lets through what cannot become a part of a stop string, and ends before one."""

    def __init__(
        self, stop: Sequence[str], *, with_symbols: Mapping[str, str] | None = None, includes_stop: bool = False
    ) -> None:
        """`with_symbols` are those with special tokens, {with a symbol for each token: the string}; where
        `includes_stop`, the text ends with the stop string."""
        self._finder = StopFinder(stop)
        self._symbols = _SymbolFinder(with_symbols) if with_symbols else None
        self._includes_stop = includes_stop
        self._held, self._sent = "", 0  # what was not sent, and how many characters were
        self.stopped = False

    def push(self, text: str, *, symbol: str = "", is_symbols: bool = False, counts: bool = True) -> str:
        """What may be sent, now that `text` has come.

        `symbol` is that of a special token that comes after the text, or, where `is_symbols`, is written as the text.
        Where it does not `count`, the text does not end with it.
        """
        if self.stopped:
            return ""
        found = self._finder.push(text, counts=counts)
        open_at = self._finder.open_at
        if self._symbols:
            with_symbols = self._symbols.push(text, symbol, is_symbols=is_symbols, counts=counts)
            found = min(filter(None, (found, with_symbols)), default=None)
            open_at = min(open_at, self._symbols.open_at)
        held = self._held + text
        if found:
            self.stopped, self._held = True, ""
            return held[: found.start - self._sent] + (found.stop if self._includes_stop else "")
        sent, self._held = held[: open_at - self._sent], held[open_at - self._sent :]
        self._sent = open_at
        return sent

    def finish(self) -> str:
        """What was held back, which has become no stop string."""
        held, self._held = self._held, ""
        return held


class _SymbolFinder:
    """Finds strings with symbols in a text with symbols; its places are those of the text as it is sent."""

    def __init__(self, strings: Mapping[str, str]) -> None:
        self._finder, self._strings = StopFinder(strings), strings
        self._places = [0]  # of the characters and symbols from `_finder.open_at` on, and of the end

    @property
    def open_at(self) -> int:
        """As of `StopFinder`."""
        return self._places[0]

    def push(self, text: str, symbol: str, *, is_symbols: bool, counts: bool) -> Found | None:
        """As of `StopFinder`; the string is the one without symbols."""
        came, widths = (symbol, [len(text)]) if is_symbols else (text + symbol, [1] * len(text) + [0] * len(symbol))
        first = self._finder.open_at
        self._places += list(accumulate(widths, initial=self._places[-1]))[1:]
        found = self._finder.push(came, counts=counts)
        if found:
            end, start = self._places[found.end - first], self._places[found.start - first]
            return Found(end, start, self._strings[found.stop])
        del self._places[: self._finder.open_at - first]
        return None
