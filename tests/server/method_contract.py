"""The contract of an aggregation method, wherever it comes from. Its tests ask for two fixtures:

case        the method over the small modules of `method_cases`
reference   what a round of it commits, slow and dense
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from fedlora.config.run import AggregationConfig
from fedlora.errors import RunError

from tests.server.method_cases import SHAPES, Case, Reference, assert_close, bits, dense, device, devices, with_side


class MethodContract:
    """What every method keeps. A test module derives from it: its own fixtures say of which methods."""

    def test_a_method_equals_its_dense_reference(self, case: Case, reference: Reference, number: int) -> None:
        state = case.before(number)
        this, updates = case.round(number, state), devices(case.round(number, state))
        assert_close(case.dense(case.round(number, state), updates), reference(case, this, updates))

    def test_a_method_with_one_client_returns_that_clients_product(self, case: Case, number: int) -> None:
        this = case.round(number, case.before(number))
        only = device(this, 0)
        assert_close(case.dense(this, [(only, 17)]), with_side(this, dense(only)))

    def test_a_method_with_equal_clients_returns_their_product(self, case: Case) -> None:
        this = case.round()
        only = device(this, 0)
        assert_close(case.dense(this, [(only, 3), (only, 5), (only, 1)]), dense(only))

    def test_a_method_has_the_same_bits_in_every_order_of_arrival(self, case: Case) -> None:
        state = case.later()
        updates = devices(case.round(2, state), 7)
        made = set()
        for order in ([0, 1, 2, 3, 4, 5, 6], [4, 2, 6, 0, 3, 5, 1], [6, 5, 4, 3, 2, 1, 0]):
            this = case.round(2, state)
            after = case.played(this, [updates[i] for i in order])
            made.add((bits(after), this.error(case.aggregation.committed(after))))
        assert len(made) == 1

    def test_an_update_that_is_taken_back_leaves_no_trace(self, case: Case) -> None:
        state = case.later()
        updates = devices(case.round(2, state), 6)
        plain, this = case.round(2, state), case.round(2, state)
        expected = case.played(plain, updates[:4])
        for adapter, weight in [updates[5], *updates[:2], updates[4]]:
            this.add(adapter, weight)
        this.remove(*updates[4])
        for adapter, weight in updates[3:1:-1]:
            this.add(adapter, weight)
        this.remove(*updates[5])
        got = this.result()
        assert bits(got) == bits(expected)
        committed = case.aggregation.committed(got)
        assert this.error(committed) == plain.error(committed)

    @pytest.mark.parametrize("factor", [3, 10**6])
    def test_a_method_does_not_depend_on_the_scale_of_the_weights(self, case: Case, factor: int) -> None:
        updates = devices(case.round())
        scaled = [(adapter, weight * factor) for adapter, weight in updates]
        assert_close(case.dense(case.round(), scaled), case.dense(case.round(), updates))

    def test_a_client_of_weight_two_counts_as_two_clients_of_weight_one(self, case: Case) -> None:
        first, second = device(case.round(), 0), device(case.round(), 1)
        heavy = case.dense(case.round(), [(first, 2), (second, 1)])
        assert_close(heavy, case.dense(case.round(), [(first, 1), (second, 1), (first, 1)]))

    def test_with_uniform_weights_every_device_counts_the_same(self, case: Case) -> None:
        uniform = Case(case.method, case.lora, AggregationConfig(weights="uniform"))
        updates = devices(uniform.round())
        equal = [(adapter, 1) for adapter, _ in updates]
        assert_close(uniform.dense(uniform.round(), updates), case.dense(case.round(), equal))

    def test_the_adapter_to_train_has_the_runs_configuration_and_shapes_in_float32(
        self, case: Case, number: int
    ) -> None:
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

    def test_a_method_changes_none_of_its_inputs(self, case: Case) -> None:
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

    def test_updates_that_change_nothing_give_an_adapter_that_changes_nothing_and_can_be_trained(
        self, case: Case
    ) -> None:
        this = case.round()
        state = case.played(this, [(this.down.adapter, 1), (this.down.adapter, 2)])
        committed = case.aggregation.committed(state)
        assert all(not matrix.any() for matrix in dense(committed).values())
        assert this.error(committed) in (0, None)
        for pair in case.round(2, state).down.adapter.pairs.values():
            assert np.abs(pair.lora_A).max(axis=1).all(), (
                "a row of A at zero beside a B at zero gets no gradient any more"
            )

    def test_a_method_of_no_updates_raises(self, case: Case) -> None:
        with pytest.raises(RunError, match="mean of no updates is not defined"):
            case.round().result()

    @pytest.mark.parametrize("weight", [0, -1, -0.5, math.nan, math.inf])
    def test_a_method_of_a_weight_that_is_not_positive_and_finite_raises(self, case: Case, weight: float) -> None:
        this = case.round()
        this.add(device(this, 0), 1)
        with pytest.raises(RunError, match=f"weight of an update must be positive, got {weight}"):
            this.add(device(this, 1), weight)  # type: ignore[arg-type]
