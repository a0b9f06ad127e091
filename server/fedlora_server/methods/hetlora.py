"""hetlora: factors of several ranks, padded with zeros to the largest, each weighted by the size of its update.

Cho et al., "Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models", 2024 (arXiv:2401.06432): the
sparsity-weighted mean, with weights ||B_k A_k||_F over the whole adapter, here times those of the run (uniform: the
paper's). A device gets the first components of the adapter, as many as it has ranks. The paper's pruning of a device's own
rank is not part of this: a device trains the rank that its operator gave it.

Not exact, and one device with a huge update decides the round. Memory: one adapter, whatever the number of devices.
"""

from __future__ import annotations

import math

from fedlora.lora.adapter import Adapter
from fedlora.lora.algebra import inner_product

from fedlora_server.means.weighted_sum import FactorMean, positive
from fedlora_server.methods.method import LED_ASTRAY, Aggregator, Global, Method

_LEAST_NORM = 1e-12  # so that updates that change nothing have a mean too


class HetLora(Method):
    refuses_robust = LED_ASTRAY
    refuses_async = ""

    def aggregator(self, down: Global, server_round: int) -> Aggregator:
        return HetLoraAggregator(down)


class HetLoraAggregator(Aggregator):
    def __init__(self, down: Global) -> None:
        self._mean = FactorMean(down.adapter)

    def add(self, adapter: Adapter, weight: float) -> None:
        self._mean.add(adapter, positive(weight) * _norm(adapter))

    def remove(self, adapter: Adapter, weight: float) -> None:
        self._mean.remove(adapter, positive(weight) * _norm(adapter))

    @property
    def waiting(self) -> int:
        return self._mean.waiting

    def settle(self) -> None:
        self._mean.settle()

    def merge(self, other: Aggregator, factor: float) -> None:
        assert isinstance(other, HetLoraAggregator)
        self._mean.merge(other._mean, factor)

    def result(self) -> Global:
        return Global(self._mean.mean())


def _norm(adapter: Adapter) -> float:
    products = [adapter.product(module) for module in adapter.pairs]
    return max(_LEAST_NORM, math.sqrt(max(0.0, sum(inner_product(product, product) for product in products))))
