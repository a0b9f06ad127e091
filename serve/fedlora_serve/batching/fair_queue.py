"""Sequences that wait for a row, shared fairly by those who asked for them.

Each has a queue of their own: next comes the first of whoever has the fewest rows just now, and of those whoever got one
longest ago. So one who asks for a hundred answers at once delays the others by no more than their shares (max-min
fairness; Bertsekas and Gallager, Data Networks, 6.5.2).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence

from fedlora_serve.batching.sequence import SequenceState


class FairQueue:
    """At most `capacity` sequences, and a fair part of it for each of those who wait. One thread at a time."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._queues: dict[str, deque[SequenceState]] = {}  # {whose: theirs}, none empty; longest ago served first

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def __iter__(self) -> Iterator[SequenceState]:
        for queue in self._queues.values():
            yield from queue

    def has_room(self, share: str, count: int = 1) -> bool:
        """Whether so many more of theirs may wait: while there is room, and else up to an equal part."""
        mine = len(self._queues.get(share, ()))
        part = self._capacity // len({*self._queues, share})
        return len(self) + count <= self._capacity or mine + count <= part

    def has_newcomer(self, running: Sequence[SequenceState]) -> bool:
        """Whether somebody waits who has no row."""
        return not self._queues.keys() <= rows_by_share(running).keys()

    def append(self, sequence: SequenceState) -> None:
        self._queues.setdefault(sequence.request.share, deque()).append(sequence)

    def put_back(self, preempted: list[SequenceState]) -> None:
        """Take those that had a row before, the newest first, out of the list; they come first of their own."""
        for sequence in preempted:
            self._queues.setdefault(sequence.request.share, deque()).appendleft(sequence)
        preempted.clear()

    def next(self, running: Sequence[SequenceState]) -> SequenceState | None:
        """Who comes in next, beside those that run; it stays in the queue."""
        if not self._queues:
            return None
        rows = rows_by_share(running)
        return self._queues[min(self._queues, key=lambda share: rows[share])][0]

    def remove(self, sequence: SequenceState) -> None:
        """It waits no longer; whose it was are served last of all."""
        queue = self._queues.pop(sequence.request.share)
        queue.remove(sequence)
        if queue:
            self._queues[sequence.request.share] = queue


def rows_by_share(running: Sequence[SequenceState]) -> Counter[str]:
    """How many rows each has."""
    return Counter(sequence.request.share for sequence in running)
