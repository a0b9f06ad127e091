"""Adapters of other ranks: the first components of one, and two side by side. The scaling of every module stays as it is.

A component is one column of B with its row of A: an adapter of rank R is the sum of its R components.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from fedlora.lora.adapter import Adapter, LoraPair
from fedlora.lora.config import LoraConfig


def with_ranks(config: LoraConfig, ranks: Mapping[str, int]) -> LoraConfig:
    """`config` for modules of these ranks, with alphas that leave each module's scaling as it is."""
    if all(rank == config.rank_of(module) for module, rank in ranks.items()):
        return config
    alphas = {
        module: config.scaling_of(module) * (math.sqrt(rank) if config.use_rslora else rank)
        for module, rank in ranks.items()
    }
    rank, alpha = Counter(ranks.values()).most_common(1)[0][0], Counter(alphas.values()).most_common(1)[0][0]
    return replace(
        config,
        rank=rank,
        alpha=alpha,
        rank_pattern={module: own for module, own in ranks.items() if own != rank},
        alpha_pattern={module: own for module, own in alphas.items() if own != alpha},
    )


def first_components(adapter: Adapter, rank: int) -> Adapter:
    """`adapter` with at most the first `rank` components of each module, as views."""
    pairs = {module: LoraPair(pair.lora_A[:rank], pair.lora_B[:, :rank]) for module, pair in adapter.pairs.items()}
    return replace(
        adapter, config=with_ranks(adapter.config, {module: pair.rank for module, pair in pairs.items()}), pairs=pairs
    )


def joined(first: Adapter, second: Adapter) -> Adapter:
    """The sum of two adapters of the same modules: the components of `first`, then those of `second`; `first`'s scaling.

    Extra tensors are `first`'s.
    """
    pairs = {}
    for module, pair in first.pairs.items():
        other = second.pairs[module]
        ratio = second.config.scaling_of(module) / first.config.scaling_of(module)
        other_B = other.lora_B if ratio == 1 else other.lora_B * np.float32(ratio)
        pairs[module] = LoraPair(
            np.concatenate([pair.lora_A, other.lora_A], 0), np.concatenate([pair.lora_B, other_B], 1)
        )
    config = with_ranks(first.config, {module: pair.rank for module, pair in pairs.items()})
    return Adapter(config, pairs, extras=first.extras)


def parted(adapter: Adapter, config: LoraConfig) -> tuple[Adapter, Adapter | None]:
    """What `joined` put together: the components of `config`, and those after them, or None where there are none.

    A module whose components end with those of `config` gets a component of zeros in the second part: no adapter has rank
    0.
    """
    first, second = {}, {}
    for module, pair in adapter.pairs.items():
        rank = config.rank_of(module)
        first[module] = LoraPair(pair.lora_A[:rank], pair.lora_B[:, :rank])
        if pair.rank > rank:
            second[module] = LoraPair(pair.lora_A[rank:], pair.lora_B[:, rank:])
    if not second:
        return Adapter(config, first), None
    for module in [module for module in adapter.pairs if module not in second]:
        rows, columns = adapter.pairs[module].shape
        second[module] = LoraPair(np.zeros((1, columns), np.float32), np.zeros((rows, 1), np.float32))
    ranks = {module: pair.rank for module, pair in second.items()}
    return Adapter(config, first), Adapter(with_ranks(config, ranks), second)
