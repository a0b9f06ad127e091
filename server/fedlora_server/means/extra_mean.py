"""The weighted mean of extra tensors: element by element, the same bits in every order, by `RingSums`."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from fedlora.errors import RunError
from fedlora.lora.adapter import Extras

from fedlora_server.means.ring_sums import Batch, RingSums
from fedlora_server.means.weighted_sum import NO_UPDATES, positive


class ExtraMean:
    """sum_k w_k X_k / sum_k w_k of each extra tensor X. Memory: 8 bytes a number."""

    def __init__(self, like: Extras) -> None:
        """`like` is what went down: the names and the shapes."""
        self._shapes = {name: array.shape for name, array in like.items()}
        self._sums = RingSums([(1, *shape)[-2:] for shape in self._shapes.values()])  # a vector is a row
        self._weight = Fraction(0)

    def add(self, extras: Extras, weight: float) -> None:
        """Raises RunError unless `weight` is positive and finite."""
        self._add(extras, positive(weight))

    def remove(self, extras: Extras, weight: float) -> None:
        """Take back what was added with this weight."""
        self._add(extras, -positive(weight))

    def merge(self, other: ExtraMean, factor: float) -> None:
        """Add all that was added to `other`, with its weights times `factor`."""
        self._weight += other._weight * Fraction(factor)
        self._sums.merge(other._sums, factor)

    def mean(self) -> Extras:
        """The mean; the sums are used up. Raises RunError where nothing was added."""
        if not self._weight:
            raise RunError(NO_UPDATES)
        means = self._sums.means(self._weight)
        return {name: mean.reshape(shape) for (name, shape), mean in zip(self._shapes.items(), means, strict=True)}

    def _add(self, extras: Extras, weight: float) -> None:
        self._weight += Fraction(weight)
        self._sums.add(Batch([[np.atleast_2d(extras[name]) for name in self._shapes]], [weight]))
