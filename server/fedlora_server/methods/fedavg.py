"""fedavg: the weighted mean of A and the weighted mean of B.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", 2017 (arXiv:1602.05629),
applied to LoRA's factors as in Zhang et al., "Towards Building the Federated GPT: Federated Instruction Tuning" (FedIT),
2024 (arXiv:2305.05644).

Not exact: the product of the means is not the mean of the products, and it depends on the gauge of each device.
"""

from __future__ import annotations

import numpy as np
from fedlora.adapter import Adapter, LoraPair
from fedlora.errors import RunError
from fedlora.lora import LoraConfig
from numpy.typing import NDArray

from fedlora_server.exact_mean import ExactMean


class FedAvg:
    """Holds one adapter in float64."""

    def __init__(self, config: LoraConfig) -> None:
        self._config = config
        self._sums: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]] = {}
        self._weight = 0.0

    def add(self, adapter: Adapter, weight: float) -> None:
        for module, pair in adapter.pairs.items():
            a, b = pair.lora_A.astype(np.float64) * weight, pair.lora_B.astype(np.float64) * weight
            sum_a, sum_b = self._sums.get(module, (0.0, 0.0))
            self._sums[module] = (sum_a + a, sum_b + b)
        self._weight += weight

    def result(self, exact: ExactMean) -> Adapter:
        if not self._weight:
            raise RunError("the mean of no updates is not defined")
        pairs = {
            module: LoraPair((a / self._weight).astype(np.float32), (b / self._weight).astype(np.float32))
            for module, (a, b) in self._sums.items()
        }
        return Adapter(self._config, pairs)
