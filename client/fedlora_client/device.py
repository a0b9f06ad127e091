"""A device: its base, its data, and the two things that it does when asked."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Literal

import numpy as np
from fedlora.adapter import Adapter
from fedlora.datasets import DeviceData, find_dataset
from fedlora.errors import AdapterMismatchError, ConfigError
from fedlora.pack import open_pack
from fedlora.run_config import DataConfig, RunConfig, Scalar
from fedlora.update import Update
from tokenizers import Tokenizer

from fedlora_client.decoder import Decoder
from fedlora_client.trainer import TrainResult, evaluate, train
from fedlora_client.windows import Windows, load_tokenizer, make_windows


class Device:
    """One device's view of one run."""

    def __init__(self, config: RunConfig, node: Mapping[str, Scalar]) -> None:
        """`node` is the device's own configuration; its `base` overrides the run's."""
        self.config = config
        self._key = (config.data, tuple(sorted(node.items())))
        self._data = _data(*self._key)
        self._base = str(node.get("base") or config.base)
        self.decoder, _ = _opened(self._base)

    @property
    def name(self) -> str:
        return self._data.name

    @property
    def data(self) -> DeviceData:
        return self._data

    def train(self, adapter: Adapter, server_round: int) -> TrainResult:
        """One round of training from `adapter`. The same seed, device and round give the same result."""
        generator = np.random.default_rng([self.config.seed, server_round, zlib.crc32(self.name.encode())])
        return train(self.decoder, adapter, self.train_windows(), self.config.train, generator)

    def evaluate(self, adapter: Adapter | None) -> tuple[float, int]:
        """(nats per token, tokens) of the held-out text."""
        return evaluate(self.decoder, adapter, self._windows("held_out"))

    def train_windows(self) -> Windows:
        return self._windows("train")

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

    def _windows(self, part: Literal["train", "held_out"]) -> Windows:
        return _tokenized(*self._key, self._base, self.config.train.sequence_length, part)


_opening = threading.Lock()


def _opened(base: str) -> tuple[Decoder, Tokenizer]:
    """The base, opened once: devices of a simulation begin at the same moment."""
    with _opening:
        return _open(base)


@lru_cache(maxsize=4)
def _open(base: str) -> tuple[Decoder, Tokenizer]:
    pack = open_pack(base)
    return Decoder(pack), load_tokenizer(pack.directory)


@lru_cache(maxsize=1024)
def _tokenized(
    config: DataConfig, node: tuple[tuple[str, Scalar], ...], base: str, length: int, part: Literal["train", "held_out"]
) -> Windows:
    data, (decoder, tokenizer) = _data(config, node), _opened(base)
    texts, what = (data.train, "training") if part == "train" else (data.held_out, "held-out")
    return make_windows(texts, tokenizer, decoder.shape, length, f"device {data.name}: {what} text")


@lru_cache(maxsize=1024)
def _data(config: DataConfig, node: tuple[tuple[str, Scalar], ...]) -> DeviceData:
    data = find_dataset(config.name)(config, dict(node))
    if not config.max_bytes:
        return data
    if not data.train:
        raise ConfigError(f"device {data.name}: no text to cut to data.max_bytes")
    return DeviceData(name=data.name, train=_cut(data.train, config.max_bytes), held_out=data.held_out)


def _cut(texts: tuple[str, ...], size_bytes: int) -> tuple[str, ...]:
    """The first `size_bytes` of the texts, without half a character at the end."""
    kept: list[str] = []
    for text in texts:
        part = text.encode()[:size_bytes].decode(errors="ignore")
        kept += [part] if part else []
        size_bytes -= len(text.encode())
        if size_bytes <= 0:
            break
    return tuple(kept)
