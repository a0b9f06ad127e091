"""The weighted sum of factors: what every method that averages A or B apart is made of."""

# R rank, r the rank of one device, at most R

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from fedlora.adapter import Adapter, LoraPair
from fedlora.errors import RunError
from fedlora.task import Factors
from numpy.typing import NDArray

Array = NDArray[np.float32]


class FactorMean:
    """sum_k w_k A_k / sum_k w_k, and that of B: one sum in float32, and no copy of an update.

    An adapter of a smaller rank counts in the slots that it has; in the others it counts as zero. The error of a sum of
    N terms in float32 is about sqrt(N) 6e-8 of its size.
    """

    def __init__(self, like: Adapter, factors: Factors = "AB") -> None:
        """`like` gives the modules and their shapes, and the factor that is not averaged."""
        self._like, self._factors = like, factors
        self._sums = {
            module: {factor: np.zeros_like(array) for factor, array in _factors(pair).items() if factor in factors}
            for module, pair in like.pairs.items()
        }
        self._scratch: dict[tuple[int, ...], Array] = {}  # by the shape of a factor
        self.weight = 0.0

    def add(self, adapter: Adapter, weight: float, times: Mapping[str, float] | None = None) -> None:
        """Raises RunError unless `weight` is positive and finite. `times` are further weights by module."""
        self.weight += positive(weight)
        for module, sums in self._sums.items():
            scale = np.float32(weight if times is None else weight * times[module])
            rank, arrays = adapter.pairs[module].rank, _factors(adapter.pairs[module])
            for factor, total in sums.items():
                self._add(total[:rank] if factor == "A" else total[:, :rank], arrays[factor], scale)

    def mean(self) -> Adapter:
        """The mean; the sums become it, so nothing can be added afterwards. Raises RunError where nothing was."""
        if not self.weight:
            raise RunError("the mean of no updates is not defined")
        pairs = {}
        for module, sums in self._sums.items():
            for total in sums.values():
                total /= np.float32(self.weight)
            arrays = _factors(self._like.pairs[module]) | sums
            pairs[module] = LoraPair(arrays["A"], arrays["B"])
        self._sums = {}
        return Adapter(self._like.config, pairs)

    def _add(self, total: Array, array: Array, scale: np.float32) -> None:
        """total += scale * array"""
        scratch = self._scratch.get(array.shape)
        if scratch is None:
            scratch = self._scratch[array.shape] = np.empty(array.shape, np.float32)
        np.multiply(array, scale, out=scratch)
        total += scratch


def positive(weight: float) -> float:
    """Raises RunError unless `weight` is positive and finite."""
    if not 0 < weight < math.inf:
        raise RunError(f"the weight of an update must be positive, got {weight}")
    return weight


def _factors(pair: LoraPair) -> dict[str, Array]:
    return {"A": pair.lora_A, "B": pair.lora_B}
