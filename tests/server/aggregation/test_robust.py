"""Rules for rounds in which devices lie: they look at products only, and two liars of ten move none of them far."""

from __future__ import annotations

import math

import numpy as np
import pytest
from fedlora.config.run import AggregationConfig
from fedlora.errors import ConfigError, RunError
from fedlora.lora.adapter import Adapter, LoraPair
from fedlora.lora.config import LoraConfig
from fedlora_server.aggregation.gram import Gram, gram_of_changes
from fedlora_server.aggregation.robust import GeometricMedian, MultiKrum, NormBound
from fedlora_server.aggregation.robust_aggregator import Weights
from fedlora_server.aggregation.robust_rule import RobustRule, find_robust_rule

from tests.server.method_cases import (
    METHODS,
    ROBUST,
    SHAPES,
    WEIGHING,
    Case,
    Dense,
    Weighted,
    assert_close,
    dense,
    dense_mean,
    devices,
    in_another_gauge,
)

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


def robustly(robust: str, method: str = "svd") -> Case:
    return Case(method, LORA, AggregationConfig(robust=robust, weights="uniform"))


def committed(robust: str, adapters: list[Adapter], method: str = "svd") -> Dense:
    case = robustly(robust, method)
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


@pytest.mark.parametrize("method", sorted(name for name in METHODS if METHODS[name].refuses_robust))
@pytest.mark.parametrize("robust", WEIGHING)
def test_a_method_that_a_choice_of_factors_leads_astray_takes_no_robust_rule(robust: str, method: str) -> None:
    with pytest.raises(ConfigError, match=f"robust is {robust}, which {method} does not take: .*; use "):
        robustly(robust, method).round()


def takes_any_factors(method: str) -> bool:
    return not METHODS[method].refuses_robust and Case(method, LORA).round().task.sends == "AB"


@pytest.mark.parametrize("method", sorted(filter(takes_any_factors, METHODS)))
@pytest.mark.parametrize("robust", WEIGHING)
def test_no_choice_of_factors_for_an_honest_product_leads_a_method_astray(robust: str, method: str) -> None:
    adapters = honest_devices(10)
    first = adapters[0].pairs.items()
    stretched = Adapter(LORA, {m: LoraPair(1e2 * p.lora_A, p.lora_B / np.float32(1e2)) for m, p in first})
    expected = committed(robust, adapters, method)
    assert relative_distance(committed(robust, [stretched, *adapters[1:]], method), expected) < 1e-3


@pytest.mark.parametrize("size", [1e2, 1e4, 1e6])
@pytest.mark.parametrize("robust", ROBUST)
def test_one_liar_of_any_size_moves_the_result_little(robust: str, size: float) -> None:
    adapters = honest_devices(10)
    honest = dense_mean([(adapter, 1) for adapter in adapters[1:]])
    assert relative_distance(committed(robust, [times(adapters[0], -size), *adapters[1:]]), honest) <= 0.2


@pytest.mark.parametrize("robust", ROBUST)
def test_a_number_of_examples_is_a_devices_own_word_and_does_not_count(robust: str) -> None:
    if robust != "norm-bound":  # which takes it, capped
        with pytest.raises(ConfigError, match=f"robust is {robust}, aggregation.weights examples: .* to uniform"):
            Case("svd", LORA, AggregationConfig(robust=robust)).round()
    adapters, honest = attacked()
    case = robustly(robust)
    updates = [(adapter, 10**9 if number < 2 else 1) for number, adapter in enumerate(adapters)]
    assert relative_distance(case.dense(case.round(), updates), honest) <= 0.2


@pytest.mark.parametrize("robust", ROBUST)
def test_devices_of_several_ranks_are_not_compared(robust: str) -> None:
    with pytest.raises(ConfigError, match=r"aggregation\.min_rank 2: a robust rule compares whole updates"):
        Case("svd", LORA, AggregationConfig(robust=robust, weights="uniform", min_rank=2)).round()


@pytest.mark.parametrize("robust", WEIGHING)
def test_the_error_of_a_robust_round_is_that_against_the_updates_that_count(robust: str) -> None:
    adapters, _ = attacked()
    this = robustly(robust).round()
    for adapter in adapters:
        this.add(adapter, 1)
    error = this.error(this.result().now.adapter)
    assert error is not None
    assert error < 0.2


@pytest.mark.parametrize("method", sorted(name for name in METHODS if not METHODS[name].refuses_robust))
@pytest.mark.parametrize("robust", WEIGHING)
def test_a_rule_that_weighs_goes_with_every_method_of_products_and_of_one_factor(robust: str, method: str) -> None:
    case = robustly(robust, method)
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
    with pytest.raises(ConfigError, match=r"robust is median, which (takes the place|.* does not take)"):
        robustly("median", method).round()


@pytest.mark.parametrize("robust", ROBUST)
def test_one_device_alone_is_believed(robust: str) -> None:
    (only,) = honest_devices(1)
    assert_close(committed(robust, [only]), dense(only))


@pytest.mark.parametrize("robust", ROBUST)
def test_a_robust_round_of_no_updates_raises(robust: str) -> None:
    with pytest.raises(RunError, match="mean of no updates is not defined"):
        robustly(robust).round().result()


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


def weights(rule: type[RobustRule], gram: Gram, settings: AggregationConfig = SETTINGS) -> Weights:
    return rule(LORA, settings).weights(gram)


def test_the_norm_bound_leaves_out_what_is_more_than_three_times_the_median() -> None:
    gram = points([1, 0], [0, 1], [0, -1.1], [2.9, 0], [0, 3.5])
    np.testing.assert_array_equal(weights(NormBound, gram), [1, 1, 1, 1, 0])


def test_multi_krum_keeps_the_cluster() -> None:
    gram = points([1, 0], [1.1, 0], [0.9, 0], [1, 0.1], [-5, 0])
    np.testing.assert_array_equal(weights(MultiKrum, gram), [1, 1, 1, 1, 0])


@pytest.mark.parametrize("share", [0.3, 0.45, 0.49])
def test_multi_krum_is_not_led_by_three_equal_liars_of_ten(share: float) -> None:
    gram = points(*([1 + 0.1 * k, (-1.0) ** k] for k in range(7)), *([-5.0, 5.0] for _ in range(3)))
    kept = weights(MultiKrum, gram, AggregationConfig(byzantine_share=share))
    np.testing.assert_array_equal(kept, [1] * 7 + [0] * 3)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_multi_krum_of_too_few_to_tell_keeps_all(count: int) -> None:
    np.testing.assert_array_equal(weights(MultiKrum, points(*([float(k), 0.0] for k in range(count)))), np.ones(count))


@pytest.mark.parametrize(("count", "share", "kept"), [(25, 0.28, 18), (100, 0.07, 93), (10, 0.21, 7)])
def test_multi_krum_rounds_the_number_of_liars_up_and_no_rounding_error_with_it(
    count: int, share: float, kept: int
) -> None:
    gram = points(*([float(k), 1.0] for k in range(count)))
    assert weights(MultiKrum, gram, AggregationConfig(byzantine_share=share)).sum() == kept


@pytest.mark.parametrize("size", [1, 1e4, 1e8])
def test_the_geometric_median_is_the_point_with_the_least_sum_of_distances(size: float) -> None:
    where = np.array([[0, 0], [1, 0], [0, 1], [0.2, 0.7], [10 * size, 10.0 * size]])
    beta = weights(GeometricMedian, where @ where.T)
    assert beta.sum() == pytest.approx(1)
    median = beta @ where

    def cost(point: np.ndarray) -> float:
        return float(np.sum(np.linalg.norm(where - point, axis=1)))

    steps = [np.array(step) for step in ((0.01, 0), (-0.01, 0), (0, 0.01), (0, -0.01))]
    assert np.linalg.norm(median) < 2
    assert all(cost(median) <= cost(median + step) + 1e-6 * size for step in steps)


@pytest.mark.parametrize("rule", WEIGHING.values(), ids=list(WEIGHING))
def test_equal_updates_count_alike(rule: type[RobustRule]) -> None:
    given = weights(rule, points(*([3.0, 4.0] for _ in range(5))))
    counting = given[given > 0]
    assert len(counting) >= 4
    np.testing.assert_allclose(counting, counting[0])


@pytest.mark.parametrize("robust", ROBUST)
def test_a_rule_is_found_by_its_name(robust: str) -> None:
    assert find_robust_rule(robust) is ROBUST[robust]


@pytest.mark.parametrize("robust", ["", "mean", "multi_krum"])
def test_an_unknown_rule_is_refused_with_those_that_there_are(robust: str) -> None:
    known = r"auto, none, .*geometric-median.*median.*multi-krum.*norm-bound.*"
    with pytest.raises(ConfigError, match=rf"^aggregation\.robust must be one of {known}, got '{robust}'$"):
        robustly(robust).round()
