"""The algebra of factored updates, against dense matrices."""

from __future__ import annotations

import numpy as np
import pytest
from fedlora.lora.algebra import Dense, Product, concatenate, inner_product, squared_distance, truncated
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.reference.tolerances import TOLERANCE

Sizes = tuple[int, int, int]  # O, I, K
SIZES = st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(1, 16))
SEEDS = st.integers(0, 2**32 - 1)


def _product(sizes: Sizes, seed: int, dtype: type = np.float64) -> Product:
    rows, columns, inner = sizes
    generator = np.random.default_rng(seed)
    return Product(
        generator.normal(size=(rows, inner)).astype(dtype), generator.normal(size=(inner, columns)).astype(dtype)
    )


def _regauged(product: Product, seed: int) -> Product:
    """(B M, M^-1 A): the same matrix. M is a rotation times scales from 1/2 to 2, so that it stays well conditioned."""
    generator = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(generator.normal(size=(product.inner, product.inner)))
    scales = np.exp2(generator.uniform(-1, 1, product.inner))
    return Product((product.B @ rotation) * scales, (rotation.T @ product.A) / scales[:, None])


def _dense(product: Product) -> NDArray[np.float64]:
    """[O, I], one entry at a time."""
    rows, columns = product.B.shape[0], product.A.shape[1]
    return np.array([[product.B[o] @ product.A[:, i] for i in range(columns)] for o in range(rows)], np.float64)


def _closest(matrix: NDArray[np.float64], rank: int) -> NDArray[np.float64]:
    """The Eckart-Young optimum from a dense SVD."""
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    return np.asarray((u[:, :rank] * s[:rank]) @ vt[:rank])


@given(sizes=SIZES, seed=SEEDS)
def test_the_inner_product_is_the_dense_one(sizes: Sizes, seed: int) -> None:
    p, q = _product(sizes, seed), _product((sizes[0], sizes[1], 3), seed + 1)
    np.testing.assert_allclose(inner_product(p, q), (_dense(p) * _dense(q)).sum(), **TOLERANCE["float64"])
    assert inner_product(p, q) == pytest.approx(inner_product(q, p))


@given(sizes=SIZES, seed=SEEDS)
def test_the_squared_distance_is_the_dense_one(sizes: Sizes, seed: int) -> None:
    p, q = _product(sizes, seed), _product((sizes[0], sizes[1], 3), seed + 1)
    np.testing.assert_allclose(squared_distance(p, q), ((_dense(p) - _dense(q)) ** 2).sum(), **TOLERANCE["float64"])


@given(sizes=SIZES, seed=SEEDS)
def test_norm_and_distance_are_indifferent_to_the_gauge(sizes: Sizes, seed: int) -> None:
    p, q = _product(sizes, seed), _product(sizes, seed + 1)
    p2, q2 = _regauged(p, seed + 2), _regauged(q, seed + 3)
    np.testing.assert_allclose(inner_product(p2, p2), inner_product(p, p), **TOLERANCE["float64"])
    np.testing.assert_allclose(squared_distance(p2, q2), squared_distance(p, q), rtol=1e-8)
    assert squared_distance(p, p2) <= 1e-12 * inner_product(p, p)


@given(sizes=SIZES, seed=SEEDS)
def test_a_distance_is_never_negative(sizes: Sizes, seed: int) -> None:
    p = _product(sizes, seed, np.float32)
    assert squared_distance(p, p) == 0.0
    assert squared_distance(p, _regauged(p, seed)) >= 0.0


@given(sizes=SIZES, seed=SEEDS, rank=st.integers(1, 14))
def test_truncation_is_the_eckart_young_optimum(sizes: Sizes, seed: int, rank: int) -> None:
    product = _product(sizes, seed)
    kept = truncated(product, rank)
    assert kept.B.shape == (sizes[0], rank)
    assert kept.A.shape == (rank, sizes[1])
    error = np.linalg.norm(kept.dense() - product.dense())
    best = np.linalg.norm(_closest(_dense(product), rank) - _dense(product))
    norm = np.linalg.norm(product.dense())
    assert abs(error - best) <= 1e-8 * norm


@given(sizes=SIZES, seed=SEEDS, rank=st.integers(1, 6))
def test_truncation_is_indifferent_to_the_gauge(sizes: Sizes, seed: int, rank: int) -> None:
    product = _product(sizes, seed)
    singular = np.linalg.svd(_dense(product), compute_uv=False)
    if rank < len(singular) and singular[rank - 1] - singular[rank] < 1e-3 * singular[0]:
        return  # the optimum itself is not unique
    one, other = truncated(product, rank), truncated(_regauged(product, seed + 1), rank)
    np.testing.assert_allclose(other.dense(), one.dense(), rtol=1e-6, atol=1e-6 * singular[0])


@given(sizes=SIZES, seed=SEEDS)
def test_truncation_to_the_whole_rank_changes_nothing(sizes: Sizes, seed: int) -> None:
    product = _product(sizes, seed)
    np.testing.assert_allclose(truncated(product, min(sizes)).dense(), product.dense(), **TOLERANCE["float64"])


def test_truncation_shares_the_singular_values_evenly() -> None:
    product = _product((9, 7, 5), 0)
    kept = truncated(product, 4)
    singular = np.linalg.svd(product.dense(), compute_uv=False)[:4]
    np.testing.assert_allclose(kept.B.T @ kept.B, np.diag(singular), **TOLERANCE["float64"])
    np.testing.assert_allclose(kept.A @ kept.A.T, np.diag(singular), **TOLERANCE["float64"])


@given(sizes=SIZES, seed=SEEDS)
def test_the_first_components_of_a_truncation_are_the_best_approximation_of_their_number(
    sizes: Sizes, seed: int
) -> None:
    product = _product(sizes, seed)
    kept = truncated(product, 8)
    components = [Product(kept.B[:, :rank], kept.A[:rank]) for rank in range(1, 9)]
    for rank, part in enumerate(components, 1):
        error = np.linalg.norm(part.dense() - product.dense())
        best = np.linalg.norm(_closest(_dense(product), rank) - _dense(product))
        assert abs(error - best) <= 1e-8 * np.linalg.norm(product.dense())


def test_truncation_of_float32_factors_stays_float32_and_close() -> None:
    product = _product((40, 30, 12), 3, np.float32)
    kept = truncated(product, 5)
    assert kept.A.dtype == kept.B.dtype == np.float32
    expected = _closest(_dense(product), 5)
    np.testing.assert_allclose(kept.dense(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("rank_of_product", "inner", "rank"),
    [(2, 6, 4), (0, 6, 4), (2, 2, 4), (3, 1, 4), (0, 1, 3)],
    ids=["less rank than inner", "zero", "fewer factors than the rank", "one factor", "zero of one factor"],
)
def test_directions_that_a_product_lacks_stay_alive_in_a_and_zero_in_b(
    rank_of_product: int, inner: int, rank: int
) -> None:
    product = _product((9, 8, inner), 0)
    if rank_of_product < inner:
        product.B[:, rank_of_product:] = 0
    kept = truncated(product, rank)
    np.testing.assert_allclose(kept.dense(), product.dense(), **TOLERANCE["float64"])
    alive = min(rank_of_product, inner)
    assert not np.abs(kept.B[:, alive:]).any()
    assert (np.linalg.norm(kept.A, axis=1) > 1e-3).all()


@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=4), seed=SEEDS)
def test_concatenation_is_the_sum(sizes: list[int], seed: int) -> None:
    products = [_product((5, 7, inner), seed + i) for i, inner in enumerate(sizes)]
    total = concatenate(products)
    assert total.inner == sum(sizes)
    np.testing.assert_allclose(total.dense(), sum(_dense(p) for p in products), **TOLERANCE["float64"])


def test_the_sum_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        concatenate([])


@given(sizes=SIZES, seed=SEEDS)
def test_a_dense_product_is_its_matrix_times_the_identity(sizes: Sizes, seed: int) -> None:
    matrix = _product(sizes, seed).dense()
    dense = Dense(matrix)
    np.testing.assert_array_equal(dense.A, np.eye(sizes[1]))
    np.testing.assert_array_equal(dense.B @ (dense.A @ np.ones(sizes[1])), matrix @ np.ones(sizes[1]))
    np.testing.assert_array_equal(dense.dense(), matrix)
    assert (dense.inner, dense.size_bytes) == (sizes[1], matrix.nbytes)


def test_the_identity_of_a_dense_product_takes_no_room_and_cannot_be_written() -> None:
    dense = Dense(np.ones((3, 1000), np.float32))
    assert dense.A.dtype == np.float32
    assert not dense.A.flags.writeable
    assert np.lib.array_utils.byte_bounds(dense.A)[1] - np.lib.array_utils.byte_bounds(dense.A)[0] < 8 * 1000


@given(sizes=SIZES, seed=SEEDS, rank=st.integers(1, 14))
def test_a_dense_product_acts_as_the_factored_one(sizes: Sizes, seed: int, rank: int) -> None:
    p, q = _product(sizes, seed), _product((sizes[0], sizes[1], 3), seed + 1)
    dense_p, dense_q = Dense(p.dense()), Dense(q.dense())
    x = np.random.default_rng(seed).normal(size=(sizes[1], 2))
    for product in (p, dense_p):
        np.testing.assert_allclose(product.times(x), _dense(p) @ x, **TOLERANCE["float64"])
    assert isinstance(dense_p.scaled(0.5), Dense)
    np.testing.assert_allclose(dense_p.scaled(0.5).dense(), p.scaled(0.5).dense(), **TOLERANCE["float64"])
    for one, other in ((dense_p, q), (p, dense_q), (dense_p, dense_q)):
        np.testing.assert_allclose(inner_product(one, other), inner_product(p, q), **TOLERANCE["float64"])
        np.testing.assert_allclose(squared_distance(one, other), squared_distance(p, q), **TOLERANCE["float64"])
        total = concatenate([one, other, p])
        assert isinstance(total, Dense)
        np.testing.assert_allclose(total.dense(), concatenate([p, q, p]).dense(), **TOLERANCE["float64"])
    kept, best = truncated(dense_p, rank), _closest(_dense(p), rank)
    norm = np.linalg.norm(best)
    assert (kept.B.shape, kept.A.shape) == ((sizes[0], rank), (rank, sizes[1]))
    assert abs(np.linalg.norm(kept.dense() - _dense(p)) - np.linalg.norm(best - _dense(p))) <= 1e-5 * norm


def test_a_distance_to_a_dense_product_of_many_rows_is_the_dense_one() -> None:
    p, q = _product((600, 40, 50), 0, np.float32), _product((600, 40, 3), 1, np.float32)
    expected = np.sum((p.dense().astype(np.float64) - _dense(q)) ** 2)
    assert squared_distance(Dense(p.dense()), q) == pytest.approx(expected, rel=1e-6)
    assert squared_distance(Dense(p.dense()), Dense(p.dense())) == 0


@given(sizes=SIZES, seed=SEEDS, factor=st.floats(-8, 8))
def test_scaling_scales_the_dense_matrix(sizes: Sizes, seed: int, factor: float) -> None:
    product = _product(sizes, seed)
    np.testing.assert_allclose(product.scaled(factor).dense(), factor * _dense(product), **TOLERANCE["float64"])


@given(sizes=SIZES, seed=SEEDS)
def test_no_function_changes_its_inputs(sizes: Sizes, seed: int) -> None:
    for product in (_product(sizes, seed), Dense(_product(sizes, seed).dense())):
        before = product.B.copy(), product.A.copy()
        truncated(product, 2).B[:] = 7
        concatenate([product]).B[:] = 7
        concatenate([product, product]).B[:] = 7
        product.scaled(2.0).B[:] = 7
        squared_distance(product, product)
        np.testing.assert_array_equal(product.B, before[0])
        np.testing.assert_array_equal(product.A, before[1])
