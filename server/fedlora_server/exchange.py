"""Messages to devices and their replies, as they arrive, by the names of the devices: Flower's types stop here."""

from __future__ import annotations

import re
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass

from fedlora.errors import RunError
from fedlora.wire.refusal import POLICY_REASONS, REASON, REFUSAL, SAID
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedlora_server.bounded_pull import bounded

_POLL_S = 0.05
_LONGEST_POLL_S = 1.0
_LONGEST_TEXT = 500
NAMED = re.compile(r"device (.{1,64}?): (.*)", re.DOTALL)
MOST_BYTES = 1 << 20  # of a reply, beside the numbers that are due
FAILED = "device-error"
REVOKED = "revoked"  # what a fleet's grid puts in place of the answer of a device that it does not know any more


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What one device replied: `data` and `metrics` where it did what was asked, `error` where it did not.

    Its texts are fit for a log.
    """

    node: int
    device: str  # the name that it gives itself; the node's number where it gives none
    reason: str = FAILED  # the word by which an error is counted; of a refusal, that of the device's policy
    data: bytes = b""
    metrics: dict[str, float] | None = None
    error: str = ""


def connected_nodes(grid: Grid, at_least: int, timeout_s: float) -> list[int]:
    """The nodes that are connected, in order, once there are `at_least`. Raises RunError after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        nodes = sorted(grid.get_node_ids())
        if len(nodes) >= at_least:
            return nodes
        if time.monotonic() > deadline:
            raise RunError(
                f"{len(nodes)} devices are connected after {timeout_s:g} s, the run needs {at_least}; "
                "start more devices, or lower server.min_devices"
            )
        time.sleep(_LONGEST_POLL_S)


def ask(
    grid: Grid, nodes: Sequence[int], kind: str, data: bytes, server_round: int, timeout_s: float,
    most_bytes: int = MOST_BYTES,
) -> Iterator[Reply]:  # fmt: skip
    """Send `data` to each node and yield every reply once, as it arrives, until all came or `timeout_s` passed.

    `kind` is Flower's message type, "train" or "evaluate". No more than a few replies are held at a
    time, however many nodes there are, and none that is larger than `most_bytes`.
    """
    array = Array(dtype="uint8", shape=(len(data),), stype="fedlora.update", data=data)
    waiting: dict[str, int] = {}
    for node in nodes:
        content = RecordDict({"update": ArrayRecord({"update": array})})
        message = Message(content, node, kind, ttl=timeout_s, group_id=str(server_round))
        for message_id in grid.push_messages([message]):
            if message_id:  # Flower gives None for what it could not take: that node does not reply
                waiting[message_id] = node
    deadline, pause = time.monotonic() + timeout_s, _POLL_S
    while waiting and (began := time.monotonic()) < deadline:
        before = len(waiting)
        with bounded(grid, most_bytes) as pulls:
            for asked in _slices(list(waiting), pulls.at_once):
                for message in grid.pull_messages(asked):
                    # A lost node's error carries the wrong source: what it replies to is what tells the node.
                    replied_to = message.metadata.reply_to_message_id
                    if replied_to in waiting:
                        node, is_refused = waiting.pop(replied_to), replied_to in pulls.refused
                        yield _oversized(node, most_bytes) if is_refused else _reply(message, node, most_bytes)
        pause = _POLL_S if len(waiting) < before else min(2 * pause, _LONGEST_POLL_S)
        if len(waiting) == before:
            time.sleep(max(0.0, pause - (time.monotonic() - began)))


def printable(text: str) -> str:
    """What a stranger wrote, fit for one line of a log."""
    short = text if len(text) <= _LONGEST_TEXT else text[:_LONGEST_TEXT] + "..."
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in short)


def _slices(ids: list[str], few: int) -> Iterator[list[str]]:
    """A few at a time: a grid returns everything that is ready of what it is asked for, and that is what is held."""
    for start in range(0, len(ids), few):
        yield ids[start : start + few]


TRAIN, EVALUATE = MessageType.TRAIN, MessageType.EVALUATE


def _oversized(node: int, most_bytes: int) -> Reply:
    error = f"its reply is larger than {most_bytes} bytes, the most that a reply to this message can have"
    return Reply(node=node, device=str(node), error=error, reason="oversized")


def _reply(message: Message, node: int, most_bytes: int) -> Reply:
    if message.has_error():
        said = message.error.reason or f"error {message.error.code}"
        named = NAMED.match(said)  # as our devices say who they are
        device, said = (named[1], named[2]) if named else (str(node), said)
        return Reply(node=node, device=printable(device), error=printable(said))
    content = message.content
    arrays = [array for record in content.array_records.values() for array in record.values()]
    if sum(len(array.data) for array in arrays) > most_bytes:
        return _oversized(node, most_bytes)
    try:
        name = printable(str(content.config_records["device"]["device"])[:64])
        if REFUSAL in content.config_records:
            return _refusal(content.config_records[REFUSAL], node, name)
        if message.metadata.message_type == MessageType.TRAIN:
            return Reply(node=node, device=name, data=content.array_records["update"]["update"].data)
        metrics = {
            key: float(value) for key, value in content.metric_records["metrics"].items() if not isinstance(value, list)
        }
        return Reply(node=node, device=name, metrics=metrics)
    except (KeyError, TypeError, ValueError) as error:
        return Reply(
            node=node, device=str(node), error=printable(f"not an answer to {message.metadata.message_type}: {error!r}")
        )


def _refusal(record: ConfigRecord, node: int, device: str) -> Reply:
    """What a device's policy said; by a word that is none of the known ones it is a failure like any other."""
    reason, said = record.get(REASON), record.get(SAID)
    known = isinstance(reason, str) and (reason in POLICY_REASONS or reason == REVOKED)
    text = said if isinstance(said, str) and said else "it refuses, and says nothing more"
    return Reply(node=node, device=device, error=printable(text), reason=str(reason) if known else FAILED)


class DeviceNames:
    """The name that a device gives itself, with its node's number where another device has that name already."""

    def __init__(self) -> None:
        self._by_node: dict[int, str] = {}  # in the order in which they first replied

    def restore(self, nodes: Mapping[str, int], connected: Container[int]) -> None:
        """Know those of `nodes` again that are `connected`: the others' names are free, as for a node that came anew."""
        self._by_node |= {node: name for name, node in nodes.items() if node in connected}

    def known(self, reply: Reply) -> str:
        """The device's name as far as it is known, for a word about it."""
        return self._by_node.get(reply.node, reply.device)

    def of(self, reply: Reply, heard: dict[str, int]) -> str:
        """The device's name; one that was not known goes into `heard` with its node."""
        if reply.node not in self._by_node:
            name = reply.device
            while name in self._by_node.values():
                name = f"{name} ({reply.node})"
            self._by_node[reply.node] = name
            heard[name] = reply.node
        return self._by_node[reply.node]
