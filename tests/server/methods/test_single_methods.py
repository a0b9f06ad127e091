"""What single aggregation methods promise beside the contract of all."""

from __future__ import annotations

import math

import numpy as np
import pytest
from fedlora.config.run import AggregationConfig
from fedlora.errors import ConfigError
from fedlora.lora.adapter import Adapter, LoraPair
from fedlora.lora.config import LoraConfig
from fedlora_server.methods.fedrot import rotated_onto

from tests.server.method_cases import (
    CONFIGS,
    SHAPES,
    TOLERANCE,
    Case,
    assert_close,
    dense,
    dense_mean,
    device,
    devices,
    in_another_gauge,
)


def test_fedrot_is_indifferent_to_a_rotation_of_each_clients_factors(lora: LoraConfig, number: int) -> None:
    case, generator = Case("fedrot", lora), np.random.default_rng(3)
    state = case.before(number)
    updates = devices(case.round(number, state))
    turned = [(in_another_gauge(adapter, generator, stretch=False), weight) for adapter, weight in updates]
    assert_close(case.dense(case.round(number, state), turned), case.dense(case.round(number, state), updates))


def test_fedavg_depends_on_the_gauge_and_says_so() -> None:
    case, generator = Case("fedavg", CONFIGS["rsLoRA"]), np.random.default_rng(3)
    updates = devices(case.round())
    turned = [(in_another_gauge(adapter, generator), weight) for adapter, weight in updates]
    this = case.round()
    result, other = case.played(this, turned).now.adapter, case.dense(case.round(), updates)
    assert all(np.abs(dense(result)[module] - other[module]).max() > 0.1 for module in SHAPES)
    error = this.error(result)
    assert error is not None
    assert error > 0.1


def test_lorafair_is_closer_to_the_mean_of_the_products_than_fedavg(lora: LoraConfig) -> None:
    errors = {}
    for name in ("lorafair", "fedavg"):
        case = Case(name, lora)
        this = case.round()
        errors[name] = this.error(case.played(this, devices(this)).now.adapter) or 0.0
    assert errors["lorafair"] < errors["fedavg"]


def test_the_first_components_of_svds_adapter_are_the_best_adapter_of_that_rank(lora: LoraConfig) -> None:
    case = Case("svd", lora)
    updates = devices(case.round())
    adapter = case.played(case.round(), updates).now.adapter
    for module, mean in dense_mean(updates).items():
        pair, values = adapter.pairs[module], np.linalg.svd(mean, compute_uv=False)
        first = lora.scaling_of(module) * pair.lora_B[:, :2].astype(np.float64) @ pair.lora_A[:2]
        assert np.linalg.norm(mean - first) == pytest.approx(math.sqrt(float(np.sum(values[2:] ** 2))), rel=1e-4)


@pytest.mark.parametrize(("method", "max_rank", "is_exact"), [("stack", 5, False), ("stack", 64, True), ("fedex", 5, False),
                                                              ("fedex", 64, True)])  # fmt: skip
def test_a_bounded_rank_is_kept_to_and_what_it_cuts_off_is_reported(method: str, max_rank: int, is_exact: bool) -> None:
    case = Case(method, LoraConfig(rank=3, alpha=6.0), AggregationConfig(max_rank=max_rank))
    state = case.aggregation.start()
    for number in (1, 2, 3):
        this = case.round(number, state)
        updates = devices(this, seed=10 * number)
        state = case.played(this, updates)
        committed = case.aggregation.committed(state)
        assert max(pair.rank for pair in committed.pairs.values()) <= max_rank
        error = this.error(committed)
        assert error is not None
        assert (error < TOLERANCE["float32"]) == is_exact


def test_stack_lets_the_devices_train_a_new_adapter_beside_what_was_committed() -> None:
    case = Case("stack", CONFIGS["rsLoRA"])
    first, state = case.round(), case.later()
    second = case.round(2, state)
    assert first.down.frozen is None
    assert second.down.frozen is case.aggregation.committed(state)
    for module, pair in second.down.adapter.pairs.items():
        assert not pair.lora_B.any()
        assert not np.array_equal(pair.lora_A, first.down.adapter.pairs[module].lora_A)


def test_fedsvd_keeps_orthonormal_rows_in_a(lora: LoraConfig) -> None:
    case = Case("fedsvd", lora)
    for adapter in (case.round().down.adapter, case.later().now.adapter):
        for pair in adapter.pairs.values():
            np.testing.assert_allclose(pair.lora_A @ pair.lora_A.T, np.eye(pair.rank), atol=1e-6)


def test_fedsvd_refuses_more_rows_than_can_be_orthonormal() -> None:
    with pytest.raises(ConfigError, match=r"has no 9 orthonormal rows; lower lora.rank"):
        Case("fedsvd", LoraConfig(rank=9)).round()


def test_fedex_without_room_for_a_residual_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"max_rank is 4, .* trains rank 4: nothing is left for the residual"):
        Case("fedex", LoraConfig(rank=4), AggregationConfig(max_rank=4)).round()


@pytest.mark.parametrize(
    ("method", "tasks"),
    [
        ("ffa", [("B", "B"), ("B", "B")]),
        ("rolora", [("B", "B"), ("A", "A")]),
        ("fedsvd", [("B", "B"), ("B", "B")]),
        ("fedsa", [("AB", "A"), ("AB", "A")]),
        ("svd", [("AB", "AB"), ("AB", "AB")]),
    ],
)
def test_a_method_says_what_trains_and_what_is_sent(method: str, tasks: list[tuple[str, str]]) -> None:
    rounds = [Case(method, CONFIGS["rsLoRA"]).round(number) for number in (1, 2)]
    assert [(this.task.trains, this.task.sends) for this in rounds] == tasks


@pytest.mark.parametrize(("method", "factor"), [("ffa", "A"), ("fedsa", "B")])
def test_what_the_seed_gives_stays_that_of_the_first_adapter(method: str, factor: str) -> None:
    case = Case(method, CONFIGS["rsLoRA"])
    assert case.aggregation.factors_down == {"A": "B", "B": "A"}[factor]
    first, later = case.aggregation.start().now.adapter, case.later().now.adapter
    for module in SHAPES:
        name = f"lora_{factor}"
        np.testing.assert_array_equal(getattr(later.pairs[module], name), getattr(first.pairs[module], name))


def test_hetlora_weighs_a_large_update_more() -> None:
    case = Case("hetlora", LoraConfig(rank=2, alpha=2.0))
    this = case.round()
    small, large = device(this, 0), device(this, 1)
    grown = Adapter(large.config, {m: LoraPair(p.lora_A, 10 * p.lora_B) for m, p in large.pairs.items()})
    mean = case.played(this, [(small, 1), (grown, 1)]).now.adapter
    for module in SHAPES:
        towards = large.pairs[module].lora_A - small.pairs[module].lora_A
        share = float(
            np.vdot(mean.pairs[module].lora_A - small.pairs[module].lora_A, towards) / np.vdot(towards, towards)
        )
        assert 0.8 < share < 0.97


def test_a_rotation_changes_no_product_and_is_the_best_of_many() -> None:
    adapter, target = (device(Case("svd", CONFIGS["rsLoRA"]).round(), seed) for seed in (0, 1))
    turned, generator = rotated_onto(adapter, target), np.random.default_rng(2)
    assert_close(dense(turned), dense(adapter))

    def distance(other: Adapter, module: str) -> float:
        pair, onto = other.pairs[module], target.pairs[module]
        return float(np.sum((pair.lora_A - onto.lora_A) ** 2) + np.sum((pair.lora_B - onto.lora_B) ** 2))

    for module in SHAPES:
        best = distance(turned, module)
        for _ in range(50):
            assert best <= distance(in_another_gauge(adapter, generator, stretch=False), module) + 1e-4


def test_a_rotation_onto_itself_is_none() -> None:
    adapter = device(Case("svd", CONFIGS["rsLoRA"]).round(), 0)
    turned = rotated_onto(in_another_gauge(adapter, np.random.default_rng(1), stretch=False), adapter)
    for module, pair in adapter.pairs.items():
        np.testing.assert_allclose(turned.pairs[module].lora_A, pair.lora_A, atol=1e-5)


def test_a_component_that_no_device_of_the_round_has_stays_as_it_was(lora: LoraConfig) -> None:
    case = Case("hetlora", lora, AggregationConfig(min_rank=1))
    state = case.later()
    this = case.round(2, state)
    after = case.played(this, devices(this, 3, ranks=(1, 2))).now.adapter
    for module, pair in state.now.adapter.pairs.items():
        np.testing.assert_array_equal(after.pairs[module].lora_A[2:], pair.lora_A[2:])
        np.testing.assert_array_equal(after.pairs[module].lora_B[:, 2:], pair.lora_B[:, 2:])
        assert not np.array_equal(after.pairs[module].lora_A[:2], pair.lora_A[:2])


def test_stack_without_room_for_one_device_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"stack: aggregation.max_rank is 3, .* trains rank 4; raise"):
        Case("stack", LoraConfig(rank=4), AggregationConfig(max_rank=3)).round()


@pytest.mark.parametrize("method", ["stack", "fedex"])
def test_an_alpha_that_the_committed_rank_would_take_too_far_is_refused_at_the_start(method: str) -> None:
    with pytest.raises(ConfigError, match="an alpha must be a positive number"):
        Case(method, LoraConfig(rank=1, alpha=5e5), AggregationConfig(max_rank=8)).round()


def test_what_is_set_and_used_by_nothing_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    settings = AggregationConfig(
        lr=0.5, beta2=0.9, norm_bound=2.0, max_rank=8, lorafair_lambda=1.0, optimizer="fedavgm", robust="none"
    )
    Case("svd", CONFIGS["rsLoRA"], settings).round()
    told = [record.getMessage() for record in caplog.records]
    assert [message.split(" ")[0] for message in told] == [
        f"aggregation.{key}" for key in ("max_rank", "lorafair_lambda", "beta2", "norm_bound")
    ]
