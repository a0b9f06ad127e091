"""The leading singular triplets of a matrix or of a product of factors, without the SVD of the [O, I] matrix.

Three routes, by k = min(O, I, K): QR and an SVD of the core up to k = 32; the eigenvectors of a Gram matrix [k, k] up to
k = 9 (rank + 8); past that a randomized block Krylov method: Musco and Musco, "Randomized Block Krylov Methods for
Stronger and Faster Approximate Singular Value Decomposition", 2015 (arXiv:1504.05477). Its random start comes from one
fixed seed: the same input gives the same bits on the same machine.

The squared error of the triplets' product is at most (1 + eps) times that of the best approximation of `rank`, plus what
float32 rounds. By QR and Gram matrices eps is 0, and so it is by Krylov where the matrix has no more than `rank`
directions. Elsewhere the spectrum decides; measured by Krylov for ranks 1 to 64 and sides from 576 to 2048: at most 1e-3
for flat spectra (normal numbers, as the mean of many unlike clients; values falling in a straight line), at most 1e-6
where the values fall like i^-1/4 or faster.
"""

# O out features, I in features, K inner dimension, R rank, M columns of a basis

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.floating[Any]]

# A singular value this far below the largest is rounding of float32 factors, and of sums that were made in float32.
_ROUNDING_OF_FACTORS = 1e-7
_ROUNDING_OF_SUMS = 4e-6

_SMALL = 32  # up to this k the route by QR costs next to nothing
_OVERSAMPLING, _DEPTH = 8, 6  # of the Krylov basis: at most 6 blocks of rank + 8 columns
_SPACE = 1.5  # times the columns of a Krylov basis: up to this k the eigenvectors of [k, k] cost no more
_SEED = 2015
_ROWS = 192  # of a matrix that is converted to float64


class Triplets(NamedTuple):
    """u * s @ vt, singular values descending and above rounding: at most R of them, fewer where the rank is less."""

    u: Matrix  # [O, R]
    s: NDArray[np.float64]  # [R]
    vt: Matrix  # [R, I]

    def transposed(self) -> Triplets:
        return Triplets(self.vt.T, self.s, self.u.T)


def leading_of_product(B: Matrix, A: Matrix, rank: int) -> Triplets:
    """The first `rank` triplets of B [O, K] times A [K, I]."""
    inner, rows, columns = A.shape[0], B.shape[0], A.shape[1]
    if min(inner, rows, columns) <= _SMALL:
        return _by_qr(B, A, rank)
    if inner > min(rows, columns):
        return leading_of_matrix(B @ A, rank)
    if inner <= _exact_up_to(rank):
        return _by_gram_of_factors(B, A, rank)
    if rows < columns:
        return leading_of_product(A.T, B.T, rank).transposed()
    return _by_krylov(lambda x: B @ (A @ x), lambda y: A.T @ (B.T @ y), (rows, columns), B.dtype, rank)


def leading_of_matrix(matrix: Matrix, rank: int) -> Triplets:
    """The first `rank` triplets of a matrix [O, I]."""
    rows, columns = matrix.shape
    if rows < columns:
        return leading_of_matrix(matrix.T, rank).transposed()
    if columns <= _SMALL:
        return _above(_ROUNDING_OF_SUMS, *np.linalg.svd(matrix.astype(np.float64), full_matrices=False), rank)
    if columns <= _exact_up_to(rank):
        return _by_gram(matrix, rank)
    return _by_krylov(lambda x: matrix @ x, lambda y: matrix.T @ y, matrix.shape, matrix.dtype, rank)


def _exact_up_to(rank: int) -> float:
    return _SPACE * _DEPTH * (rank + _OVERSAMPLING)


def _above(rounding: float, u: Matrix, s: NDArray[np.float64], vt: Matrix, rank: int) -> Triplets:
    kept = int(np.count_nonzero(s[:rank] > rounding * s[0]))
    return Triplets(u[:, :kept], s[:kept], vt[:kept])


def _by_qr(B: Matrix, A: Matrix, rank: int) -> Triplets:
    q_b, r_b = np.linalg.qr(B.astype(np.float64))  # [O, K], [K, K]
    q_a, r_a = np.linalg.qr(A.T.astype(np.float64))  # [I, K], [K, K]
    u, s, vt = _above(_ROUNDING_OF_FACTORS, *np.linalg.svd(r_b @ r_a.T, full_matrices=False), rank)
    return Triplets(q_b @ u, s, vt @ q_a.T)


def _by_gram(matrix: Matrix, rank: int) -> Triplets:
    """From M^T M [I, I] in float64: squaring loses only what lies below float32's rounding."""
    s, v = _leading_roots(_gram(matrix), rank, _ROUNDING_OF_SUMS)
    return Triplets(matrix @ (v / s).astype(matrix.dtype), s, v.T)


def _by_gram_of_factors(B: Matrix, A: Matrix, rank: int) -> Triplets:
    """From B^T B and A A^T [K, K] in float64.

    With A A^T = L L^T, the eigenvectors of L^T B^T B L give the leading left directions, W = B C. The rest is computed
    from W^T B A, not from L^-1: factors without full rank do no harm, nor does what is added to make L exist. For that,
    each row of A has length 1, and its column of B takes the rest.
    """
    gram_b, gram_a = _gram(B), _gram(A.T)
    lengths = np.sqrt(np.diag(gram_a))
    lengths[lengths == 0] = 1
    gram_b, gram_a = gram_b * np.outer(lengths, lengths), gram_a / np.outer(lengths, lengths)
    inner = len(gram_a)
    shift = 2 * inner * np.finfo(np.float64).eps * np.trace(gram_a) + np.finfo(np.float64).tiny
    lower = np.linalg.cholesky(gram_a + shift * np.eye(inner))
    s, u = _leading_roots(lower.T @ gram_b @ lower, rank, _ROUNDING_OF_FACTORS)
    C = lower @ (u / s)  # [K, R]
    D = gram_b @ C  # B^T W
    s, turn = _leading_roots(D.T @ gram_a @ D, rank, _ROUNDING_OF_FACTORS)
    left, right = (C @ turn) * lengths[:, None], (D @ (turn / s)) / lengths[:, None]
    return Triplets(B @ left.astype(B.dtype), s, right.T.astype(A.dtype) @ A)


def _gram(tall: Matrix) -> NDArray[np.float64]:
    """X^T X [K, K] of X [N, K], in float64, some rows at a time: a whole copy would cost more than the product."""
    gram = np.zeros((tall.shape[1], tall.shape[1]))
    for start in range(0, len(tall), _ROWS):
        wide = tall[start : start + _ROWS].astype(np.float64)
        gram += wide.T @ wide
    return gram


def _leading_roots(
    gram: NDArray[np.float64], rank: int, rounding: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The roots of the largest eigenvalues, descending, and their vectors: at most `rank`, and above rounding."""
    values, vectors = np.linalg.eigh(gram)
    roots = np.sqrt(np.maximum(values[::-1][:rank], 0))
    kept = int(np.count_nonzero(roots > rounding * roots.max(initial=0)))
    return roots[:kept], vectors[:, ::-1][:, :kept]


def _by_krylov(
    times: Callable[[Matrix], Matrix],  # [I, M] to [O, M]
    transposed_times: Callable[[Matrix], Matrix],  # [O, M] to [I, M]
    shape: tuple[int, int],
    dtype: np.dtype[Any],
    rank: int,
) -> Triplets:
    """Rayleigh-Ritz in the span of P^T X, (P^T P) P^T X, ...: X is random, from one fixed seed."""
    rows, columns = shape
    start = np.random.default_rng(_SEED).standard_normal((rows, rank + _OVERSAMPLING), dtype=np.float32)
    basis = np.empty((columns, 0), dtype)  # V, orthonormal
    image = np.empty((rows, 0), dtype)  # P V
    block = start.astype(dtype, copy=False)
    for _ in range(_DEPTH):
        block = _orthonormal(transposed_times(block), basis)
        if not block.shape[1]:
            break  # P has no further directions
        basis = np.concatenate([basis, block], 1)
        block = times(block)
        image = np.concatenate([image, block], 1)
        block = block / (np.abs(block).max() or 1)  # for float32's range
    wide = image.astype(np.float64)
    s, turn = _leading_roots(wide.T @ wide, rank, _ROUNDING_OF_SUMS)
    return Triplets(image @ (turn / s).astype(dtype), s, turn.T.astype(dtype) @ basis.T)


def _orthonormal(block: Matrix, basis: Matrix) -> Matrix:
    """The directions of `block` that `basis` lacks; those that are rounding are left out."""
    lengths = np.sqrt(np.einsum("ij,ij->j", block, block, dtype=np.float64))
    block = block / np.where(lengths > 0, lengths, 1).astype(block.dtype)
    for shortest in (_ROUNDING_OF_SUMS, 0.5):  # again for what rounding left: what is short by then was rounding
        block = block - basis @ (basis.T @ block)
        wide = block.astype(np.float64)
        values, vectors = np.linalg.eigh(wide.T @ wide)
        kept = values > shortest**2
        block = block @ (vectors[:, kept] / np.sqrt(values[kept])).astype(block.dtype)
    return block
