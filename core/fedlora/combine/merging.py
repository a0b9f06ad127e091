"""One tensor of many: weighted sums of pruned tensors with elected signs.

Of tensors t_1 .. t_N with weights w, each pruned by its mask m:
    linear           sum of w_i m_i t_i                              (dare: divided by the density)
    ties             sum of w_i m_i t_i e_i / max(1, sum of e_i),    e_i = whether m_i t_i has the elected sign
The elected sign is that of the sum of m_i t_i, or of the sum of their signs; of 0 it is +. Tensors are made when they are
needed and let go: four of them are in memory, however many there are, and signs are elected in a pass of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlora.combine.ways import Combination

Tensor = NDArray[np.floating[Any]]


def merged(
    tensor: Callable[[int], Tensor],  # the i-th, the same each time
    weights: Sequence[float],
    combination: Combination,
    generator: Callable[[int], np.random.Generator],  # for what is dropped of the i-th, new each time
) -> Tensor:
    """The combination of `len(weights)` tensors of one shape."""
    places = range(len(weights))

    def pruned(place: int) -> Tensor:
        values = tensor(place)
        density = combination.density
        if density is None or density == 1:
            return values
        if combination.prunes == "magnitude":
            return np.multiply(values, largest(values, density))
        kept: Tensor = np.multiply(values, dropped(values.shape, density, generator(place)))
        np.divide(kept, np.float32(density), out=kept)
        return kept

    if not combination.elects_signs:
        return _summed(weights[place] * pruned(place) for place in places)
    signs = combination.majority_sign_method == "frequency"
    votes = _summed(np.sign(pruned(place)) if signs else pruned(place) for place in places)
    elected = np.where(votes >= 0, 1, -1).astype(np.int8)
    count = np.zeros(elected.shape, np.int32)

    def agreeing(place: int) -> Tensor:
        values = pruned(place)
        agrees = np.sign(values) == elected
        np.add(count, agrees, out=count)
        agreed: Tensor = np.multiply(values, agrees)
        return agreed * np.float32(weights[place])

    total = _summed(map(agreeing, places))
    mean: Tensor = np.divide(total, np.maximum(count, 1), dtype=total.dtype)
    return mean


def largest(values: Tensor, density: float) -> NDArray[np.bool_]:
    """Where the `int(density * size)` largest entries by magnitude lie; of equal ones the first."""
    size = np.abs(values).reshape(-1)
    count = int(density * size.size)
    if count == 0:
        return np.zeros(values.shape, np.bool_)
    threshold = np.partition(size, size.size - count)[size.size - count]
    kept = size > threshold
    kept[np.flatnonzero(size == threshold)[: count - int(kept.sum())]] = True
    shaped: NDArray[np.bool_] = kept.reshape(values.shape)
    return shaped


def dropped(shape: tuple[int, ...], density: float, generator: np.random.Generator) -> NDArray[np.bool_]:
    """Which entries stay: each with probability `density`."""
    return generator.random(shape, np.float32) < np.float32(density)


def _summed(tensors: Any) -> Tensor:
    total: Tensor | None = None
    for each in tensors:
        if total is None:
            total = np.array(each)
        else:
            total += each
    assert total is not None
    return total
