"""A text as it comes, up to the first stop string.

The first is the one that is complete first, and of those that are complete together the longest: what is cut off then does
not depend on the pieces in which the text came.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Lets through what cannot become a part of a stop string, and ends before one."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._first_characters = {text[0] for text in self._stop}
        self._longest = max(map(len, self._stop), default=0)
        self._held = ""  # the beginning of a stop string, as far as is known
        self.stopped = False

    def push(self, text: str) -> str:
        """What may be sent, now that `text` has come."""
        if self.stopped or not self._stop:
            return "" if self.stopped else text
        text = self._held + text
        found = [(start + len(stop), start) for stop in self._stop if (start := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        held = self._start_of_beginning(text)
        self._held = text[held:]
        return text[:held]

    def finish(self) -> str:
        """What was held back, which has become no stop string."""
        held, self._held = self._held, ""
        return held

    def _start_of_beginning(self, text: str) -> int:
        """Where the longest end of `text` starts with which a stop string begins; its length where there is none."""
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            if text[start] in self._first_characters:
                end = text[start:]
                if any(stop.startswith(end) for stop in self._stop):
                    return start
        return len(text)
