"""A device: its base, its data, and the two things that it does when asked."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from fedlora.base.heads import extra_shapes
from fedlora.config.run import RunConfig, Scalar
from fedlora.data.datasets import DeviceData
from fedlora.errors import AdapterMismatchError, ConfigError, DataError
from fedlora.files.ownership import check_own_folder
from fedlora.lora.adapter import Adapter
from fedlora.lora.kinds import check_adapter_fits, kind_of
from fedlora.lora.ranks import first_components
from fedlora.wire.task import Task
from fedlora.wire.update import Update

from fedlora_client.data.account import Account, account
from fedlora_client.data.device_data import device_data
from fedlora_client.data.windows import Windows
from fedlora_client.end_tokens import unlearnable_end, warn_once
from fedlora_client.evaluation.choices import count_choices
from fedlora_client.evaluation.scorer import TorchScorer
from fedlora_client.kept_factors import KeptFactors
from fedlora_client.opened import Part, device_choices, device_windows, opened_model
from fedlora_client.ops.compute import choose_compute
from fedlora_client.training.measuring import Measured, measure
from fedlora_client.training.trainer import Saving, TrainResult, train
from fedlora_client.training.training import Span, drawn_windows

_WHOLE = Task()  # all trains, all is sent
# Keys of a node that change nothing of what it trains on.
_NOT_ITS_DATA = ("max-rank", "memory-mb", "state-path", "identity", "server-identity")
_CHANGES = "data-version"  # the key of a node that tells that its data were changed: it is the same device


class Device:
    """One device's view of one run."""

    def __init__(self, config: RunConfig, node: Mapping[str, Scalar]) -> None:
        """`node` is the device's own configuration; its `base` and `memory-mb` override the run's.

        `max-rank` is the largest rank that it trains (0: any). With a `state-path`, a directory, a round that the device
        did not live to finish goes on where it was saved; and there lies what the device keeps between rounds.
        """
        memory_mb = _integer(node, "memory-mb", config.train.memory_mb)
        self._max_rank = _integer(node, "max-rank", 0)
        self.config = replace(config, train=replace(config.train, memory_mb=memory_mb))
        self._key = (config.data, tuple(sorted(item for item in node.items() if item[0] not in _NOT_ITS_DATA)))
        self._data = device_data(*self._key)
        self._base = str(node.get("base") or config.base)
        self._state_path = Path(str(node["state-path"])) if node.get("state-path") else None
        if self._state_path and self._state_path.exists() and not self._state_path.is_dir():
            raise ConfigError(f"state-path in the node's configuration must be a folder, got {self._state_path}")
        if self._state_path:
            check_own_folder(self._state_path, "state-path")
        compute = choose_compute(config.train.compute, config.train.kernels, config.train.device)
        self.model = opened_model(self._base, compute)

    @property
    def name(self) -> str:
        return self._data.name

    @property
    def data(self) -> DeviceData:
        return self._data

    def account(self) -> Account:
        """What of the data that the device trains on is learned. Raises DataError as their windows do."""
        return account(self._data, self.train_windows(), None)

    def first_adapter(self) -> Adapter:
        """The adapter that the run begins with, which each of its devices can make itself."""
        return self.config.first_adapter(self.model.base)

    def train(
        self, adapter: Adapter, server_round: int, *, task: Task = _WHOLE, frozen: Adapter | None = None, run: str = ""
    ) -> TrainResult:
        """One round of training from `adapter`, or as many of its first components as this device trains.

        The same seed, device and round give the same result; where it keeps a factor, the same kept factor does.
        """
        if self._data.never_trains:
            raise DataError(
                f"device {self.name}: data.partition.held_out has it never train; ask the others, or lower that key"
            )
        adapter, kept = self._first_components(adapter), self._kept(task, run)
        if kept:
            adapter = kept.put_into(adapter, newest=server_round - 1)
        windows = self.train_windows()
        if end := unlearnable_end(self.model, windows):
            warn_once(end)
        steps, rounds = self.config.train.steps, self.config.server.rounds
        span = Span((server_round - 1) * steps, rounds * steps)
        result = train(
            self.model, adapter, windows, self.config.train, self._generator(server_round, task),
            span=span, saving=self._saving(server_round, task.again), trains=task.trains, frozen=frozen,
        )  # fmt: skip
        if kept:
            kept.keep(result.adapter, server_round)
        return result

    def examples_of_round(self, server_round: int, task: Task = _WHOLE) -> int:
        """How many different examples the batches of that training hold. Raises DataError as their windows do."""
        windows, generator = self.train_windows(), self._generator(server_round, task)
        return windows.examples_in(drawn_windows(len(windows), self.config.train, generator))

    def evaluate(
        self, adapter: Adapter | None, server_round: int = 0, *, task: Task = _WHOLE, frozen: Adapter | None = None,
        run: str = "",
    ) -> tuple[float, int]:  # fmt: skip
        """(nats per token, tokens) of the held-out text, after `server_round`: with what the device kept of it.

        Of an encoder, (nats per text, texts).
        """
        measured = self.measure("held_out", adapter, server_round, task=task, frozen=frozen, run=run)
        return measured.loss, measured.tokens

    def measure(
        self, part: Part, adapter: Adapter | None, server_round: int = 0, *, task: Task = _WHOLE,
        frozen: Adapter | None = None, run: str = "",
    ) -> Measured:  # fmt: skip
        """`evaluate` for a part of the device's data, with what its labels, or its questions of multiple choice, tell."""
        if adapter:
            adapter = self.as_used(adapter, server_round, task=task, run=run)
        memory_mb = self.config.train.memory_mb
        measured = measure(self.model, adapter, self._windows(part), memory_mb=memory_mb, frozen=frozen)
        questions, requests = device_choices(*self._key, self._base, self.model.compute, part)
        if not questions:
            return measured
        scorer = TorchScorer(self.model, adapter, frozen=frozen, frugal=bool(memory_mb))
        return replace(measured, choices=count_choices(scorer, questions, requests))

    def as_used(self, adapter: Adapter, server_round: int, *, task: Task = _WHOLE, run: str = "") -> Adapter:
        """The adapter that `server_round` committed as this device has it: with what it kept of its own."""
        kept = self._kept(task, run)
        return kept.put_into(adapter, newest=server_round) if kept else adapter

    def _generator(self, server_round: int, task: Task) -> np.random.Generator:
        """What orders the windows of a training."""
        own = [self.config.seed, server_round, zlib.crc32(self.name.encode())]
        return np.random.default_rng([*own, task.again] if task.again else own)

    def train_windows(self) -> Windows:
        return self._windows("train")

    def held_out_windows(self) -> Windows:
        return self._windows("held_out")

    def check(self, update: Update, *, trains: bool = False) -> None:
        """Raise AdapterMismatchError unless the update is for this device's base, and no larger than its run says.

        Of one that `trains`, the adapter has at most the run's ranks and the round is 1 or later; other adapters are
        committed ones, which may have aggregation.max_rank.
        """
        mine = self.model.base
        if update.base_fingerprint != mine.fingerprint:
            raise AdapterMismatchError(
                f"device {self.name}: the run's base is {update.base_fingerprint[:16]}, this device holds "
                f"{mine.fingerprint[:16]} ({mine.directory}); give the device the run's base pack"
            )
        where = f"device {self.name}"
        for adapter in (update.adapter, update.frozen):
            if adapter is not None:
                adapter.check_finite(where)
                if adapter.config.method != self.config.lora.method:
                    raise AdapterMismatchError(
                        f"{where}: an adapter of the kind {adapter.config.method} came, lora.method of the run is "
                        f"{self.config.lora.method}; start the run again"
                    )
                heads = self.config.lora.modules_to_save if adapter is update.adapter else ()
                check_adapter_fits(adapter, mine.model, extra_shapes(heads, mine.model), where)
                self._check_ranks(adapter, trained=trains and adapter is update.adapter)
        if trains and update.server_round < 1:
            raise AdapterMismatchError(f"{where}: round {update.server_round} trains nothing; expected 1 or more")
        if update.frozen is not None and update.frozen.pairs.keys() != update.adapter.pairs.keys():
            raise AdapterMismatchError(
                f"{where}: what stands beside the adapter has other modules than the adapter; expected the same"
            )

    def _check_ranks(self, adapter: Adapter, *, trained: bool) -> None:
        """Memory and time follow the rank: what comes down may ask for no more of them than the run that was started."""
        lora = self.config.lora.lora(self.model.shape.linear_modules())
        if kind_of(adapter).is_virtual and adapter.config.num_virtual_tokens > lora.num_virtual_tokens:
            raise AdapterMismatchError(
                f"device {self.name}: the adapter came with {adapter.config.num_virtual_tokens} virtual tokens, the run's "
                f"configuration allows {lora.num_virtual_tokens}; raise lora.num_virtual_tokens in it"
            )
        for module, pair in adapter.pairs.items():
            most = lora.rank_of(module) if trained else max(lora.rank_of(module), self.config.aggregation.max_rank)
            if pair.rank > most:
                key = "lora.rank" if trained else "aggregation.max_rank"
                raise AdapterMismatchError(
                    f"device {self.name}: {module} came with rank {pair.rank}, the run's configuration allows {most}; "
                    f"raise {key} in it"
                )

    def _first_components(self, adapter: Adapter) -> Adapter:
        """What this device trains of `adapter`. Raises ConfigError where that is less than the run takes."""
        largest = max((pair.rank for pair in adapter.pairs.values()), default=0)
        if not self._max_rank or self._max_rank >= largest:
            return adapter
        needed = min(self.config.aggregation.min_rank or largest, largest)
        if self._max_rank < needed:
            raise ConfigError(
                f"device {self.name}: max-rank in the node's configuration is {self._max_rank}, this run takes {needed} "
                "and more; raise max-rank, or lower aggregation.min_rank in the run's configuration (0: lora.rank)"
            )
        return first_components(adapter, self._max_rank)

    def _kept(self, task: Task, run: str) -> KeptFactors | None:
        """What this device keeps between the rounds of this run. Raises ConfigError where it has no place for it."""
        if not task.keeps:
            return None
        if self._state_path is None:
            raise ConfigError(
                f"device {self.name}: the run's method keeps the factor {task.keeps} of each device on that device, and "
                "this node's configuration has no state-path; set it to a folder that stays"
            )
        data, node = self._saved_by()
        place = [(key, value) for key, value in node if key != "base"]
        whose = (self.name, data, place, self.model.base.fingerprint, self.config.name, self.config.seed)
        return KeptFactors(folder=self._state_path, factor=task.keeps, whose=repr(whose), run=run)

    def _saving(self, server_round: int, again: int = 0) -> Saving | None:
        """Where this round's training is saved; what earlier rounds left is of no use any more."""
        if self._state_path is None:
            return None
        whose = zlib.crc32(repr(self._saved_by()).encode())  # two devices may share a folder
        this = f"{server_round:04d}-{again}" if again else f"{server_round:04d}"
        mine = self._state_path / f"{whose:08x}-round-{this}.safetensors"
        for other in self._state_path.glob(f"{mine.name[:8]}-round-*.safetensors"):
            if other != mine:
                other.unlink(missing_ok=True)
        return Saving(file=mine, discards=True)  # a run that ended without us may have left one

    def _saved_by(self) -> tuple[object, tuple[tuple[str, Scalar], ...]]:
        """What a device finds again by what it saved: what it trains on. Its text must stay as it always was."""
        data, node = self._key[0], tuple(item for item in self._key[1] if item[0] != _CHANGES)
        told = (data, data.fields) if data.fields.given() else data
        return (told, data.fields.owner, data.partition) if data.partition.rule else told, node

    def _windows(self, part: Part) -> Windows:
        length = self.config.train.sequence_length
        return device_windows(*self._key, self._base, self.model.compute, length, part)


def _integer(node: Mapping[str, Scalar], key: str, default: int) -> int:
    value = node.get(key, default)
    if type(value) is not int:
        raise ConfigError(f"{key} in the node's configuration must be an integer, got {value!r}")
    if value < 0:
        raise ConfigError(f"{key} in the node's configuration must be 0 (no bound) or more, got {value}")
    return value
