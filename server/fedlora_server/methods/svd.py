"""svd: the best rank-r approximation of the weighted mean of the products, sum_k (w_k / w) B_k A_k.

Bai et al., "Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and Client Resources" (FlexLoRA),
2024 (arXiv:2402.11505), computed on the factors instead of the dense [O, I] update.

The optimum of its rank (Eckart-Young), and indifferent to the gauge of each device.
"""

from __future__ import annotations

import math

from fedlora.adapter import Adapter, LoraPair
from fedlora.algebra import truncated
from fedlora.lora import LoraConfig

from fedlora_server.exact_mean import ExactMean


class Svd:
    """Holds nothing of its own: the exact mean is all that it needs."""

    def __init__(self, config: LoraConfig) -> None:
        self._config = config

    def add(self, adapter: Adapter, weight: float) -> None:
        pass

    def result(self, exact: ExactMean) -> Adapter:
        pairs = {}
        for module, mean in exact.means().items():
            best = truncated(mean, self._config.rank_of(module))
            root = math.sqrt(self._config.scaling_of(module))  # the product is scaling * B A: each factor gives half
            pairs[module] = LoraPair(best.A / root, best.B / root)
        return Adapter(self._config, pairs)
