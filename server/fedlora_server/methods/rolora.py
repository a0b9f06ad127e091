"""rolora: B trains in the odd rounds and A in the even ones; the one that trained is averaged.

Chen et al., "Robust Federated Finetuning of LLMs via Alternating Optimization of LoRA" (RoLoRA), 2025
(arXiv:2502.01755). B comes first: while it is zero, A has no gradient.

Exact: all devices have the same other factor. Half the bytes up. Memory: one factor of one adapter.
"""

from __future__ import annotations

from fedlora.wire.task import Task

from fedlora_server.methods.fedavg import FedAvg


class RoLora(FedAvg):
    refuses_robust = ""
    refuses_async = "A and B take turns from round to round, and a late B would meet another A; use ffa or svd"

    def task(self, server_round: int) -> Task:
        return Task(trains="B", sends="B") if server_round % 2 else Task(trains="A", sends="A")
