"""Adapters of every kind in which each number counts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from fedlora.base.pack import BasePack
from fedlora.base.quantize import dequantize
from fedlora.config.run import LoraSection
from fedlora.lora.adapter import Adapter, LoraPair
from fedlora.lora.kinds import BY_NAME, new_adapter

KINDS = tuple(name for name in BY_NAME if name != "lora")
OF_ENCODERS = tuple(name for name in KINDS if not BY_NAME[name].is_virtual)


def section_of(kind: str) -> LoraSection:
    """A small one, of what the kind uses."""
    if BY_NAME[kind].is_virtual:
        return LoraSection(method=kind, num_virtual_tokens=3)
    return LoraSection(method=kind, rank=4) if "rank" in BY_NAME[kind].keys else LoraSection(method=kind)


def adapter_of_kind(kind: str, base: BasePack, seed: int = 1, section: LoraSection | None = None) -> Adapter:
    """Unlike in a new one, nothing is what changes nothing; its first own number is 0, by which nobody may divide."""
    generator = np.random.default_rng(seed)
    config = (section or section_of(kind)).lora(base.model.linear_modules())
    adapter = new_adapter(config, base.model, lambda module: dequantize(base.matrix(module)), generator)
    pairs = {
        module: LoraPair(pair.lora_A, generator.normal(0, 0.1, pair.lora_B.shape).astype(np.float32))
        for module, pair in adapter.pairs.items()
    }
    extras = {
        name: (array + generator.normal(0, 0.2, array.shape)).astype(np.float32)
        for name, array in adapter.extras.items()
    }
    first = next(iter(extras.values()))
    first[(0,) * first.ndim] = 0
    return replace(adapter, pairs=pairs, extras=extras)
