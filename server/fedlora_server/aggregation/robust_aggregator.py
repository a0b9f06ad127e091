"""The aggregators of the robust rules: they keep the factored updates of a round, and weigh them at its end."""

# N updates, O out features, I in features

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from fedlora.errors import RunError
from fedlora.lora.adapter import Adapter, Extras, LoraPair
from fedlora.lora.algebra import Dense, truncated
from fedlora.lora.config import LoraConfig
from fedlora.lora.low_rank import Matrix
from numpy.typing import NDArray

from fedlora_server.aggregation.capped_weights import capped
from fedlora_server.aggregation.fixed_order import fixed_order, same_numbers
from fedlora_server.aggregation.held_updates import HeldUpdates
from fedlora_server.means.parallel_modules import parallel_modules
from fedlora_server.means.weighted_sum import NO_UPDATES, positive
from fedlora_server.methods.method import Aggregator, Global
from fedlora_server.methods.svd import as_pair

Weights = NDArray[np.float64]  # [N], 0 for an update that does not count
RoundWeights = Callable[[Sequence[Adapter], Adapter], Weights]  # of updates to what went down

_BLOCK_BYTES = 1 << 26  # of the products that are in memory at a time


class _Holding(Aggregator):
    """The part of an aggregator that adds: the adapters of the round, and their weights."""

    def __init__(self) -> None:
        self._adapters: list[Adapter] = []
        self._given: list[float] = []
        self._holder = HeldUpdates()

    def add(self, adapter: Adapter, weight: float) -> None:
        self._given.append(positive(weight))
        self._adapters.append(self._holder.hold(adapter))

    def remove(self, adapter: Adapter, weight: float) -> None:
        place = next(
            place
            for place, (held, given) in enumerate(zip(self._adapters, self._given, strict=True))
            if given == weight and same_numbers(held, adapter)
        )
        del self._adapters[place], self._given[place]

    def _order(self) -> list[int]:
        """The places of the updates among those that were added, in the order in which they are used."""
        if not self._adapters:
            raise RunError(NO_UPDATES)
        return fixed_order(self._adapters, self._given)


class WeighingAggregator(_Holding):
    """`inner` gets each update with its capped weight times that which a rule gives it, in a fixed order.

    Memory: the held updates', beside inner's.
    """

    def __init__(self, inner: Aggregator, down: Adapter, weights: RoundWeights, max_weight: float) -> None:
        super().__init__()
        self._inner, self._down, self._weights, self._max_weight = inner, down, weights, max_weight
        self.left_out: list[int] = []  # of the updates, in the order in which they were added

    def result(self) -> Global:
        order = self._order()
        adapters, given = [self._adapters[place] for place in order], [self._given[place] for place in order]
        weights = self._weights(adapters, self._down)
        self.left_out = sorted(place for place, weight in zip(order, weights, strict=True) if not weight > 0)
        for adapter, weight in zip(adapters, weights * capped(given, self._max_weight), strict=True):
            if weight > 0:
                self._inner.add(adapter, float(weight))
        return self._inner.result()


def all_alike(adapters: Sequence[Adapter], down: Adapter) -> Weights:
    """What a round without a rule gives its updates."""
    return np.ones(len(adapters))


class MedianAggregator(_Holding):
    """The best adapter for the coordinate-wise median of the products gamma B_k A_k; extra tensors have their own median.

    Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", 2018 (arXiv:1803.01498), on the
    products, which no gauge changes, a block of rows at a time. Memory: the held updates', and per core one [O, I] and a
    block of 64 MB.
    """

    def __init__(self, lora: LoraConfig) -> None:
        super().__init__()
        self._lora = lora

    def result(self) -> Global:
        self._adapters = [self._adapters[place] for place in self._order()]
        pairs = parallel_modules(self._best, self._adapters[0].pairs)
        return Global(Adapter(self._lora, pairs, extras=self._extras()))

    def _extras(self) -> Extras:
        every = self._adapters
        return {
            name: np.median([adapter.extras[name] for adapter in every], axis=0).astype(np.float32)
            for name in every[0].extras
        }

    def _best(self, module: str) -> LoraPair:
        best = truncated(Dense(self._median(module)), self._lora.rank_of(module))
        return as_pair(best, self._lora.scaling_of(module))

    def _median(self, module: str) -> Matrix:  # [O, I]
        products = [adapter.product(module) for adapter in self._adapters]
        rows, columns = self._adapters[0].pairs[module].shape
        median = np.empty((rows, columns), np.float32)
        step = max(1, _BLOCK_BYTES // (4 * columns * len(products)))
        block = np.empty((len(products), min(step, rows), columns), np.float32)
        for start in range(0, rows, step):
            part = block[:, : min(step, rows - start)]
            for number, product in enumerate(products):
                np.matmul(product.B[start : start + step], product.A, out=part[number])
            np.median(part, axis=0, out=median[start : start + step], overwrite_input=True)
        return median
