"""fedex: the means of A and B, and beside them what these miss: sum_k w_k B_k A_k - (mean B) (mean A).

Singhal et al., "FedEx-LoRA: Exact Aggregation for Federated and Efficient Fine-Tuning of Foundation Models", 2025
(arXiv:2410.09432). There the residual goes into the base; here the base is frozen and quantized, so the residuals of all
rounds stand beside the trained adapter as a frozen adapter, factored.

Exact while trained and frozen adapter together have at most rank `aggregation.max_rank`; from there on the frozen adapter
is the best approximation of the rank that is left. Memory: one adapter and the exact mean's.
"""

from __future__ import annotations

from fedlora.errors import ConfigError
from fedlora.lora.adapter import Adapter, LoraPair
from fedlora.lora.algebra import Product, concatenate, truncated
from fedlora.lora.config import LoraConfig
from fedlora.lora.ranks import parted, with_ranks

from fedlora_server.means.parallel_modules import parallel_modules
from fedlora_server.methods.both_means import BothMeans
from fedlora_server.methods.method import LED_ASTRAY, Aggregator, Global, Method
from fedlora_server.methods.svd import as_pair


class FedEx(Method):
    uses = frozenset({"max_rank"})
    refuses_mixed_ranks = "its residual belongs to a mean of factors of one rank; use svd, stack, hetlora or raflora"
    refuses_optimizer = (
        "its frozen adapter makes the mean exact, and a server optimizer moves away from the mean; use svd"
    )
    refuses_robust = LED_ASTRAY
    refuses_async = ""

    def start(self, first: Adapter) -> Global:
        for module, pair in first.pairs.items():
            if pair.rank >= self.settings.max_rank:
                raise ConfigError(
                    f"fedex: aggregation.max_rank is {self.settings.max_rank}, {module} trains rank {pair.rank}: nothing "
                    "is left for the residual; raise aggregation.max_rank"
                )
        with_ranks(self.lora, dict.fromkeys(first.pairs, self.settings.max_rank))  # raises where an alpha is too large
        return Global(first)

    def restored(self, committed: Adapter, first: Adapter) -> Global:
        return Global(*parted(committed, self.lora))

    def aggregator(self, down: Global, server_round: int) -> Aggregator:
        return FedExAggregator(down, self.lora, self.settings.max_rank)


class FedExAggregator(BothMeans):
    def __init__(self, down: Global, lora: LoraConfig, max_rank: int) -> None:
        super().__init__(down)
        self._frozen, self._lora, self._max_rank = down.frozen, lora, max_rank

    def result(self) -> Global:
        mean, frozen = self._factors.mean(), self._frozen

        def beside(module: str) -> LoraPair:
            residual = [self._products.mean(module), mean.product(module).scaled(-1)]
            total = concatenate([frozen.product(module), *residual] if frozen else residual)
            return as_pair(self._bounded(total, module), self._lora.scaling_of(module))

        pairs = parallel_modules(beside, self._products.modules)
        return Global(mean, Adapter(with_ranks(self._lora, {m: pair.rank for m, pair in pairs.items()}), pairs))

    def _bounded(self, total: Product, module: str) -> Product:
        """The best approximation of the rank that is left, which is never more than the module has."""
        left = self._max_rank - self._lora.rank_of(module)
        return truncated(total, min(left, total.B.shape[0], total.A.shape[1], total.inner))
