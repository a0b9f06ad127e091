"""fedrot: each device's factors are rotated onto those that went down; then the means of A and B.

Zhang et al., "FedRot-LoRA: Mitigating Rotational Misalignment in Federated LoRA", 2026 (arXiv:2602.23638). A rotation
changes no product: (B Q) (Q^T A) = B A. The one that brings both factors closest to the last global ones is the solution
of an orthogonal Procrustes problem (Schoenemann, 1966), U V^T of the SVD U S V^T of B^T B_0 + A A_0^T [R, R]. It is found
here, as the update arrives, instead of on the device: the same numbers, and a device cannot get it wrong.

Nearly exact, and indifferent to a rotation of each device's factors. Memory: one adapter.
"""

# O out features, I in features, R rank

from __future__ import annotations

import numpy as np
from fedlora.lora.adapter import Adapter, LoraPair

from fedlora_server.means.weighted_sum import FactorMean
from fedlora_server.methods.fedavg import FedAvg
from fedlora_server.methods.method import Aggregator, Global


class FedRot(FedAvg):
    def aggregator(self, down: Global, server_round: int) -> Aggregator:
        return FedRotAggregator(down)


class FedRotAggregator(Aggregator):
    def __init__(self, down: Global) -> None:
        self._mean, self._target = FactorMean(down.adapter), down.adapter

    def add(self, adapter: Adapter, weight: float) -> None:
        self._mean.add(rotated_onto(adapter, self._target), weight)

    def remove(self, adapter: Adapter, weight: float) -> None:
        self._mean.remove(rotated_onto(adapter, self._target), weight)

    @property
    def waiting(self) -> int:
        return self._mean.waiting

    def settle(self) -> None:
        self._mean.settle()

    def merge(self, other: Aggregator, factor: float) -> None:
        assert isinstance(other, FedRotAggregator)
        self._mean.merge(other._mean, factor)

    def result(self) -> Global:
        return Global(self._mean.mean())


def rotated_onto(adapter: Adapter, target: Adapter) -> Adapter:
    """(B Q, Q^T A) with the orthogonal Q [R, R] that minimises ||B Q - B_0||_F^2 + ||Q^T A - A_0||_F^2, module by module.

    The orthogonal Procrustes problem (Schoenemann, Psychometrika 31, 1966): Q = U V^T of the SVD of B^T B_0 + A A_0^T.
    """
    pairs = {}
    for module, pair in adapter.pairs.items():
        onto = target.pairs[module]
        overlap = pair.lora_B.T @ onto.lora_B + pair.lora_A @ onto.lora_A.T  # [R, R]
        u, _, vt = np.linalg.svd(overlap.astype(np.float64))
        q = (u @ vt).astype(np.float32)
        pairs[module] = LoraPair(q.T @ pair.lora_A, pair.lora_B @ q)
    return Adapter(adapter.config, pairs)
