"""lorafair: the means of A and B, with B corrected so that the product comes close to the mean of the products.

Bian et al., "LoRA-FAIR: Federated LoRA Fine-Tuning with Aggregation and Initialization Refinement", 2025
(arXiv:2411.14961). The correction D minimises ||M - (B + D) A||_F^2 + lambda s ||D||_F^2, M being the mean of the products
and s the mean square of A's singular values, so that lambda has no unit:

    D = (M - B A) A^T (A A^T + lambda s 1)^-1

The paper minimises a cosine distance by gradient descent; the Frobenius distance has this closed form.

Nearly exact: as close as the rows of A allow. Memory: one adapter and the exact mean's.
"""

# O out features, I in features, R rank

from __future__ import annotations

import numpy as np
from fedlora.lora.adapter import Adapter, LoraPair
from fedlora.lora.algebra import Product

from fedlora_server.means.parallel_modules import parallel_modules
from fedlora_server.methods.both_means import BothMeans
from fedlora_server.methods.fedavg import FedAvg
from fedlora_server.methods.method import Aggregator, Global


class LoraFair(FedAvg):
    uses = frozenset({"lorafair_lambda"})

    def aggregator(self, down: Global, server_round: int) -> Aggregator:
        return LoraFairAggregator(down, self.settings.lorafair_lambda)


class LoraFairAggregator(BothMeans):
    def __init__(self, down: Global, weight_of_correction: float) -> None:
        super().__init__(down)
        self._lambda = weight_of_correction

    def result(self) -> Global:
        mean = self._factors.mean()

        def closer(module: str) -> LoraPair:
            product = self._products.mean(module).scaled(1 / mean.config.scaling_of(module))
            return corrected(mean.pairs[module], product, self._lambda)

        return Global(Adapter(mean.config, parallel_modules(closer, self._products.modules)))


def corrected(pair: LoraPair, mean: Product, weight_of_correction: float) -> LoraPair:
    """`pair` with its B moved towards the least squares solution of B A = `mean`."""
    A, B = pair.lora_A.astype(np.float64), pair.lora_B.astype(np.float64)
    gram = A @ A.T  # [R, R]
    held = weight_of_correction * np.trace(gram) / len(gram)
    if not held:
        return pair
    missing = mean.times(A.T) - B @ gram  # [O, R]
    correction = np.linalg.solve(gram + held * np.eye(len(gram)), missing.T).T
    return LoraPair(pair.lora_A, (B + correction).astype(np.float32))
