"""The weighted mean of B_k A_k, kept factored: what every method approximates."""

# O out features, I in features, K inner dimension: the sum of the ranks

from __future__ import annotations

import numpy as np
from fedlora.errors import RunError
from fedlora.lora.adapter import Adapter, LoraPair
from fedlora.lora.algebra import Dense, Product, concatenate

from fedlora_server.means.weighted_sum import NO_UPDATES, positive


class ExactMean:
    """sum_k (w_k / w) * scaling_k * B_k A_k for each module, one adapter at a time; ranks may differ.

    Memory: the factors of a module are kept as they came until they hold as many numbers as the matrix [O, I] does, at
    K = O I / (O + I). Then one product folds them into that matrix, and collecting starts again: a module never holds
    more than 2 O I numbers and one adapter's factors, 4 O I while it folds, whatever the number of adapters.

    The order of the adapters changes the last bits: a round gives them in one that does not depend on their arrival.
    """

    def __init__(self) -> None:
        self._terms: dict[str, list[tuple[LoraPair, float]]] = {}  # with the weight of each
        self._folded: dict[str, Dense] = {}
        self._weight = 0.0
        self.count = 0

    def add(self, adapter: Adapter, weight: float) -> None:
        """Raises RunError unless `weight` is positive and finite."""
        self._weight += positive(weight)
        for module, pair in adapter.pairs.items():
            self._add_term(module, pair, adapter.config.scaling_of(module) * weight)
        self.count += 1

    def _add_term(self, module: str, pair: LoraPair, weight: float) -> None:
        rows, columns = pair.shape
        terms = self._terms.setdefault(module, [])
        terms.append((pair, weight))
        if sum(term.rank for term, _ in terms) * (rows + columns) >= rows * columns:
            self._folded[module] = Dense(self._sum(module, 1).dense())
            self._terms[module] = []

    @property
    def modules(self) -> list[str]:
        """Raises RunError where nothing was added."""
        if not self.count:
            raise RunError(NO_UPDATES)
        return list(self._terms)

    def mean(self, module: str) -> Product:
        """That of a module, Dense where it was folded."""
        return self._sum(module, 1 / self._weight)

    def means(self) -> dict[str, Product]:
        """{module: its mean}. Raises RunError where nothing was added."""
        return {module: self.mean(module) for module in self.modules}

    def _sum(self, module: str, factor: float) -> Product:
        """The sum so far times `factor`."""
        terms, folded = self._terms[module], self._folded.get(module)
        parts: list[Product] = [] if folded is None else [folded.scaled(factor) if factor != 1 else folded]
        if terms:
            B = np.concatenate([pair.lora_B * np.float32(weight * factor) for pair, weight in terms], 1)
            parts.append(Product(B, np.concatenate([pair.lora_A for pair, _ in terms])))
        return parts[0] if len(parts) == 1 else concatenate(parts)
