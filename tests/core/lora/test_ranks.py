"""Adapters of other ranks: their products against dense ones, and what was put together taken apart again."""

# I in features, O out features

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from fedlora.lora.adapter import Adapter
from fedlora.lora.config import LoraConfig
from fedlora.lora.ranks import first_components, joined, parted, with_ranks
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.reference.tolerances import TOLERANCE
from tests.tiny.adapters import adapter_on
from tests.tiny.checkpoints import llama_shape

MODULES = llama_shape(num_hidden_layers=1).linear_modules()
UP, DOWN, Q = (f"model.layers.0.{name}" for name in ("mlp.up_proj", "mlp.down_proj", "self_attn.q_proj"))
CONFIGS = {
    "plain": LoraConfig(rank=4, alpha=8.0),
    "rank one": LoraConfig(rank=1, alpha=3.0),
    "rslora": LoraConfig(rank=6, alpha=5.0, use_rslora=True),
    "patterns": LoraConfig(rank=3, alpha=7.0, rank_pattern={UP: 8, DOWN: 1}, alpha_pattern={UP: 2.0, Q: 11.0}),
    "rslora with patterns": LoraConfig(
        rank=5, alpha=6.0, use_rslora=True, rank_pattern={Q: 2, DOWN: 9}, alpha_pattern={Q: 0.5}
    ),
}


def dense(adapter: Adapter, module: str, components: slice = slice(None)) -> NDArray[np.float64]:
    """scaling * B A [O, I] of some components of a module, by the definition."""
    pair = adapter.pairs[module]
    lora_A, lora_B = pair.lora_A[components].astype(np.float64), pair.lora_B[:, components].astype(np.float64)
    return np.float64(adapter.config.scaling_of(module)) * lora_B @ lora_A


def adapter_of(config: str, seed: int = 0) -> Adapter:
    return adapter_on(CONFIGS[config], MODULES, seed)


def assert_equal_bits(one: Adapter, other: Adapter) -> None:
    assert one.config == other.config
    assert list(one.pairs) == list(other.pairs)
    for module, pair in one.pairs.items():
        assert np.array_equal(pair.lora_A, other.pairs[module].lora_A)
        assert np.array_equal(pair.lora_B, other.pairs[module].lora_B)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("rank", [1, 2, 4, 7, 100])
def test_the_first_components_are_the_sum_of_those_components_alone(config: str, rank: int) -> None:
    adapter = adapter_of(config)
    first = first_components(adapter, rank)
    for module, pair in adapter.pairs.items():
        assert first.pairs[module].rank == min(rank, pair.rank)
        assert first.config.scaling_of(module) == pytest.approx(adapter.config.scaling_of(module))
        expected = dense(adapter, module, slice(rank))
        np.testing.assert_allclose(dense(first, module), expected, **TOLERANCE["float64"])


@pytest.mark.parametrize("config", CONFIGS)
def test_the_first_components_of_an_adapter_that_has_no_more_are_the_adapter(config: str) -> None:
    adapter = adapter_of(config)
    assert_equal_bits(first_components(adapter, 9), adapter)


def test_the_first_components_are_views() -> None:
    adapter = adapter_of("plain")
    first = first_components(adapter, 2)
    assert all(np.shares_memory(pair.lora_A, adapter.pairs[m].lora_A) for m, pair in first.pairs.items())
    assert all(np.shares_memory(pair.lora_B, adapter.pairs[m].lora_B) for m, pair in first.pairs.items())


@pytest.mark.parametrize("first", CONFIGS)
@pytest.mark.parametrize("second", CONFIGS)
def test_two_joined_are_the_sum_of_their_products(first: str, second: str) -> None:
    one, other = adapter_of(first, 1), adapter_of(second, 2)
    both = joined(one, other)
    for module in MODULES:
        assert both.pairs[module].rank == one.pairs[module].rank + other.pairs[module].rank
        assert both.config.scaling_of(module) == pytest.approx(one.config.scaling_of(module))
        expected = dense(one, module) + dense(other, module)
        np.testing.assert_allclose(dense(both, module), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("first", CONFIGS)
@pytest.mark.parametrize("second", CONFIGS)
def test_what_was_joined_is_taken_apart_into_the_same_two(first: str, second: str) -> None:
    one, other = adapter_of(first, 1), adapter_of(second, 2)
    mine, rest = parted(joined(one, other), one.config)
    assert_equal_bits(mine, one)
    assert rest is not None
    for module in MODULES:
        assert rest.pairs[module].rank == other.pairs[module].rank
        expected = dense(other, module)
        np.testing.assert_allclose(dense(rest, module), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_an_adapter_of_no_more_components_than_its_configuration_has_no_second_part() -> None:
    adapter = adapter_of("patterns")
    mine, rest = parted(adapter, adapter.config)
    assert_equal_bits(mine, adapter)
    assert rest is None


def test_a_module_without_a_second_part_gets_a_component_of_zeros_there() -> None:
    few = adapter_on(LoraConfig(rank=2, alpha=8.0, rank_pattern={UP: 5}), MODULES)
    mine, rest = parted(few, LoraConfig(rank=2, alpha=8.0))
    assert rest is not None
    assert {module: pair.rank for module, pair in rest.pairs.items() if pair.lora_B.any()} == {UP: 3}
    assert all(pair.rank == 1 and not pair.lora_A.any() for module, pair in rest.pairs.items() if module != UP)
    assert mine.pairs[UP].rank == 2


@given(
    rank=st.integers(1, 64),
    alpha=st.floats(1e-2, 1e3),
    use_rslora=st.booleans(),
    ranks=st.lists(st.integers(1, 128), min_size=len(MODULES), max_size=len(MODULES)),
    own=st.integers(1, 64),
)
def test_other_ranks_leave_every_scaling_as_it_is(
    rank: int, alpha: float, use_rslora: bool, ranks: list[int], own: int
) -> None:
    config = LoraConfig(rank=rank, alpha=alpha, use_rslora=use_rslora, rank_pattern={UP: own}, alpha_pattern={Q: 3.0})
    wanted = dict(zip(MODULES, ranks, strict=True))
    got = with_ranks(config, wanted)
    for module in MODULES:
        assert got.rank_of(module) == wanted[module]
        assert got.scaling_of(module) == pytest.approx(config.scaling_of(module), rel=1e-12)
    assert (got.use_rslora, got.target_modules) == (config.use_rslora, config.target_modules)


def test_the_same_ranks_give_the_same_configuration() -> None:
    for config in CONFIGS.values():
        assert with_ranks(config, {module: config.rank_of(module) for module in MODULES}) is config


def test_joining_changes_neither_of_the_two() -> None:
    one, other = adapter_of("plain", 1), adapter_of("rslora", 2)
    joined(one, other)
    assert_equal_bits(one, adapter_of("plain", 1))
    assert_equal_bits(other, adapter_of("rslora", 2))


def test_a_frozen_adapter_of_the_same_scaling_keeps_its_bits() -> None:
    one, other = adapter_of("plain", 1), adapter_on(dataclasses.replace(CONFIGS["plain"]), MODULES, 2)
    _, rest = parted(joined(one, other), one.config)
    assert rest is not None
    assert_equal_bits(rest, other)
