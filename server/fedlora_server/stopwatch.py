"""Seconds spent in blocks of code."""

from __future__ import annotations

import time


class Stopwatch:
    """`with watch: ...` as often as one likes; `seconds` is the sum."""

    def __init__(self) -> None:
        self.seconds, self._began = 0.0, 0.0

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(self, *exception: object) -> None:
        self.seconds += time.monotonic() - self._began
