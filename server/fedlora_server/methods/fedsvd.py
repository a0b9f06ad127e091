"""fedsvd: B trains and is averaged; then B A is factored anew by its SVD, so that the rows of A are orthonormal.

Lee et al., "FedSVD: Adaptive Orthogonalization for Private Federated Learning with LoRA", 2025 (arXiv:2505.12805).

Exact: all devices have the same A, and the SVD changes the factors, not their product. B = U S, A = V^T. Half the bytes up.
Memory: B of one adapter.
"""

# O out features, I in features, R rank

from __future__ import annotations

import numpy as np
from fedlora.errors import ConfigError
from fedlora.lora.adapter import Adapter, LoraPair
from fedlora.wire.task import Task

from fedlora_server.means.parallel_modules import parallel_modules
from fedlora_server.methods.fedavg import FedAvg, MeanAggregator
from fedlora_server.methods.method import Aggregator, Global


class FedSvd(FedAvg):
    refuses_robust = ""
    refuses_async = "a B belongs to the A of its round, which the next round makes anew; use svd or ffa"
    refuses_optimizer = "it makes its factors anew in every round: moments have nothing to belong to; use svd"
    keeps_components = False

    def start(self, first: Adapter) -> Global:
        for module, pair in first.pairs.items():
            if pair.rank > min(pair.shape):
                raise ConfigError(
                    f"fedsvd: {module} {list(pair.shape)} has no {pair.rank} orthonormal rows; lower lora.rank"
                )
        return Global(refactored(first))

    def task(self, server_round: int) -> Task:
        return Task(trains="B", sends="B")

    def aggregator(self, down: Global, server_round: int) -> Aggregator:
        return RefactoredAggregator(down, "B")


class RefactoredAggregator(MeanAggregator):
    def result(self) -> Global:
        return Global(refactored(super().result().adapter))


def refactored(adapter: Adapter) -> Adapter:
    """Equal products B A with orthonormal rows in A: A^T = Q R, B R^T = U S V^T, B A = (U S) (V^T Q^T)."""

    def factors(module: str) -> LoraPair:
        pair = adapter.pairs[module]
        q, r = np.linalg.qr(pair.lora_A.T.astype(np.float64))  # [I, R], [R, R]
        u, s, vt = np.linalg.svd(pair.lora_B.astype(np.float64) @ r.T, full_matrices=False)
        return LoraPair((vt @ q.T).astype(np.float32), (u * s).astype(np.float32))

    return Adapter(adapter.config, parallel_modules(factors, adapter.pairs))
