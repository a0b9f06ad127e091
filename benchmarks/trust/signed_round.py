"""Rounds of a server with many devices, whose part of signing is timed apart from the rest.

The devices train nothing: their updates are one adapter's with another constant added for each, made when they are pulled,
so that no more than a few are held. They sign as the device service does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from fedlora.base.pack import BasePack
from fedlora.config.run import RunConfig
from fedlora.identity.keys import PublicKey, SigningKey
from fedlora.wire.beside import SIGNED, SIGNED_SAID
from fedlora.wire.update import decode_update, encode_update, payload
from fedlora_client.courier.question import Answer, Question
from fedlora_client.service.signing import Signing
from fedlora_server.fleet.enrolled_grid import EnrolledGrid
from fedlora_server.fleet.identity import Counter
from fedlora_server.fleet.roll import Roll
from fedlora_server.fleet.signed_grid import Head, SignedGrid
from fedlora_server.rounds import Rounds
from fedlora_server.run.chain import Chain, Signer
from fedlora_server.run.run_directory import open_run
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity


@dataclass
class Spent:
    """Seconds of the processor, of this process."""

    server_s: float = 0.0  # of the rounds at the server, without what it took to make the devices' answers
    signing_s: float = 0.0  # of that, for each device: signing, verifying, digests of updates, keys
    record_s: float = 0.0  # of that, for each round: digests of its files, the records
    device_s: list[float] = field(default_factory=list)  # of each device: checking its instruction, signing its answer


class Everybody(Roll):
    """A roll of nodes 1 to N."""

    def __init__(self, keys: dict[int, PublicKey] | None, nodes: int) -> None:
        self._pairs, self._nodes = keys, nodes

    def name_of(self, node: int) -> str | None:
        return f"device-{node:04d}" if 1 <= node <= self._nodes else None

    def key_of(self, node: int) -> PublicKey | None:
        return self._pairs[node] if self._pairs else None


class Devices(Grid):
    """Devices that answer when they are asked for their answer."""

    holds_replies = True

    def __init__(self, nodes: int, answer: Callable[[Message], Message]) -> None:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, SUPERLINK_NODE_ID
        self._nodes, self._answer = nodes, answer
        self._sent: dict[str, Message] = {}
        self._run = Run.create_empty(run_id=1)
        self.answering_s = 0.0

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
        return range(1, self._nodes + 1)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = message_id = f"{len(self._sent)}"
            self._sent[message_id] = message
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        began = time.process_time()
        answers = [self._answer(self._sent[message_id]) for message_id in message_ids]
        self.answering_s += time.process_time() - began
        return answers

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        raise NotImplementedError("the server pushes and pulls")


def played(base: BasePack, config: RunConfig, nodes: int, folder: Path, *, is_signed: bool) -> Spent:
    """The rounds of a run with so many devices."""
    spent, flat = Spent(), config.flat()
    server = SigningKey.generate()
    pairs = {node: SigningKey.generate() for node in range(1, nodes + 1)} if is_signed else {}
    roll = Everybody({node: pair.public for node, pair in pairs.items()} if is_signed else None, nodes)
    template: dict[int, tuple[bytes, bytes]] = {}  # by round: the head of an update, and its numbers

    def answer(message: Message) -> Message:
        data, node = message.content.array_records["update"]["update"].data, message.metadata.dst_node_id
        server_round = int(message.metadata.group_id)
        if server_round not in template:
            down = decode_update(data, lambda: config.first_adapter(base))
            up = encode_update(replace(down, factors=down.task.sends, frozen=None, num_examples=10))
            numbers = bytes(payload(up))
            template[server_round] = up[: len(up) - len(numbers)], numbers
        head, numbers = template[server_round]
        given = head + (np.frombuffer(numbers, np.float32) + np.float32(1e-6 * node)).tobytes()
        array = Array(dtype="uint8", shape=(len(given),), stype="fedlora.update", data=given)
        content = RecordDict({"update": ArrayRecord({"update": array}), "device": ConfigRecord({"device": "a"})})
        if is_signed:
            signing = Signing(pairs[node], server.public, folder / f"{node}.json")
            said = message.content.config_records[SIGNED][SIGNED_SAID]
            assert isinstance(said, bytes)
            question = Question(
                kind="train", run_config=flat, run_id=1, seconds=9.0, data=data, signed=said.decode("ascii")
            )
            began = time.process_time()
            signed = signing.signed(Answer(device="a", data=given), signing.check(question)).signed
            spent.device_s.append(time.process_time() - began)
            content[SIGNED] = ConfigRecord({SIGNED_SAID: signed.encode()})
        return Message(content, reply_to=message)

    devices = Devices(nodes, answer)
    signer = Signer(key=server) if is_signed else None
    fleet = (
        EnrolledGrid(devices, roll)
        if signer is None
        else SignedGrid(devices, roll, signer, Counter(folder / "counter"))
    )
    with _timed(spent):
        rounds = Rounds(fleet, config, base)
        with open_run(folder / "run", config, base, "1", signer) as directory:
            if isinstance(fleet, SignedGrid):
                fleet.begin(directory.run, base.fingerprint, flat, lambda: Head(directory.last_round, directory.head))
            began = time.process_time()
            rounds.run(directory)
            spent.server_s = time.process_time() - began - devices.answering_s
    return spent


@contextmanager
def _timed(spent: Spent) -> Iterator[None]:
    """Count what signing and recording take while the block runs; keys are written down within the record."""
    taken = dict.fromkeys(_TIMED, 0.0)

    def patched(owner: type, name: str) -> Any:
        plain = getattr(owner, name)

        def timed(*arguments: Any, **options: Any) -> Any:
            began = time.process_time()
            try:
                return plain(*arguments, **options)
            finally:
                taken[owner, name] += time.process_time() - began

        return mock.patch.object(owner, name, timed)

    with ExitStack() as stack:
        for owner, name in _TIMED:
            stack.enter_context(patched(owner, name))
        yield
    keys_s = taken[Chain, "_keep_keys"]
    spent.signing_s = taken[SignedGrid, "_sign"] + taken[SignedGrid, "_flaw"] + keys_s
    spent.record_s = taken[Chain, "write"] + taken[Chain, "write_head"] - keys_s


_TIMED: tuple[tuple[type, str], ...] = (
    (SignedGrid, "_sign"), (SignedGrid, "_flaw"), (Chain, "_keep_keys"), (Chain, "write"), (Chain, "write_head"),
)  # fmt: skip
