"""A grid in memory whose devices take their time, in ticks of a clock that stands still while nobody waits."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping

from flwr.app import Message

from tests.server.fake_grid import Device, FakeGrid


class PacedGrid(FakeGrid):
    """A device works on one message at a time, for so many ticks: 1 unless `pace` says otherwise; an evaluation takes none.

    Whoever asks for replies while there are none waits for the next one, in no time: a test counts ticks, not seconds.
    """

    def __init__(self, devices: Mapping[int, Device], pace: Mapping[int, float] | None = None) -> None:
        super().__init__(devices)
        self.pace = dict(pace or {})
        self.clock = 0.0
        self._free_at = dict.fromkeys(devices, 0.0)
        self._due: dict[str, float] = {}  # by what is replied to
        self._offered: set[str] = set()  # replies that were said to be there

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        ids = list(super().push_messages(messages))
        for message, message_id in zip(messages, ids, strict=True):
            node, kind = message.metadata.dst_node_id, message.metadata.message_type
            takes = self.pace.get(node, 1.0) if kind == "train" else 0.0
            self._free_at[node] = max(self._free_at.get(node, 0.0), self.clock) + takes
            self._due[message_id] = self._free_at[node]
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return super().pull_messages([i for i in message_ids if self._due.get(i, self.clock) <= self.clock])

    def ready(self) -> list[str]:
        """The messages whose replies are there, in the order in which these came."""
        there = list(dict.fromkeys(message.metadata.reply_to_message_id for message in self._queue))
        due = sorted((self._due[message_id], number, message_id) for number, message_id in enumerate(there))
        coming = [at for at, _, message_id in due if message_id not in self._offered]
        if coming and coming[0] > self.clock:
            self.clock = coming[0]
        self._offered |= {message_id for at, _, message_id in due if at <= self.clock}
        return [message_id for at, _, message_id in due if at <= self.clock]


class StoppingGrid(PacedGrid):
    """One whose devices stop where nobody waits for them any more, as those of a simulation do."""

    def __init__(self, devices: Mapping[int, Device], pace: Mapping[int, float] | None = None) -> None:
        super().__init__(devices, pace)
        self.given_up: list[str] = []

    def give_up(self, message_ids: Iterable[str]) -> None:
        self.given_up += message_ids
        self._queue = deque(m for m in self._queue if m.metadata.reply_to_message_id not in self.given_up)
        self._free_at = dict.fromkeys(self._free_at, self.clock)
