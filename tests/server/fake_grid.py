"""A tiny base, devices that reply by a function, and a Flower Grid in memory that carries their replies."""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from fedlora.base.pack import BasePack
from fedlora.config.run import AggregationConfig, LoraSection, RunConfig, ServerConfig, TrainConfig
from fedlora.family import DecoderShape, Rotary
from fedlora.lora.adapter import Adapter, LoraPair, initial_adapter
from fedlora.peft.directory import read_peft
from fedlora.wire.update import Update, decode_update, encode_update
from fedlora_server.rounds import Rounds
from fedlora_server.run.run_directory import RunDirectory, open_run, read_metrics
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MessageType, MetricRecord, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

FINGERPRINT = "f" * 64
RUN = "0123456789abcdef"

LORA = LoraSection(rank=2, alpha=6.0)
SHAPE = DecoderShape(
    hidden_size=8,
    intermediate_size=12,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    vocab_size=16,
    max_positions=16,
    rms_norm_eps=1e-6,
    rotary=Rotary((1.0, 0.01)),
    attention_scale=0.5,
    tie_word_embeddings=True,
    tokens_before_text=(),
    eos_token_ids=(),
)

# What a node does with a message: the replies that it sends, none, one or more; it may raise.
Device = Callable[[Message], Sequence[Message]]


def update_of(message: Message) -> Update:
    """The update that a message took to a device, which makes what does not travel from the player's first seed."""
    data = message.content.array_records["update"]["update"].data
    modules = SHAPE.linear_modules()
    return decode_update(data, lambda: initial_adapter(LORA.lora(modules), modules, np.random.default_rng([1, 0])))


def trained(node: int, down: Update) -> Update:
    """What device `node` makes of an update: the same for the same node, round and adapter."""
    again = [down.task.again] if down.task.again else []  # another time, other batches
    generator, trains = np.random.default_rng([node, down.server_round, *again]), down.task.trains
    pairs = {
        module: LoraPair(
            pair.lora_A + generator.normal(0, 0.1 * ("A" in trains), pair.lora_A.shape).astype(np.float32),
            pair.lora_B + generator.normal(0, 0.1 * ("B" in trains), pair.lora_B.shape).astype(np.float32),
        )
        for module, pair in down.adapter.pairs.items()
    }
    return Update(
        adapter=Adapter(down.adapter.config, pairs),
        run=down.run,
        server_round=down.server_round,
        base_fingerprint=down.base_fingerprint,
        factors=down.task.sends,
        num_examples=10 * (node % 1009),  # of any id that Flower draws
        metrics={"train_loss": 1.0 + node % 1009},
    )


def training_reply(message: Message, data: bytes, name: str) -> Message:
    """A device's reply to a training message, as the ClientApp builds it."""
    array = Array(dtype="uint8", shape=(len(data),), stype="fedlora.update", data=data)
    content = RecordDict({"update": ArrayRecord({"update": array}), "device": ConfigRecord({"device": name})})
    return Message(content, reply_to=message)


def evaluation_reply(message: Message, loss: float, name: str) -> Message:
    """A device's reply to an evaluation message, as the ClientApp builds it."""
    content = RecordDict({"metrics": MetricRecord({"loss": loss}), "device": ConfigRecord({"device": name})})
    return Message(content, reply_to=message)


@dataclass(frozen=True)
class Honest:
    """A device that does what it is asked; `change` is applied to what it sends up from `from_round` on."""

    node: int
    change: Callable[[Message, Update], Sequence[Message]] | None = None
    from_round: int = 1
    name: str = ""

    def __call__(self, message: Message) -> Sequence[Message]:
        down = update_of(message)
        name = self.name or f"device-{self.node}"
        if message.metadata.message_type == MessageType.EVALUATE:
            return [evaluation_reply(message, self.node % 1009 + 1 / (1 + down.server_round), name)]
        update = trained(self.node, down)
        if self.change is not None and down.server_round >= self.from_round:
            return self.change(message, update)
        return [training_reply(message, encode_update(update), name)]


class FakeGrid(Grid):
    """Devices reply at once, one message a pull in the order of pushing unless `order` says otherwise.

    Like Flower's own: a device that raises becomes an error from the SuperLink's node, a node in `lost` takes no message
    and None stands in for its message's id, and an id that is not text is refused.
    """

    holds_replies = True

    def __init__(self, devices: Mapping[int, Device], order: Callable[[list[Message]], list[Message]] = list) -> None:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, SUPERLINK_NODE_ID
        self.devices, self.order = dict(devices), order
        self.lost: set[int] = set()
        self.asked: list[tuple[str, int]] = []  # (message type, node), as they were sent
        self.bytes_down = 0
        self.bytes_up = 0
        self._queue: deque[Message] = deque()
        self._run = Run.create_empty(run_id=1)

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
        return reversed(list(self.devices))  # Flower promises no order

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids: list[Any] = []
        for message in messages:
            node = message.metadata.dst_node_id
            if node in self.lost:
                ids.append(None)
                continue
            message.metadata.__dict__["_message_id"] = str(uuid.uuid4())
            self.asked.append((message.metadata.message_type, node))
            self.bytes_down += _bytes_of(message)
            ids.append(message.metadata.message_id)
            try:
                replies = self.devices[node](message)
            except Exception as error:
                reply = Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, repr(error)), reply_to=message)
                reply.metadata.__dict__["_src_node_id"] = SUPERLINK_NODE_ID
                replies = [reply]
            self._queue.extend(replies)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        wanted = set()
        for message_id in message_ids:
            if not isinstance(message_id, str):
                raise TypeError(f"bad argument type for built-in operation: {message_id!r}")  # as protobuf says it
            wanted.add(message_id)
        arrived = [m for m in self._queue if m.metadata.reply_to_message_id in wanted]
        self._queue = deque(m for m in self._queue if m.metadata.reply_to_message_id not in wanted)
        self.bytes_up += sum(_bytes_of(message) for message in arrived)
        return self.order(arrived)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        raise NotImplementedError("it keeps every reply: the server must push and pull")


def _bytes_of(message: Message) -> int:
    if message.has_error():
        return 0
    return sum(len(array.data) for record in message.content.array_records.values() for array in record.values())


@dataclass
class Played:
    """A run that was played on a fake grid, and what it left."""

    grid: FakeGrid
    path: Path
    error: Exception | None = None

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return read_metrics(self.path)

    def adapter(self, server_round: int) -> Adapter:
        return read_peft(RunDirectory.adapter_of(self.path, server_round)).adapter

    def committed(self) -> list[str]:
        """The names in rounds/, hidden ones too."""
        rounds = self.path / "rounds"
        return sorted(entry.name for entry in rounds.iterdir()) if rounds.exists() else []


@dataclass(frozen=True)
class Player:
    """Runs the server's rounds over a fake grid, each run in a directory of its own."""

    base: BasePack
    folder: Path

    def __call__(
        self,
        devices: Mapping[int, Device] | FakeGrid,
        *,
        seed: int = 1,
        rank: int = 2,
        min_rank: int = 0,
        aggregation: AggregationConfig | None = None,
        goes_on: Played | None = None,
        **server: Any,
    ) -> Played:
        """Play a run; one that goes on does so in the directory that the other one left."""
        grid = devices if isinstance(devices, FakeGrid) else FakeGrid(devices)
        settings: dict[str, Any] = {"rounds": 2, "round_timeout_s": 30.0, "resume": goes_on is not None} | server
        train = TrainConfig(sequence_length=8)
        config = RunConfig(
            seed=seed, lora=replace(LORA, rank=rank), train=train, server=ServerConfig(**settings),
            aggregation=aggregation or AggregationConfig(min_rank=min_rank),
        )  # fmt: skip
        played = Played(grid, goes_on.path if goes_on else self.folder / uuid.uuid4().hex)
        try:
            rounds = Rounds(grid, config, self.base)
            with open_run(played.path, config, self.base, RUN) as directory:
                rounds.run(directory)
        except Exception as error:
            played.error = error
        return played

    def soundly(self, devices: Mapping[int, Device] | FakeGrid, *, seed: int = 1, **server: Any) -> Played:
        """Play a run that must come to its end."""
        played = self(devices, seed=seed, **server)
        if played.error is not None:
            raise played.error
        return played


def honest(*nodes: int) -> dict[int, Device]:
    return {node: Honest(node) for node in nodes}


def assert_same_adapter(got: Adapter, expected: Adapter) -> None:
    """Bit for bit. (A file keeps the modules in an order of its own.)"""
    assert (got.config.rank, got.config.alpha) == (expected.config.rank, expected.config.alpha)
    assert set(got.config.target_modules) == set(expected.config.target_modules)
    assert got.pairs.keys() == expected.pairs.keys()
    for module, pair in expected.pairs.items():
        np.testing.assert_array_equal(got.pairs[module].lora_A, pair.lora_A, err_msg=module)
        np.testing.assert_array_equal(got.pairs[module].lora_B, pair.lora_B, err_msg=module)
