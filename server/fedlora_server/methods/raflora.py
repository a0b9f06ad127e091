"""raflora: each component's mean over the devices that hold it; then the best approximation of the run's rank.

Wu et al., "Preventing Rank Collapse in Federated Low-Rank Adaptation with Client Heterogeneity" (raFLoRA), 2026
(arXiv:2602.13486): where every product has the weight of its whole device, what few devices of high rank have in their last
components fades from round to round; here component j of device k has the weight w_k over the sum of those that have a
component j.

Not exact where ranks differ; with equal ranks it is svd. The ranks of a round are known at its end, so the updates are kept
until then, factored. Memory: N adapters, and twice the factors of a module per core.
"""

# S components: the largest rank that came

from __future__ import annotations

import numpy as np
from fedlora.errors import RunError
from fedlora.lora.adapter import Adapter, LoraPair
from fedlora.lora.algebra import Product, concatenate, truncated
from fedlora.lora.config import LoraConfig

from fedlora_server.means.parallel_modules import parallel_modules
from fedlora_server.means.weighted_sum import NO_UPDATES, positive
from fedlora_server.methods.method import Aggregator, Global, Method
from fedlora_server.methods.svd import as_pair


class RaFlora(Method):
    refuses_adaptive = "it goes element by element, and the factors are others in every round; use fedavgm"
    keeps_components = False
    refuses_async = "it weighs component by component, and those of another round are others; use svd"

    def aggregator(self, down: Global, server_round: int) -> Aggregator:
        return RaFloraAggregator(self.lora)


class RaFloraAggregator(Aggregator):
    def __init__(self, lora: LoraConfig) -> None:
        self._lora = lora
        self._held: list[tuple[Adapter, float]] = []

    def add(self, adapter: Adapter, weight: float) -> None:
        self._held.append((adapter, positive(weight)))

    def result(self) -> Global:
        if not self._held:
            raise RunError(NO_UPDATES)
        return Global(Adapter(self._lora, parallel_modules(self._best, self._held[0][0].pairs)))

    def _best(self, module: str) -> LoraPair:
        own = [(adapter.pairs[module], weight) for adapter, weight in self._held]
        held = np.zeros(max(pair.rank for pair, _ in own))  # [S], the weight of those that have the component
        for pair, weight in own:
            held[: pair.rank] += weight
        terms = [Product(p.lora_B * (weight / held[: p.rank]).astype(np.float32), p.lora_A) for p, weight in own]
        scaling = self._lora.scaling_of(module)
        return as_pair(truncated(concatenate(terms).scaled(scaling), self._lora.rank_of(module)), scaling)
