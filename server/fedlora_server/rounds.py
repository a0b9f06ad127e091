"""The rounds of a run: sample, ask, check, fold, commit, measure."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from fedlora.adapter import Adapter
from fedlora.errors import ConfigError, RunError, UpdateError
from fedlora.pack import BasePack
from fedlora.run_config import RunConfig
from fedlora.update import Update, decode_update, encode_update
from flwr.serverapp import Grid

from fedlora_server.checks import Expectation
from fedlora_server.exact_mean import ExactMean
from fedlora_server.exchange import EVALUATE, TRAIN, Reply, ask, connected_nodes
from fedlora_server.methods import find_method
from fedlora_server.run_directory import RunDirectory

_LONGEST_MESSAGE = 500

log = logging.getLogger("fedlora.server")


@dataclass(slots=True)
class RoundRecord:
    """What happened in one round, as metrics.jsonl tells it."""

    round: int
    devices: int = 0  # that were asked
    replies: int = 0  # that were sound
    excluded: Counter[str] = field(default_factory=Counter)  # by reason
    bytes_down: int = 0
    bytes_up: int = 0
    aggregation_error: float | None = None  # relative, against the weighted mean of B A
    server_s: float = 0.0  # of checking, folding and committing
    train_loss: dict[str, float] = field(default_factory=dict)  # by device, nats per token
    loss: dict[str, float] = field(default_factory=dict)  # held-out, by device
    seconds: float = 0.0

    def line(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


class Rounds:
    """One run of one configuration over one grid."""

    def __init__(self, grid: Grid, config: RunConfig, base: BasePack, run: str) -> None:
        """Raises ConfigError where the configuration does not suit the base."""
        self._grid, self._config, self._base, self._run = grid, config, base, run
        self._labels: dict[int, str] = {}  # of nodes, in the order in which they first answered
        self._method = find_method(config.server.method)
        if config.lora.modules_to_save:
            raise ConfigError(
                f"lora.modules_to_save ({', '.join(config.lora.modules_to_save)}) is for a device alone (fedlora train): "
                "an update carries A and B only; leave it out"
            )
        length, context = config.train.sequence_length, base.shape.max_positions
        if length > context:
            raise ConfigError(f"train.sequence_length is {length}; the base's context is {context} tokens")
        self.adapter: Adapter = config.first_adapter(base.shape)

    def run(self, directory: RunDirectory) -> None:
        """Measure the base, then run every round. Raises RunError; what was committed before stays."""
        server = self._config.server
        nodes = connected_nodes(self._grid, server.min_devices, server.round_timeout_s)
        for server_round in range(server.rounds + 1):
            started = time.monotonic()
            record = RoundRecord(server_round)
            if server_round:
                nodes = connected_nodes(self._grid, server.min_devices, server.round_timeout_s)
                try:
                    self._train(record, self._sampled(nodes, server_round), directory)
                except RunError:
                    record.seconds = time.monotonic() - started
                    directory.add_metrics(record.line())
                    raise
            if server.evaluate:
                self._evaluate(record, nodes)
            record.seconds = time.monotonic() - started
            directory.add_metrics(record.line())
            log.info("%s", _summary(record, server.rounds))

    def _sampled(self, nodes: list[int], server_round: int) -> list[int]:
        wanted = self._config.server.devices_per_round
        if not wanted or wanted >= len(nodes):
            return nodes
        generator = np.random.default_rng([self._config.seed, server_round])
        return sorted(generator.choice(nodes, wanted, replace=False).tolist())

    def _train(self, record: RoundRecord, nodes: list[int], directory: RunDirectory) -> None:
        """One round of training, folded as the answers arrive, and committed."""
        server = self._config.server
        data = self._down(record.round)
        expectation = Expectation(
            run=self._run, server_round=record.round, base_fingerprint=self._base.fingerprint, adapter=self.adapter
        )
        fold, exact = self._method(self.adapter.config), ExactMean()
        first: dict[str, str] = {}  # what the first device of each reason said
        record.devices, record.bytes_down = len(nodes), len(data) * len(nodes)
        for reply in ask(self._grid, nodes, TRAIN, data, record.round, server.round_timeout_s):
            began = time.monotonic()
            try:
                if reply.error:
                    raise UpdateError("device-error", reply.error)
                record.bytes_up += len(reply.data)
                update = decode_update(reply.data)
                expectation.check(update)
            except UpdateError as error:
                record.excluded[error.reason] += 1
                said = f"device {reply.device}: {_printable(str(error))}"
                first.setdefault(error.reason, said)
                log.warning("round %d: excluded (%s): %s", record.round, error.reason, said)
                continue
            fold.add(update.adapter, update.num_examples)
            exact.add(update.adapter, update.num_examples)
            record.replies += 1
            if "train_loss" in update.metrics:
                record.train_loss[self._label(reply)] = update.metrics["train_loss"]
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
        self.adapter = fold.result(exact)
        record.aggregation_error = exact.relative_error(self.adapter)
        directory.commit(record.round, self.adapter, self._base)
        record.server_s += time.monotonic() - began

    def _evaluate(self, record: RoundRecord, nodes: list[int]) -> None:
        """The held-out loss of the present adapter on every device; a device that fails is left out."""
        data = self._down(record.round)
        record.bytes_down += len(data) * len(nodes)
        for reply in ask(self._grid, nodes, EVALUATE, data, record.round, self._config.server.round_timeout_s):
            loss = math.nan if reply.metrics is None else reply.metrics.get("loss", math.nan)
            if not math.isfinite(loss):
                why = reply.error or f"its loss is {loss}"
                log.warning("round %d: device %s was not measured: %s", record.round, reply.device, why)
                continue
            record.loss[self._label(reply)] = loss

    def _label(self, reply: Reply) -> str:
        """The name that a device gives itself, with its node's number where another device has that name already."""
        if reply.node not in self._labels:
            name = _printable(reply.device)
            self._labels[reply.node] = f"{name} ({reply.node})" if name in self._labels.values() else name
        return self._labels[reply.node]

    def _down(self, server_round: int) -> bytes:
        update = Update(
            adapter=self.adapter, run=self._run, server_round=server_round, base_fingerprint=self._base.fingerprint
        )
        return encode_update(update, self._config.server.codec)


def _printable(text: str) -> str:
    """What a stranger wrote, fit for one line of a log."""
    short = text if len(text) <= _LONGEST_MESSAGE else text[:_LONGEST_MESSAGE] + "..."
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in short)


def _summary(record: RoundRecord, rounds: int) -> str:
    parts = [f"round {record.round} of {rounds}"]
    if record.round:
        parts.append(f"{record.replies} of {record.devices} devices")
    if record.loss:
        parts.append(f"mean held-out loss {sum(record.loss.values()) / len(record.loss):.4f}")
    if record.aggregation_error is not None:
        parts.append(f"aggregation error {record.aggregation_error:.2%}")
    return ", ".join([*parts, f"{record.seconds:.1f} s"])
