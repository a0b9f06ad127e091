"""A token bucket: how much of something may be taken in a minute, with a minute's worth at once.

    level(t) = min(capacity, level(t0) + (t - t0) * capacity / 60)

Taking needs the level that it takes, or a full bucket where it takes more than that. Spending takes always, and may
leave the bucket below zero: what an answer costs is known when it has ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable

Clock = Callable[[], float]  # seconds, from any beginning


class TokenBucket:
    """One bucket, full at the beginning. Not for several threads at a time."""

    def __init__(self, per_minute: int, clock: Clock = time.monotonic) -> None:
        self._capacity, self._clock = float(per_minute), clock
        self._level, self._at = self._capacity, clock()

    def wait_s(self, amount: float) -> float:
        """How long until `amount` can be taken; 0: now."""
        now = self._clock()
        self._level = min(self._capacity, self._level + max(0.0, now - self._at) * self._capacity / 60)
        self._at = now
        return max(0.0, min(amount, self._capacity) - self._level) * 60 / self._capacity

    def spend(self, amount: float) -> None:
        """Take `amount`, whether it is there or not."""
        self.wait_s(0)
        self._level -= amount
