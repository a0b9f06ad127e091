"""Every aggregation method keeps one contract, and each equals a slow, dense reference."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from fedlora.adapter import Adapter, LoraPair
from fedlora.errors import ConfigError, RunError
from fedlora.lora import LoraConfig
from fedlora_server.exact_mean import ExactMean
from fedlora_server.methods import METHODS, find_method
from numpy.typing import NDArray

Dense = dict[str, NDArray[np.float64]]
Weighted = tuple[Adapter, float]

# Relative to the largest entry: sums of a few dozen float32 products.
TOLERANCE = {"float32": 2e-5}

SHAPES = {"layers.0.q_proj": (10, 8), "layers.0.up_proj": (14, 8), "layers.0.down_proj": (8, 14)}
CONFIGS = {
    "alpha is not the rank": LoraConfig(rank=3, alpha=12.0),
    "rsLoRA": LoraConfig(rank=4, alpha=2.0, use_rslora=True),
    "one module has its own rank and alpha": LoraConfig(
        rank=3, alpha=3.0, rank_pattern={"layers.0.up_proj": 5}, alpha_pattern={"layers.0.down_proj": 0.5}
    ),
}
METHOD_NAMES = sorted(METHODS)


def client(config: LoraConfig, seed: int) -> Adapter:
    generator = np.random.default_rng(seed)
    pairs = {}
    for module, (rows, columns) in SHAPES.items():
        rank = config.rank_of(module)
        pairs[module] = LoraPair(
            generator.normal(size=(rank, columns)).astype(np.float32),
            generator.normal(size=(rows, rank)).astype(np.float32),
        )
    return Adapter(config, pairs)


def clients(config: LoraConfig, count: int = 5) -> list[Weighted]:
    return [(client(config, seed), weight) for seed, weight in zip(range(count), itertools.cycle((7, 40, 1, 13)))]


def folded(method: str, config: LoraConfig, updates: Sequence[Weighted]) -> tuple[Adapter, ExactMean]:
    """The round's adapter, as the server folds it, and the exact mean beside it."""
    fold, exact = METHODS[method](config), ExactMean()
    for adapter, weight in updates:
        fold.add(adapter, weight)
        exact.add(adapter, weight)
    return fold.result(exact), exact


def dense(adapter: Adapter) -> Dense:
    """gamma B A, module by module, in float64."""
    return {
        module: adapter.config.scaling_of(module) * pair.lora_B.astype(np.float64) @ pair.lora_A.astype(np.float64)
        for module, pair in adapter.pairs.items()
    }


def dense_mean(updates: Sequence[Weighted]) -> Dense:
    total = sum(weight for _, weight in updates)
    return {m: np.sum([weight / total * dense(adapter)[m] for adapter, weight in updates], axis=0) for m in SHAPES}


def fedavg_reference(config: LoraConfig, updates: Sequence[Weighted]) -> Dense:
    """gamma times the mean of B times the mean of A."""
    total = sum(weight for _, weight in updates)
    result = {}
    for module in SHAPES:
        mean_a = np.sum([w / total * adapter.pairs[module].lora_A.astype(np.float64) for adapter, w in updates], axis=0)
        mean_b = np.sum([w / total * adapter.pairs[module].lora_B.astype(np.float64) for adapter, w in updates], axis=0)
        result[module] = config.scaling_of(module) * mean_b @ mean_a
    return result


def svd_reference(config: LoraConfig, updates: Sequence[Weighted]) -> Dense:
    """The dense mean without all but its largest singular values."""
    result = {}
    for module, mean in dense_mean(updates).items():
        u, s, vt = np.linalg.svd(mean, full_matrices=False)
        rank = config.rank_of(module)
        result[module] = (u[:, :rank] * s[:rank]) @ vt[:rank]
    return result


REFERENCES: dict[str, Callable[[LoraConfig, Sequence[Weighted]], Dense]] = {
    "fedavg": fedavg_reference,
    "svd": svd_reference,
}
GAUGE_FREE = ("svd",)


def dense_means(exact: ExactMean) -> Dense:
    return {module: product.dense().astype(np.float64) for module, product in exact.means().items()}


def assert_close(got: Dense, expected: Dense) -> None:
    assert got.keys() == expected.keys()
    for module, value in expected.items():
        np.testing.assert_allclose(
            got[module], value, rtol=0, atol=TOLERANCE["float32"] * np.abs(value).max(), err_msg=module
        )


@pytest.fixture(params=CONFIGS.values(), ids=list(CONFIGS))
def config(request: pytest.FixtureRequest) -> LoraConfig:
    value: LoraConfig = request.param
    return value


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_a_method_with_one_client_returns_that_clients_product(method: str, config: LoraConfig) -> None:
    only = client(config, 0)
    result, _ = folded(method, config, [(only, 17)])
    assert_close(dense(result), dense(only))


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_a_method_with_equal_clients_returns_their_product(method: str, config: LoraConfig) -> None:
    only = client(config, 0)
    result, _ = folded(method, config, [(only, 3), (only, 5), (only, 1)])
    assert_close(dense(result), dense(only))


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_a_method_equals_its_dense_reference(method: str, config: LoraConfig) -> None:
    updates = clients(config)
    result, _ = folded(method, config, updates)
    assert_close(dense(result), REFERENCES[method](config, updates))


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_a_method_does_not_depend_on_the_order_of_arrival(method: str, config: LoraConfig) -> None:
    updates = clients(config)
    forward, _ = folded(method, config, updates)
    for order in ([4, 2, 0, 3, 1], [4, 3, 2, 1, 0]):
        other, _ = folded(method, config, [updates[i] for i in order])
        assert_close(dense(other), dense(forward))


@pytest.mark.parametrize("factor", [1e-3, 1e6])
@pytest.mark.parametrize("method", METHOD_NAMES)
def test_a_method_does_not_depend_on_the_scale_of_the_weights(method: str, config: LoraConfig, factor: float) -> None:
    updates = clients(config)
    once, _ = folded(method, config, updates)
    scaled, _ = folded(method, config, [(adapter, weight * factor) for adapter, weight in updates])
    assert_close(dense(scaled), dense(once))


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_a_client_of_weight_two_counts_as_two_clients_of_weight_one(method: str, config: LoraConfig) -> None:
    first, second = client(config, 0), client(config, 1)
    heavy, _ = folded(method, config, [(first, 2), (second, 1)])
    twice, _ = folded(method, config, [(first, 1), (second, 1), (first, 1)])
    assert_close(dense(heavy), dense(twice))


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_a_method_returns_the_runs_configuration_and_shapes_as_float32(method: str, config: LoraConfig) -> None:
    updates = clients(config)
    result, _ = folded(method, config, updates)
    assert result.config == config
    for module, shape in SHAPES.items():
        pair = result.pairs[module]
        assert (pair.shape, pair.rank) == (shape, config.rank_of(module))
        assert {str(pair.lora_A.dtype), str(pair.lora_B.dtype)} == {"float32"}


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_a_method_changes_none_of_its_inputs(method: str, config: LoraConfig) -> None:
    updates = clients(config)
    before = [(p.lora_A.copy(), p.lora_B.copy()) for adapter, _ in updates for p in adapter.pairs.values()]
    folded(method, config, updates)
    after = [(p.lora_A, p.lora_B) for adapter, _ in updates for p in adapter.pairs.values()]
    for (a, b), (later_a, later_b) in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, later_a)
        np.testing.assert_array_equal(b, later_b)


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_a_method_of_updates_that_change_nothing_returns_one_that_changes_nothing(
    method: str, config: LoraConfig
) -> None:
    def unchanged(seed: int) -> Adapter:
        pairs = client(config, seed).pairs
        return Adapter(config, {m: LoraPair(p.lora_A, np.zeros_like(p.lora_B)) for m, p in pairs.items()})

    result, exact = folded(method, config, [(unchanged(0), 1), (unchanged(1), 2)])
    for pair in result.pairs.values():
        assert not pair.lora_B.any()
        assert np.abs(pair.lora_A).max(axis=1).all(), "a row of A at zero beside a B at zero gets no gradient any more"
    assert exact.relative_error(result) == 0


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_a_method_of_no_updates_raises(method: str, config: LoraConfig) -> None:
    with pytest.raises(RunError, match="mean of no updates is not defined"):
        METHODS[method](config).result(ExactMean())


@pytest.mark.parametrize("weight", [0, -1, -0.5, math.nan, math.inf])
@pytest.mark.parametrize("method", METHOD_NAMES)
def test_a_method_of_a_weight_that_is_not_positive_and_finite_raises(method: str, weight: float) -> None:
    config = CONFIGS["rsLoRA"]
    with pytest.raises(RunError, match=f"weight of an update must be positive, got {weight}"):
        folded(method, config, [(client(config, 0), 1), (client(config, 1), weight)])


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_no_method_is_closer_to_the_exact_mean_than_svd(method: str, config: LoraConfig) -> None:
    updates = clients(config)
    result, exact = folded(method, config, updates)
    best, _ = folded("svd", config, updates)
    assert exact.relative_error(best) <= exact.relative_error(result) * (1 + TOLERANCE["float32"])


def in_another_gauge(adapter: Adapter, generator: np.random.Generator) -> Adapter:
    """(B M, M^-1 A): the same product from other factors."""
    pairs = {}
    for module, pair in adapter.pairs.items():
        # An orthogonal matrix with its columns stretched by up to two: far from the identity, and well conditioned.
        rotation, _ = np.linalg.qr(generator.normal(size=(pair.rank, pair.rank)))
        M = rotation * generator.uniform(0.5, 2, pair.rank)
        pairs[module] = LoraPair(
            (np.linalg.inv(M) @ pair.lora_A).astype(np.float32), (pair.lora_B @ M).astype(np.float32)
        )
    return Adapter(adapter.config, pairs)


@pytest.mark.parametrize("method", GAUGE_FREE)
def test_svd_is_indifferent_to_the_gauge_of_each_client(method: str, config: LoraConfig) -> None:
    updates, generator = clients(config), np.random.default_rng(3)
    turned = [(in_another_gauge(adapter, generator), weight) for adapter, weight in updates]
    assert_close(dense_mean(turned), dense_mean(updates))
    assert_close(dense(folded(method, config, turned)[0]), dense(folded(method, config, updates)[0]))


def test_fedavg_depends_on_the_gauge_and_says_so() -> None:
    config = CONFIGS["rsLoRA"]
    updates, generator = clients(config), np.random.default_rng(3)
    turned = [(in_another_gauge(adapter, generator), weight) for adapter, weight in updates]
    result, exact = folded("fedavg", config, turned)
    other = dense(folded("fedavg", config, updates)[0])
    assert all(np.abs(dense(result)[module] - other[module]).max() > 0.1 for module in SHAPES)
    assert exact.relative_error(result) > 0.1


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_every_method_has_a_reference_here_and_is_found_by_its_name(name: str) -> None:
    assert name in REFERENCES
    assert find_method(name) is METHODS[name]


@pytest.mark.parametrize(
    ("name", "hint"),
    [("svdd", "did you mean 'svd'"), ("FedAvg", "did you mean 'fedavg'"), ("?", "there is fedavg, svd")],
)
def test_an_unknown_method_is_refused_with_a_hint(name: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        find_method(name)
    assert name in str(caught.value)
    assert hint in str(caught.value)


def test_the_exact_mean_equals_the_dense_mean_past_the_smaller_side(config: LoraConfig) -> None:
    exact, updates = ExactMean(), clients(config, count=9)
    for number, (adapter, weight) in enumerate(updates, 1):
        exact.add(adapter, weight)
        assert_close(dense_means(exact), dense_mean(updates[:number]))
    assert exact.count == len(updates)
    assert len(updates) * config.rank > max(min(shape) for shape in SHAPES.values()), "the test passes the smaller side"


def test_the_exact_mean_of_sixty_clients_takes_no_more_memory_than_of_twenty() -> None:
    config, exact = CONFIGS["rsLoRA"], ExactMean()
    sizes = {}
    for number in range(1, 61):
        exact.add(client(config, number), 1)
        sizes[number] = {module: product.size_bytes for module, product in exact.means().items()}
    assert sizes[20] == sizes[60]
    for module, (rows, columns) in SHAPES.items():
        side = min(rows, columns)
        assert sizes[60][module] <= 4 * (rows * columns + side * side)
        assert max(size[module] for size in sizes.values()) <= 4 * side * (rows + columns), "nor on the way there"


def test_the_exact_mean_keeps_means_that_it_gave_out_unchanged() -> None:
    config, exact = CONFIGS["rsLoRA"], ExactMean()
    exact.add(client(config, 0), 2)
    given = exact.means()
    before = {module: product.dense().copy() for module, product in given.items()}
    exact.add(client(config, 1), 3)
    for module, product in given.items():
        np.testing.assert_array_equal(product.dense(), before[module])


def test_the_exact_mean_of_nothing_is_not_defined() -> None:
    exact = ExactMean()
    with pytest.raises(RunError, match="not defined"):
        exact.means()
    with pytest.raises(RunError, match="not defined"):
        exact.relative_error(client(CONFIGS["rsLoRA"], 0))


@pytest.mark.parametrize("count", [1, 2, 9])
def test_the_relative_error_is_the_dense_one_over_all_modules_together(config: LoraConfig, count: int) -> None:
    updates, other = clients(config, count), client(config, 99)
    exact = ExactMean()
    for adapter, weight in updates:
        exact.add(adapter, weight)
    mean, committed = dense_mean(updates), dense(other)

    def norm(matrices: list[Any]) -> float:
        return math.sqrt(sum(float(np.sum(matrix**2)) for matrix in matrices))

    expected = norm([committed[m] - mean[m] for m in SHAPES]) / norm(list(mean.values()))
    assert exact.relative_error(other) == pytest.approx(expected, rel=1e-5)


def test_the_relative_error_of_a_change_against_a_mean_of_nothing_is_infinite() -> None:
    config, exact = CONFIGS["rsLoRA"], ExactMean()
    pairs = {m: LoraPair(p.lora_A, np.zeros_like(p.lora_B)) for m, p in client(config, 0).pairs.items()}
    exact.add(Adapter(config, pairs), 1)
    assert exact.relative_error(client(config, 1)) == math.inf
    assert exact.relative_error(Adapter(config, pairs)) == 0
