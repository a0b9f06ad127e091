"""Adapters of the kinds that scale modules, one each, with which a graph that takes them is compared with torch.

Every number counts: a scale that a graph dropped, or gave to another module, would be seen.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from fedlora.base.pack import BasePack
from fedlora.base.quantize import dequantize
from fedlora.lora.adapter import Adapter, LoraPair
from fedlora.lora.config import LoraConfig
from fedlora.lora.kinds import BY_NAME, new_adapter
from fedlora.lora.output_scale import METHODS
from fedlora.peft.for_base import scaled_of


def scaled_adapters(base: BasePack) -> dict[str, Adapter]:
    """{the kind's title: an adapter}, as torch takes it: the same ones for the same base."""
    return {BY_NAME[method].title: _random(method, base) for method in METHODS}


def scaled_sample(base: BasePack) -> dict[str, Adapter]:
    """The same as graphs take them."""
    return {title: scaled_of(adapter, base) for title, adapter in scaled_adapters(base).items()}


def _random(method: str, base: BasePack) -> Adapter:
    generator, modules = np.random.default_rng(1), base.model.linear_modules()
    config = LoraConfig(method=method, rank=4, alpha=8.0, target_modules=BY_NAME[method].default_targets(modules))
    new = new_adapter(config, base.model, lambda module: dequantize(base.matrix(module)), generator)
    pairs = {
        module: LoraPair(pair.lora_A, generator.normal(0, 0.05, pair.lora_B.shape).astype(np.float32))
        for module, pair in new.pairs.items()
    }
    extras = {
        name: (array * generator.uniform(0.7, 1.3, array.shape)).astype(np.float32)
        for name, array in new.extras.items()
    }
    return replace(new, pairs=pairs, extras=extras)
