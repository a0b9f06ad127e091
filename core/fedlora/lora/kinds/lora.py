"""lora: W' = W + gamma B A. What `lora/config.py` says; it has no tensors of its own.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021 (arXiv:2106.09685).

The mean of factors is not the mean of products: methods of aggregation differ in what they make of it (docs/methods.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedlora.family import ModelShape
from fedlora.lora.adapter import Adapter, Extras
from fedlora.lora.config import LoraConfig
from fedlora.lora.kinds.kind import Kind, Shape, Weight


class Lora(Kind):
    name, title = "lora", "LoRA"
    has_factors = takes_dropout = is_lora = True
    keys = frozenset(
        {
            "rank", "alpha", "use_rslora", "target_modules", "layers", "rank_pattern", "alpha_pattern", "modules_to_save",
            "init",
        }
    )  # fmt: skip
    mean, mean_is_exact = "what server.method makes of the products B A", True
    peft_type, peft_mark = "LORA", "peft_type is 'LORA'"

    def shapes(self, config: LoraConfig, model: ModelShape) -> dict[str, Shape]:
        return {}

    def initial(self, config: LoraConfig, model: ModelShape, weight: Weight, generator: np.random.Generator) -> Extras:
        return {}

    def check(self, adapter: Adapter, model: ModelShape, where: str) -> None:
        """Its factors are checked by the adapter itself."""

    def as_lora(self, adapter: Adapter, model: ModelShape) -> Adapter | None:
        return adapter

    def reads(self, peft_config: Mapping[str, Any]) -> bool:
        return super().reads(peft_config) and not peft_config.get("use_dora")

    def peft_config(self, adapter: Adapter, fresh: dict[str, Any]) -> dict[str, Any]:
        return fresh
