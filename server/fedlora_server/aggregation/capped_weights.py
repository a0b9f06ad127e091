"""A device's weight is its own word: what is more than some multiple of the round's median counts as that multiple.

The median is known when the round ends, and the updates are gone by then. So those whose weights lie between the same two
powers of two are aggregated by themselves, and what the round makes is put together from these groups: a group with
weights above the cap counts as the sum of its capped weights. Only within such a group, where weights differ by less than
twofold, do they keep their ratio. Groups below the cap are put together without rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from fedlora.errors import RunError
from fedlora.lora.adapter import Adapter
from numpy.typing import NDArray

from fedlora_server.means.weighted_sum import AT_ONCE, NO_UPDATES, positive
from fedlora_server.methods.method import Aggregator, Global


def capped(weights: Sequence[float], multiple: float) -> NDArray[np.float64]:
    """The weights, none above `multiple` times their median; a multiple of 0 bounds nothing."""
    given = np.asarray(weights, np.float64)
    return np.minimum(given, multiple * np.median(given)) if multiple and len(given) else given


def in_any_order(aggregator: Aggregator) -> bool:
    """Whether the order of its updates changes no bit of it: then what was added can be taken back."""
    return type(aggregator).remove is not Aggregator.remove


def merges(aggregator: Aggregator) -> bool:
    """Whether it can take what another one was given."""
    return type(aggregator).merge is not Aggregator.merge


class CappedAggregator(Aggregator):
    """Memory: an aggregator for each power of two among the weights of the round."""

    def __init__(self, new: Callable[[], Aggregator], multiple: float) -> None:
        """`new` makes an empty aggregator of the round: the first one is that of the result."""
        self._new, self._multiple = new, multiple
        self._all = new()
        self._groups: dict[int, tuple[Aggregator, list[float]]] = {}  # by the exponent of the weights

    def add(self, adapter: Adapter, weight: float) -> None:
        _, exponent = math.frexp(positive(weight))
        if exponent not in self._groups:
            self._groups[exponent] = self._new(), []
        aggregator, weights = self._groups[exponent]
        aggregator.add(adapter, weight)
        weights.append(weight)
        self._settle_most()

    def remove(self, adapter: Adapter, weight: float) -> None:
        aggregator, weights = self._groups[math.frexp(weight)[1]]
        aggregator.remove(adapter, weight)
        weights.remove(weight)
        self._settle_most()

    def _settle_most(self) -> None:
        """So that all groups together hold no more than one of them may."""
        aggregators = [aggregator for aggregator, _ in self._groups.values()]
        if sum(aggregator.waiting for aggregator in aggregators) >= AT_ONCE:
            max(aggregators, key=lambda aggregator: aggregator.waiting).settle()

    def result(self) -> Global:
        groups = [(aggregator, sorted(own)) for _, (aggregator, own) in sorted(self._groups.items()) if own]
        if not groups:
            raise RunError(NO_UPDATES)
        counts = capped([weight for _, weights in groups for weight in weights], self._multiple)
        ends = np.cumsum([len(weights) for _, weights in groups])
        for part, (aggregator, own) in zip(np.split(counts, ends[:-1]), groups, strict=True):
            self._all.merge(aggregator, math.fsum(part) / math.fsum(own))
        return self._all.result()
