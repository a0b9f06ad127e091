"""raflora: slot by slot, the mean over the devices that hold the slot; then the best approximation of the run's rank.

Wu et al., "Preventing Rank Collapse in Federated Low-Rank Adaptation with Client Heterogeneity" (raFLoRA), 2026
(arXiv:2602.13486): where every product has the weight of its whole device, what few devices of high rank have in their last
slots fades from round to round; here slot j of device k has the weight w_k over the sum of those that have a slot j.

Not exact where ranks differ; with equal ranks it is svd. The ranks of a round are known at its end, so the updates are kept
until then, factored. Memory: N adapters.
"""

# S slots: the largest rank that came

from __future__ import annotations

import numpy as np
from fedlora.adapter import Adapter, LoraPair
from fedlora.lora import LoraConfig

from fedlora_server.exact_mean import ExactMean
from fedlora_server.methods.method import Fold, Global, Method
from fedlora_server.methods.svd import best_adapter
from fedlora_server.weighted_sum import positive


class RaFlora(Method):
    keeps_slots = False

    def fold(self, down: Global, server_round: int) -> Fold:
        return RaFloraFold(self.lora)


class RaFloraFold:
    def __init__(self, lora: LoraConfig) -> None:
        self._lora = lora
        self._held: list[tuple[Adapter, float]] = []

    def add(self, adapter: Adapter, weight: float) -> None:
        self._held.append((adapter, positive(weight)))

    def result(self) -> Global:
        mean = ExactMean()
        total = sum(weight for _, weight in self._held)
        ranks = {module: max(adapter.pairs[module].rank for adapter, _ in self._held) for module in self._modules()}
        held = {module: np.zeros(rank) for module, rank in ranks.items()}  # [S], the weight that each slot has
        for adapter, weight in self._held:
            for module, pair in adapter.pairs.items():
                held[module][: pair.rank] += weight
        for adapter, weight in self._held:
            pairs = {}
            for module, pair in adapter.pairs.items():
                share = total / held[module][: pair.rank]  # 1 where every device has the slot
                pairs[module] = LoraPair(pair.lora_A, pair.lora_B * share.astype(np.float32))
            mean.add(Adapter(adapter.config, pairs), weight)
        return Global(best_adapter(mean.means(), self._lora))

    def _modules(self) -> list[str]:
        return list(self._held[0][0].pairs) if self._held else []
