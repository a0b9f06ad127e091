"""The events of several choices, from the engine's thread to the event loop.

Nobody waits for the reader: pieces that it has not taken are joined, so what waits is at most the choices themselves, which
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
    """What has come of the choices 0, 1, ...; made and read on the event loop."""

    def __init__(self, observe: Callable[[int, float, Event], None]) -> None:
        """`observe` is told of every event, (index, time of `perf_counter`, event), whether or not somebody reads."""
        self._loop = asyncio.get_running_loop()
        self._observe = observe
        self._waiting: dict[int, list[Event]] = {}  # of each choice at most one piece and its end
        self._has_events = asyncio.Event()

    def receiver(self, index: int) -> Callable[[Event], None]:
        """What the engine calls, on its own thread, with the events of one choice."""
        return partial(self._post, index)

    async def take(self) -> list[tuple[int, Event]]:
        """What has come since the last time, at least one event; the pieces of a choice are one."""
        await self._has_events.wait()
        self._has_events.clear()
        waiting, self._waiting = self._waiting, {}
        return [(index, event) for index, events in waiting.items() for event in events]

    def _post(self, index: int, event: Event) -> None:
        with suppress(RuntimeError):  # the loop has ended, and whoever read with it
            self._loop.call_soon_threadsafe(self._receive, index, time.perf_counter(), event)

    def _receive(self, index: int, at: float, event: Event) -> None:
        self._observe(index, at, event)
        events = self._waiting.setdefault(index, [])
        if events and isinstance(event, Piece) and isinstance(last := events[-1], Piece):
            events[-1] = Piece(
                text=last.text + event.text,
                completion_tokens=event.completion_tokens,
                tokens=last.tokens + event.tokens,
            )
        elif not (events and isinstance(events[-1], Finished)):
            events.append(event)
        self._has_events.set()
