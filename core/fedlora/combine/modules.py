"""The factors of one module, combined: scaling 1, so that B A is the update.

s is the scaling of an adapter, w its weight. Sources and names: peft 0.21, tuners/lora/model.py.
"""

# O out features, I in features, R rank of the result

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedlora.combine.merging import merged
from fedlora.combine.ways import Combination
from fedlora.lora.adapter import LoraPair
from fedlora.lora.algebra import Product, concatenate, inner_product, squared_distance
from fedlora.lora.low_rank import Matrix, leading_of_matrix, leading_of_product


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One adapter's share of a module."""

    place: int  # of the adapter among all: what is dropped at random depends on it
    pair: LoraPair
    scaling: float
    weight: float

    @property
    def product(self) -> Product:
        """w s B A."""
        return Product(self.pair.lora_B * np.float32(self.weight * self.scaling), self.pair.lora_A)


def combined(module: str, parts: Sequence[Part], combination: Combination, rank: int) -> LoraPair:
    """The factors [R, I] and [O, R] of a module that at least one adapter has."""
    if combination.how == "cat":
        sides = [part.pair.lora_A * np.float32(part.weight * part.scaling) for part in parts]
        return LoraPair(np.concatenate(sides, 0), np.concatenate([part.pair.lora_B for part in parts], 1))
    if combination.how == "svd":
        total = concatenate([part.product for part in parts])
        return _padded(*leading_of_product(total.B, total.A, rank), rank)
    if combination.is_truncated:
        matrix = merged(
            lambda place: replace(parts[place], weight=1.0).product.dense(),
            [part.weight for part in parts],
            combination,
            _generators(module, "product", parts, combination),
        )
        return _padded(*leading_of_matrix(matrix, rank), rank)
    roots = [math.sqrt(abs(part.weight * part.scaling)) for part in parts]
    signed = [math.copysign(root, part.weight) if root else 0.0 for root, part in zip(roots, parts, strict=True)]
    lora_A = merged(
        lambda place: parts[place].pair.lora_A, signed, combination, _generators(module, "A", parts, combination)
    )
    lora_B = merged(
        lambda place: parts[place].pair.lora_B, roots, combination, _generators(module, "B", parts, combination)
    )
    return LoraPair(lora_A, lora_B)


def squared_error(parts: Sequence[Part], pair: LoraPair) -> tuple[float, float]:
    """(||B A - S||^2, ||S||^2) for the weighted sum S of the parts' products, from factors alone."""
    exact = concatenate([part.product for part in parts])
    return squared_distance(Product(pair.lora_B, pair.lora_A), exact), max(0.0, inner_product(exact, exact))


def _generators(
    module: str, what: str, parts: Sequence[Part], combination: Combination
) -> Callable[[int], np.random.Generator]:
    """A generator of its own for each tensor: what is dropped depends on neither the other modules nor their order."""
    name = int.from_bytes(hashlib.sha256(f"{module}.{what}".encode()).digest()[:8], "little")
    return lambda place: np.random.default_rng([combination.seed or 0, name, parts[place].place])


def _padded(u: Matrix, s: Matrix, vt: Matrix, rank: int) -> LoraPair:
    """B = U S and A = V^T, as PEFT has them; what the rank leaves over is zero in B, and a direction in A."""
    kept, columns = len(s), vt.shape[1]
    lora_B, lora_A = np.zeros((u.shape[0], rank), np.float32), np.zeros((rank, columns), np.float32)
    lora_B[:, :kept], lora_A[:kept] = u * s, vt
    lora_A[kept:] = np.eye(rank - kept, columns) / np.sqrt(columns)
    return LoraPair(lora_A, lora_B)
