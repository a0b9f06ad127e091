"""What a round makes has the same bits in every order of arrival: each method, with each rule, optimizer and weights."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest
from fedlora.config.run import AggregationConfig
from fedlora.errors import ConfigError
from fedlora.lora.adapter import Adapter, LoraPair
from fedlora.lora.config import LoraConfig
from fedlora_server.aggregation.fixed_order import fixed_order
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.server.method_cases import METHODS, ROBUST, Case, Weighted, bits, device, devices

LORA = LoraConfig(rank=4, alpha=8.0)
COUNT = 7
# The number that all of a device's are multiplied with, and some that it holds at single places.
SIZES = (1.0, 1e-6, 300.0, 1.0, 1e-30, 1e-3, 1.0)
ODD_ONES = (-0.0, 1e-45, 1e-40, 999.0, 0.0, -1e-20)


@cache
def combinations() -> list[tuple[str, str, str, str, float, int]]:
    """(method, rule, optimizer, weights, max_weight, min_rank) of all that goes together."""
    found = []
    for method, robust, optimizer, (weights, most), rank in itertools.product(
        sorted(METHODS), ["none", *ROBUST], ["none", "fedavgm", "fedadam", "fedyogi"],
        [("examples", 4.0), ("examples", 0.0), ("uniform", 4.0)], [0, 1],
    ):  # fmt: skip
        settings = AggregationConfig(
            robust=robust, optimizer=optimizer, weights=weights, max_weight=most, min_rank=rank
        )
        try:
            Case(method, LORA, settings, has_head=True).round()
        except ConfigError:
            continue
        found.append((method, robust, optimizer, weights, most, rank))
    return found


@pytest.fixture(scope="module", autouse=True)
def known() -> Iterator[None]:
    """Methods and rules by their names, without looking through what is installed each time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedlora_server.aggregation.aggregation.find_method", METHODS.__getitem__)
        patch.setattr("fedlora_server.aggregation.aggregation.find_robust_rule", ROBUST.get)
        yield


def odd(adapter: Adapter, number: int) -> Adapter:
    """Of another size, and with odd numbers in it, where the device trains them."""
    generator, pairs = np.random.default_rng(number), {}
    for module, pair in adapter.pairs.items():
        lora_B = pair.lora_B * np.float32(SIZES[number % len(SIZES)])
        lora_B.flat[generator.integers(0, lora_B.size, len(ODD_ONES))] = np.array(ODD_ONES, np.float32)
        pairs[module] = LoraPair(pair.lora_A, lora_B)
    extras = {name: array * np.float32(SIZES[number % len(SIZES)]) for name, array in adapter.extras.items()}
    return Adapter(adapter.config, pairs, extras=extras)


def updates_of(case: Case, min_rank: int) -> list[Weighted]:
    this = case.round()
    ranks = (1000, 2, 1, 1000, 3) if min_rank else (1000,)
    own = [adapter for adapter, _ in devices(this, COUNT, ranks=ranks)]
    if "B" in this.task.sends:
        own = [odd(adapter, number) for number, adapter in enumerate(own)]
    return list(zip(own, (7, 200, 1, 13, 10**9, 13, 64), strict=True))


def made(case: Case, updates: list[Weighted]) -> tuple[bytes, float | None]:
    this = case.round()
    state = case.played(this, updates)
    return bits(state), this.error(case.aggregation.committed(state))


def test_every_method_and_rule_is_among_the_combinations() -> None:
    assert {method for method, *_ in combinations()} == set(METHODS)
    assert {rule for _, rule, *_ in combinations()} == {"none", *ROBUST}
    assert len(combinations()) > 100


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_round_has_the_same_bits_in_every_order_of_arrival(method: str) -> None:
    mixed = np.random.default_rng(3)
    for own, robust, optimizer, weights, most, rank in combinations():
        if own != method:
            continue
        settings = AggregationConfig(
            robust=robust, optimizer=optimizer, weights=weights, max_weight=most, min_rank=rank
        )
        case = Case(method, LORA, settings, has_head=True)
        updates = updates_of(case, rank)
        expected = made(case, updates)
        for order in (range(COUNT - 1, -1, -1), mixed.permutation(COUNT)):
            assert made(case, [updates[place] for place in order]) == expected, settings


@given(st.permutations(range(COUNT)), st.lists(st.integers(1, 10**9), min_size=COUNT, max_size=COUNT), st.data())
@settings(max_examples=25, deadline=None)
def test_any_order_and_any_weights_give_the_same_bits(
    order: list[int], weights: list[int], data: st.DataObject
) -> None:
    method = data.draw(st.sampled_from(["fedavg", "hetlora", "fedrot", "svd", "fedex"]))
    case = Case(method, LORA, AggregationConfig(robust="none"))
    updates = list(zip((adapter for adapter, _ in updates_of(case, 0)), weights, strict=True))
    assert made(case, [updates[place] for place in order]) == made(case, updates)


def test_updates_are_ordered_by_weight_and_then_by_their_numbers() -> None:
    this = Case("svd", LORA).round()
    one, other = device(this, 1), device(this, 2)
    last = Adapter(one.config, {m: LoraPair(p.lora_A.copy(), p.lora_B.copy()) for m, p in one.pairs.items()})
    end = list(last.pairs.values())[-1].lora_A.copy()
    end[-1, -1] = np.nextafter(end[-1, -1], np.float32(9))
    name = list(last.pairs)[-1]
    last = Adapter(last.config, {**last.pairs, name: LoraPair(end, last.pairs[name].lora_B)})
    assert fixed_order([one, other], [2, 1]) == [1, 0]
    orders = set()
    for adapters in ([one, other, last], [last, one, other], [other, last, one]):
        orders.add(tuple(id(adapters[place]) for place in fixed_order(adapters, [1, 1, 1])))
    assert len(orders) == 1
