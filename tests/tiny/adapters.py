"""Adapters in which every factor counts, and configurations of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from fedlora.base.pack import BasePack
from fedlora.lora.adapter import Adapter, LoraPair, initial_adapter
from fedlora.lora.config import LoraConfig
from numpy.typing import NDArray

ALL_RANKS = LoraConfig(
    rank=4,
    alpha=6.0,
    rank_pattern={
        "model.layers.0.self_attn.q_proj": 1,
        "model.layers.0.mlp.down_proj": 7,
        "model.layers.1.self_attn.v_proj": 2,
        "model.layers.1.mlp.gate_proj": 12,
    },
    alpha_pattern={"model.layers.0.mlp.down_proj": 3.0, "model.layers.1.self_attn.k_proj": 11.0},
)


LORAS = {
    "one-rank": LoraConfig(rank=4, alpha=8.0),
    "rank-and-alpha-patterns": ALL_RANKS,
    "rslora": LoraConfig(rank=8, alpha=5.0, use_rslora=True),
    "rslora-with-patterns": LoraConfig(
        rank=4,
        alpha=6.0,
        use_rslora=True,
        rank_pattern=ALL_RANKS.rank_pattern,
        alpha_pattern=ALL_RANKS.alpha_pattern,
    ),
    "attention-only": LoraConfig(rank=2, alpha=8.0, target_modules=("q_proj", "v_proj")),
}


def random_adapter(base: BasePack, config: LoraConfig | None = None, seed: int = 1) -> Adapter:
    """An adapter of a base: unlike in a new one, B is not zero. By default it sits on every linear module."""
    modules = base.model.linear_modules()
    config = config or replace(LORAS["one-rank"], target_modules=leaves_of(base))
    assert {*config.rank_pattern, *config.alpha_pattern} <= modules.keys()
    return adapter_on(config, modules, seed)


def adapter_on(config: LoraConfig, modules: Mapping[str, tuple[int, int]], seed: int = 0) -> Adapter:
    """An adapter on those of `modules`, {name: (O, I)}, that `config` names: unlike in a new one, B is not zero."""
    generator = np.random.default_rng(seed)
    pairs = {
        module: LoraPair(pair.lora_A, generator.normal(0, 0.1, pair.lora_B.shape).astype(np.float32))
        for module, pair in initial_adapter(config, modules, generator).pairs.items()
    }
    return Adapter(config, pairs)


def leaves_of(base: BasePack) -> tuple[str, ...]:
    """The last parts of the names of its linear modules."""
    return tuple(dict.fromkeys(module.rsplit(".", 1)[-1] for module in base.model.linear_modules()))


def changed(
    adapter: Adapter,
    change: Callable[[str, NDArray[np.float32], NDArray[np.float32]], tuple[NDArray[np.float32], NDArray[np.float32]]],
) -> Adapter:
    """`adapter` with each module's factors replaced by those that `change(module, lora_A, lora_B)` gives."""
    pairs = {
        module: LoraPair(*change(module, pair.lora_A.copy(), pair.lora_B.copy()))
        for module, pair in adapter.pairs.items()
    }
    return Adapter(adapter.config, pairs)
