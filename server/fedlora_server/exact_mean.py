"""The weighted mean of B_k A_k, kept factored: what every method approximates, and what its error is measured against."""

from __future__ import annotations

import math

from fedlora.adapter import Adapter
from fedlora.algebra import Matrix, Product, concatenate, factored, inner_product, squared_distance
from fedlora.errors import RunError


class ExactMean:
    """sum_k (w_k / w) * scaling_k * B_k A_k for each module, one adapter at a time.

    Memory: a module's factors are concatenated until their inner dimension passes min(O, I); from there on its sum is the
    matrix [O, I] itself, which is then the smaller of the two, whatever the number of adapters.
    """

    def __init__(self) -> None:
        self._factored: dict[str, Product] = {}
        self._dense: dict[str, Matrix] = {}
        self._weight = 0.0
        self.count = 0

    def add(self, adapter: Adapter, weight: float) -> None:
        """Raises RunError unless `weight` is positive and finite."""
        if not 0 < weight < math.inf:
            raise RunError(f"the weight of an update must be positive, got {weight}")
        for module in adapter.pairs:
            term = adapter.product(module).scaled(weight)
            if module in self._dense:
                self._dense[module] += term.dense()
                continue
            total = concatenate([self._factored[module], term]) if module in self._factored else term
            if total.inner > min(total.B.shape[0], total.A.shape[1]):
                self._dense[module] = total.dense()
                self._factored.pop(module, None)
            else:
                self._factored[module] = total
        self._weight += weight
        self.count += 1

    def means(self) -> dict[str, Product]:
        """{module: the mean}. Raises RunError where nothing was added."""
        if not self.count:
            raise RunError("the mean of no updates is not defined")
        sums = self._factored | {module: factored(total) for module, total in self._dense.items()}
        return {module: total.scaled(1 / self._weight) for module, total in sums.items()}

    def relative_error(self, committed: Adapter) -> float:
        """||committed - mean||_F / ||mean||_F over all modules together; 0 where both are zero."""
        means = self.means()
        squared_norm = sum(inner_product(mean, mean) for mean in means.values())
        squared = sum(squared_distance(committed.product(module), mean) for module, mean in means.items())
        if squared_norm <= 0:
            return 0.0 if squared <= 0 else math.inf
        return math.sqrt(squared / squared_norm)
