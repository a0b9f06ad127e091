"""svd: the best rank-r approximation of the weighted mean of the products, sum_k (w_k / w) B_k A_k.

Bai et al., "Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and Client Resources" (FlexLoRA),
2024 (arXiv:2402.11505), computed on the factors instead of the dense [O, I] update.

The optimum of its rank (Eckart-Young), and indifferent to the gauge of each device. The components are in the order of the
singular values: the first r' of them, which a device of rank r' gets, are the best approximation of that rank. Memory:
the exact mean's, at most about two matrices [O, I] per module, whatever the number of devices.
"""

from __future__ import annotations

import math

from fedlora.lora.adapter import Adapter, LoraPair
from fedlora.lora.algebra import Product, truncated
from fedlora.lora.config import LoraConfig

from fedlora_server.means.exact_mean import ExactMean
from fedlora_server.means.parallel_modules import parallel_modules
from fedlora_server.methods.method import Aggregator, Global, Method


class Svd(Method):
    refuses_adaptive = "it goes element by element, and the factors are others in every round; use fedavgm"
    keeps_components = False
    refuses_async = ""
    moves = "products"
    takes_products = True

    def aggregator(self, down: Global, server_round: int) -> Aggregator:
        return SvdAggregator(self.lora)


class SvdAggregator(Aggregator):
    def __init__(self, lora: LoraConfig) -> None:
        self._lora, self._mean = lora, ExactMean()

    def add(self, adapter: Adapter, weight: float) -> None:
        self._mean.add(adapter, weight)

    def result(self) -> Global:
        def best(module: str) -> LoraPair:
            mean = self._mean.mean(module)
            return as_pair(truncated(mean, self._lora.rank_of(module)), self._lora.scaling_of(module))

        return Global(Adapter(self._lora, parallel_modules(best, self._mean.modules)))


def as_pair(product: Product, scaling: float) -> LoraPair:
    """The factors whose product times `scaling` is `product`; each takes half."""
    root = math.sqrt(scaling)
    return LoraPair(product.A / root, product.B / root)
