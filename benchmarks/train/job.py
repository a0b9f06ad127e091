"""What every training route of `bench_train.py` does alike: the model, the tokens, the adapter, and how it is measured."""

# S sequences, T tokens of each

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from fedlora.family import DecoderShape, decoder_shape
from fedlora.lora.adapter import Adapter, initial_adapter
from fedlora.lora.config import LoraConfig
from numpy.typing import NDArray

SEQUENCES, LENGTH = 4, 256  # of a batch
LORA = LoraConfig(rank=16, alpha=32.0)  # on all seven linear layers
LR = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainJob:
    """One route's work, as it is handed to its process."""

    checkpoint: str  # bf16, for those that quantize by themselves
    pack: str  # the same weights
    steps: int
    threads: int

    @property
    def shape(self) -> DecoderShape:
        return decoder_shape(json.loads((Path(self.checkpoint) / "config.json").read_text()), self.checkpoint)

    def tokens(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Random token ids [S, T], and the token after each: the batch of every step."""
        ids = np.random.default_rng(1).integers(0, self.shape.vocab_size, (SEQUENCES, LENGTH + 1))
        return ids[:, :-1].copy(), ids[:, 1:].copy()

    def adapter(self) -> Adapter:
        """Where every route begins."""
        return initial_adapter(LORA, self.shape.linear_modules(), np.random.default_rng(2))


@dataclass(slots=True)
class Measured:
    """The clock and the memory of the process that trains. Seconds of CPU count all of its threads."""

    compute: str = ""  # the dtype and kernels, in words
    imports_mb: float = 0.0
    load_s: float = 0.0
    loaded_mb: float = 0.0
    wall_s: list[float] = field(default_factory=list)  # of each step
    cpu_s: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    _wall: float = 0.0
    _cpu: float = 0.0

    def imported(self) -> None:
        self.imports_mb = peak_mb()
        self._restart()

    def loaded(self) -> None:
        """The next moment begins the first step."""
        self.load_s = time.perf_counter() - self._wall
        self.loaded_mb = peak_mb()
        self._restart()

    def on_step(self, step: int, loss: float) -> None:
        """The trainer calls it after each step."""
        self.wall_s.append(time.perf_counter() - self._wall)
        self.cpu_s.append(time.process_time() - self._cpu)
        self.losses.append(loss)
        self._restart()

    def report(self) -> dict[str, Any]:
        lists = {"wall_s": self.wall_s, "cpu_s": self.cpu_s, "losses": self.losses}
        memory = {"imports_mb": self.imports_mb, "loaded_mb": self.loaded_mb, "peak_mb": peak_mb()}
        return {"compute": self.compute, "load_s": self.load_s, **memory, **lists}

    def _restart(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()


def peak_mb() -> float:
    """The most that was ever resident of this process (ru_maxrss would begin at what the parent had when it forked)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6
