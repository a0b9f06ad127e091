"""How far what a round committed is from the weighted mean of its updates, without keeping either.

||C - M||_F / ||M||_F, where C is the committed product and M = S + sum_k (w_k / w) gamma_k B_k A_k, S being what stood
frozen beside the trained adapter. Both are seen through d orthonormal directions, X [I, d]: ||E X||_F^2 I / d is
||E||_F^2 on average over random X (Hutchinson's estimator), so that the ratio needs M X [O, d] only, and no update. The
sums do not depend on the order of the updates.
"""

# O out features, I in features, d directions

from __future__ import annotations

import copy
import math
from fractions import Fraction

import numpy as np
from fedlora.errors import RunError
from fedlora.lora.adapter import Adapter
from numpy.typing import NDArray

from fedlora_server.means.ring_sum import RingSum
from fedlora_server.means.ring_windows import Term
from fedlora_server.means.weighted_sum import NO_UPDATES
from fedlora_server.methods.method import Aggregator, Global
from fedlora_server.methods.moved import products_of

EXACT, DIRECTIONS = 16, 8  # all of I up to 16; else 8: a quarter off for one module, about 3% for 48 together
MODULES = 48  # of more, so many are drawn for the round


class ErrorSketch:
    """Memory: d columns per module that is looked at, the size of an adapter's B of rank d."""

    def __init__(self, like: Adapter, generator: np.random.Generator) -> None:
        """`like` gives the modules and their shapes."""
        modules = list(like.pairs)
        if len(modules) > MODULES:
            modules = [modules[number] for number in sorted(generator.choice(len(modules), MODULES, replace=False))]
        widths = {like.pairs[module].shape[1] for module in modules}
        self._directions = {width: _orthonormal(width, generator) for width in sorted(widths)}
        self._sums = {module: RingSum(self._seen(like, module, 1).shape) for module in modules}
        self._weight = Fraction(0)

    def add_module(self, adapter: Adapter, module: str, weight: float) -> None:
        """One module of an adapter that counts once: see `count`. Below 0 the weight is that of one that is taken back."""
        if module in self._sums:
            self._sums[module].add(Term(self._seen(adapter, module, abs(weight)), math.copysign(1, weight)))

    def count(self, weight: float) -> None:
        self._weight += Fraction(weight)

    def twin(self) -> ErrorSketch:
        """One that has seen nothing yet, in the same directions."""
        twin = copy.copy(self)
        twin._sums = {module: RingSum(total.shape) for module, total in self._sums.items()}
        twin._weight = Fraction(0)
        return twin

    def merge(self, other: ErrorSketch, factor: float) -> None:
        """Take all that `other`, a twin, has seen, with its weights times `factor`."""
        self._weight += other._weight * Fraction(factor)
        for module, total in other._sums.items():
            self._sums[module].merge(total, factor)

    def relative_error(self, committed: Adapter, frozen: Adapter | None = None) -> float:
        """Over the modules together; 0 where both are zero. Raises RunError where nothing was added."""
        if not self._weight:
            raise RunError(NO_UPDATES)
        squared_norm = squared_error = 0.0
        for module, total in self._sums.items():
            mean = total.mean(self._weight)
            if frozen is not None:
                mean += self._seen(frozen, module)
            columns, seen = self._directions[committed.pairs[module].shape[1]].shape
            squared_norm += columns / seen * float(np.vdot(mean, mean))
            error = self._seen(committed, module) - mean
            squared_error += columns / seen * float(np.vdot(error, error))
        if squared_norm <= 0:
            return 0.0 if squared_error <= 0 else math.inf
        return math.sqrt(squared_error / squared_norm)

    def _seen(self, adapter: Adapter, module: str, weight: float = 1) -> NDArray[np.float32]:  # [O, d]
        """weight gamma B A X"""
        pair = adapter.pairs[module]
        inner = pair.lora_A @ self._directions[pair.shape[1]]  # [R, d]
        inner *= np.float32(weight * adapter.config.scaling_of(module))
        return pair.lora_B @ inner


class SketchedAggregator(Aggregator):
    """An aggregator, and the sketch of what goes into it."""

    def __init__(self, aggregator: Aggregator, sketch: ErrorSketch) -> None:
        self._aggregator, self._sketch = aggregator, sketch

    def add(self, adapter: Adapter, weight: float) -> None:
        seen = products_of(adapter)
        self._aggregator.add_and_show(adapter, weight, lambda module: self._sketch.add_module(seen, module, weight))
        self._sketch.count(weight)

    def remove(self, adapter: Adapter, weight: float) -> None:
        self._aggregator.remove(adapter, weight)
        for module in adapter.pairs:
            self._sketch.add_module(products_of(adapter), module, -weight)
        self._sketch.count(-weight)

    def settle(self) -> None:
        self._aggregator.settle()

    def merge(self, other: Aggregator, factor: float) -> None:
        assert isinstance(other, SketchedAggregator)
        self._aggregator.merge(other._aggregator, factor)
        self._sketch.merge(other._sketch, factor)

    def result(self) -> Global:
        return self._aggregator.result()


def _orthonormal(width: int, generator: np.random.Generator) -> NDArray[np.float32]:  # [I, d]
    q, _ = np.linalg.qr(generator.normal(size=(width, width if width <= EXACT else DIRECTIONS)))
    return q.astype(np.float32)
