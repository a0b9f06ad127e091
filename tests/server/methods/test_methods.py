"""Every aggregation method keeps one contract, and each equals a slow, dense reference."""

from __future__ import annotations

import gc
import math
import tracemalloc

import numpy as np
import pytest
from fedlora.config.run import AggregationConfig
from fedlora.errors import ConfigError, RunError
from fedlora.lora.config import LoraConfig
from fedlora_server.methods import METHODS, find_method

from tests.server.method_cases import (
    CONFIGS,
    REFERENCES,
    SHAPES,
    TOLERANCE,
    Case,
    assert_close,
    dense,
    dense_mean,
    device,
    devices,
    in_another_gauge,
    with_side,
)

METHOD_NAMES = sorted(METHODS)
EXACT = ("ffa", "rolora", "fedsvd", "stack", "fedex")
GAUGE_FREE = ("svd", "stack", "fedex", "raflora")
MIXED = tuple(name for name in METHOD_NAMES if not METHODS[name].refuses_mixed_ranks)
ONE_ADAPTER = ("fedavg", "ffa", "rolora", "fedsvd", "hetlora", "fedsa", "fedrot")  # in memory, whatever N
AT_MOST_DENSE = ("svd", "stack", "fedex", "lorafair")  # two matrices [O, I] per module, whatever N


@pytest.fixture(params=METHOD_NAMES)
def case(request: pytest.FixtureRequest, lora: LoraConfig) -> Case:
    return Case(request.param, lora)


def test_a_method_equals_its_dense_reference(case: Case, number: int) -> None:
    state = case.before(number)
    this, updates = case.round(number, state), devices(case.round(number, state))
    assert_close(case.dense(case.round(number, state), updates), REFERENCES[case.method](case, this, updates))


def test_a_method_with_one_client_returns_that_clients_product(case: Case, number: int) -> None:
    this = case.round(number, case.before(number))
    only = device(this, 0)
    assert_close(case.dense(this, [(only, 17)]), with_side(this, dense(only)))


def test_a_method_with_equal_clients_returns_their_product(case: Case) -> None:
    this = case.round()
    only = device(this, 0)
    assert_close(case.dense(this, [(only, 3), (only, 5), (only, 1)]), dense(only))


@pytest.mark.parametrize("method", EXACT)
def test_a_method_that_claims_to_be_exact_commits_the_mean_of_the_products(method: str, lora: LoraConfig) -> None:
    case = Case(method, lora)
    this = case.round(2, case.later())
    updates = devices(this)
    state = case.played(this, updates)
    committed = case.aggregation.committed(state)
    assert_close(dense(committed), with_side(this, dense_mean(updates)))
    error = this.error(committed)
    assert error is not None
    assert error < TOLERANCE["float32"]


def test_a_method_does_not_depend_on_the_order_of_arrival(case: Case) -> None:
    state = case.later()
    updates = devices(case.round(2, state))
    forward = case.dense(case.round(2, state), updates)
    for order in ([4, 2, 0, 3, 1], [4, 3, 2, 1, 0]):
        assert_close(case.dense(case.round(2, state), [updates[i] for i in order]), forward)


@pytest.mark.parametrize("factor", [3, 10**6])
def test_a_method_does_not_depend_on_the_scale_of_the_weights(case: Case, factor: int) -> None:
    updates = devices(case.round())
    scaled = [(adapter, weight * factor) for adapter, weight in updates]
    assert_close(case.dense(case.round(), scaled), case.dense(case.round(), updates))


def test_a_client_of_weight_two_counts_as_two_clients_of_weight_one(case: Case) -> None:
    first, second = device(case.round(), 0), device(case.round(), 1)
    heavy = case.dense(case.round(), [(first, 2), (second, 1)])
    assert_close(heavy, case.dense(case.round(), [(first, 1), (second, 1), (first, 1)]))


def test_with_uniform_weights_every_device_counts_the_same(case: Case) -> None:
    uniform = Case(case.method, case.lora, AggregationConfig(weights="uniform"))
    updates = devices(uniform.round())
    equal = [(adapter, 1) for adapter, _ in updates]
    assert_close(uniform.dense(uniform.round(), updates), case.dense(case.round(), equal))


def test_the_adapter_to_train_has_the_runs_configuration_and_shapes_in_float32(case: Case, number: int) -> None:
    state = case.played(case.round(number, case.before(number)), devices(case.round(number)))
    trained = case.round(number + 1, state).down.adapter
    assert [trained.config.scaling_of(m) for m in SHAPES] == [case.lora.scaling_of(m) for m in SHAPES]
    committed = case.aggregation.committed(state)
    for module, shape in SHAPES.items():
        pair = trained.pairs[module]
        assert (pair.shape, pair.rank) == (shape, case.lora.rank_of(module))
        assert committed.config.scaling_of(module) == pytest.approx(case.lora.scaling_of(module), rel=1e-12)
        for array in (pair.lora_A, pair.lora_B, committed.pairs[module].lora_A, committed.pairs[module].lora_B):
            assert array.dtype == np.float32


def test_a_method_changes_none_of_its_inputs(case: Case) -> None:
    state = case.later()
    this = case.round(2, state)
    updates = devices(this)
    inputs = (
        [adapter for adapter, _ in updates] + [state.now.adapter] + ([state.now.frozen] if state.now.frozen else [])
    )
    before = [(p.lora_A.copy(), p.lora_B.copy()) for adapter in inputs for p in adapter.pairs.values()]
    case.played(this, updates)
    after = [(p.lora_A, p.lora_B) for adapter in inputs for p in adapter.pairs.values()]
    for (a, b), (later_a, later_b) in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, later_a)
        np.testing.assert_array_equal(b, later_b)


def test_updates_that_change_nothing_give_an_adapter_that_changes_nothing_and_can_still_be_trained(case: Case) -> None:
    this = case.round()
    state = case.played(this, [(this.down.adapter, 1), (this.down.adapter, 2)])
    committed = case.aggregation.committed(state)
    assert all(not matrix.any() for matrix in dense(committed).values())
    assert this.error(committed) in (0, None)
    for pair in case.round(2, state).down.adapter.pairs.values():
        assert np.abs(pair.lora_A).max(axis=1).all(), "a row of A at zero beside a B at zero gets no gradient any more"


def test_a_method_of_no_updates_raises(case: Case) -> None:
    with pytest.raises(RunError, match="mean of no updates is not defined"):
        case.round().result()


@pytest.mark.parametrize("weight", [0, -1, -0.5, math.nan, math.inf])
def test_a_method_of_a_weight_that_is_not_positive_and_finite_raises(case: Case, weight: float) -> None:
    this = case.round()
    this.add(device(this, 0), 1)
    with pytest.raises(RunError, match=f"weight of an update must be positive, got {weight}"):
        this.add(device(this, 1), weight)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", GAUGE_FREE)
def test_a_method_that_looks_at_products_is_indifferent_to_the_gauge_of_each_client(
    method: str, lora: LoraConfig, number: int
) -> None:
    case, generator = Case(method, lora), np.random.default_rng(3)
    state = case.before(number)
    updates = devices(case.round(number, state))
    turned = [(in_another_gauge(adapter, generator), weight) for adapter, weight in updates]
    assert_close(dense_mean(turned), dense_mean(updates))
    assert_close(case.dense(case.round(number, state), turned), case.dense(case.round(number, state), updates))


@pytest.mark.parametrize("method", ["fedavg", "fedrot", "lorafair", "hetlora", "raflora", "svd"])
def test_no_method_of_one_rank_is_closer_to_the_mean_of_the_products_than_svd(method: str, lora: LoraConfig) -> None:
    errors = {}
    for name in (method, "svd"):
        case = Case(name, lora)
        this = case.round()
        errors[name] = this.error(case.played(this, devices(this)).now.adapter) or 0.0
    assert errors["svd"] <= errors[method] * (1 + TOLERANCE["float32"])


@pytest.mark.parametrize("method", MIXED)
def test_devices_of_several_ranks_are_aggregated_as_the_dense_reference_says(method: str, lora: LoraConfig) -> None:
    case = Case(method, lora, AggregationConfig(min_rank=1))
    updates = devices(case.round(), ranks=(1, 2, 1000))
    assert len({adapter.pairs["layers.0.q_proj"].rank for adapter, _ in updates}) == 3
    this = case.round()
    assert_close(case.dense(this, updates), REFERENCES[method](case, this, updates))


@pytest.mark.parametrize("method", sorted(METHODS.keys() - set(MIXED)))
def test_a_method_that_does_not_take_several_ranks_says_why_at_the_start(method: str) -> None:
    with pytest.raises(ConfigError, match=f"min_rank is 2, which {method} does not take: .* use svd"):
        Case(method, CONFIGS["rsLoRA"], AggregationConfig(min_rank=2)).round()


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_a_method_is_personal_where_a_factor_stays_on_the_device(method: str) -> None:
    rounds = [Case(method, CONFIGS["rsLoRA"]).round(number) for number in (1, 2)]
    assert METHODS[method].personal == any(this.task.keeps for this in rounds)


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_a_state_that_was_committed_is_restored_bit_for_bit(method: str, lora: LoraConfig) -> None:
    case = Case(method, lora)
    state = case.later()
    restored = case.aggregation.restored(case.aggregation.committed(state), state.moments)
    down, again = (case.round(2, each).down for each in (state, restored))
    for one, other in ((down.adapter, again.adapter), (down.frozen, again.frozen)):
        assert (one is None) == (other is None)
        for module, pair in one.pairs.items() if one else ():
            assert other is not None
            np.testing.assert_array_equal(pair.lora_A, other.pairs[module].lora_A)
            np.testing.assert_array_equal(pair.lora_B, other.pairs[module].lora_B)


def peak_bytes(case: Case, count: int) -> int:
    """The most memory that a round took, with one update at a time."""
    this = case.round()
    gc.collect()
    tracemalloc.start()
    for seed in range(count):
        this.add(device(this, seed), 1)
    this.result()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize("method", ONE_ADAPTER + AT_MOST_DENSE)
def test_the_memory_of_an_aggregator_does_not_grow_with_the_number_of_devices(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedlora_server.means.parallel_modules.cores", lambda: 1)  # each works on a module of its own
    wide = {name: (40 * rows, 40 * columns) for name, (rows, columns) in SHAPES.items()}
    monkeypatch.setattr("tests.server.method_cases.SHAPES", wide)
    case = Case(method, LoraConfig(rank=32))
    few, many = (5, 50) if method in ONE_ADAPTER else (25, 100)
    peak_bytes(case, few)  # what is loaded once
    assert peak_bytes(case, many) <= 1.1 * peak_bytes(case, few)
    if method in AT_MOST_DENSE:
        dense_bytes = 4 * sum(rows * columns for rows, columns in wide.values())
        assert peak_bytes(case, many) <= 5 * dense_bytes


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_every_method_has_a_reference_here_and_is_found_by_its_name(name: str) -> None:
    assert name in REFERENCES
    assert find_method(name) is METHODS[name]


@pytest.mark.parametrize(
    ("name", "hint"),
    [("svdd", "did you mean 'svd'"), ("FedAvg", "did you mean 'fedavg'"), ("?", "there is fedavg, ffa, ")],
)
def test_an_unknown_method_is_refused_with_a_hint(name: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        find_method(name)
    assert name in str(caught.value)
    assert hint in str(caught.value)
