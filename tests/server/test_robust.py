"""Rules for rounds in which devices lie: they look at products only, and two liars of ten move none of them far."""

from __future__ import annotations

import math

import numpy as np
import pytest
from fedlora.adapter import Adapter, LoraPair
from fedlora.errors import ConfigError, RunError
from fedlora.lora import LoraConfig
from fedlora.run_config import AggregationConfig
from fedlora_server.methods import METHODS
from fedlora_server.robust import RULES, geometric_median, gram_of_changes, multi_krum, norm_bound

from tests.server.method_cases import (
    SHAPES,
    Case,
    Dense,
    Weighted,
    assert_close,
    dense,
    dense_mean,
    devices,
    in_another_gauge,
)

ROBUST = [*RULES, "median"]
LORA = LoraConfig(rank=4, alpha=8.0)
SETTINGS = AggregationConfig()
GAUGES = {"its own": 0, "a rotation each": 1, "another rotation each": 2, "an invertible matrix each": 3}


def honest_devices(count: int, noise: float = 0.1) -> list[Adapter]:
    """Devices that agree up to noise, on a change of full rank."""
    generator = np.random.default_rng(5)
    common = {
        m: (generator.normal(size=(4, columns)), generator.normal(size=(rows, 4)))
        for m, (rows, columns) in SHAPES.items()
    }
    adapters = []
    for _ in range(count):
        pairs = {
            m: LoraPair(
                (A + noise * generator.normal(size=A.shape)).astype(np.float32),
                (B + noise * generator.normal(size=B.shape)).astype(np.float32),
            )
            for m, (A, B) in common.items()
        }
        adapters.append(Adapter(LORA, pairs))
    return adapters


def times(adapter: Adapter, factor: float) -> Adapter:
    return Adapter(adapter.config, {m: LoraPair(p.lora_A, factor * p.lora_B) for m, p in adapter.pairs.items()})


def attacked() -> tuple[list[Adapter], Dense]:
    """Ten devices, of which two turn their change round and send five times of it; and the mean of the honest ones."""
    adapters = honest_devices(10)
    honest = dense_mean([(adapter, 1) for adapter in adapters[2:]])
    return [times(adapters[0], -5), times(adapters[1], -5), *adapters[2:]], honest


def in_gauge(adapters: list[Adapter], gauge: int) -> list[Adapter]:
    generator = np.random.default_rng(gauge)
    return [in_another_gauge(a, generator, stretch=gauge == 3) for a in adapters] if gauge else adapters


def relative_distance(got: Dense, expected: Dense) -> float:
    squared = sum(float(np.sum((got[module] - value) ** 2)) for module, value in expected.items())
    return math.sqrt(squared / sum(float(np.sum(value**2)) for value in expected.values()))


def committed(robust: str, adapters: list[Adapter], method: str = "svd") -> Dense:
    case = Case(method, LORA, AggregationConfig(robust=robust))
    return case.dense(case.round(), [(adapter, 1) for adapter in adapters])


@pytest.mark.parametrize("gauge", GAUGES.values(), ids=list(GAUGES))
@pytest.mark.parametrize("robust", ROBUST)
def test_two_of_ten_devices_that_turn_their_change_round_move_the_result_little_in_any_gauge(
    robust: str, gauge: int
) -> None:
    adapters, honest = attacked()
    assert relative_distance(committed(robust, in_gauge(adapters, gauge)), honest) <= 0.2


def test_without_a_robust_rule_the_same_attack_ruins_the_round() -> None:
    adapters, honest = attacked()
    assert relative_distance(committed("none", adapters), honest) > 1


@pytest.mark.parametrize("robust", ROBUST)
def test_a_robust_rule_is_indifferent_to_the_gauge(robust: str) -> None:
    adapters, _ = attacked()
    expected = committed(robust, adapters)
    for gauge in (1, 2, 3):
        got = committed(robust, in_gauge(adapters, gauge))
        assert relative_distance(got, expected) < 1e-4


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("robust", [*RULES])
def test_a_rule_that_weighs_goes_with_every_method_that_sends_both_factors_of_a_product(
    robust: str, method: str
) -> None:
    if METHODS[method].refuses_robust:
        with pytest.raises(
            ConfigError, match=f"robust is {robust}, which {method} does not take: .*use another method"
        ):
            Case(method, LORA, AggregationConfig(robust=robust)).round()
        return
    case = Case(method, LORA, AggregationConfig(robust=robust))
    this = case.round()
    first = this.down.adapter
    generator = np.random.default_rng(1)
    updates: list[Weighted] = []
    for number in range(10):
        pairs = {}
        for module, pair in first.pairs.items():
            noise = 0.1 * generator.normal(size=pair.lora_B.shape).astype(np.float32)
            pairs[module] = LoraPair(pair.lora_A, np.float32(-5 if number < 2 else 1) * (1 + noise))
        updates.append((Adapter(first.config, pairs), 1))
    assert relative_distance(case.dense(this, updates), dense_mean(updates[2:])) < 0.2


@pytest.mark.parametrize("method", sorted(name for name in METHODS if not METHODS[name].takes_products))
def test_the_median_goes_with_a_method_that_takes_a_mean_of_products_only(method: str) -> None:
    with pytest.raises(ConfigError, match=r"robust is median, which"):
        Case(method, LORA, AggregationConfig(robust="median")).round()


@pytest.mark.parametrize("robust", ROBUST)
def test_one_device_alone_is_believed(robust: str) -> None:
    (only,) = honest_devices(1)
    assert_close(committed(robust, [only]), dense(only))


@pytest.mark.parametrize("robust", ROBUST)
def test_a_robust_round_of_no_updates_raises(robust: str) -> None:
    with pytest.raises(RunError, match="mean of no updates is not defined"):
        Case("svd", LORA, AggregationConfig(robust=robust)).round().result()


@pytest.mark.parametrize("robust", ROBUST)
def test_devices_that_all_change_nothing_give_an_adapter_that_changes_nothing(robust: str) -> None:
    assert not any(matrix.any() for matrix in committed(robust, [times(a, 0) for a in honest_devices(5)]).values())


def test_the_gram_matrix_is_that_of_the_dense_changes() -> None:
    adapters, down = honest_devices(4), times(honest_devices(5)[4], 0.3)
    changes = [np.concatenate([(dense(a)[m] - dense(down)[m]).ravel() for m in SHAPES]) for a in adapters]
    np.testing.assert_allclose(gram_of_changes(adapters, down), np.array(changes) @ np.array(changes).T, rtol=1e-4)


def test_the_gram_matrix_takes_adapters_of_several_ranks() -> None:
    case = Case("svd", LORA, AggregationConfig(min_rank=1))
    adapters = [adapter for adapter, _ in devices(case.round(), 3, ranks=(1, 4, 2))]
    changes = [np.concatenate([dense(adapter)[m].ravel() for m in SHAPES]) for adapter in adapters]
    down = times(case.round().down.adapter, 0)
    np.testing.assert_allclose(gram_of_changes(adapters, down), np.array(changes) @ np.array(changes).T, rtol=1e-4)


def points(*rows: list[float]) -> np.ndarray:
    """The Gram matrix of points in the plane."""
    matrix = np.array(rows, np.float64)
    result: np.ndarray = matrix @ matrix.T
    return result


def test_the_norm_bound_leaves_out_what_is_more_than_three_times_the_median() -> None:
    gram = points([1, 0], [0, 1], [0, -1.1], [2.9, 0], [0, 3.5])
    weights = np.array([1.0, 2, 3, 4, 5])
    np.testing.assert_array_equal(norm_bound(gram, weights, SETTINGS), [1, 2, 3, 4, 0])


def test_multi_krum_keeps_the_cluster() -> None:
    gram = points([1, 0], [1.1, 0], [0.9, 0], [1, 0.1], [-5, 0])
    np.testing.assert_array_equal(multi_krum(gram, np.arange(1.0, 6), SETTINGS), [1, 2, 3, 4, 0])


def test_the_geometric_median_is_the_point_with_the_least_sum_of_distances() -> None:
    where = np.array([[0, 0], [1, 0], [0, 1], [10, 10.0]])
    shares = np.array([1.0, 1, 2, 1])
    beta = geometric_median(where @ where.T, shares, SETTINGS)
    assert beta.sum() == pytest.approx(shares.sum())
    median = beta @ where / beta.sum()

    def cost(point: np.ndarray) -> float:
        return float(np.sum(shares * np.linalg.norm(where - point, axis=1)))

    steps = [np.array(step) for step in ((0.01, 0), (-0.01, 0), (0, 0.01), (0, -0.01))]
    assert all(cost(median) <= cost(median + step) + 1e-6 for step in steps)
