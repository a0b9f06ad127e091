"""fedsa: A is shared and averaged; the B of each device stays there, and is never seen by the server.

Guo et al., "Selective Aggregation for Low-Rank Adaptation in Federated Learning" (FedSA-LoRA), 2025 (arXiv:2410.01463).

Personalised: a device's adapter is the shared A with its own B. What the server commits has B at zero and changes nothing
by itself. Half the bytes in both directions. Memory: A of one adapter.
"""

from __future__ import annotations

from fedlora.wire.task import Task

from fedlora_server.methods.fedavg import FedAvg


class FedSa(FedAvg):
    personal = True
    measures_error = False
    refuses_async = "each device keeps its B from round to round, and here there are none; use another method"
    refuses_robust = "robust rules compare B A, and the server sees no B; use another method"

    def task(self, server_round: int) -> Task:
        return Task(trains="AB", sends="A")

    def shared_from_seed(self) -> str:
        return "B"
