"""Quiet hours: times of the day, by the device's own clock, at which it does not work."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import time

from fedlora.errors import ConfigError

_HOURS = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")


@dataclass(frozen=True, slots=True)
class QuietHours:
    """From `begin` until before `end`; over midnight where the end is the earlier one."""

    begin: time
    end: time

    @classmethod
    def read(cls, text: str, where: str) -> QuietHours:
        """Of HH:MM-HH:MM. Raises ConfigError."""
        found = _HOURS.fullmatch(text)
        if not found:
            raise ConfigError(f"{where}: {text!r:.40}; expected HH:MM-HH:MM, such as 22:00-07:00")
        first, second, third, fourth = map(int, found.groups())
        begin, end = time(first, second), time(third, fourth)
        if begin == end:
            raise ConfigError(f"{where}: {text}: no time lies between; expected two different times")
        return cls(begin, end)

    def hold(self, now: time) -> bool:
        """Whether `now` is one of them."""
        now = now.replace(tzinfo=None, fold=0)
        if self.begin < self.end:
            return self.begin <= now < self.end
        return now >= self.begin or now < self.end

    def __str__(self) -> str:
        return f"{self.begin:%H:%M}-{self.end:%H:%M}"
