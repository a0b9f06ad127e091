"""Extra tensors beside A and B: their mean, by every method and rule, has the weights of the updates that it is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fedlora.config.run import AggregationConfig
from fedlora.errors import ConfigError
from fedlora.lora.adapter import Adapter, with_extras
from fedlora.lora.config import LoraConfig
from fedlora_server.aggregation.gram import gram_of_changes, norm_of_change
from fedlora_server.aggregation.held_updates import HeldUpdates
from numpy.typing import NDArray

from tests.server.method_cases import HEAD, METHODS, SETTINGS, WEIGHING, Case, Weighted, bits, dense, devices

LORA = LoraConfig(rank=4, alpha=8.0)


def case_of(method: str, **settings: Any) -> Case:
    return Case(method, LORA, replace(AggregationConfig(robust="none", max_weight=0.0), **settings), has_head=True)


def mean(updates: Sequence[Weighted], name: str, weights: Sequence[float] = ()) -> NDArray[np.float64]:
    own = weights or [weight for _, weight in updates]
    summed = sum(w * adapter.extras[name].astype(np.float64) for w, (adapter, _) in zip(own, updates, strict=True))
    return np.asarray(summed / sum(own))


def assert_extras(got: Any, expected: Any) -> None:
    assert got.keys() == HEAD.keys()
    for name, array in got.items():
        np.testing.assert_allclose(array, expected(name), rtol=0, atol=1e-6)


@pytest.mark.parametrize("weights", ["examples", "uniform"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_commits_the_weighted_mean_of_the_head_and_of_a_and_b_what_it_did(
    method: str, weights: str
) -> None:
    case = case_of(method, weights=weights)
    this, plain = case.round(), replace(case, has_head=False)
    assert_extras(this.down.adapter.extras, HEAD.__getitem__)
    updates = devices(this)
    state = case.played(this, updates)
    own = [] if weights == "examples" else [1.0] * len(updates)
    assert_extras(state.extras, lambda name: mean(updates, name, own))
    committed = case.aggregation.committed(state)
    assert_extras(committed.extras, lambda name: mean(updates, name, own))
    without = plain.played(plain.round(), [(with_extras(adapter, {}), weight) for adapter, weight in updates])
    assert bits(replace(state, extras={})) == bits(without)
    assert_extras(case.aggregation.restored(committed, state.moments).extras, committed.extras.__getitem__)
    assert_extras(case.round(2, state).down.adapter.extras, committed.extras.__getitem__)


def test_a_weight_is_capped_for_the_head_as_for_the_factors() -> None:
    case = case_of("fedavg", max_weight=2.0)
    updates = list(zip([a for a, _ in devices(case.round(), 5)], (1, 1, 1, 1, 1000), strict=True))
    state = case.played(case.round(), updates)
    assert_extras(state.extras, lambda name: mean(updates, name, [1, 1, 1, 1, 2]))


def test_what_is_taken_back_leaves_no_bit_in_the_head() -> None:
    case = case_of("fedavg")
    this, updates = case.round(), devices(case.round(), 4)
    for adapter, weight in updates:
        this.add(adapter, weight)
    this.remove(*updates[1])
    expected = case.played(case.round(), [updates[0], *updates[2:]])
    assert bits(this.result()) == bits(expected)


@pytest.mark.parametrize("method", ["svd", "fedavg", "ffa"])
def test_a_late_update_counts_by_what_it_changed(method: str) -> None:
    case = case_of(method)
    first = case.round()
    later = case.played(first, devices(case.round(), 3))
    this, late = case.round(2, later), devices(case.round(), 1, seed=70)[0][0]
    fresh = devices(this, 1, seed=80)[0][0]
    this.add_late(late, 3, first.down.adapter, 0.5)
    this.add(fresh, 1)
    now = later.extras
    moved = {name: now[name] + 0.5 * (late.extras[name] - HEAD[name]) for name in HEAD}
    assert_extras(this.result().extras, lambda name: (3 * moved[name] + fresh.extras[name]) / 4)


@pytest.mark.parametrize("method", ["svd", "fedavg"])
def test_a_server_momentum_moves_the_head_with_a_memory_of_its_own(method: str) -> None:
    case = case_of(method, optimizer="fedavgm", beta1=0.5, lr=0.7)
    state, velocity, now = None, {name: 0 * array for name, array in HEAD.items()}, dict(HEAD)
    for number in (1, 2):
        this = case.round(number, state)
        updates = devices(this, 3, seed=10 * number)
        state = case.played(this, updates)
        for name in HEAD:
            velocity[name] = (0.5 * velocity[name] + mean(updates, name) - now[name]).astype(np.float32)
            now[name] = now[name] + 0.7 * velocity[name]
        assert_extras(state.extras, now.__getitem__)
        assert {f"m {name}" for name in HEAD} <= state.moments.keys()


def test_an_adaptive_optimizer_goes_over_the_head_element_by_element() -> None:
    case = case_of("fedavg", optimizer="fedadam", beta1=0.9, beta2=0.99, tau=0.01, lr=0.1)
    updates = devices(case.round(), 3)
    state = case.played(case.round(), updates)

    def expected(name: str) -> NDArray[np.float64]:
        change = mean(updates, name) - HEAD[name]
        second = 0.99 * 0.01**2 + 0.01 * change**2
        return np.asarray(HEAD[name] + 0.1 * 0.1 * change / (np.sqrt(second) + 0.01))

    for name, array in state.extras.items():
        np.testing.assert_allclose(array, expected(name), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", WEIGHING)
def test_a_liar_in_the_head_alone_is_left_out(rule: str) -> None:
    case = case_of("svd", robust=rule, weights="uniform")
    this, honest = case.round(), devices(case.round(), 6)
    liar = with_extras(honest[0][0], {name: 900 + array for name, array in honest[0][0].extras.items()})
    state = case.played(this, [*honest[1:], (liar, 1)])
    assert max(float(np.abs(array).max()) for array in state.extras.values()) < 5
    if rule != "geometric-median":  # which leaves a distant one next to no weight
        assert this.left_out == [5]


def test_the_median_of_the_head_is_that_of_each_number() -> None:
    case = case_of("svd", robust="median", weights="uniform")
    updates = devices(case.round(), 5)
    state = case.played(case.round(), updates)
    assert_extras(state.extras, lambda name: np.median([adapter.extras[name] for adapter, _ in updates], axis=0))


def test_norms_and_angles_are_those_of_all_changed_weights() -> None:
    case = case_of("svd")
    down, adapters = case.round().down.adapter, [adapter for adapter, _ in devices(case.round(), 4)]

    def flat(adapter: Adapter) -> NDArray[np.float64]:
        parts = [*dense(adapter).values(), *(array.astype(np.float64) for array in adapter.extras.values())]
        return np.concatenate([part.ravel() for part in parts])

    changes = np.stack([flat(adapter) - flat(down) for adapter in adapters])
    np.testing.assert_allclose(gram_of_changes(adapters, down), changes @ changes.T, rtol=1e-5, atol=1e-3)
    norms = [norm_of_change(adapter, down) for adapter in adapters]
    np.testing.assert_allclose(norms, np.linalg.norm(changes, axis=1), rtol=1e-5)


def test_heads_that_are_held_in_a_file_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedlora_server.aggregation.held_updates._IN_MEMORY_BYTES", 0)
    adapter = devices(case_of("svd").round(), 1)[0][0]
    held = HeldUpdates().hold(adapter)
    for name, array in adapter.extras.items():
        assert not np.shares_memory(held.extras[name], array)
        np.testing.assert_array_equal(held.extras[name], array)
    for module, pair in adapter.pairs.items():
        np.testing.assert_array_equal(held.pairs[module].lora_B, pair.lora_B)


def test_what_robust_rules_refuse_they_refuse_with_a_head_too() -> None:
    assert SETTINGS.robust == "auto"
    with pytest.raises(ConfigError, match=r"aggregation\.robust is norm-bound, which fedsa does not take"):
        case_of("fedsa", robust="norm-bound").round()
