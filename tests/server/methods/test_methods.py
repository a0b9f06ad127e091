"""Every aggregation method keeps one contract, and each equals a slow, dense reference."""

from __future__ import annotations

import gc
import tracemalloc
from importlib.metadata import EntryPoint, entry_points

import numpy as np
import pytest
from fedlora.config.run import AggregationConfig
from fedlora.errors import ConfigError
from fedlora.lora.config import LoraConfig
from fedlora_server.means.ring_sums import give_back_spare
from fedlora_server.methods import METHODS as OFFERED
from fedlora_server.methods import find_method

from tests.server.method_cases import (
    CONFIGS,
    METHODS,
    REFERENCES,
    SHAPES,
    TOLERANCE,
    Case,
    Reference,
    assert_close,
    dense,
    dense_mean,
    device,
    devices,
    in_another_gauge,
    with_side,
)
from tests.server.method_contract import MethodContract

METHOD_NAMES = sorted(METHODS)
EXACT = ("ffa", "rolora", "fedsvd", "stack", "fedex")
GAUGE_FREE = ("svd", "stack", "fedex", "raflora")
MIXED = tuple(name for name in METHOD_NAMES if not METHODS[name].refuses_mixed_ranks)
ONE_ADAPTER = ("fedavg", "ffa", "rolora", "fedsvd", "hetlora", "fedsa", "fedrot")  # in memory, whatever N
AT_MOST_DENSE = ("svd", "stack", "fedex", "lorafair")  # two matrices [O, I] per module, and a file, whatever N


@pytest.fixture(params=METHOD_NAMES)
def case(request: pytest.FixtureRequest, lora: LoraConfig) -> Case:
    return Case(request.param, lora)


@pytest.fixture
def reference(case: Case) -> Reference:
    return REFERENCES[case.method]


class TestEveryMethod(MethodContract):
    """The contract, for the methods that fedlora brings."""


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
    give_back_spare()  # so that what a round keeps for the next one is counted
    gc.collect()
    tracemalloc.start()
    for seed in range(count):
        this.add(device(this, seed), 1)
    this.result()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize("robust", ["none", "auto"])
@pytest.mark.parametrize("method", ONE_ADAPTER + AT_MOST_DENSE)
def test_the_memory_of_an_aggregator_does_not_grow_with_the_number_of_devices(
    method: str, robust: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedlora_server.means.parallel_modules.cores", lambda: 1)  # each works on a module of its own
    wide = {name: (40 * rows, 40 * columns) for name, (rows, columns) in SHAPES.items()}
    monkeypatch.setattr("tests.server.method_cases.SHAPES", wide)
    case = Case(method, LoraConfig(rank=32), AggregationConfig(robust=robust))
    monkeypatch.setattr("fedlora_server.aggregation.held_updates._IN_MEMORY_BYTES", 0)  # what a rule holds is mapped
    few, many = (20, 60) if method in ONE_ADAPTER else (25, 100)  # by 20 each window of a sum has been met
    peak_bytes(case, 1)  # what is loaded once
    peak = peak_bytes(case, many)
    ruled = robust == "auto" and not METHODS[method].refuses_robust
    names_and_shapes = 12_000 * many if ruled or method in AT_MOST_DENSE else 0  # of the updates that are held, mapped
    assert peak <= 1.1 * peak_bytes(case, few) + names_and_shapes
    if method in AT_MOST_DENSE:
        dense_bytes = 4 * sum(rows * columns for rows, columns in wide.values())
        assert peak <= 5 * dense_bytes


@pytest.mark.parametrize("point", entry_points(group=OFFERED.group), ids=lambda point: point.name)
def test_every_method_of_fedlora_has_a_reference_here_and_is_found_by_its_name(point: EntryPoint) -> None:
    assert point.name in REFERENCES or not point.value.startswith("fedlora_server.")
    assert find_method(point.name) is point.load()


@pytest.mark.parametrize(
    ("name", "hint"),
    [("svdd", "did you mean 'svd'"), ("FedAvg", "did you mean 'fedavg'"), ("?", "there is fedavg, fedex, ")],
)
def test_an_unknown_method_is_refused_with_a_hint(name: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        find_method(name)
    assert name in str(caught.value)
    assert hint in str(caught.value)
