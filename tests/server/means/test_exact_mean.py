"""The exact mean, against the dense weighted mean in float64."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from fedlora.errors import RunError
from fedlora.lora.adapter import Adapter
from fedlora.lora.algebra import Dense, concatenate, inner_product, squared_distance, truncated
from fedlora.lora.config import LoraConfig
from fedlora_server.means.exact_mean import ExactMean

from tests.server.method_cases import CONFIGS, SHAPES, TARGETS, TOLERANCE, Weighted, assert_close, dense, dense_mean
from tests.server.method_cases import Dense as Matrices
from tests.tiny.adapters import adapter_on


def client(lora: LoraConfig, seed: int) -> Adapter:
    return adapter_on(replace(lora, target_modules=TARGETS), SHAPES, seed)


def clients(lora: LoraConfig, count: int) -> list[Weighted]:
    return [(client(lora, seed), weight) for seed, weight in zip(range(count), itertools.cycle((7, 40, 1, 13)))]


def exact_mean(updates: Sequence[Weighted]) -> ExactMean:
    exact = ExactMean()
    for adapter, weight in updates:
        exact.add(adapter, weight)
    return exact


def dense_means(exact: ExactMean) -> Matrices:
    return {module: product.dense().astype(np.float64) for module, product in exact.means().items()}


def test_the_exact_mean_equals_the_dense_mean_before_and_after_it_folds(lora: LoraConfig) -> None:
    updates, exact = clients(lora, 9), ExactMean()
    for number, (adapter, weight) in enumerate(updates, 1):
        exact.add(adapter, weight)
        assert_close(dense_means(exact), dense_mean(updates[:number]))
    assert exact.count == len(updates)
    assert not any(isinstance(mean, Dense) for mean in exact_mean(updates[:1]).means().values())
    assert all(isinstance(mean, Dense) for mean in exact.means().values())


def test_asking_for_the_means_on_the_way_changes_nothing_but_rounding(lora: LoraConfig) -> None:
    updates, asked = clients(lora, 9), ExactMean()
    for adapter, weight in updates:
        asked.add(adapter, weight)
        asked.means()
    assert_close(dense_means(asked), dense_means(exact_mean(updates)))


def test_the_order_of_the_adapters_changes_nothing_but_rounding(lora: LoraConfig) -> None:
    updates = clients(lora, 9)
    assert_close(dense_means(exact_mean(updates[::-1])), dense_mean(updates))


def test_adapters_of_different_ranks_have_a_mean() -> None:
    updates: list[Weighted] = [
        (client(LoraConfig(rank=rank, alpha=4.0), rank), weight)
        for rank, weight in ((1, 5), (6, 2), (2, 9), (11, 1), (4, 3))
    ]
    for count in range(1, len(updates) + 1):
        assert_close(dense_means(exact_mean(updates[:count])), dense_mean(updates[:count]))


@pytest.mark.parametrize("count", [1, 2, 9])
def test_a_mean_works_with_everything_that_takes_a_product(lora: LoraConfig, count: int) -> None:
    updates, other = clients(lora, count), client(lora, 99)
    expected = dense_mean(updates)
    for module, mean in exact_mean(updates).means().items():
        x = np.ones(SHAPES[module][1], np.float32)
        theirs, matrix = other.product(module), dense(other)[module]
        u, s, vt = np.linalg.svd(expected[module])
        for got, want in (
            (mean.B @ (mean.A @ x), expected[module] @ x),
            (concatenate([mean, theirs.scaled(-1)]).dense(), expected[module] - matrix),
            (truncated(mean, 2).dense(), (u[:, :2] * s[:2]) @ vt[:2]),
        ):
            np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE["float32"] * np.abs(want).max())
        norms = float(np.linalg.norm(expected[module]) * np.linalg.norm(matrix))
        assert inner_product(mean, theirs) == pytest.approx(np.sum(expected[module] * matrix), abs=1e-5 * norms)
        assert squared_distance(mean, theirs) == pytest.approx(np.sum((expected[module] - matrix) ** 2), rel=1e-5)


def test_the_exact_mean_of_sixty_clients_takes_no_more_memory_than_of_twenty() -> None:
    lora, exact = CONFIGS["rsLoRA"], ExactMean()
    held: dict[int, dict[str, int]] = {}
    for number in range(1, 61):
        exact.add(client(lora, number), 1)
        held[number] = {module: held_bytes(exact, module) for module in SHAPES}
    for module, (rows, columns) in SHAPES.items():
        sizes = [size[module] for size in held.values()]
        assert max(sizes[20:]) == max(sizes[:20])
        assert max(sizes) < 4 * (2 * rows * columns)
    for module, mean in exact.means().items():
        assert mean.size_bytes == 4 * math.prod(SHAPES[module])


def held_bytes(exact: ExactMean, module: str) -> int:
    folded = exact._folded.get(module)
    factors = sum(pair.lora_A.nbytes + pair.lora_B.nbytes for pair, _ in exact._terms[module])
    return factors + (folded.size_bytes if folded else 0)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_the_exact_mean_keeps_means_that_it_gave_out_unchanged(count: int) -> None:
    lora, exact = CONFIGS["rsLoRA"], exact_mean(clients(CONFIGS["rsLoRA"], count))
    given = exact.means()
    before = {module: product.dense().copy() for module, product in given.items()}
    for seed in range(20, 29):
        exact.add(client(lora, seed), 3)
        exact.means()
    for module, product in given.items():
        np.testing.assert_array_equal(product.dense(), before[module])


def test_the_exact_mean_of_nothing_is_not_defined() -> None:
    exact = ExactMean()
    with pytest.raises(RunError, match="not defined"):
        exact.means()


@pytest.mark.parametrize("weight", [0, -1, -0.5, math.nan, math.inf])
def test_a_weight_that_is_not_positive_and_finite_is_refused_and_nothing_is_added(weight: float) -> None:
    exact = ExactMean()
    with pytest.raises(RunError, match=f"weight of an update must be positive, got {weight}"):
        exact.add(client(CONFIGS["rsLoRA"], 0), weight)
    assert exact.count == 0
