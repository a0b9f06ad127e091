"""The peer of sums that do not depend on the order: a round of `fedavg` whose sums are float32, as plain as they can be.

This is how the server added before its sums became integers: one sum of each factor for each power of two among the
weights, put together at the end of the round, and the sketch of the round's error beside them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from fedlora.lora.adapter import Adapter, LoraPair
from fedlora_server.aggregation.capped_weights import capped
from fedlora_server.aggregation.error_sketch import ErrorSketch
from numpy.typing import NDArray

Array = NDArray[np.float32]

_BLOCK = 1 << 16  # numbers


@dataclass
class _Group:
    """The updates whose weights lie between two powers of two."""

    weights: list[float] = field(default_factory=list)
    factors: dict[tuple[str, str], Array] = field(default_factory=dict)  # by module and factor
    seen: dict[str, Array] = field(default_factory=dict)  # by module: of the sketch


class FloatRound:
    """The weighted mean of A and that of B, in float32, with weights up to a multiple of their median."""

    def __init__(self, like: Adapter, multiple: float, generator: np.random.Generator) -> None:
        self._like, self._multiple = like, multiple
        self._sketch = ErrorSketch(like, generator)
        self._groups: dict[int, _Group] = {}
        self._scratch: dict[tuple[int, ...], Array] = {}  # by shape
        self._weight = 0.0
        self._seen: dict[str, Array] = {}

    def add(self, adapter: Adapter, weight: float) -> None:
        group = self._groups.setdefault(math.frexp(weight)[1], _Group())
        scale = np.float32(weight)
        for module, pair in adapter.pairs.items():
            for factor, array in (("A", pair.lora_A), ("B", pair.lora_B)):
                total = group.factors.get((module, factor))
                if total is None:
                    group.factors[module, factor] = np.multiply(array, scale)
                else:
                    self._add(total, array, scale)
            if module in self._sketch.modules:  # while the cache has it
                seen = self._sketch.seen(adapter, module, weight)
                if module in group.seen:
                    group.seen[module] += seen
                else:
                    group.seen[module] = seen
        group.weights.append(weight)

    def result(self) -> Adapter:
        groups = list(self._groups.values())
        counts = capped([weight for group in groups for weight in group.weights], self._multiple)
        ends = np.cumsum([len(group.weights) for group in groups])[:-1]
        shares = [part.sum() / sum(group.weights) for part, group in zip(np.split(counts, ends), groups, strict=True)]
        first, self._weight = groups[0], sum(groups[0].weights)
        for group, share in zip(groups[1:], shares[1:], strict=True):
            factor = np.float32(share / shares[0])
            self._weight += sum(group.weights) * float(factor)
            for key, total in group.factors.items():
                total *= factor
                first.factors[key] += total
            for module, total in group.seen.items():
                first.seen[module] += total * factor
        for total in (*first.factors.values(), *first.seen.values()):
            total /= np.float32(self._weight)
        self._seen = first.seen
        pairs = {m: LoraPair(first.factors[m, "A"], first.factors[m, "B"]) for m in self._like.pairs}
        return Adapter(self._like.config, pairs)

    def error(self, committed: Adapter) -> float:
        squared_norm = squared_error = 0.0
        for module, mean in self._seen.items():
            columns, directions = committed.pairs[module].shape[1], self._sketch.width(committed, module)
            squared_norm += columns / directions * float(np.vdot(mean, mean))
            error = self._sketch.seen(committed, module) - mean
            squared_error += columns / directions * float(np.vdot(error, error))
        return math.sqrt(squared_error / squared_norm)

    def _add(self, total: Array, array: Array, scale: np.float32) -> None:
        """total += scale * array, some rows at a time: what is scaled is added while the cache has it."""
        step = max(1, _BLOCK // array.shape[1])
        for start in range(0, len(array), step):
            rows = array[start : start + step]
            scaled = self._scratch.get(rows.shape)
            if scaled is None:
                scaled = self._scratch[rows.shape] = np.empty(rows.shape, np.float32)
            np.multiply(rows, scale, out=scaled)
            total[start : start + step] += scaled
