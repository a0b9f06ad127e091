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
from collections.abc import Callable
from fractions import Fraction

import numpy as np
from fedlora.errors import RunError
from fedlora.lora.adapter import Adapter
from numpy.typing import NDArray

from fedlora_server.means.ring_sums import Batch, RingSums
from fedlora_server.means.weighted_sum import NO_UPDATES
from fedlora_server.methods.method import Aggregator, Global
from fedlora_server.methods.moved import products_of

Array = NDArray[np.float32]

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
        self._looked_at = frozenset(modules)
        self.modules = modules  # that are looked at
        shapes = [(like.pairs[module].shape[0], self.width(like, module)) for module in modules]
        self._sums = RingSums(shapes)
        self._weight = Fraction(0)
        self._means: list[Array] = []

    def look(self, adapter: Adapter, weight: float) -> Callable[[str], None]:
        """What is to be told of each module of an adapter, in any order; it counts once: see `count`.

        Below 0 the weight is that of one that is taken back.
        """
        seen: dict[str, Array] = {}

        def show(module: str) -> None:
            if module in self._looked_at:
                seen[module] = self.seen(adapter, module, abs(weight))
                if len(seen) == len(self.modules):
                    arrays = [seen[module] for module in self.modules]
                    self._sums.add(Batch([arrays], [math.copysign(1, weight)]))

        return show

    def width(self, adapter: Adapter, module: str) -> int:
        _, seen = self._directions[adapter.pairs[module].shape[1]].shape
        return int(seen)

    def count(self, weight: float) -> None:
        self._weight += Fraction(weight)

    def twin(self) -> ErrorSketch:
        """One that has seen nothing yet, in the same directions."""
        twin = copy.copy(self)
        twin._sums = RingSums(self._sums.shapes)
        twin._weight = Fraction(0)
        return twin

    def merge(self, other: ErrorSketch, factor: float) -> None:
        """Take all that `other`, a twin, has seen, with its weights times `factor`."""
        self._weight += other._weight * Fraction(factor)
        self._sums.merge(other._sums, factor)

    def relative_error(self, committed: Adapter, frozen: Adapter | None = None) -> float:
        """Over the modules together; 0 where both are zero. Raises RunError where nothing was added."""
        if not self._weight:
            raise RunError(NO_UPDATES)
        squared_norm = squared_error = 0.0
        self._means = self._means or self._sums.means(self._weight)
        for module, mean in zip(self.modules, self._means, strict=True):
            if frozen is not None:
                mean = mean + self.seen(frozen, module)
            columns, seen = self._directions[committed.pairs[module].shape[1]].shape
            squared_norm += columns / seen * float(np.vdot(mean, mean))
            error = self.seen(committed, module) - mean
            squared_error += columns / seen * float(np.vdot(error, error))
        if squared_norm <= 0:
            return 0.0 if squared_error <= 0 else math.inf
        return math.sqrt(squared_error / squared_norm)

    def seen(self, adapter: Adapter, module: str, weight: float = 1) -> Array:  # [O, d]
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
        self._aggregator.add_and_show(adapter, weight, self._sketch.look(products_of(adapter), weight))
        self._sketch.count(weight)

    def remove(self, adapter: Adapter, weight: float) -> None:
        self._aggregator.remove(adapter, weight)
        show = self._sketch.look(products_of(adapter), -weight)
        for module in adapter.pairs:
            show(module)
        self._sketch.count(-weight)

    @property
    def waiting(self) -> int:
        return self._aggregator.waiting

    def settle(self) -> None:
        self._aggregator.settle()

    def merge(self, other: Aggregator, factor: float) -> None:
        assert isinstance(other, SketchedAggregator)
        self._aggregator.merge(other._aggregator, factor)
        self._sketch.merge(other._sketch, factor)

    def result(self) -> Global:
        return self._aggregator.result()


def _orthonormal(width: int, generator: np.random.Generator) -> Array:  # [I, d]
    q, _ = np.linalg.qr(generator.normal(size=(width, width if width <= EXACT else DIRECTIONS)))
    return q.astype(np.float32)
