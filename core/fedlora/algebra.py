"""The algebra of factored updates: sums, truncation and distances without the dense [O, I] product.

A Product stands for the matrix B A, and (B M, M^-1 A) for the same one: every result here depends on B A alone.
"""

# O out features, I in features, K inner dimension, R rank

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# A singular value this far below the largest is rounding of float32 factors.
_NUMERICAL_ZERO = 1e-7

Matrix = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class Product:
    """B [O, K] times A [K, I]."""

    B: Matrix
    A: Matrix

    @property
    def inner(self) -> int:
        """K, an upper bound of the rank."""
        return int(self.A.shape[0])

    @property
    def size_bytes(self) -> int:
        return self.B.nbytes + self.A.nbytes

    def scaled(self, factor: float) -> Product:
        return Product(self.B * factor, self.A)

    def dense(self) -> Matrix:
        """B A [O, I]: the smaller form once K passes min(O, I)."""
        return self.B @ self.A


def concatenate(products: Sequence[Product]) -> Product:
    """The sum of the products: [B_1 B_2 ...] times [A_1; A_2; ...]."""
    return Product(np.concatenate([p.B for p in products], 1), np.concatenate([p.A for p in products], 0))


def factored(matrix: Matrix) -> Product:
    """A matrix [O, I] as a product: its smaller side is the inner dimension."""
    rows, columns = matrix.shape
    if rows < columns:
        return Product(np.eye(rows, dtype=matrix.dtype), matrix)
    return Product(matrix, np.eye(columns, dtype=matrix.dtype))


def truncated(product: Product, rank: int) -> Product:
    """The best approximation of at most `rank` (Eckart-Young), its singular values shared evenly by B and A.

    QR of each factor, then an SVD of the core [K, K]. B is [O, rank] and A [rank, I]. Where the product has less rank,
    the columns of B that are left are zero and the rows of A keep a direction, as in a new adapter: with both at zero
    no gradient would ever reach them again.
    """
    q_b, r_b = np.linalg.qr(product.B.astype(np.float64))  # [O, k], [k, K]
    q_a, r_a = np.linalg.qr(product.A.T.astype(np.float64))  # [I, k'], [k', K]
    u, s, vt = np.linalg.svd(r_b @ r_a.T, full_matrices=False)
    kept = min(rank, len(s))
    alive = s[:kept] > _NUMERICAL_ZERO * s[0]
    root_b = np.where(alive, np.sqrt(s[:kept]), 0)
    root_a = np.where(alive, root_b, 1 / np.sqrt(product.A.shape[1]))
    lora_B = np.zeros((product.B.shape[0], rank), product.B.dtype)
    lora_A = np.zeros((rank, product.A.shape[1]), product.A.dtype)
    lora_B[:, :kept] = q_b @ (u[:, :kept] * root_b)
    lora_A[kept:] = np.eye(rank - kept, product.A.shape[1]) / np.sqrt(product.A.shape[1])
    lora_A[:kept] = (vt[:kept] * root_a[:, None]) @ q_a.T
    return Product(lora_B, lora_A)


def inner_product(p: Product, q: Product) -> float:
    """<P, Q> = trace(P^T Q), from the Gram matrices [K_p, K_q] in float64."""
    gram_b = p.B.T.astype(np.float64) @ q.B.astype(np.float64)
    gram_a = p.A.astype(np.float64) @ q.A.T.astype(np.float64)
    return float(np.sum(gram_b * gram_a))


def squared_distance(p: Product, q: Product) -> float:
    """||P - Q||_F^2 = <P, P> - 2 <P, Q> + <Q, Q>, at least 0. Exact to about 1e-15 of the larger norm squared."""
    return max(0.0, inner_product(p, p) - 2 * inner_product(p, q) + inner_product(q, q))
