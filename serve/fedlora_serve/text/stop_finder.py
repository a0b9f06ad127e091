"""Where in a text that comes piece by piece one of several strings is complete first."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Found:
    """A string, and where it lies; the smallest is complete first, and of those complete together the longest."""

    end: int
    start: int
    stop: str


class StopFinder:
    """Looks for `stop` in a text; places count from its beginning."""

    def __init__(self, stop: Iterable[str]) -> None:
        self._stop = tuple(stop)
        self._first_characters = {text[0] for text in self._stop}
        self._longest = max(map(len, self._stop), default=0)
        self._open = ""  # the end of the text with which a string may begin
        self.open_at = 0  # where that is: what lies before it is part of no string that may still come

    def push(self, text: str, *, counts: bool = True) -> Found | None:
        """The first string that is complete now that `text` has come; where it does not count, none is found."""
        before, text = len(self._open), self._open + text
        if counts:
            found = [
                Found(self.open_at + start + len(stop), self.open_at + start, stop)
                for stop in self._stop
                # One that was complete before did not count then.
                if (start := text.find(stop, max(0, before - len(stop) + 1))) >= 0
            ]
            if found:
                return min(found)
        place = self._start_of_beginning(text)
        self.open_at, self._open = self.open_at + place, text[place:]
        return None

    def _start_of_beginning(self, text: str) -> int:
        """Where the longest end of `text` starts with which a string begins; its length where there is none."""
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            if text[start] in self._first_characters:
                end = text[start:]
                if any(stop.startswith(end) for stop in self._stop):
                    return start
        return len(text)
