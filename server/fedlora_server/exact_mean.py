"""The weighted mean of B_k A_k, kept factored: what every method approximates."""

# O out features, I in features, K inner dimension: the sum of the ranks

from __future__ import annotations

import numpy as np
from fedlora.adapter import Adapter, LoraPair
from fedlora.algebra import Dense, Product, concatenate
from fedlora.errors import RunError

from fedlora_server.weighted_sum import NO_UPDATES, positive


class ExactMean:
    """sum_k (w_k / w) * scaling_k * B_k A_k for each module, one adapter at a time; ranks may differ.

    Memory: the factors of a module are collected until they hold as many numbers as the matrix [O, I] does, at
    K = O I / (O + I). Then one product folds them into that matrix, and collecting starts again: a module never holds
    more than 2 O I numbers and one adapter's factors, 4 O I while it folds, whatever the number of adapters.
    """

    def __init__(self) -> None:
        self._terms: dict[str, list[Product]] = {}  # the matrix of a module, where it has one, comes first
        self._weight = 0.0
        self.count = 0

    def add(self, adapter: Adapter, weight: float) -> None:
        """Raises RunError unless `weight` is positive and finite."""
        self._weight += positive(weight)
        for module, pair in adapter.pairs.items():
            rows, columns = pair.shape
            terms = self._terms.setdefault(module, [])
            terms.append(_term(pair, adapter.config.scaling_of(module) * weight))
            inner = sum(term.inner for term in terms if not isinstance(term, Dense))
            if inner * (rows + columns) >= rows * columns:
                self._terms[module] = [Dense(concatenate(terms).dense())]
        self.count += 1

    def means(self) -> dict[str, Product]:
        """{module: the mean}, Dense for a module that was folded. Raises RunError where nothing was added."""
        if not self.count:
            raise RunError(NO_UPDATES)
        for module, terms in self._terms.items():
            if len(terms) > 1:
                self._terms[module] = [concatenate(terms)]
        return {module: terms[0].scaled(1 / self._weight) for module, terms in self._terms.items()}


def _term(pair: LoraPair, weight: float) -> Product:
    """weight * B A in memory of its own: the adapter may go."""
    return Product(pair.lora_B * np.float32(weight), pair.lora_A.copy())
