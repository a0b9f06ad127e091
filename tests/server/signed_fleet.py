"""A fleet in memory whose server and devices sign: the server's grid, and the devices' own way of checking and signing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fedlora.base.pack import BasePack
from fedlora.config.run import RunConfig, ServerConfig, TrainConfig
from fedlora.errors import PolicyError
from fedlora.identity.keys import PublicKey, SigningKey
from fedlora.wire.beside import ROTATED, SIGNED, SIGNED_SAID
from fedlora.wire.refusal import REASON, REFUSAL, SAID
from fedlora.wire.update import encode_update
from fedlora_client.courier.question import Answer, Question
from fedlora_client.service.signing import Signing, check_of
from fedlora_server.fleet.identity import Counter
from fedlora_server.fleet.roll import Roll
from fedlora_server.fleet.signed_grid import Head, SignedGrid
from fedlora_server.rounds import Rounds
from fedlora_server.run.chain import Signer
from fedlora_server.run.run_directory import open_run
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict

from tests.server.fake_grid import LORA, RUN, FakeGrid, trained, update_of

NAMES = {7: "kitchen", (1 << 63) + 11: "cellar", 13: "attic"}
Change = Callable[["SigningDevice", Message, Message], Message]  # of an answer, which was made to a message


class Book(Roll):
    """A roll that a test writes."""

    def __init__(self, keys: Mapping[int, PublicKey | None]) -> None:
        self.keys = dict(keys)

    def name_of(self, node: int) -> str | None:
        return NAMES[node] if node in self.keys else None

    def key_of(self, node: int) -> PublicKey | None:
        return self.keys.get(node)


@dataclass
class SigningDevice:
    """A device of the tests that signs as the service does, and remembers what the service does."""

    node: int
    key: SigningKey
    server: PublicKey
    folder: Path
    run_config: Mapping[str, Any]
    change: Change | None = None
    told: list[Message] = field(default_factory=list)  # its answers
    asked: list[Message] = field(default_factory=list)

    def __call__(self, message: Message) -> list[Message]:
        self.asked.append(message)
        answer = self.answer(message)
        self.told.append(answer)
        return [answer if self.change is None else self.change(self, message, answer)]

    def answer(self, message: Message) -> Message:
        signing = Signing(self.key, self.server, self.folder / f"{self.node}.json")  # a service that was started anew
        said = message.content.config_records[SIGNED]
        kind = message.metadata.message_type
        question = Question(
            kind="train" if kind == MessageType.TRAIN else "evaluate", run_config=self.run_config, run_id=1, seconds=9.0,
            data=message.content.array_records["update"]["update"].data, signed=said[SIGNED_SAID].decode(),  # type: ignore[union-attr]
            rotated=tuple(each.decode() for each in said.get(ROTATED, [])),  # type: ignore[union-attr]
        )  # fmt: skip
        name = ConfigRecord({"device": "whatever it says"})
        try:
            statement = signing.check(question)
            down = update_of(message)
            check_of(statement, down)
        except PolicyError as error:
            refusal = ConfigRecord({REASON: error.reason, SAID: str(error)})
            return Message(RecordDict({"device": name, REFUSAL: refusal}), reply_to=message)
        if kind == MessageType.TRAIN:
            data = encode_update(trained(self.node, down))
            given = signing.signed(Answer(device="x", data=data), statement)
            array = Array(dtype="uint8", shape=(len(data),), stype="fedlora.update", data=data)
            brings: dict[str, Any] = {"update": ArrayRecord({"update": array})}
        else:
            metrics = {"loss": self.node % 1009 + 1 / (1 + down.server_round), "examples": 3}
            given = signing.signed(Answer(device="x", metrics=metrics), statement)
            brings = {"metrics": MetricRecord(metrics)}  # type: ignore[arg-type]
        signed = ConfigRecord({SIGNED_SAID: given.signed.encode()})
        return Message(RecordDict({**brings, "device": name, SIGNED: signed}), reply_to=message)


class SignedFleet:
    """A server with a pair, and devices that were enrolled with one each."""

    def __init__(self, base: BasePack, folder: Path, **server: Any) -> None:
        self.base, self.folder, self.run = base, folder, folder / "run"
        settings: dict[str, Any] = {"rounds": 3, "round_timeout_s": 30.0, "method": "fedavg"} | server
        self.config = RunConfig(
            lora=LORA, train=TrainConfig(sequence_length=8),
            server=ServerConfig(**settings),
        )  # fmt: skip
        self.signer = Signer(key=SigningKey.generate())
        self.keys = {node: SigningKey.generate() for node in NAMES}
        self.book = Book({node: key.public for node, key in self.keys.items()})
        flat = self.config.flat()
        self.devices = {
            node: SigningDevice(node, key, self.signer.key.public, folder, flat) for node, key in self.keys.items()
        }

    def play(self, *, resume: bool = False, rounds: int = 0) -> Path:
        """Run the rounds, signed; the run's directory."""
        config = self.config
        if resume or rounds:
            server = replace(config.server, resume=resume, rounds=rounds or config.server.rounds)
            config = replace(config, server=server)
        grid = SignedGrid(FakeGrid(self.devices), self.book, self.signer, Counter(self.folder / "counter"))
        leader = Rounds(grid, config, self.base)
        with open_run(self.run, config, self.base, RUN, self.signer) as directory:
            grid.begin(
                directory.run, self.base.fingerprint, self.config.flat(),
                lambda: Head(directory.last_round, directory.head),
            )  # fmt: skip
            leader.run(directory)
        return self.run
