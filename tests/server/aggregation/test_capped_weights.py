"""A weight counts up to a multiple of the round's median, whatever a device says, in any order of arrival."""

from __future__ import annotations

import numpy as np
import pytest
from fedlora.config.run import AggregationConfig
from fedlora.lora.config import LoraConfig
from fedlora_server.aggregation.capped_weights import capped, in_any_order, merges
from hypothesis import given
from hypothesis import strategies as st

from tests.server.method_cases import METHODS, Case, assert_close, device

LORA = LoraConfig(rank=3, alpha=6.0)
OF_PRODUCTS = ("fedex", "lorafair", "raflora", "stack", "svd")  # whose sums depend on the order
GIVEN = (100, 70, 130, 10**9, 90, 399, 1)  # of which the median is 100
COUNT = (100, 70, 130, 400, 90, 399, 1)
CAPPED = AggregationConfig(robust="none")
UNCAPPED = AggregationConfig(robust="none", max_weight=0.0)


def test_what_is_above_the_multiple_counts_as_the_multiple() -> None:
    np.testing.assert_array_equal(capped(GIVEN, 4.0), COUNT)
    np.testing.assert_array_equal(capped(GIVEN, 0), GIVEN)
    assert capped([7], 1.0) == [7]
    assert len(capped([], 4.0)) == 0


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=30), st.floats(1, 100))
def test_no_capped_weight_is_above_the_bound_and_none_below_it_changes(weights: list[int], multiple: float) -> None:
    got, bound = capped(weights, multiple), multiple * np.median(weights)
    assert (got <= bound).all()
    assert all(count == given for count, given in zip(got, weights, strict=True) if given <= bound)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_round_with_a_giant_weight_is_that_with_the_capped_one(method: str) -> None:
    giant, plain = Case(method, LORA, CAPPED), Case(method, LORA, UNCAPPED)
    adapters = [device(giant.round(), seed) for seed in range(len(GIVEN))]
    expected = plain.dense(plain.round(), list(zip(adapters, COUNT, strict=True)))
    for order in ([0, 1, 2, 3, 4, 5, 6], [3, 6, 5, 4, 2, 1, 0]):
        updates = [(adapters[k], GIVEN[k]) for k in order]
        assert_close(giant.dense(giant.round(), updates), expected)


@pytest.mark.parametrize("method", sorted(name for name in METHODS if METHODS[name].measures_error))
def test_the_error_of_a_capped_round_is_that_against_the_capped_mean(method: str) -> None:
    giant, plain = Case(method, LORA, CAPPED), Case(method, LORA, UNCAPPED)
    errors = []
    for case, weights in ((giant, GIVEN), (plain, COUNT)):
        this = case.round()
        state = case.played(this, [(device(this, seed), weight) for seed, weight in enumerate(weights)])
        errors.append(this.error(case.aggregation.committed(state)))
    assert errors[0] == pytest.approx(errors[1], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_mean_of_factors_bounds_weights_as_updates_arrive(method: str) -> None:
    this = Case(method, LORA).round()
    aggregator = this._method.aggregator(this.down, 1)
    assert merges(aggregator) == in_any_order(aggregator) == (method not in OF_PRODUCTS)


def test_a_mean_of_products_caps_each_weight_by_itself() -> None:
    giant, plain = Case("svd", LORA, CAPPED), Case("svd", LORA, UNCAPPED)
    adapters = [device(giant.round(), seed) for seed in range(6)]
    given = zip(adapters, (100, 100, 100, 100, 2**20, 2**20 + 2**19), strict=True)
    expected = zip(adapters, (100, 100, 100, 100, 400, 400), strict=True)
    assert_close(giant.dense(giant.round(), list(given)), plain.dense(plain.round(), list(expected)))


def test_two_giants_of_one_group_together_count_as_two_caps() -> None:
    giant, plain = Case("fedavg", LORA, CAPPED), Case("fedavg", LORA, UNCAPPED)
    adapters = [device(giant.round(), seed) for seed in range(6)]
    weights, share = (100, 100, 100, 100, 2**20, 2**20 + 2**19), 800 / 2.5
    expected = [100, 100, 100, 100, share, 1.5 * share]
    this = plain.round()
    for adapter, weight in zip(adapters, expected, strict=True):
        this._aggregator.add(adapter, weight)
    want = this.result()
    got = giant.played(giant.round(), list(zip(adapters, weights, strict=True)))
    for module, pair in want.now.adapter.pairs.items():
        other = got.now.adapter.pairs[module]
        np.testing.assert_allclose(other.lora_B @ other.lora_A, pair.lora_B @ pair.lora_A, atol=1e-5)
