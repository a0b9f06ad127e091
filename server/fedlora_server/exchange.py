"""Messages to devices and their replies, as they arrive, by the names of the devices: Flower's types stop here."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from fedlora.counted import counted
from fedlora.errors import RunError
from flwr.app import Array, ArrayRecord, Message, MessageType, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from fedlora_server.bounded_pull import bounded
from fedlora_server.replies import NO_ANSWER, Proof, Reply, Sent, oversized, reply_of

log = logging.getLogger("fedlora.server")
_POLL_S = 0.05
_LONGEST_POLL_S = 1.0
MOST_BYTES = 1 << 20  # of a reply, beside the numbers that are due
TRAIN, EVALUATE = MessageType.TRAIN, MessageType.EVALUATE
LATE_S = 60.0  # that SuperLink takes an answer after its time, so that it is counted
_MOST_LATE = 1000  # messages whose late replies are looked for
_LOOK_S = 5.0  # at which devices were started again, and which are in sight again
_MOST_TIMES = 4  # that a device is asked whose replies are lost
_GRACE_S = 30.0  # for a device that SuperLink has lost sight of: it may have been SuperLink that was away
_GONE = (ErrorCode.NODE_UNAVAILABLE, ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE)


def connected_nodes(grid: Grid, at_least: int, timeout_s: float) -> list[int]:
    """The nodes that are connected, in order, once there are `at_least`. Raises RunError after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        nodes = sorted(grid.get_node_ids())
        if len(nodes) >= at_least:
            return nodes
        if time.monotonic() > deadline:
            raise RunError(
                f"{counted(len(nodes), 'device')} connected after {timeout_s:g} s, the run needs {at_least}; "
                "start more devices, or lower server.min_devices"
            )
        time.sleep(_LONGEST_POLL_S)


class Outstanding:
    """Messages that went out, and their replies as they come; no more than a few replies are held at a time.

    SuperLink gives a message to its device once. With `repeats`, a device that was started again since, or that was lost
    from sight and is back, is sent it again: it goes on from what it saved. The first answer counts, and an error only
    where no other answer is expected. A simulation's devices live as long as it.
    """

    def __init__(self, grid: Grid, *, repeats: bool = False) -> None:
        self._grid, self._look_at = grid, 0.0
        self._proofs: dict[str, Proof] = getattr(grid, "proofs", {})  # by the message that was replied to
        self._repeats = repeats and type(grid).get_nodes is not Grid.get_nodes
        self._gone: list[tuple[float, Sent, Reply]] = []  # until when one that was lost from sight is looked for
        self._twin: dict[str, str] = {}  # the id before of a message that was sent again, and the other way round
        self._waiting: dict[str, Sent] = {}  # by the message's id, in the order of sending
        self._turn: deque[str] = deque()  # whom to ask for a reply next: each has its turn
        self._ready: deque[Reply] = deque()

    def send(
        self, nodes: Iterable[int], kind: str, data: bytes, server_round: int, timeout_s: float,
        most_bytes: int = MOST_BYTES,
    ) -> None:  # fmt: skip
        """Send `data` to each node. `kind` is Flower's message type; no reply larger than `most_bytes` is taken."""
        activated = self._activated()
        ttl = timeout_s if hasattr(self._grid, "give_up") else timeout_s + LATE_S
        self._look_at = time.monotonic() + _LOOK_S
        for node in nodes:
            due = time.monotonic() + timeout_s
            self._send(Sent(node, kind, server_round, most_bytes, due, data, activated.get(node, "")), ttl)

    def next(self, until: float) -> Reply | None:
        """The next reply; None where none is expected any more, or `time.monotonic()` has come to `until`."""
        pause, began = _POLL_S, time.monotonic()
        while not self._ready:
            if not (self._waiting or self._gone) or time.monotonic() >= until:
                return None
            if not self._turn:
                self._turn.extend(self._whom_to_ask())
            self._pull()
            if self._repeats and time.monotonic() >= self._look_at:
                self._send_again()
            if not self._ready and not self._turn:
                time.sleep(max(0.0, min(pause - (time.monotonic() - began), until - time.monotonic())))
                pause, began = min(2 * pause, _LONGEST_POLL_S), time.monotonic()
        return self._ready.popleft()

    @property
    def is_empty(self) -> bool:
        """Whether no reply is expected, nor here."""
        return not self._waiting and not self._ready and not self._gone

    def nodes(self, kind: str) -> set[int]:
        """Those whose replies to messages of this kind were not given out by `next` yet."""
        sent: list[Sent | Reply] = [*self._waiting.values(), *self._ready, *(gone for _, gone, _ in self._gone)]
        return {one.node for one in sent if one.kind == kind}

    def overdue(self) -> list[Reply]:
        """Errors in place of the replies whose time is up; nobody waits for them any more."""
        now = time.monotonic()
        late = {message_id: sent for message_id, sent in self._waiting.items() if sent.due <= now}
        for message_id in late:
            del self._waiting[message_id]
        return [
            sent.reply(device=str(sent.node), error="no answer in time", reason=NO_ANSWER) for sent in late.values()
        ]

    def give_up(self, late: Late | None = None, kind: str = "") -> None:
        """Wait for no reply any more, or for none of this kind; `late` is told of those that would still come."""
        ids = [message_id for message_id, sent in self._waiting.items() if kind in ("", sent.kind)]
        for message_id in ids:
            del self._waiting[message_id]
        self._ready = deque(reply for reply in self._ready if kind not in ("", reply.kind))
        if ids and hasattr(self._grid, "give_up"):  # a simulation: its devices stop
            self._grid.give_up(ids)
        elif late:
            late.expect(ids)

    def _send(self, sent: Sent, ttl: float) -> str:
        """The id of the message; empty where Flower could not take it: that node does not reply."""
        array = Array(dtype="uint8", shape=(len(sent.data),), stype="fedlora.update", data=sent.data)
        content = RecordDict({"update": ArrayRecord({"update": array})})
        message = Message(content, sent.node, sent.kind, ttl=ttl, group_id=str(sent.server_round))
        (message_id,) = self._grid.push_messages([message])
        if message_id:
            self._waiting[message_id] = replace(sent, sent_at=message.metadata.created_at)
        return message_id or ""

    def _activated(self) -> dict[int, str]:
        """When each node that is connected came to SuperLink last."""
        return {node.node_id: node.last_activated_at for node in self._grid.get_nodes()} if self._repeats else {}

    def _send_again(self) -> None:
        """To each device that was started again: its message went with the process that had taken it."""
        self._look_at, activated = time.monotonic() + _LOOK_S, self._activated()
        for message_id, sent in list(self._waiting.items()):
            at = activated.get(sent.node, sent.activated)
            if at == sent.activated or message_id not in self._waiting:
                continue
            self._waiting.pop(self._twin.pop(message_id, ""), None)  # of one that was started again twice, the first
            self._waiting[message_id] = again = replace(sent, activated=at)
            if second := self._send(again, max(0.0, sent.due - time.monotonic())):
                self._twin |= {message_id: second, second: message_id}
                log.info("node %d was started again: it is asked again", sent.node)
        gone, self._gone = self._gone, []
        for until, sent, reply in gone:
            if sent.node in activated:
                again = replace(sent, activated=activated[sent.node], times=sent.times + 1)
                self._send(again, max(0.0, sent.due - time.monotonic()))
                log.info("node %d is in sight again: it is asked again", sent.node)
            elif time.monotonic() < until:
                self._gone.append((until, sent, reply))
            else:
                self._ready.append(reply)

    def _take(self, message_id: str, reply: Reply, sent: Sent, *, is_lost: bool) -> None:
        """Keep a reply, unless it is an error and the same device may still answer."""
        twin = self._twin.pop(message_id, "")
        self._twin.pop(twin, None)
        if reply.error and twin in self._waiting:
            return
        self._waiting.pop(twin, None)
        if is_lost and self._repeats and sent.times < _MOST_TIMES:
            self._gone.append((time.monotonic() + _GRACE_S, sent, reply))
        else:
            self._ready.append(reply)

    def _whom_to_ask(self) -> Iterable[str]:
        """A grid that knows whose replies are there says so, in the order in which they came."""
        ready = getattr(self._grid, "ready", None)
        return [message_id for message_id in ready() if message_id in self._waiting] if ready else list(self._waiting)

    def _pull(self) -> None:
        """Ask for a few replies: a grid returns everything that is ready of what it is asked for."""
        while self._turn and self._turn[0] not in self._waiting:
            self._turn.popleft()
        if not self._turn:
            return
        most_bytes = self._waiting[self._turn[0]].most_bytes
        with bounded(self._grid, most_bytes) as pulls:
            asked: list[str] = []
            while self._turn and len(asked) < pulls.at_once:
                sent = self._waiting.get(self._turn[0])
                if sent and sent.most_bytes != most_bytes:
                    break
                message_id = self._turn.popleft()
                if sent:
                    asked.append(message_id)
            for message in self._grid.pull_messages(asked):
                # A lost node's error carries the wrong source: what it replies to is what tells the node.
                replied_to = message.metadata.reply_to_message_id
                if replied_to in self._waiting:
                    sent = self._waiting.pop(replied_to)
                    reply = oversized(sent) if replied_to in pulls.refused else reply_of(message, sent)
                    if proof := self._proofs.pop(replied_to, None):
                        reply = replace(reply, proof=proof)
                    is_lost = message.has_error() and message.error.code == ErrorCode.NODE_UNAVAILABLE
                    is_lost = is_lost or replied_to in pulls.stalled
                    self._take(replied_to, reply, sent, is_lost=is_lost)


class Late:
    """Replies that nobody waits for any more: they are counted as they arrive, and their content is not read."""

    def __init__(self, grid: Grid) -> None:
        self._grid, self._expected = grid, deque[str](maxlen=_MOST_LATE)

    def expect(self, message_ids: Iterable[str]) -> None:
        self._expected.extend(message_ids)

    def arrived(self) -> int:
        """How many came since this was asked last."""
        count, here = 0, len(self._expected)
        while here > 0:
            with bounded(self._grid, 0) as pulls:
                asked = [self._expected.popleft() for _ in range(min(pulls.at_once, here))]
                here -= len(asked)
                messages = list(self._grid.pull_messages(asked))
            answered = {
                message_id: message_id in pulls.refused or not _is_gone(message)
                for message in messages
                if (message_id := message.metadata.reply_to_message_id) in asked
            }
            count += sum(answered.values())
            self._expected.extend(message_id for message_id in asked if message_id not in answered)
        return count


def ask(
    grid: Grid, nodes: Sequence[int], kind: str, data: bytes, server_round: int, timeout_s: float,
    most_bytes: int = MOST_BYTES, late: Late | None = None,
) -> Iterator[Reply]:  # fmt: skip
    """Send `data` to each node and yield every reply once, as it arrives, until all came or `timeout_s` passed.

    `kind` is Flower's message type, "train" or "evaluate". No more than a few replies are held at a time, however many
    nodes there are, and none that is larger than `most_bytes`. `late` gets those that nobody waits for at the end.
    """
    out = Outstanding(grid, repeats=True)
    try:
        out.send(nodes, kind, data, server_round, timeout_s, most_bytes)
        deadline = time.monotonic() + timeout_s
        while (reply := out.next(deadline)) is not None:
            yield reply
    finally:
        out.give_up(late)


def _is_gone(message: Message) -> bool:
    """Whether it is Flower's word that there is no such message any more."""
    return message.has_error() and message.error.code in _GONE
