"""fedavg: the weighted mean of A and the weighted mean of B.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", 2017 (arXiv:1602.05629),
applied to LoRA's factors as in Zhang et al., "Towards Building the Federated GPT: Federated Instruction Tuning" (FedIT),
2024 (arXiv:2305.05644).

Not exact: the product of the means is not the mean of the products, and it depends on the gauge of each device.
Memory: one adapter, whatever the number of devices.
"""

from __future__ import annotations

from collections.abc import Callable

from fedlora.lora.adapter import Adapter
from fedlora.wire.task import FactorSet

from fedlora_server.means.weighted_sum import FactorMean
from fedlora_server.methods.method import LED_ASTRAY, Aggregator, Global, Method


class FedAvg(Method):
    refuses_mixed_ranks = "a mean of factors wants factors of one rank; use svd, stack, hetlora or raflora"
    refuses_robust = LED_ASTRAY
    refuses_async = ""

    def aggregator(self, down: Global, server_round: int) -> Aggregator:
        return MeanAggregator(down, self.task(server_round).sends)


class MeanAggregator(Aggregator):
    """The mean of the factors that were sent; the other one is what went down."""

    def __init__(self, down: Global, factors: FactorSet) -> None:
        self._mean, self._frozen = FactorMean(down.adapter, factors), down.frozen

    def add(self, adapter: Adapter, weight: float) -> None:
        self._mean.add(adapter, weight)

    def remove(self, adapter: Adapter, weight: float) -> None:
        self._mean.remove(adapter, weight)

    @property
    def waiting(self) -> int:
        return self._mean.waiting

    def settle(self) -> None:
        self._mean.settle()

    def merge(self, other: Aggregator, factor: float) -> None:
        assert isinstance(other, MeanAggregator)
        self._mean.merge(other._mean, factor)

    def add_and_show(self, adapter: Adapter, weight: float, show: Callable[[str], None]) -> None:
        self._mean.add(adapter, weight, show)

    def result(self) -> Global:
        return Global(self._mean.mean(), self._frozen)
