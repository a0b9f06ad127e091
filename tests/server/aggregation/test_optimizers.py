"""Server optimizers: each equals its formula, step by step, and goes with the methods that it can go with."""

from __future__ import annotations

import numpy as np
import pytest
from fedlora.config.run import AggregationConfig
from fedlora.errors import ConfigError
from fedlora.lora.config import LoraConfig
from fedlora_server.aggregation.optimizers import Moments, optimized

from tests.server.method_cases import METHODS, SHAPES, Case, Dense, assert_close, best, dense, device, devices

LORA = LoraConfig(rank=3, alpha=6.0)
OPTIMIZERS = ("fedavgm", "fedadam", "fedyogi")
TAKING = sorted(name for name in METHODS if not METHODS[name].refuses_optimizer)

COMBINATIONS = [(m, o) for m in TAKING for o in OPTIMIZERS if o == "fedavgm" or not METHODS[m].refuses_adaptive]


def settings(optimizer: str, **changes: float) -> AggregationConfig:
    return AggregationConfig(optimizer=optimizer, **changes)  # type: ignore[arg-type]


def reference(optimizer: str, changes: list[float], lr: float, beta1: float, beta2: float, tau: float) -> list[float]:
    """The steps of one number for these pseudo-gradients, as the papers write them."""
    m, v, steps = 0.0, tau**2, []
    for change in changes:
        if optimizer == "fedavgm":
            m = beta1 * m + change
            steps.append(lr * m)
            continue
        m = beta1 * m + (1 - beta1) * change
        if optimizer == "fedadam":
            v = beta2 * v + (1 - beta2) * change**2
        else:
            v = v - (1 - beta2) * change**2 * np.sign(v - change**2)
        steps.append(lr * m / (np.sqrt(v) + tau))
    return steps


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_optimizer_equals_its_formula_over_several_rounds(optimizer: str) -> None:
    case, constants = Case("fedavg", LORA), {"lr": 0.3, "beta1": 0.8, "beta2": 0.95, "tau": 0.01}
    now, moments = device(case.round(), 0), Moments()
    start, changes, module = now, [], "layers.0.q_proj"
    for seed in (1, 2, 3):
        mean = device(case.round(), seed)
        changes.append(float(mean.pairs[module].lora_B[2, 1] - now.pairs[module].lora_B[2, 1]))
        now, moments = optimized(now, mean, moments, settings(optimizer, **constants), "AB", keeps_components=True)
    moved = float(now.pairs[module].lora_B[2, 1] - start.pairs[module].lora_B[2, 1])
    assert moved == pytest.approx(sum(reference(optimizer, changes, **constants)), rel=1e-4)


@pytest.mark.parametrize("method", ["svd", "raflora"])
def test_the_momentum_of_a_method_of_products_is_that_of_the_dense_products(method: str) -> None:
    case = Case(method, LORA, settings("fedavgm", lr=0.5, beta1=0.8))
    plain = Case(method, LORA)
    state = case.aggregation.start()
    now: Dense = {module: np.zeros(shape) for module, shape in SHAPES.items()}
    momentum = {module: np.zeros(shape) for module, shape in SHAPES.items()}
    for number in (1, 2, 3):
        updates = devices(case.round(number, state), seed=10 * number)
        mean = plain.dense(plain.round(), updates)
        state = case.played(case.round(number, state), updates)
        for module in SHAPES:
            momentum[module] = best(0.8 * momentum[module] + mean[module] - now[module], 2 * LORA.rank)
            now[module] = best(now[module] + 0.5 * momentum[module], LORA.rank)
        assert_close(dense(state.now.adapter), now)


@pytest.mark.parametrize("method", TAKING)
def test_fedavgm_without_momentum_and_with_rate_1_is_the_method_itself(method: str) -> None:
    case = Case(method, LORA, settings("fedavgm", beta1=0.0))
    plain, updates = Case(method, LORA), devices(case.round())
    state, expected = case.played(case.round(), updates), plain.played(plain.round(), updates)
    assert_close(dense(case.aggregation.committed(state)), dense(plain.aggregation.committed(expected)))


@pytest.mark.parametrize(("method", "optimizer"), COMBINATIONS)
def test_an_optimizer_goes_on_from_its_moments(method: str, optimizer: str) -> None:
    case = Case(method, LORA, settings(optimizer, lr=0.1))
    state = case.later()
    assert state.moments
    later = case.played(case.round(3, state), devices(case.round(3, state), seed=7))
    forgetful = case.aggregation.restored(case.aggregation.committed(state), {})
    without = case.played(case.round(3, forgetful), devices(case.round(3, state), seed=7))
    committed, other = (case.aggregation.committed(each) for each in (later, without))
    arrays = [(p.lora_A, p.lora_B, other.pairs[m].lora_A, other.pairs[m].lora_B) for m, p in committed.pairs.items()]
    assert any(not np.array_equal(a, a2) or not np.array_equal(b, b2) for a, b, a2, b2 in arrays)


@pytest.mark.parametrize("method", sorted(METHODS.keys() - set(TAKING)))
def test_a_method_that_takes_no_optimizer_says_why_at_the_start(method: str) -> None:
    with pytest.raises(ConfigError, match=f"optimizer is fedadam, which {method} does not take: .*use svd"):
        Case(method, LORA, settings("fedadam")).round()


def test_a_factor_that_did_not_train_stays_as_it_is() -> None:
    case = Case("ffa", LORA, settings("fedadam"))
    state = case.later()
    assert {name.rsplit(" ", 1)[1] for name in state.moments} == {"B"}


@pytest.mark.parametrize("optimizer", ["fedadam", "fedyogi"])
@pytest.mark.parametrize("method", ["svd", "raflora"])
def test_an_optimizer_that_goes_element_by_element_is_refused_where_the_factors_are_others(
    method: str, optimizer: str
) -> None:
    with pytest.raises(ConfigError, match=f"optimizer is {optimizer}, which {method} does not take: .*use fedavgm"):
        Case(method, LORA, settings(optimizer)).round()


@pytest.mark.parametrize(("method", "optimizer"), COMBINATIONS)
def test_a_round_that_changed_nothing_moves_nothing_but_by_momentum(method: str, optimizer: str) -> None:
    case = Case(method, LORA, settings(optimizer, lr=0.1, beta1=0.0))
    state = case.later()
    this = case.round(2, state)
    same = [(this.down.adapter, 3), (this.down.adapter, 1)]
    assert_close(case.dense(this, same), dense(case.aggregation.committed(state)))


def test_an_optimizer_changes_none_of_its_inputs() -> None:
    before, mean = (device(Case("svd", LORA).round(), seed) for seed in (0, 1))
    _, moments = optimized(before, mean, {}, settings("fedadam"), "AB", keeps_components=True)
    inputs = [*moments.values(), *(a for x in (before, mean) for p in x.pairs.values() for a in (p.lora_A, p.lora_B))]
    copies = [array.copy() for array in inputs]
    optimized(before, mean, moments, settings("fedadam"), "AB", keeps_components=True)
    for array, copy in zip(inputs, copies, strict=True):
        np.testing.assert_array_equal(array, copy)
