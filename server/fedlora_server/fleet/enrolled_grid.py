"""Flower's grid as a fleet sees it: its devices alone, under the names of their enrolment.

A SuperNode proves its key to SuperLink at every request, so its node is what tells who it is. What a device says of itself
is written over with the name that its key was enrolled under, and a node without one is not asked, nor its answer counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fedlora.wire.refusal import REASON, REFUSAL, SAID
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.app.message import make_message
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from fedlora_server.fleet.roll import Roll
from fedlora_server.replies import NAMED, REVOKED

_MOST_SENT = 100_000  # messages whose nodes are remembered


class EnrolledGrid(Grid):
    """`grid`, with the devices that are on the roll at the moment."""

    def __init__(self, grid: Grid, roll: Roll) -> None:
        self._inner, self._roll = grid, roll
        self._node_of: dict[str, int] = {}  # by the message's id: a lost node's error carries the wrong source

    def __getattr__(self, name: str) -> Any:
        """What this grid does not have, as Flower's own has it: `bounded_pull` looks there."""
        return getattr(self._inner, name)

    @property
    def _client(self) -> Any:
        inner: Any = self._inner
        return inner._client

    @_client.setter
    def _client(self, client: Any) -> None:
        inner: Any = self._inner
        inner._client = client

    @property
    def run(self) -> Run:
        return self._inner.run

    def set_run(self, run: Run) -> None:
        self._inner.set_run(run)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return self._inner.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        return [node for node in self._inner.get_node_ids() if self._roll.name_of(node) is not None]

    def get_nodes(self) -> Iterable[NodeInfo]:
        return [node for node in self._inner.get_nodes() if self._roll.name_of(node.node_id) is not None]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        ids = list(self._inner.push_messages(messages))
        for message_id, message in zip(ids, messages, strict=True):
            if message_id:
                self._node_of[message_id] = message.metadata.dst_node_id
        while len(self._node_of) > _MOST_SENT:
            del self._node_of[next(iter(self._node_of))]
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._named(message) for message in self._inner.pull_messages(message_ids)]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return [self._named(message) for message in self._inner.send_and_receive(messages, timeout=timeout)]

    def _named(self, message: Message) -> Message:
        metadata = message.metadata
        node = self._node_of.pop(metadata.reply_to_message_id, metadata.src_node_id)
        name = self._roll.name_of(node)
        if name is None:
            said = "it is no device of the fleet: it was revoked, or never enrolled"
            content = RecordDict()
            content["device"] = ConfigRecord({"device": str(node)})
            content[REFUSAL] = ConfigRecord({REASON: REVOKED, SAID: said})
            return make_message(metadata=metadata, content=content)
        if message.has_error():
            said = message.error.reason or f"error {message.error.code}"
            named = NAMED.match(said)
            said = named[2] if named else said
            return make_message(metadata=metadata, error=Error(message.error.code, f"device {name}: {said}"))
        message.content["device"] = ConfigRecord({"device": name})
        return message
