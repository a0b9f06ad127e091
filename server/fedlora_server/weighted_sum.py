"""The weighted sum of factors: what every method that averages A or B apart is made of."""

# R rank, r the rank of one device, at most R

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from fedlora.adapter import Adapter, LoraPair
from fedlora.errors import RunError
from fedlora.task import Factors
from numpy.typing import NDArray

Array = NDArray[np.float32]

NO_UPDATES = "the mean of no updates is not defined"


class FactorMean:
    """sum_k w_k A_k / sum_k w_k, and that of B: one sum in float32, and no copy of an update.

    An adapter of a smaller rank counts as zero in the slots that it lacks; a slot that none of them has stays as it was.
    The error of a sum of N terms in float32 is about sqrt(N) 6e-8 of its size.
    """

    def __init__(self, like: Adapter, factors: Factors = "AB") -> None:
        """`like` is what went down: the modules, their shapes, and what is not averaged."""
        self._like, self._factors = like, factors
        self._sums = {
            module: {factor: np.zeros_like(array) for factor, array in _factors(pair).items() if factor in factors}
            for module, pair in like.pairs.items()
        }
        self._slots = dict.fromkeys(like.pairs, 0)  # the largest rank that came
        self._scratch: dict[tuple[int, ...], Array] = {}  # by the shape of a factor
        self.weight = 0.0

    def add(self, adapter: Adapter, weight: float, then: Callable[[str], None] = lambda module: None) -> None:
        """Raises RunError unless `weight` is positive and finite. `then` is told of each module while the cache has it."""
        self.weight += positive(weight)
        for module, sums in self._sums.items():
            rank, arrays = adapter.pairs[module].rank, _factors(adapter.pairs[module])
            self._slots[module] = max(self._slots[module], rank)
            for factor, total in sums.items():
                self._add(total[:rank] if factor == "A" else total[:, :rank], arrays[factor], np.float32(weight))
            then(module)

    def mean(self) -> Adapter:
        """The mean; the sums become it, so nothing can be added afterwards. Raises RunError where nothing was."""
        if not self.weight:
            raise RunError(NO_UPDATES)
        pairs = {}
        for module, sums in self._sums.items():
            before, held = _factors(self._like.pairs[module]), self._slots[module]
            for factor, total in sums.items():
                total /= np.float32(self.weight)
                rest = np.s_[held:] if factor == "A" else np.s_[:, held:]
                total[rest] = before[factor][rest]
            pairs[module] = LoraPair(**{f"lora_{factor}": array for factor, array in (before | sums).items()})
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
