"""The weighted sum of factors: what every method that averages A or B apart is made of."""

# R rank, r the rank of one device, at most R

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from fedlora.errors import RunError
from fedlora.lora.adapter import Adapter, LoraPair
from fedlora.wire.task import FactorSet
from numpy.typing import NDArray

from fedlora_server.means.ring_sums import Batch, RingSums

Array = NDArray[np.float32]
Then = Callable[[str], None]  # told of each module while the cache has it

AT_ONCE = 4  # updates that are added in one pass through the sums
NO_UPDATES = "the mean of no updates is not defined"


def nothing(module: str) -> None:
    """What there is to do where nobody looks."""


class _Added(NamedTuple):
    adapter: Adapter
    weight: float  # below 0 where it is taken back
    then: Then


class FactorMean:
    """sum_k w_k A_k / sum_k w_k, and that of B: the same bits in every order, by `RingSums`.

    An adapter of a smaller rank counts as zero in the components that it lacks; a component that none of them has stays as
    it was. Memory: 8 bytes a number (`RingSums`), and three updates, which wait for a fourth: memory is what takes time,
    and four are added in one pass through the sums.
    """

    def __init__(self, like: Adapter, factors: FactorSet = "AB") -> None:
        """`like` is what went down: the modules, their shapes, and what is not averaged."""
        self._like, self._factors = like, factors
        shapes = {(m, f): _factors(pair)[f].shape for m, pair in like.pairs.items() for f in factors}
        self._keys = list(shapes)  # (module, factor): the factors of a module side by side
        self._sums = RingSums(list(shapes.values()))
        self._ranks: dict[str, dict[int, int]] = {module: {} for module in like.pairs}  # how often each came
        self._weight = Fraction(0)  # exact, too
        self._waiting: list[_Added] = []

    def add(self, adapter: Adapter, weight: float, then: Then = nothing) -> None:
        """Raises RunError unless `weight` is positive and finite. `then` is told of each module while the cache has it."""
        self._add(_Added(adapter, positive(weight), then))

    def remove(self, adapter: Adapter, weight: float) -> None:
        """Take back what was added with this weight: the bits are those of a mean that never had it."""
        self._add(_Added(adapter, -positive(weight), nothing))

    def merge(self, other: FactorMean, factor: float) -> None:
        """Add all that was added to `other`, with its weights times `factor`."""
        if factor == 1:  # what waits there may as well be added here
            self._waiting += other._waiting
            other._waiting = []
            if self._sums.is_empty:
                self._sums, other._sums = other._sums, self._sums
        other.settle()
        self._weight += other._weight * Fraction(factor)
        for module, counts in other._ranks.items():
            for rank, count in counts.items():
                self._count(module, rank, count)
        self._sums.merge(other._sums, factor)

    def mean(self) -> Adapter:
        """The mean; the sums are used up, so nothing can be added afterwards. Raises RunError where nothing was."""
        self.settle()
        if not self._weight:
            raise RunError(NO_UPDATES)
        pairs, means = {}, dict(zip(self._keys, self._sums.means(self._weight), strict=True))
        for module, before in self._like.pairs.items():
            held = max(rank for rank, count in self._ranks[module].items() if count)
            arrays = _factors(before)
            for factor in self._factors:
                mean = means[module, factor]
                rest = np.s_[held:] if factor == "A" else np.s_[:, held:]
                mean[rest] = arrays[factor][rest]
                arrays[factor] = mean
            pairs[module] = LoraPair(arrays["A"], arrays["B"])
        return Adapter(self._like.config, pairs)

    def _add(self, added: _Added) -> None:
        for module, pair in added.adapter.pairs.items():
            self._count(module, pair.rank, 1 if added.weight > 0 else -1)
        self._weight += Fraction(added.weight)
        self._waiting.append(added)
        if len(self._waiting) == AT_ONCE:
            self.settle()

    @property
    def waiting(self) -> int:
        """The updates that wait."""
        return len(self._waiting)

    def settle(self) -> None:
        """Add what waits for others, and let it go."""
        if not self._waiting:
            return
        arrays = [[_factors(added.adapter.pairs[m])[f] for m, f in self._keys] for added in self._waiting]
        batch = Batch(arrays, [added.weight for added in self._waiting])
        apiece = len(self._factors)
        for number, module in enumerate(self._like.pairs):
            self._sums.add(batch, number * apiece, (number + 1) * apiece)
            for added in self._waiting:
                added.then(module)
        self._waiting = []

    def _count(self, module: str, rank: int, count: int) -> None:
        self._ranks[module][rank] = self._ranks[module].get(rank, 0) + count


def positive(weight: float) -> float:
    """Raises RunError unless `weight` is positive and finite."""
    if not 0 < weight < math.inf:
        raise RunError(f"the weight of an update must be positive, got {weight}")
    return weight


def _factors(pair: LoraPair) -> dict[str, Array]:
    return {"A": pair.lora_A, "B": pair.lora_B}
