"""What every way of running rounds shares: what goes down, what a sound reply to it is, and how devices measure."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Collection, Mapping
from contextlib import suppress

from fedlora.base.pack import BasePack
from fedlora.config.run import RunConfig
from fedlora.errors import ConfigError, FedloraError, RunError, UpdateError
from fedlora.family import HEAD, EncoderShape
from fedlora.wire.task import FactorSet, Task
from fedlora.wire.update import Update, encode_update
from flwr.serverapp import Grid

from fedlora_server.aggregation.aggregation import Aggregation, State
from fedlora_server.checks import Expectation, limit_for
from fedlora_server.device_names import DeviceNames
from fedlora_server.exchange import EVALUATE, MOST_BYTES, ask
from fedlora_server.intake import Asked, Intake
from fedlora_server.methods.method import Global
from fedlora_server.replies import Reply
from fedlora_server.run.label_scores import enter_scores
from fedlora_server.run.round_record import MAX_LOSS, RoundRecord
from fedlora_server.run.run_directory import RunDirectory

log = logging.getLogger("fedlora.server")


class Leader:
    """One run of one configuration over one grid."""

    def __init__(
        self, grid: Grid, config: RunConfig, base: BasePack, enrolled: Mapping[int, str] | None = None
    ) -> None:
        """`enrolled` has the names of nodes that are known by their keys; the others' are what they call themselves.

        Raises ConfigError where the configuration does not suit the base, or its parts each other.
        """
        self.grid, self.config, self.base = grid, config, base
        self.names = DeviceNames(enrolled)
        self._run = ""  # its number, which its directory knows
        self._never_train: set[int] = set()  # nodes that are there to be measured: data.partition.held_out
        if HEAD in config.lora.modules_to_save:
            raise ConfigError(
                f"lora.modules_to_save ({HEAD}) is for a device alone (fedlora train): an update would carry one row for "
                "each token of the vocabulary; leave it out"
            )
        length, context = config.train.sequence_length, base.model.max_positions
        if length > context:
            raise ConfigError(f"train.sequence_length is {length}; the base's context is {context} tokens")
        self._first = config.first_adapter(base)
        self.aggregation = Aggregation(config, self._first)

    def state_after(self, server_round: int, directory: RunDirectory) -> State:
        """What round `server_round` committed, as it is read back."""
        if not server_round:
            return self.aggregation.start()
        return self.aggregation.restored(*directory.read(server_round, self._first))

    def asked(self, server_round: int, down: Global, again: int = 0) -> Asked:
        """What the devices of a round are asked, for the time `again` after the first."""
        task = self.aggregation.method.task(server_round)
        repeated = Task(trains=task.trains, sends=task.sends, again=again)
        due = 4 * sum(
            (factor in task.sends) * array.size
            for pair in down.adapter.pairs.values()
            for factor, array in (("A", pair.lora_A), ("B", pair.lora_B))
        )
        due += down.adapter.extra_bytes
        return Asked(
            message=self._message(server_round, down, repeated, self.aggregation.factors_down),
            unchanged=self._message(server_round, Global(down.adapter), task, task.sends),
            expectation=Expectation(
                run=self._run, server_round=server_round, base_fingerprint=self.base.fingerprint, adapter=down.adapter,
                factors=task.sends, limit=limit_for(down.adapter), min_rank=self.config.aggregation.min_rank,
            ),
            most_bytes=due + MOST_BYTES,
        )  # fmt: skip

    def is_measured(self, server_round: int) -> bool:
        """Whether the devices measure what this round commits."""
        server = self.config.server
        return server.evaluate and (server_round % server.evaluate_every == 0 or server_round == server.rounds)

    def to_measure(self, server_round: int, state: State) -> bytes:
        """The adapter of a round, for the devices to measure."""
        now, task = Global(self.aggregation.committed(state)), self.aggregation.method.task(server_round)
        return self._message(server_round, now, task, self.aggregation.factors_down)

    def restore_who_never_trains(self, directory: RunDirectory) -> None:
        """Know them again, of a run that goes on."""
        nodes = directory.nodes()
        self._never_train |= {nodes[name] for name in directory.never_training() if name in nodes}

    def trainable(self, nodes: Collection[int]) -> list[int]:
        """Those that may be asked to train, in their order."""
        return [node for node in nodes if node not in self._never_train]

    def measure(self, record: RoundRecord, state: State, nodes: Collection[int]) -> None:
        """The held-out loss of `state` on every device; a device that fails is left out."""
        data = self.to_measure(record.round, state)
        record.bytes_down += len(data) * len(nodes)
        replies = ask(self.grid, list(nodes), EVALUATE, data, record.round, self.config.server.round_timeout_s)
        measured = [reply for reply in replies if self.is_loss(record, reply)]
        self.names.round_over(nodes, {reply.node for reply in measured}, nodes)
        self.enter_losses(record, measured)
        record.measured_of += len(self.trainable(nodes))

    def is_loss(self, record: RoundRecord, reply: Reply) -> bool:
        """Whether a device replied with a loss. Where it did not, the log tells."""
        loss = math.nan if reply.metrics is None else reply.metrics.get("loss", math.nan)
        if not 0 <= loss <= MAX_LOSS:  # NaN is neither
            why = reply.error or f"its loss is {loss}"
            log.warning("round %d: device %s was not measured: %s", record.round, self.names.known(reply), why)
            return False
        return True

    def enter_losses(self, record: RoundRecord, replies: list[Reply]) -> None:
        """Enter sound replies under the names of their devices."""
        told: dict[str, Mapping[str, float]] = {}
        for reply in sorted(replies, key=lambda reply: reply.node):  # in whichever order they came
            name = self.names.of(reply, record.nodes)
            told[name] = metrics = reply.metrics or {}
            never_trains = bool(self.config.data.partition.held_out and metrics.get("never_trains"))
            (record.never_trained_loss if never_trains else record.loss)[name] = metrics["loss"]
            if never_trains:
                self._never_train.add(reply.node)
            record.count_held_out(name, metrics)
        shape = self.base.model
        enter_scores(record, told, len(shape.labels) if isinstance(shape, EncoderShape) else 0)

    def commit(self, record: RoundRecord, intake: Intake, began: float, directory: RunDirectory) -> None:
        """Commit what a round made, `began` being its start. One that comes to nothing has its line too."""
        try:
            adapter, moments = intake.result(self.aggregation)
            record.seconds = aggregated_s = time.monotonic() - began  # what the committed record can tell
            directory.commit(adapter, moments, record, given=intake.given())
        except FedloraError:
            self.came_to_nothing(record, began, directory)
            raise
        record.seconds = time.monotonic() - began
        record.server_s += record.seconds - aggregated_s

    @staticmethod
    def came_to_nothing(record: RoundRecord, began: float, directory: RunDirectory) -> None:
        """Write the line of a round that ends with an error."""
        record.seconds = time.monotonic() - began
        with suppress(RunError):  # what ended the round is what counts
            directory.add_metrics(record)

    def _message(self, server_round: int, what: Global, task: Task, factors: FactorSet) -> bytes:
        update = Update(
            adapter=what.adapter, frozen=what.frozen, factors=factors, task=task, run=self._run, server_round=server_round,
            base_fingerprint=self.base.fingerprint,
        )  # fmt: skip
        try:
            return encode_update(update, self.config.server.codec)
        except UpdateError as error:  # what was committed must come down, however large it has become
            log.warning("round %d: %s: this message is sent in f32", server_round, error)
            return encode_update(update)
