"""The weighted sum of factors: what every method that averages A or B apart is made of."""

# R rank, r the rank of one device, at most R

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from fedlora.errors import RunError
from fedlora.lora.adapter import Adapter, LoraPair
from fedlora.wire.task import FactorSet
from numpy.typing import NDArray

Array = NDArray[np.float32]

_BLOCK = 1 << 16  # numbers
NO_UPDATES = "the mean of no updates is not defined"


class FactorMean:
    """sum_k w_k A_k / sum_k w_k, and that of B: one sum in float32, and no copy of an update.

    An adapter of a smaller rank counts as zero in the components that it lacks; a component that none of them has stays as
    it was. The error of a sum of N terms in float32 is about sqrt(N) 6e-8 of its size.
    """

    def __init__(self, like: Adapter, factors: FactorSet = "AB") -> None:
        """`like` is what went down: the modules, their shapes, and what is not averaged."""
        self._like, self._factors = like, factors
        self._sums: dict[str, dict[str, Array]] = {}
        self._components = dict.fromkeys(like.pairs, 0)  # the largest rank that came
        self.weight = 0.0

    def add(self, adapter: Adapter, weight: float, then: Callable[[str], None] = lambda module: None) -> None:
        """Raises RunError unless `weight` is positive and finite. `then` is told of each module while the cache has it."""
        self.weight += positive(weight)
        if not self._sums:
            self._sums = {module: {} for module in self._like.pairs}
        scratch: dict[tuple[int, ...], Array] = {}  # by shape
        for module in self._sums:
            self._add_module(module, adapter.pairs[module], np.float32(weight), scratch)
            then(module)

    def merge(self, other: FactorMean, factor: float) -> None:
        """Add all that was added to `other`, with its weights times `factor`."""
        self.weight += other.weight * factor
        for module, sums in other._sums.items():
            self._components[module] = max(self._components[module], other._components[module])
            for name, total in sums.items():
                total *= np.float32(factor)
                mine = self._sums.setdefault(module, {})
                if name in mine:
                    mine[name] += total
                else:
                    mine[name] = total

    def mean(self) -> Adapter:
        """The mean; the sums become it, so nothing can be added afterwards. Raises RunError where nothing was."""
        if not self.weight:
            raise RunError(NO_UPDATES)
        pairs = {}
        for module, sums in self._sums.items():
            before, held = _factors(self._like.pairs[module]), self._components[module]
            for factor, total in sums.items():
                total /= np.float32(self.weight)
                rest = np.s_[held:] if factor == "A" else np.s_[:, held:]
                total[rest] = before[factor][rest]
            pairs[module] = LoraPair(**{f"lora_{factor}": array for factor, array in (before | sums).items()})
        self._sums = {}
        return Adapter(self._like.config, pairs)

    def _add_module(
        self, module: str, pair: LoraPair, scale: np.float32, scratch: dict[tuple[int, ...], Array]
    ) -> None:
        sums, rank = self._sums[module], pair.rank
        like, arrays = _factors(self._like.pairs[module]), _factors(pair)
        self._components[module] = max(self._components[module], rank)
        for factor in self._factors:
            is_first = factor not in sums
            if is_first:
                sums[factor] = (np.empty_like if rank == self._like.pairs[module].rank else np.zeros_like)(like[factor])
            total = sums[factor][:rank] if factor == "A" else sums[factor][:, :rank]
            if is_first:
                np.multiply(arrays[factor], scale, out=total)
            else:
                _add(total, arrays[factor], scale, scratch)


def _add(total: Array, array: Array, scale: np.float32, scratch: dict[tuple[int, ...], Array]) -> None:
    """total += scale * array, some rows at a time: what is scaled is added while the cache has it."""
    step = max(1, _BLOCK // array.shape[1])
    for start in range(0, len(array), step):
        rows = array[start : start + step]
        scaled = scratch.get(rows.shape)
        if scaled is None:
            scaled = scratch[rows.shape] = np.empty(rows.shape, np.float32)
        np.multiply(rows, scale, out=scaled)
        total[start : start + step] += scaled


def positive(weight: float) -> float:
    """Raises RunError unless `weight` is positive and finite."""
    if not 0 < weight < math.inf:
        raise RunError(f"the weight of an update must be positive, got {weight}")
    return weight


def _factors(pair: LoraPair) -> dict[str, Array]:
    return {"A": pair.lora_A, "B": pair.lora_B}
