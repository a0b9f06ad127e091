"""The trainer's logits of a few tokens, against which a graph is compared.

Where torch is not loaded yet it computes in a process of its own, which gives its memory back.
"""

# T tokens, V vocabulary

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import cast

import numpy as np
from fedlora.adapter import Adapter, LoraPair, initial_adapter
from fedlora.lora import LoraConfig
from fedlora.pack import BasePack, open_pack
from numpy.typing import NDArray

_TOKENS = 16
Floats = NDArray[np.float32]

# (base, tokens [S, T], adapter, mask [S, T]) -> logits [S, T, V], or an encoder's scores [S, L]
Reference = Callable[[BasePack, NDArray[np.int64], Adapter | None, NDArray[np.int64] | None], Floats]


@dataclass(frozen=True, slots=True)
class Sample:
    """Two rows of tokens, and an adapter for each: the same ones for the same base."""

    tokens: NDArray[np.int64]  # [2, T]
    adapters: tuple[Adapter, Adapter]

    @classmethod
    def of(cls, base: BasePack) -> Sample:
        generator = np.random.default_rng(0)
        tokens = generator.integers(0, base.model.vocab_size, (2, min(_TOKENS, base.model.max_positions)))
        return cls(tokens, (_random_adapter(base, generator), _random_adapter(base, generator)))


@dataclass(frozen=True, slots=True)
class Expected:
    """What torch gives for a sample, each [1, T, V] or an encoder's [1, L]."""

    base: Floats  # the first row, without an adapter
    rows: tuple[Floats, Floats]  # each row with its own


def torch_logits(base: BasePack) -> Expected | None:
    """None where the client is not installed (entry-point group `fedlora.references`)."""
    if "torch" in sys.modules:
        return _computed(base)
    # The base's own path: a new process knows nothing of this one.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_computed_of, base.directory).result()


def find_reference() -> Reference | None:
    """The trainer's logits where the client is installed."""
    for point in entry_points(group="fedlora.references"):
        try:
            return cast(Reference, point.load())
        except ImportError:
            continue
    return None


def _computed_of(directory: Path) -> Expected | None:
    return _computed(open_pack(directory))


def _computed(base: BasePack) -> Expected | None:
    reference = find_reference()
    if reference is None:
        return None
    sample = Sample.of(base)
    mask = np.ones_like(sample.tokens[:1])
    first, second = (reference(base, sample.tokens[i : i + 1], sample.adapters[i], mask) for i in range(2))
    return Expected(reference(base, sample.tokens[:1], None, mask), (first, second))


def _random_adapter(base: BasePack, generator: np.random.Generator) -> Adapter:
    """An adapter whose every factor counts: a graph that dropped or swapped one would be seen."""
    modules = base.model.linear_modules()
    leaves = tuple(dict.fromkeys(module.rsplit(".", 1)[-1] for module in modules))
    config = LoraConfig(rank=4, alpha=8.0, target_modules=leaves)
    pairs = {
        module: LoraPair(pair.lora_A, generator.normal(0, 0.05, pair.lora_B.shape).astype(np.float32))
        for module, pair in initial_adapter(config, modules, generator).pairs.items()
    }
    return Adapter(config, pairs)
