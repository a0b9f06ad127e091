"""ffa: A is frozen, and the same for all because it comes from the run's seed; B is averaged.

Sun et al., "Improving LoRA in Privacy-preserving Federated Learning" (FFA-LoRA), 2024 (arXiv:2403.12313).

Exact: with one A, the mean of B_k A is (the mean of B_k) A. Half the bytes, in both directions. Memory: B of one adapter.
"""

from __future__ import annotations

from fedlora.wire.task import Task

from fedlora_server.methods.fedavg import FedAvg


class Ffa(FedAvg):
    refuses_robust = ""

    def task(self, server_round: int) -> Task:
        return Task(trains="B", sends="B")

    def shared_from_seed(self) -> str:
        return "A"
