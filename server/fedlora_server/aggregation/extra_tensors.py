"""Extra tensors beside what a method does with A and B: their weighted mean, with the weights of the method's updates.

A method sees A and B alone. What stands around it (robust rules, capped weights) weighs whole updates, and so the extra
tensors with them.
"""

from __future__ import annotations

import numpy as np
from fedlora.lora.adapter import Adapter, Extras, with_extras

from fedlora_server.means.extra_mean import ExtraMean
from fedlora_server.methods.method import Aggregator, Global


class ExtraAggregator(Aggregator):
    """An aggregator of A and B, and the mean of the extra tensors."""

    def __init__(self, inner: Aggregator, like: Extras) -> None:
        self._inner, self._mean = inner, ExtraMean(like)

    def add(self, adapter: Adapter, weight: float) -> None:
        self._inner.add(with_extras(adapter, {}), weight)
        self._mean.add(adapter.extras, weight)

    def remove(self, adapter: Adapter, weight: float) -> None:
        self._inner.remove(with_extras(adapter, {}), weight)
        self._mean.remove(adapter.extras, weight)

    @property
    def waiting(self) -> int:
        return self._inner.waiting

    def settle(self) -> None:
        self._inner.settle()

    def merge(self, other: Aggregator, factor: float) -> None:
        assert isinstance(other, ExtraAggregator)
        self._inner.merge(other._inner, factor)
        self._mean.merge(other._mean, factor)

    def result(self) -> Global:
        made = self._inner.result()
        return Global(with_extras(made.adapter, self._mean.mean()), made.frozen)


def moved_extras(update: Extras, then: Extras, now: Extras, factor: float) -> Extras:
    """X_now + s (X_k - X_t): what an update on earlier extra tensors means to the present ones, as `moved` has it."""
    return {name: value + np.float32(factor) * (update[name] - then[name]) for name, value in now.items()}
