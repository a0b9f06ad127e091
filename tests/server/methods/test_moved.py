"""What an update on an earlier adapter counts as, beside dense references of FedBuff's rule."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from fedlora.config.run import AggregationConfig
from fedlora.lora.adapter import Adapter
from fedlora_server.aggregation.aggregation import Round, State
from fedlora_server.aggregation.gram import norm_of_change
from fedlora_server.methods.moved import moved_both, moved_factors, moved_products

from tests.server.method_cases import CONFIGS, SHAPES, Case, Dense, assert_close, best, dense, device, devices

TAKING = ["ffa", "fedavg", "fedex", "fedrot", "hetlora", "lorafair", "stack", "svd"]
UNCAPPED = AggregationConfig(robust="none", max_weight=0.0)
LORA = CONFIGS["one module has its own rank and alpha"]
Late = tuple[Adapter, int, Adapter, float]  # an update, its weight, what it began with, and its factor


def later(case: Case, rounds: int = 2) -> list[State]:
    """The states before the rounds 1, 2, ..."""
    states = [case.aggregation.start()]
    for number in range(1, rounds + 1):
        this = case.round(number, states[-1])
        states.append(case.played(this, devices(this, 3, seed=10 * number)))
    return states


def played(case: Case, this: Round, updates: Sequence[Late]) -> tuple[State, Dense]:
    for update, weight, then, factor in updates:
        if then is this.down.adapter:
            this.add(update, weight)
        else:
            this.add_late(update, weight, then, factor)
    state = this.result()
    return state, dense(case.aggregation.committed(state))


def some(case: Case, rank: int = 1000) -> tuple[Round, list[Late]]:
    """Round 3, and updates on what went down in the rounds 3, 2 and 1."""
    states = later(case)
    this = case.round(3, states[2])
    earlier = [case.round(number, states[number - 1]) for number in (1, 2)]
    return this, [
        (device(this, 1), 7, this.down.adapter, 1.0),
        (device(earlier[1], 2, rank), 20, earlier[1].down.adapter, 2**-0.5),
        (device(earlier[0], 3), 3, earlier[0].down.adapter, 3**-0.5),
    ]


def mean_of_products(this: Round, updates: Sequence[Late]) -> Dense:
    """B_now A_now + sum_k (w_k / w) s_k (B_k A_k - B_t A_t), dense; of a fresh one B_k A_k."""
    total, now = sum(weight for _, weight, _, _ in updates), dense(this.down.adapter)
    result = {module: np.zeros(shape) for module, shape in SHAPES.items()}
    for update, weight, then, factor in updates:
        after, before = dense(update), dense(then)
        for module in SHAPES:
            fresh = then is this.down.adapter
            value = after[module] if fresh else now[module] + factor * (after[module] - before[module])
            result[module] += weight / total * value
    return result


def mean_of_factors(case: Case, this: Round, updates: Sequence[Late]) -> Dense:
    total, result = sum(weight for _, weight, _, _ in updates), {}
    for module in SHAPES:
        means = []
        for factor in ("lora_A", "lora_B"):
            now = getattr(this.down.adapter.pairs[module], factor).astype(np.float64)
            change = [
                weight / total * s * (getattr(update.pairs[module], factor) - getattr(then.pairs[module], factor))
                for update, weight, then, s in updates
            ]
            means.append(now + np.sum(change, axis=0))
        result[module] = case.lora.scaling_of(module) * means[1] @ means[0]
    return result


@pytest.mark.parametrize("method", ["svd", "stack", "fedex", "ffa", "fedavg"])
def test_late_updates_count_as_the_dense_rule_says(method: str) -> None:
    case = Case(method, LORA, UNCAPPED)
    this, updates = some(case)
    frozen = dense(this.down.frozen) if this.down.frozen else {}
    expected = mean_of_factors(case, this, updates) if method == "fedavg" else mean_of_products(this, updates)
    expected = {module: value + frozen.get(module, 0) for module, value in expected.items()}
    if method == "svd":
        expected = {module: best(value, LORA.rank_of(module)) for module, value in expected.items()}
    _, committed = played(case, this, updates)
    assert_close(committed, expected)


@pytest.mark.parametrize("method", ["svd", "stack", "fedex", "ffa", "fedavg"])
def test_the_error_of_a_commit_is_that_to_the_mean_of_what_the_late_ones_changed(method: str) -> None:
    case = Case(method, LORA, UNCAPPED)
    this, updates = some(case)
    frozen = dense(this.down.frozen) if this.down.frozen else {}
    mean = {m: value + frozen.get(m, 0) for m, value in mean_of_products(this, updates).items()}
    state, committed = played(case, this, updates)
    off = np.sqrt(sum(np.sum((committed[m] - mean[m]) ** 2) for m in SHAPES))
    expected = off / np.sqrt(sum(np.sum(mean[m] ** 2) for m in SHAPES))
    assert this.error(case.aggregation.committed(state)) == pytest.approx(expected, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("method", TAKING)
def test_an_update_that_changed_nothing_changes_nothing_however_late(method: str) -> None:
    case = Case(method, LORA, UNCAPPED)
    states = later(case)
    this, first = case.round(3, states[2]), case.round(1, states[0])
    before = dense(case.aggregation.committed(states[2]))
    _, after = played(case, this, [(first.down.adapter, 5, first.down.adapter, 0.6)])
    assert_close(after, before)


@pytest.mark.parametrize("method", TAKING)
def test_with_a_factor_of_nothing_a_late_update_is_as_one_that_changed_nothing(method: str) -> None:
    case = Case(method, LORA, UNCAPPED)
    states = later(case)
    first = case.round(1, states[0])
    changed, unchanged = (
        played(case, case.round(3, states[2]), [(update, 5, first.down.adapter, 0.0)])[1]
        for update in (device(first, 3), first.down.adapter)
    )
    assert_close(changed, unchanged)


@pytest.mark.parametrize("robust", ["norm-bound", "geometric-median", "multi-krum"])
@pytest.mark.parametrize("method", ["svd", "stack", "ffa"])
def test_robust_rules_take_late_updates(method: str, robust: str) -> None:
    case = Case(method, LORA, AggregationConfig(robust=robust, weights="uniform"))
    this, updates = some(case)
    played(case, this, updates)
    assert len(this.left_out) < 3


def test_a_median_of_products_takes_late_updates() -> None:
    case = Case("svd", LORA, AggregationConfig(robust="median", weights="uniform"))
    this, updates = some(case)
    now = dense(this.down.adapter)
    products = [{m: now[m] + s * (dense(update)[m] - dense(then)[m]) for m in SHAPES} for update, _, then, s in updates]
    _, committed = played(case, this, updates)
    median = {m: np.median([product[m] for product in products], axis=0) for m in SHAPES}
    assert_close(committed, {m: best(value, LORA.rank_of(m)) for m, value in median.items()})


@pytest.mark.parametrize("method", ["svd", "stack", "hetlora"])
def test_a_late_update_of_a_smaller_rank_counts_as_zero_in_what_it_lacks(method: str) -> None:
    case = Case(method, CONFIGS["rsLoRA"], AggregationConfig(min_rank=2, robust="none", max_weight=0.0))
    this, updates = some(case, rank=2)
    _, committed = played(case, this, updates)
    if method == "svd":
        expected = mean_of_products(this, updates)
        assert_close(committed, {m: best(value, 4) for m, value in expected.items()})
    assert all(np.isfinite(value).all() for value in committed.values())


@pytest.mark.parametrize("optimizer", ["fedavgm", "fedadam", "fedyogi"])
def test_server_optimizers_take_late_updates(optimizer: str) -> None:
    case = Case("fedavg", LORA, AggregationConfig(optimizer=optimizer, max_weight=0.0))
    this, updates = some(case)
    _, committed = played(case, this, updates)
    assert all(np.isfinite(value).all() for value in committed.values())


def test_a_change_that_is_small_beside_the_adapter_keeps_its_digits() -> None:
    """A joined product of float32 factors would lose them: B_k A_k - B_t A_t is about as large as its rounding."""
    case = Case("svd", LORA, UNCAPPED)
    states = later(case)
    this, then = case.round(3, states[2]).down.adapter, case.round(2, states[1]).down.adapter
    generator = np.random.default_rng(3)
    pairs = {
        module: type(pair)(
            pair.lora_A + 1e-5 * generator.normal(size=pair.lora_A.shape).astype(np.float32),
            pair.lora_B + 1e-5 * generator.normal(size=pair.lora_B.shape).astype(np.float32),
        )
        for module, pair in then.pairs.items()
    }
    update = Adapter(then.config, pairs)
    moved = moved_products(update, then, this, 0.5)
    expected = 0.5 * np.sqrt(sum(np.sum((dense(update)[m] - dense(then)[m]) ** 2) for m in SHAPES))
    assert norm_of_change(moved, this) == pytest.approx(expected, rel=1e-4)


def test_moving_changes_none_of_what_it_is_given() -> None:
    case = Case("fedavg", LORA, UNCAPPED)
    states = later(case)
    now, first = case.round(3, states[2]).down.adapter, case.round(1, states[0])
    given = [device(first, 3), first.down.adapter, now]
    before = [dense(adapter) for adapter in given]
    for move in (moved_factors, moved_products, moved_both):
        move(given[0], given[1], given[2], 0.7)
    for adapter, was in zip(given, before, strict=True):
        assert_close(dense(adapter), was)
