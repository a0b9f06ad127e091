"""The algebra of factored updates: sums, truncation and distances without the dense [O, I] product.

A Product stands for the matrix B A, and (B M, M^-1 A) for the same one: every result here depends on B A alone. Where
factors would take more room than the matrix, Dense holds the matrix itself and is a Product like any other.
"""

# O out features, I in features, K inner dimension, R rank

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedlora.lora.low_rank import Matrix, leading_of_matrix, leading_of_product

_ROWS = 256  # at a time, where a whole matrix would be converted to float64


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

    def times(self, x: Matrix) -> Matrix:
        """B A x [O, N] for x [I, N]."""
        return self.B @ (self.A @ x)

    def dense(self) -> Matrix:
        """B A [O, I]: the smaller form once K passes O I / (O + I)."""
        return self.B @ self.A


class Dense(Product):
    """A matrix [O, I] times the identity, which is a view of 2 I numbers; `times` and the functions here leave it out."""

    __slots__ = ()

    def __init__(self, matrix: Matrix) -> None:
        super().__init__(matrix, _identity(matrix.shape[1], matrix.dtype))

    @property
    def size_bytes(self) -> int:
        return self.B.nbytes

    def scaled(self, factor: float) -> Dense:
        return Dense(self.B * factor)

    def times(self, x: Matrix) -> Matrix:
        return self.B @ x

    def dense(self) -> Matrix:
        return self.B


def _identity(size: int, dtype: np.dtype[np.floating]) -> Matrix:
    """[I, I], read-only: row i is a window of I zeros and a one that begins I - 1 - i numbers in."""
    numbers = np.zeros(2 * size - 1, dtype)
    numbers[size - 1] = 1
    return np.lib.stride_tricks.sliding_window_view(numbers, size)[::-1]


def concatenate(products: Sequence[Product]) -> Product:
    """The sum of the products: [B_1 B_2 ...] times [A_1; A_2; ...]; Dense, and rounded to it, where one of them is."""
    factored = [p for p in products if not isinstance(p, Dense)]
    if len(factored) < len(products):
        matrices = [p.B for p in products if isinstance(p, Dense)]
        total = concatenate(factored).dense() if factored else matrices.pop().copy()
        for matrix in matrices:
            total += matrix
        return Dense(total)
    return Product(np.concatenate([p.B for p in products], 1), np.concatenate([p.A for p in products], 0))


def truncated(product: Product, rank: int) -> Product:
    """The best approximation of at most `rank` (Eckart-Young), its singular values shared evenly by B and A, descending.

    B is [O, rank] and A [rank, I]; the first r components are the best approximation of rank r. `low_rank` says how close
    to the optimum it is. Where the product has less rank, the columns of B that are left are zero and the rows of A keep a
    direction, as in a new adapter: with both at zero no gradient would ever reach them again.
    """
    if isinstance(product, Dense):
        u, s, vt = leading_of_matrix(product.B, rank)
    else:
        u, s, vt = leading_of_product(product.B, product.A, rank)
    kept, columns = len(s), product.A.shape[1]
    lora_B = np.zeros((product.B.shape[0], rank), product.B.dtype)
    lora_A = np.zeros((rank, columns), product.A.dtype)
    lora_B[:, :kept] = u * np.sqrt(s)
    lora_A[:kept] = np.sqrt(s)[:, None] * vt
    lora_A[kept:] = np.eye(rank - kept, columns) / np.sqrt(columns)
    return Product(lora_B, lora_A)


def inner_product(p: Product, q: Product) -> float:
    """<P, Q> = trace(P^T Q) in float64: from the Gram matrices [K_p, K_q], or entry by entry where one is Dense."""
    if isinstance(p, Dense):
        return sum(float(np.vdot(ours, theirs)) for ours, theirs in zip(_wide_rows(p), _wide_rows(q), strict=True))
    if isinstance(q, Dense):
        return inner_product(q, p)
    wide_p = p.B.astype(np.float64), p.A.astype(np.float64)
    wide_q = wide_p if q is p else (q.B.astype(np.float64), q.A.astype(np.float64))
    return float(np.vdot(wide_p[0].T @ wide_q[0], wide_p[1] @ wide_q[1].T))


def squared_distance(p: Product, q: Product) -> float:
    """||P - Q||_F^2, at least 0, exact to about 1e-15 of the larger norm squared.

    <P, P> - 2 <P, Q> + <Q, Q>, or the entries of P - Q where one is Dense.
    """
    if isinstance(p, Dense) or isinstance(q, Dense):
        pairs = zip(_wide_rows(p), _wide_rows(q), strict=True)
        return sum(float(np.vdot(ours - theirs, ours - theirs)) for ours, theirs in pairs)
    return max(0.0, inner_product(p, p) - 2 * inner_product(p, q) + inner_product(q, q))


def _wide_rows(product: Product) -> Iterator[NDArray[np.float64]]:
    """The matrix in float64, some rows [256, I] at a time."""
    A = product.A if isinstance(product, Dense) else product.A.astype(np.float64)
    for start in range(0, product.B.shape[0], _ROWS):
        B = product.B[start : start + _ROWS].astype(np.float64)
        yield B if isinstance(product, Dense) else B @ A
