"""A device: its base, its data, and the two things that it does when asked."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from fedlora.adapter import Adapter
from fedlora.datasets import DeviceData, find_dataset
from fedlora.errors import AdapterMismatchError, ConfigError
from fedlora.examples import Example, size_bytes
from fedlora.pack import BasePack, open_pack
from fedlora.run_config import DataConfig, RunConfig, Scalar
from fedlora.update import Update

from fedlora_client.compute import Compute, choose_compute
from fedlora_client.decoder import Decoder
from fedlora_client.trainer import Saving, TrainResult, evaluate, train
from fedlora_client.training import Span
from fedlora_client.windows import Windows, read_windows


class Device:
    """One device's view of one run."""

    def __init__(self, config: RunConfig, node: Mapping[str, Scalar]) -> None:
        """`node` is the device's own configuration; its `base` and `memory-mb` override the run's.

        With a `state-path`, a directory, a round that the device did not live to finish goes on where it was saved.
        """
        memory_mb = node.get("memory-mb", config.train.memory_mb)
        if type(memory_mb) is not int:
            raise ConfigError(f"memory-mb in the node's configuration must be an integer, got {memory_mb!r}")
        self.config = replace(config, train=replace(config.train, memory_mb=memory_mb))
        self._key = (config.data, tuple(sorted(node.items())))
        self._data = _data(*self._key)
        self._base = str(node.get("base") or config.base)
        self._state_path = Path(str(node["state-path"])) if node.get("state-path") else None
        compute = choose_compute(config.train.compute, config.train.kernels, config.train.device)
        self.decoder = _opened(self._base, compute)

    @property
    def name(self) -> str:
        return self._data.name

    @property
    def data(self) -> DeviceData:
        return self._data

    def train(self, adapter: Adapter, server_round: int) -> TrainResult:
        """One round of training from `adapter`. The same seed, device and round give the same result."""
        generator = np.random.default_rng([self.config.seed, server_round, zlib.crc32(self.name.encode())])
        steps, rounds = self.config.train.steps, self.config.server.rounds
        span = Span((server_round - 1) * steps, rounds * steps)
        return train(
            self.decoder, adapter, self.train_windows(), self.config.train, generator,
            span=span, saving=self._saving(server_round),
        )  # fmt: skip

    def evaluate(self, adapter: Adapter | None) -> tuple[float, int]:
        """(nats per token, tokens) of the held-out text."""
        return evaluate(self.decoder, adapter, self.held_out_windows(), memory_mb=self.config.train.memory_mb)

    def train_windows(self) -> Windows:
        return self._windows("train")

    def held_out_windows(self) -> Windows:
        return self._windows("held_out")

    def check(self, update: Update) -> None:
        """Raise AdapterMismatchError unless the update is for this device's base."""
        mine = self.decoder.base
        if update.base_fingerprint != mine.fingerprint:
            raise AdapterMismatchError(
                f"device {self.name}: the run's base is {update.base_fingerprint[:16]}, this device holds "
                f"{mine.fingerprint[:16]} ({mine.directory}); give the device the run's base pack"
            )
        update.adapter.check_finite(f"device {self.name}")
        update.adapter.check_fits(mine.shape.linear_modules(), f"device {self.name}")

    def _saving(self, server_round: int) -> Saving | None:
        """Where this round's training is saved; what earlier rounds left is of no use any more."""
        if self._state_path is None:
            return None
        whose = zlib.crc32(repr(self._key).encode())  # two devices may share a folder
        mine = self._state_path / f"{whose:08x}-round-{server_round:04d}.safetensors"
        for other in self._state_path.glob(f"{mine.name[:8]}-round-*.safetensors"):
            if other != mine:
                other.unlink(missing_ok=True)
        return Saving(file=mine, discards=True)  # a run that ended without us may have left one

    def _windows(self, part: Literal["train", "held_out"]) -> Windows:
        return _tokenized(*self._key, self._base, self.config.train.sequence_length, part)


_opening = threading.Lock()


def _opened(base: str, compute: Compute) -> Decoder:
    """The base, opened once: devices of a simulation begin at the same moment."""
    with _opening:
        return _open(base, compute)


@lru_cache(maxsize=4)
def _open(base: str, compute: Compute) -> Decoder:
    return Decoder(_pack(base), compute)


@lru_cache(maxsize=4)
def _pack(base: str) -> BasePack:
    return open_pack(base)


@lru_cache(maxsize=1024)
def _tokenized(
    config: DataConfig, node: tuple[tuple[str, Scalar], ...], base: str, length: int, part: Literal["train", "held_out"]
) -> Windows:
    data, pack = _data(config, node), _pack(base)
    examples, what = (data.train, "training") if part == "train" else (data.held_out, "held-out")
    return read_windows(examples, pack.directory, pack.shape, length, f"device {data.name}: {what} text")


@lru_cache(maxsize=1024)
def _data(config: DataConfig, node: tuple[tuple[str, Scalar], ...]) -> DeviceData:
    data = find_dataset(config.name)(config, dict(node))
    if not config.max_bytes:
        return data
    if not data.train:
        raise ConfigError(f"device {data.name}: no text to cut to data.max_bytes")
    return DeviceData(name=data.name, train=_cut(data.train, config.max_bytes), held_out=data.held_out)


def _cut(examples: tuple[Example, ...], limit_bytes: int) -> tuple[Example, ...]:
    """The first `limit_bytes` of the examples: text without half a character at its end, records whole, at least one."""
    kept: list[Example] = []
    for example in examples:
        size = size_bytes(example)
        if size <= limit_bytes:
            kept.append(example)
        elif isinstance(example, str):
            part = example.encode()[:limit_bytes].decode(errors="ignore")
            kept += [part] if part else []
        elif not kept:
            kept.append(example)
        limit_bytes -= size
        if limit_bytes <= 0:
            break
    return tuple(kept)
