"""The leading triplets by every route, against numpy's SVD of the dense matrix."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
from fedlora.lora.low_rank import Triplets, leading_of_matrix, leading_of_product
from numpy.typing import NDArray

FactorSet = tuple[NDArray[np.float32], NDArray[np.float32]]

RANK = 8
# (O, I, K). By QR up to K = 32, by the Gram matrices up to 9 (rank + 8) = 144, by block Krylov past it.
SHAPES = {
    "by QR": (90, 70, 24),
    "by QR, few rows": (20, 300, 60),
    "by the Gram matrices": (150, 180, 100),
    "by the Gram matrix of the product": (130, 300, 200),
    "by block Krylov": (420, 330, 200),
    "by block Krylov, wide": (330, 420, 200),
    "by block Krylov on the product": (260, 300, 700),
}
# The squared error is at most (1 + eps) times the optimum's ...
EPS = 1e-4  # ... for the spectra below (measured: at most 2e-5)
# ... plus what float32 rounds of the whole, relative to its norm.
FLOAT32 = 5e-6


def noise(shape: tuple[int, int, int], seed: int = 0) -> FactorSet:
    """Factors of independent normal numbers: as flat a spectrum as the mean of unlike clients has."""
    rows, columns, inner = shape
    generator = np.random.default_rng(seed)
    return (
        generator.standard_normal((rows, inner), dtype=np.float32),
        generator.standard_normal((inner, columns), dtype=np.float32),
    )


def with_spectrum(shape: tuple[int, int, int], spectrum: NDArray[np.float64]) -> FactorSet:
    """Factors of a matrix with these singular values, mixed so that no column of B is a singular vector."""
    rows, columns, inner = shape
    generator = np.random.default_rng(1)
    kept = min(shape)
    u, _ = np.linalg.qr(generator.normal(size=(rows, kept)))
    v, _ = np.linalg.qr(generator.normal(size=(columns, kept)))
    mix, _ = np.linalg.qr(generator.normal(size=(inner, kept)))
    return ((u * spectrum[:kept]) @ mix.T).astype(np.float32), (mix @ v.T).astype(np.float32)


INDEX = np.arange(1, 1000, dtype=np.float64)
SPECTRA: Mapping[str, Callable[[tuple[int, int, int]], FactorSet]] = {
    "noise": noise,
    "all equal": lambda shape: with_spectrum(shape, np.ones(1000)),
    "1 / sqrt(i)": lambda shape: with_spectrum(shape, 1 / np.sqrt(INDEX)),
    "1 / i": lambda shape: with_spectrum(shape, 1 / INDEX),
    "0.9^i": lambda shape: with_spectrum(shape, 0.9**INDEX),
    "0.3^i": lambda shape: with_spectrum(shape, 0.3 ** np.minimum(INDEX, 60)),
}


def dense(factors: FactorSet) -> NDArray[np.float64]:
    return factors[0].astype(np.float64) @ factors[1].astype(np.float64)


def both(factors: FactorSet, rank: int = RANK) -> tuple[Triplets, Triplets]:
    """From the factors, and from the matrix that they make."""
    return leading_of_product(*factors, rank), leading_of_matrix(dense(factors).astype(np.float32), rank)


def product(triplets: Triplets) -> NDArray[np.float64]:
    return np.asarray((triplets.u.astype(np.float64) * triplets.s) @ triplets.vt.astype(np.float64))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
@pytest.mark.parametrize("spectrum", SPECTRA.values(), ids=list(SPECTRA))
def test_the_error_is_the_optimum_but_for_eps(
    shape: tuple[int, int, int], spectrum: Callable[[tuple[int, int, int]], FactorSet]
) -> None:
    factors = spectrum(shape)
    matrix = dense(factors)
    singular = np.linalg.svd(matrix, compute_uv=False)
    best, norm = np.sum(singular[RANK:] ** 2), np.sum(singular**2)
    for triplets in both(factors):
        error = np.sum((matrix - product(triplets)) ** 2)
        assert np.sqrt(error) <= np.sqrt((1 + EPS) * best) + FLOAT32 * np.sqrt(norm)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_the_singular_values_descend_and_the_vectors_are_orthonormal(shape: tuple[int, int, int]) -> None:
    factors = noise(shape)
    singular = np.linalg.svd(dense(factors), compute_uv=False)[:RANK]
    for u, s, vt in both(factors):
        assert (u.shape, s.shape, vt.shape) == ((shape[0], RANK), (RANK,), (RANK, shape[1]))
        assert (np.diff(s) <= 0).all()
        np.testing.assert_allclose(s, singular, rtol=2e-3)  # the last ones are those that a Krylov basis finds last
        np.testing.assert_allclose(u.T @ u, np.eye(RANK), atol=1e-5)
        np.testing.assert_allclose(vt @ vt.T, np.eye(RANK), atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
@pytest.mark.parametrize("alive", [1, 3, RANK])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_a_product_of_no_more_rank_is_itself_to_float32(shape: tuple[int, int, int], alive: int, scale: float) -> None:
    rows, columns, inner = shape
    b, a = noise((rows, columns, alive))
    copies = np.arange(inner) % alive  # neither factor has full rank: K clients that are alike
    factors = b[:, copies] * np.float32(scale), a[copies] * np.float32(scale)
    matrix = dense(factors)
    for triplets in both(factors):
        assert len(triplets.s) == alive, "what lies at rounding is left out"
        np.testing.assert_allclose(product(triplets), matrix, rtol=0, atol=FLOAT32 * np.abs(matrix).max())


@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_a_zero_product_has_no_triplets(shape: tuple[int, int, int]) -> None:
    b, a = noise(shape)
    for factors in ((b, a * 0), (b * 0, a), (b * 0, a * 0)):
        for u, s, vt in both(factors):
            assert (u.shape, s.shape, vt.shape) == ((shape[0], 0), (0,), (0, shape[1]))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_factors_of_unlike_size_and_condition_do_no_harm(shape: tuple[int, int, int]) -> None:
    b, a = noise(shape)
    stretch = np.geomspace(1e-3, 1e3, shape[2]).astype(np.float32)
    factors = b * stretch * np.float32(1e6), a / stretch[:, None] * np.float32(1e-6)
    matrix = dense(factors)
    singular = np.linalg.svd(matrix, compute_uv=False)
    for triplets in both(factors):
        error = np.sum((matrix - product(triplets)) ** 2)
        assert error <= (1 + EPS) * np.sum(singular[RANK:] ** 2)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_the_same_input_gives_the_same_bits_and_is_not_changed(shape: tuple[int, int, int]) -> None:
    factors = noise(shape)
    for array in factors:
        array.flags.writeable = False
    for one, other in zip(both(factors), both(factors), strict=True):
        for ours, theirs in zip(one, other, strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("rank", [1, 40, 400])
def test_any_rank_is_served(rank: int) -> None:
    factors = noise((260, 300, 250))
    singular = np.linalg.svd(dense(factors), compute_uv=False)
    for triplets in both(factors, rank):
        assert len(triplets.s) == min(rank, 250)
        error = np.sum((dense(factors) - product(triplets)) ** 2)
        assert error <= (1 + EPS) * np.sum(singular[rank:] ** 2) + FLOAT32**2 * np.sum(singular**2)
