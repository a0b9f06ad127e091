"""The events of several answers, from the engine's thread to the event loop.

Nobody waits for the reader: pieces that it has not taken are joined, so what waits is at most the answers themselves, which
`max_tokens` bounds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from fedlora_serve.batching.request import Event, Finished, Piece


class Inbox:
    """What has come of the answers 0, 1, ...; made and read on the event loop."""

    def __init__(self, observe: Callable[[int, float, Event], None]) -> None:
        """`observe` is told of every event, (answer, time of `perf_counter`, event), whether or not somebody reads."""
        self._loop = asyncio.get_running_loop()
        self._observe = observe
        self._waiting: dict[int, list[Event]] = {}  # of each answer at most one piece and its end
        self._has_events = asyncio.Event()

    def receiver(self, answer: int) -> Callable[[Event], None]:
        """What the engine calls, on its own thread, with the events of one answer."""
        return partial(self._post, answer)

    async def take(self) -> list[tuple[int, Event]]:
        """What has come since the last time, at least one event; the pieces of an answer are one."""
        await self._has_events.wait()
        self._has_events.clear()
        waiting, self._waiting = self._waiting, {}
        return [(answer, event) for answer, events in waiting.items() for event in events]

    def _post(self, answer: int, event: Event) -> None:
        with suppress(RuntimeError):  # the loop has ended, and whoever read with it
            self._loop.call_soon_threadsafe(self._receive, answer, time.perf_counter(), event)

    def _receive(self, answer: int, at: float, event: Event) -> None:
        self._observe(answer, at, event)
        events = self._waiting.setdefault(answer, [])
        if events and isinstance(event, Piece) and isinstance(last := events[-1], Piece):
            events[-1] = Piece(text=last.text + event.text, tokens=last.tokens + event.tokens)
        elif not (events and isinstance(events[-1], Finished)):
            events.append(event)
        self._has_events.set()
