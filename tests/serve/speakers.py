"""Adapters as every engine takes them, and what one sequence says with each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fedlora.base.pack import BasePack
from fedlora.exported.inputs import digest_of, input_values
from fedlora.exported.profiles import Profile
from fedlora.lora.adapter import Adapter
from fedlora.lora.config import LoraConfig
from fedlora.row_lora.layout import adapter_layout
from fedlora_serve.adapters.loading import AdapterValues, LoadedAdapter
from fedlora_serve.local.engine import Engine

from tests.tiny.adapters import changed, random_adapter
from tests.tiny.llamas import Variant

LONG = Variant(context=256, heads=4, kv_heads=2, head_dim=16)  # room for prompts of many blocks
RANKS = (1, 2, 3, 8, 16, 21, 40, 64)
ROW_PROFILES: tuple[Profile, ...] = ("kernel", "rows")


@dataclass(frozen=True, slots=True)
class Speaker:
    """An adapter, as every engine takes it."""

    rank: int
    adapter: Adapter
    version: LoadedAdapter  # with adapter_inputs
    laid_out: LoadedAdapter


def speaker(base: BasePack, config: LoraConfig, seed: int, size: float = 1.0) -> Speaker:
    """A random adapter whose B is so much larger."""
    adapter = changed(random_adapter(base, config, seed=seed), lambda _, a, b: (a, b * np.float32(size)))
    adapter_inputs = input_values(adapter)

    def version(values: AdapterValues) -> LoadedAdapter:
        return LoadedAdapter(
            name=f"rank-{config.rank}",
            digest=digest_of(adapter_inputs),
            number=1,
            values=values,
            rank=config.rank,
            size_bytes=1,
            source=Path("none"),
        )

    layout = adapter_layout(adapter_inputs, base.shape.linear_modules())
    return Speaker(config.rank, adapter, version(adapter_inputs), version(layout))


def greedy(engine: Engine, prompt: Sequence[int], speaker: Speaker | None, count: int) -> list[int]:
    """The likeliest tokens after a prompt, one sequence at a time, without an end."""
    decoding, tokens = engine.start(speaker.version if speaker else None), list(prompt)
    read: Sequence[int] = prompt
    while len(tokens) < len(prompt) + count:
        tokens.append(int(decoding.step(read).argmax()))
        read = tokens[-1:]
    return tokens[len(prompt) :]


def random_prompt(random: np.random.Generator, length: int) -> list[int]:
    return [int(token) for token in random.integers(0, 256, length)]
