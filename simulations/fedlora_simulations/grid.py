"""A Flower Grid inside this process: devices are threads that share one mapped base."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Self

from fedlora.config.run import Scalar
from fedlora_client.training.wanted import while_wanted
from flwr.app import Context, Error, Message, RecordDict
from flwr.app.user_config import UserConfig
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedlora_simulations.device_threads import DeviceThreads

log = logging.getLogger("fedlora.simulations")

_LONGEST_WAIT_S = 0.5

OnMessage = Callable[[Message], None]


class InProcessGrid(Grid):
    """Runs `client_app` for devices 1..n in a pool of threads, one core each.

    Messages are serialised both ways, as on a network: nothing that a device changes can reach the server or another
    device. A device that raises becomes an error reply, as with Flower's own engines. One that is late is left behind: it
    ends its training early, and the grid that is closed waits for none.
    """

    holds_replies = True  # they are in this process whether or not they are pulled

    def __init__(
        self,
        client_app: ClientApp,
        run_config: Mapping[str, Scalar],
        *,
        run_id: int,
        nodes: Sequence[Mapping[str, Scalar]],
        workers: int,
        on_push: OnMessage = lambda message: None,
        on_done: OnMessage = lambda message: None,
    ) -> None:
        """`nodes` are the node configurations of the devices 1..n.

        `on_push` and `on_done` are told of each message that goes to a device and of its reply.
        """
        self._app = client_app
        self._run = Run.create_empty(run_id=run_id)
        self._on_push, self._on_done = on_push, on_done
        self._contexts = {
            node: Context(
                run_id=run_id,
                node_id=node,
                node_config=UserConfig(own),
                state=RecordDict(),
                run_config=UserConfig(run_config),
            )
            for node, own in enumerate(nodes, 1)
        }
        # What a device keeps in its context must not be used by two messages at once.
        self._busy = {node: threading.Lock() for node in self._contexts}
        self._replies: dict[str, ProtoMessage] = {}  # by what they reply to, in the order in which they came
        self._given_up: set[str] = set()  # messages whose devices are at work, and nobody waits for them
        self._arrived = threading.Condition()
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run_id, SUPERLINK_NODE_ID
        self._threads = DeviceThreads(workers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._threads.close()

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        message_ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = str(uuid.uuid4())  # as Flower's own grids set it
            self._on_push(message)
            self._threads.submit(partial(self._work, message))
            message_ids.append(message.metadata.message_id)
        return message_ids

    def give_up(self, message_ids: Iterable[str]) -> None:
        """Nobody waits for these replies any more: their devices end, or never begin."""
        with self._arrived:
            for message_id in message_ids:
                if not self._replies.pop(message_id, None):
                    self._given_up.add(message_id)

    def ready(self) -> list[str]:
        """The messages whose replies are there, in the order in which these came; waits a moment while none is."""
        with self._arrived:
            self._arrived.wait_for(lambda: self._replies, timeout=_LONGEST_WAIT_S)
            return list(self._replies)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies that are there; waits a moment while none is, so that a caller who polls loses no time."""
        with self._arrived:
            self._arrived.wait_for(lambda: self._replies, timeout=_LONGEST_WAIT_S)
            ready = [self._replies.pop(i) for i in message_ids if i in self._replies]
        return [message_from_proto(proto) for proto in ready]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        waiting = set(self.push_messages(messages))
        deadline = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while waiting and (deadline is None or time.monotonic() < deadline):
            arrived = list(self.pull_messages(waiting))
            waiting -= {message.metadata.reply_to_message_id for message in arrived}
            replies += arrived
        return replies

    def _work(self, sent: Message) -> None:
        """Let the device reply; nobody waits any more for what is past its time to live."""
        if not self._is_wanted(sent):
            return
        message = message_from_proto(message_to_proto(sent))
        node = message.metadata.dst_node_id
        try:
            with self._busy[node], while_wanted(lambda: not self._threads.closed and self._is_wanted(sent)):
                reply = self._app(message, self._contexts[node])
            reply.metadata.__dict__["_message_id"] = str(uuid.uuid4())
            packed = message_to_proto(reply)
        except Exception as error:  # whatever a device raises, or returns instead of a reply, is its own failure
            log.exception("device %d failed", node)
            reply = Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, repr(error)), reply_to=message)
            packed = message_to_proto(reply)
        if self._is_wanted(sent):
            with self._arrived:
                self._replies[message.metadata.message_id] = packed
                self._arrived.notify_all()
            if not self._threads.closed:
                self._on_done(message)
        self._given_up.discard(message.metadata.message_id)

    def _is_wanted(self, sent: Message) -> bool:
        return sent.metadata.message_id not in self._given_up and not _expired(sent)


def _expired(message: Message) -> bool:
    return time.time() > message.metadata.created_at + message.metadata.ttl
