"""The folds of the robust rules: they keep the factored updates of a round, and weigh them at its end."""

# N updates, O out features, I in features

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from fedlora.adapter import Adapter
from fedlora.algebra import Dense
from fedlora.errors import RunError
from fedlora.lora import LoraConfig
from fedlora.low_rank import Matrix
from fedlora.run_config import AggregationConfig

from fedlora_server.methods.method import Fold, Global
from fedlora_server.methods.svd import best_adapter
from fedlora_server.robust import RULES, gram_of_changes
from fedlora_server.weighted_sum import positive

_BLOCK_BYTES = 1 << 26  # of the products that are in memory at a time


class WeighingFold:
    """`inner` gets each update with the weight that the rule gives it. Memory: N adapters, beside inner's."""

    def __init__(self, inner: Fold, down: Adapter, settings: AggregationConfig) -> None:
        self._inner, self._down, self._settings = inner, down, settings
        self._held: list[tuple[Adapter, float]] = []

    def add(self, adapter: Adapter, weight: float) -> None:
        self._held.append((adapter, positive(weight)))

    def result(self) -> Global:
        if not self._held:
            raise RunError("the mean of no updates is not defined")
        adapters = [adapter for adapter, _ in self._held]
        weights = np.array([weight for _, weight in self._held])
        counting = RULES[self._settings.robust](gram_of_changes(adapters, self._down), weights, self._settings)
        for adapter, weight in zip(adapters, counting, strict=True):
            if weight > 0:
                self._inner.add(adapter, float(weight))
        return self._inner.result()


class MedianFold:
    """The best adapter for the coordinate-wise median of the products gamma B_k A_k; weights do not count.

    Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", 2018 (arXiv:1803.01498), on the
    products, which no gauge changes, a block of rows at a time. Memory: N adapters, one [O, I], and 64 MB of blocks.
    """

    def __init__(self, lora: LoraConfig) -> None:
        self._lora = lora
        self._held: list[Adapter] = []

    def add(self, adapter: Adapter, weight: float) -> None:
        positive(weight)
        self._held.append(adapter)

    def result(self) -> Global:
        if not self._held:
            raise RunError("the mean of no updates is not defined")
        medians = {module: np.concatenate(list(self._blocks(module))) for module in self._held[0].pairs}
        return Global(best_adapter({module: Dense(median) for module, median in medians.items()}, self._lora))

    def _blocks(self, module: str) -> Iterator[Matrix]:
        products = [adapter.product(module) for adapter in self._held]
        rows, columns = self._held[0].pairs[module].shape
        step = max(1, _BLOCK_BYTES // (4 * columns * len(products)))
        for start in range(0, rows, step):
            yield np.median([product.B[start : start + step] @ product.A for product in products], axis=0)
