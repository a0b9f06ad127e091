"""What a device did today: rounds and bytes, kept over restarts and over clocks that are set back."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from pathlib import Path

from fedlora.counted import counted
from fedlora.errors import ConfigError, PolicyError
from fedlora.files.atomic import write_text
from fedlora.files.documents import read_object

from fedlora_client.policy.policy import Policy

_AHEAD_DAYS = 2  # a day further ahead than that was a wrong clock's


@dataclass(frozen=True, slots=True, kw_only=True)
class DayCounts:
    """The rounds and bytes of one day."""

    day: str = "1970-01-01"
    rounds: tuple[str, ...] = ()  # RUN/ROUND/QUESTION, each counted once however often it was asked for
    bytes: int = 0
    measured: int = 0  # times, the same adapter each time that it was asked for: no answer is kept

    def on(self, today: date) -> DayCounts:
        """The counts as they are `today`: nothing on a later day, and as they were on an earlier one.

        A clock that is set back gives no second day. One that was years ahead holds the counts for two days at most.
        """
        ahead = (date.fromisoformat(self.day) - today).days
        if ahead < 0:
            return DayCounts(day=today.isoformat())
        return replace(self, day=today.isoformat()) if ahead > _AHEAD_DAYS else self

    def with_round(self, name: str) -> DayCounts:
        return self if name in self.rounds else replace(self, rounds=(*self.rounds, name))

    def with_measurement(self) -> DayCounts:
        return replace(self, measured=self.measured + 1)

    def with_bytes(self, count: int) -> DayCounts:
        return replace(self, bytes=self.bytes + count)

    def check(self, policy: Policy, name: str | None, coming_bytes: int) -> None:
        """Raise PolicyError where the round `name` (None: a measurement), or so many more bytes, would be too much.

        There is a measurement more than there are rounds: of the base, before the first.
        """
        is_new = name is not None and name not in self.rounds
        if policy.rounds_a_day and is_new and len(self.rounds) >= policy.rounds_a_day:
            raise PolicyError(
                "policy-rounds",
                f"{counted(len(self.rounds), 'round')} today; policy.rounds_a_day takes {policy.rounds_a_day}",
            )
        if policy.rounds_a_day and name is None and self.measured > policy.rounds_a_day:
            raise PolicyError(
                "policy-rounds",
                f"{counted(self.measured, 'measurement')} today; policy.rounds_a_day takes {policy.rounds_a_day} and "
                "one more",
            )
        if policy.bytes_a_day and self.bytes + coming_bytes > policy.bytes_a_day:
            raise PolicyError(
                "policy-bytes",
                f"{self.bytes} bytes today and {coming_bytes} more to come; policy.bytes_a_day takes {policy.bytes_a_day}",
            )


@dataclass(slots=True)
class DayCounter:
    """The counts in a file. One that is damaged counts from nothing, and says so."""

    path: Path
    notice: str = ""
    _counts: DayCounts = field(default_factory=DayCounts)

    def __post_init__(self) -> None:
        with suppress(FileNotFoundError):
            self.path.stat()
            try:
                content = read_object(self.path, ConfigError, "the counts of a day")
                self._counts = _counts(content)
            except (ConfigError, KeyError, TypeError, ValueError) as error:
                self.notice = f"{self.path}: counted anew from nothing: {error}"

    def today(self, today: date) -> DayCounts:
        return self._counts.on(today)

    def keep(self, counts: DayCounts) -> None:
        """Raises ConfigError or OSError where they cannot be written; they count in this process all the same."""
        self._counts = counts
        write_text(self.path, json.dumps(asdict(counts)) + "\n")


def _counts(content: dict[str, object]) -> DayCounts:
    day, rounds, count, measured = content["day"], content["rounds"], content["bytes"], content.get("measured", 0)
    if not isinstance(day, str) or not isinstance(rounds, list) or type(count) is not int or type(measured) is not int:
        raise ValueError("expected a day, rounds, bytes and measurements")
    if min(count, measured) < 0:
        raise ValueError("expected no numbers below 0")
    date.fromisoformat(day)
    return DayCounts(day=day, rounds=tuple(map(str, rounds)), bytes=count, measured=measured)
