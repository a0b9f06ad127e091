"""stack: the factors of all devices side by side, beside all that was committed before.

Wang et al., "FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank Adaptations", 2024
(arXiv:2409.05976). There a device merges what comes down into its base; here the base is frozen and quantized, so what was
committed stands frozen beside a new adapter, which is what the device trains and sends.

Exact while the rank of all of it is at most `aggregation.max_rank`, and where a module has no more; else the sum is cut to
the best approximation of that rank. (Cut to the run's own rank instead, it lost 40% of every round.)

Memory: the exact mean's.
"""

from __future__ import annotations

import numpy as np
from fedlora.errors import ConfigError
from fedlora.lora.adapter import Adapter, LoraPair, initial_adapter
from fedlora.lora.algebra import Product, concatenate, truncated
from fedlora.lora.config import LoraConfig
from fedlora.lora.ranks import with_ranks

from fedlora_server.means.exact_mean import ExactMean
from fedlora_server.means.parallel_modules import parallel_modules
from fedlora_server.methods.method import Aggregator, Global, Method
from fedlora_server.methods.svd import as_pair


class Stack(Method):
    refuses_async = ""
    moves = "products"
    uses = frozenset({"max_rank"})
    refuses_optimizer = (
        "the components of its adapter are others in every round: moments have nothing to belong to; use svd"
    )

    def start(self, first: Adapter) -> Global:
        for module, pair in first.pairs.items():
            if pair.rank > self.settings.max_rank:
                raise ConfigError(
                    f"stack: aggregation.max_rank is {self.settings.max_rank}, {module} trains rank {pair.rank}; raise "
                    "aggregation.max_rank"
                )
        with_ranks(self.lora, dict.fromkeys(first.pairs, self.settings.max_rank))  # raises where an alpha is too large
        return Global(first)

    def committed(self, state: Global) -> Adapter:
        return state.frozen or state.adapter

    def restored(self, committed: Adapter, first: Adapter) -> Global:
        return Global(first, committed)

    def down(self, state: Global, server_round: int) -> Global:
        """A new adapter every round, from the seed, beside all that was committed."""
        shapes = {module: pair.shape for module, pair in state.adapter.pairs.items()}
        new = initial_adapter(self.lora, shapes, np.random.default_rng([self.seed, server_round, 1]))
        return Global(new, state.frozen)

    def aggregator(self, down: Global, server_round: int) -> Aggregator:
        return StackAggregator(down, self.lora, self.settings.max_rank)


class StackAggregator(Aggregator):
    def __init__(self, down: Global, lora: LoraConfig, max_rank: int) -> None:
        self._down, self._lora, self._max_rank = down, lora, max_rank
        self._mean = ExactMean()

    def add(self, adapter: Adapter, weight: float) -> None:
        self._mean.add(adapter, weight)

    def result(self) -> Global:
        frozen = self._down.frozen

        def total(module: str) -> LoraPair:
            mean = self._mean.mean(module)
            total = mean if frozen is None else concatenate([frozen.product(module), mean])
            return as_pair(self._bounded(total), self._lora.scaling_of(module))

        pairs = parallel_modules(total, self._mean.modules)
        ranks = {module: pair.rank for module, pair in pairs.items()}
        return Global(self._down.adapter, Adapter(with_ranks(self._lora, ranks), pairs))

    def _bounded(self, total: Product) -> Product:
        """`total` with an inner dimension of at most `max_rank`: itself, or the best approximation."""
        if total.inner <= self._max_rank:
            return total
        return truncated(total, min(self._max_rank, total.B.shape[0], total.A.shape[1]))
