"""The mean of the factors and that of the products, of the same updates: for methods that make up for the difference."""

from __future__ import annotations

from fedlora.lora.adapter import Adapter

from fedlora_server.means.exact_mean import ExactMean
from fedlora_server.means.weighted_sum import FactorMean
from fedlora_server.methods.method import Aggregator, Global
from fedlora_server.methods.moved import products_of


class BothMeans(Aggregator):
    """The part of an aggregator that adds. Memory: one adapter and the exact mean's."""

    def __init__(self, down: Global) -> None:
        self._factors, self._products = FactorMean(down.adapter), ExactMean()

    def add(self, adapter: Adapter, weight: float) -> None:
        self._factors.add(adapter, weight)
        self._products.add(products_of(adapter), weight)
