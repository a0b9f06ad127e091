"""The rounds of a run: sample, ask, check, aggregate, commit, measure.

Each round begins from what the round before committed, as it is read back from there: a run that was stopped and goes on,
and one that never was, are one and the same.
"""

from __future__ import annotations

import logging
import math
import time
from contextlib import suppress

import numpy as np
from fedlora.base.pack import BasePack
from fedlora.config.run import RunConfig
from fedlora.errors import ConfigError, FedloraError, RunError, UpdateError
from fedlora.lora.adapter import Adapter
from fedlora.wire.task import FactorSet, Task
from fedlora.wire.update import Update, decode_update, encode_update, payload
from flwr.serverapp import Grid

from fedlora_server.aggregation.aggregation import Aggregation, State, norms
from fedlora_server.aggregation.optimizers import Moments
from fedlora_server.checks import Expectation, limit_for
from fedlora_server.copies import Copies
from fedlora_server.exchange import EVALUATE, MOST_BYTES, TRAIN, DeviceNames, ask, connected_nodes, printable
from fedlora_server.methods.method import Global
from fedlora_server.run.round_record import RoundRecord
from fedlora_server.run.run_directory import RunDirectory

log = logging.getLogger("fedlora.server")


class Rounds:
    """One run of one configuration over one grid."""

    def __init__(self, grid: Grid, config: RunConfig, base: BasePack) -> None:
        """Raises ConfigError where the configuration does not suit the base, or its parts each other."""
        self._grid, self._config, self._base = grid, config, base
        self._run = ""  # its number, which its directory knows
        self._names = DeviceNames()
        if config.lora.modules_to_save:
            raise ConfigError(
                f"lora.modules_to_save ({', '.join(config.lora.modules_to_save)}) is for a device alone (fedlora train): "
                "an update carries A and B only; leave it out"
            )
        length, context = config.train.sequence_length, base.model.max_positions
        if length > context:
            raise ConfigError(f"train.sequence_length is {length}; the base's context is {context} tokens")
        self._first = config.first_adapter(base.model)
        self._aggregation = Aggregation(config, self._first)
        self._state = self._aggregation.start()

    def run(self, directory: RunDirectory) -> None:
        """Measure the base, then run every round; what `directory` holds already is not done again.

        Raises RunError; what was committed before stays.
        """
        self._run = directory.run
        server, last = self._config.server, directory.last_round
        if directory.measured > server.rounds:
            log.info("%s is complete: it has all of its %d rounds", directory.path, server.rounds)
            return
        nodes = connected_nodes(self._grid, server.min_devices, server.round_timeout_s)
        if last:
            log.info("%s goes on after round %d of %d", directory.path, last, server.rounds)
        self._names.restore(directory.nodes(), set(nodes))
        self._state = self._state_after(last, directory)
        for server_round in range(directory.measured, server.rounds + 1):
            began = time.monotonic()
            if server_round <= last:
                record = directory.record(server_round)
            else:
                nodes = connected_nodes(self._grid, server.min_devices, server.round_timeout_s)
                record = self._train(server_round, self._sampled(nodes, server_round), directory)
                began = time.monotonic()
            self._state = self._state_after(server_round, directory)
            if server.evaluate and (server_round % server.evaluate_every == 0 or server_round == server.rounds):
                self._evaluate(record, nodes)
            record.seconds += time.monotonic() - began
            directory.add_metrics(record)
            log.info("%s", record.summary(server.rounds))

    def _state_after(self, server_round: int, directory: RunDirectory) -> State:
        if not server_round:
            return self._aggregation.start()
        return self._aggregation.restored(*directory.read(server_round, self._first))

    def _sampled(self, nodes: list[int], server_round: int) -> list[int]:
        wanted = self._config.server.devices_per_round
        if not wanted or wanted >= len(nodes):
            return nodes
        generator = np.random.default_rng([self._config.seed, server_round])
        # Positions, not ids: those are integers of 64 bits on both sides of 2^63, of which numpy makes floats.
        return [nodes[position] for position in sorted(generator.choice(len(nodes), wanted, replace=False).tolist())]

    def _train(self, server_round: int, nodes: list[int], directory: RunDirectory) -> RoundRecord:
        """One round of training, committed. One that came to nothing has its line too."""
        record, began = RoundRecord(server_round), time.monotonic()
        try:
            adapter, moments = self._aggregated(record, nodes)
            record.seconds = aggregated_s = time.monotonic() - began  # what the committed record can tell
            directory.commit(adapter, moments, record)
        except FedloraError:
            record.seconds = time.monotonic() - began
            with suppress(RunError):  # what ended the round is what counts
                directory.add_metrics(record)
            raise
        record.seconds = time.monotonic() - began
        record.server_s += record.seconds - aggregated_s
        return record

    def _aggregated(self, record: RoundRecord, nodes: list[int]) -> tuple[Adapter, Moments]:
        """What the replies of `nodes` make, aggregated as they arrive."""
        server, this = self._config.server, self._aggregation.round(self._state, record.round)
        down = self._message(record.round, this.down, this.task, self._aggregation.factors_down)
        expectation = Expectation(
            run=self._run, server_round=record.round, base_fingerprint=self._base.fingerprint, adapter=this.down.adapter,
            factors=this.task.sends, limit=limit_for(this.down.adapter), min_rank=self._config.aggregation.min_rank,
        )  # fmt: skip
        unchanged = self._message(record.round, Global(this.down.adapter), this.task, this.task.sends)
        copies, added = Copies(payload(unchanged)), list[str]()
        first: dict[str, str] = {}  # what the first device of each reason said
        record.devices, record.bytes_down = len(nodes), len(down) * len(nodes)
        due = 4 * sum(
            (factor in this.task.sends) * array.size
            for pair in this.down.adapter.pairs.values()
            for factor, array in (("A", pair.lora_A), ("B", pair.lora_B))
        )
        for reply in ask(self._grid, nodes, TRAIN, down, record.round, server.round_timeout_s, due + MOST_BYTES):
            began = time.monotonic()
            try:
                if reply.error:
                    raise UpdateError(reply.reason, reply.error)
                record.bytes_up += len(reply.data)
                update = decode_update(reply.data, lambda: this.down.adapter)
                expectation.check(update)
                copies.check(reply.device, payload(reply.data))
            except UpdateError as error:
                record.excluded[error.reason] += 1
                said = f"device {self._names.known(reply)}: {printable(str(error))}"
                first.setdefault(error.reason, said)
                log.warning("round %d: excluded (%s): %s", record.round, error.reason, said)
                continue
            this.add(update.adapter, update.num_examples)
            added.append(reply.device)
            record.replies += 1
            if update.metrics:
                name = self._names.of(reply, record.nodes)
                record.count_train(name, update.metrics)
                if "train_loss" in update.metrics:
                    record.train_loss[name] = update.metrics["train_loss"]
            record.server_s += time.monotonic() - began
        silent = len(nodes) - record.replies - sum(record.excluded.values())
        if silent:
            record.excluded["no-answer"] += silent
        if record.replies < server.min_devices:
            raise RunError(
                f"round {record.round}: {record.replies} of {len(nodes)} devices gave a sound answer within "
                f"{server.round_timeout_s:g} s, the run needs {server.min_devices} (excluded: {dict(record.excluded)}); "
                f"the adapter of round {record.round - 1} stands" + "".join(f"; {said}" for said in first.values())
            )
        began = time.monotonic()
        state = this.result()
        if this.left_out:
            rule = self._aggregation.rule
            record.excluded[rule] += len(this.left_out)
            log.info(
                "round %d: %s gave no weight to %s", record.round, rule, ", ".join(added[k] for k in this.left_out)
            )
        committed = self._aggregation.committed(state)
        committed.check_finite(f"round {record.round}")
        distance = this.error(committed)
        record.aggregation_error = distance if distance is not None and math.isfinite(distance) else None
        record.norms = norms(committed)
        record.server_s += time.monotonic() - began
        return committed, state.moments

    def _evaluate(self, record: RoundRecord, nodes: list[int]) -> None:
        """The held-out loss of the present adapter on every device; a device that fails is left out."""
        now, task = Global(self._aggregation.committed(self._state)), self._aggregation.method.task(record.round)
        data = self._message(record.round, now, task, self._aggregation.factors_down)
        record.bytes_down += len(data) * len(nodes)
        record.measured_of = len(nodes)
        for reply in ask(self._grid, nodes, EVALUATE, data, record.round, self._config.server.round_timeout_s):
            loss = math.nan if reply.metrics is None else reply.metrics.get("loss", math.nan)
            if not math.isfinite(loss):
                why = reply.error or f"its loss is {loss}"
                log.warning("round %d: device %s was not measured: %s", record.round, self._names.known(reply), why)
                continue
            name = self._names.of(reply, record.nodes)
            record.loss[name] = loss
            record.count_held_out(name, reply.metrics or {})

    def _message(self, server_round: int, what: Global, task: Task, factors: FactorSet) -> bytes:
        update = Update(
            adapter=what.adapter, frozen=what.frozen, factors=factors, task=task, run=self._run, server_round=server_round,
            base_fingerprint=self._base.fingerprint,
        )  # fmt: skip
        try:
            return encode_update(update, self._config.server.codec)
        except UpdateError as error:  # what was committed must come down, however large it has become
            log.warning("round %d: %s: this message is sent in f32", server_round, error)
            return encode_update(update)
