"""Adapters: immutable pairs of factors that fit a base or do not."""

from __future__ import annotations

import numpy as np
import pytest
from fedlora.errors import AdapterError, AdapterMismatchError
from fedlora.lora.adapter import Adapter, LoraPair, initial_adapter
from fedlora.lora.config import LoraConfig

from tests.reference.tolerances import TOLERANCE
from tests.tiny.adapters import adapter_on
from tests.tiny.checkpoints import llama_shape

MODULES = llama_shape().linear_modules()
UP = "model.layers.0.mlp.up_proj"


def _pair(rank: int = 4, rows: int = 72, columns: int = 32) -> LoraPair:
    generator = np.random.default_rng(0)
    return LoraPair(
        generator.normal(size=(rank, columns)).astype(np.float32),
        generator.normal(size=(rows, rank)).astype(np.float32),
    )


def test_a_pair_knows_its_rank_and_the_shape_of_the_weight_it_updates() -> None:
    pair = _pair()
    assert (pair.rank, pair.shape) == (4, (72, 32))


@pytest.mark.parametrize(("a", "b"), [((4, 32), (72, 5)), ((32,), (72, 32)), ((4, 32), (4,)), ((1, 4, 32), (72, 4))])
def test_factors_that_do_not_multiply_are_refused_with_their_shapes(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    with pytest.raises(AdapterError) as caught:
        LoraPair(np.zeros(a, np.float32), np.zeros(b, np.float32))
    assert str(caught.value) == f"expected lora_A [R, I] and lora_B [O, R], got {list(a)} and {list(b)}"


def test_an_adapter_cannot_be_written_to(adapter: Adapter) -> None:
    with pytest.raises(ValueError, match="read-only"):
        adapter.pairs[UP].lora_A[0, 0] = 1
    with pytest.raises(ValueError, match="read-only"):
        adapter.pairs[UP].lora_B[0, 0] = 1
    with pytest.raises(TypeError):
        adapter.pairs[UP] = _pair()  # type: ignore[index]


def test_the_arrays_that_a_pair_was_made_of_stay_writable() -> None:
    lora_A, lora_B = np.zeros((4, 32), np.float32), np.zeros((72, 4), np.float32)
    LoraPair(lora_A, lora_B)
    assert lora_A.flags.writeable
    assert lora_B.flags.writeable


def test_factors_become_float32() -> None:
    pair = LoraPair(np.zeros((4, 32)), np.zeros((72, 4), np.float16))  # type: ignore[arg-type]
    assert pair.lora_A.dtype == pair.lora_B.dtype == np.float32


def test_a_pair_of_another_rank_than_the_configuration_says_is_refused_by_module() -> None:
    with pytest.raises(AdapterError, match=rf"{UP}: lora_A has rank 4, the configuration says 8"):
        Adapter(LoraConfig(rank=8), {UP: _pair(4)})
    Adapter(LoraConfig(rank=8, rank_pattern={UP: 4}), {UP: _pair(4)})


def test_size_bytes_counts_four_bytes_a_number(adapter: Adapter) -> None:
    expected = sum(4 * 4 * (rows + columns) for rows, columns in MODULES.values())
    assert adapter.size_bytes == expected


@pytest.mark.parametrize("use_rslora", [False, True])
def test_a_modules_product_is_the_dense_update(use_rslora: bool) -> None:
    config = LoraConfig(rank=3, alpha=6.0, use_rslora=use_rslora, rank_pattern={UP: 2}, alpha_pattern={UP: 5.0})
    adapter = adapter_on(config, MODULES)
    for module, pair in adapter.pairs.items():
        dense = config.scaling_of(module) * pair.lora_B.astype(float) @ pair.lora_A.astype(float)
        np.testing.assert_allclose(adapter.product(module).dense(), dense, **TOLERANCE["float32"])


@pytest.mark.parametrize("factor", ["lora_A", "lora_B"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_found_and_its_tensor_named(adapter: Adapter, factor: str, value: float) -> None:
    pair = adapter.pairs[UP]
    changed = {"lora_A": pair.lora_A.copy(), "lora_B": pair.lora_B.copy()}
    changed[factor][1, 2] = value
    adapter.check_finite("here")
    poisoned = Adapter(adapter.config, {**adapter.pairs, UP: LoraPair(changed["lora_A"], changed["lora_B"])})
    with pytest.raises(AdapterError, match=rf"here: {UP}.{factor} holds NaN or infinity"):
        poisoned.check_finite("here")


def test_an_adapter_fits_the_base_it_was_made_for(adapter: Adapter) -> None:
    adapter.check_fits(MODULES, "here")


def test_an_adapter_for_a_module_that_the_base_lacks_is_for_another_base(adapter: Adapter) -> None:
    smaller = llama_shape(num_hidden_layers=1).linear_modules()
    with pytest.raises(AdapterMismatchError, match=r"here: the base has no module model.layers.1.*for another base"):
        adapter.check_fits(smaller, "here")


def test_an_adapter_for_weights_of_another_shape_is_for_another_base(adapter: Adapter) -> None:
    wider = llama_shape(intermediate_size=80).linear_modules()
    with pytest.raises(AdapterMismatchError) as caught:
        adapter.check_fits(wider, "here")
    assert str(caught.value) == (
        "here: model.layers.0.mlp.gate_proj updates a weight [72, 32], the base's is [80, 32]; "
        "the adapter is for another base"
    )


def test_an_adapter_without_modules_fits_nothing() -> None:
    with pytest.raises(AdapterMismatchError, match="here: the adapter has no modules"):
        Adapter(LoraConfig(), {}).check_fits(MODULES, "here")


def test_a_new_adapter_changes_nothing_and_fits() -> None:
    config = LoraConfig(rank=4, rank_pattern={UP: 7})
    adapter = initial_adapter(config, MODULES, np.random.default_rng(0))
    adapter.check_fits(MODULES, "new")
    assert list(adapter.pairs) == list(MODULES)
    for module, pair in adapter.pairs.items():
        assert not pair.lora_B.any()
        assert pair.rank == (7 if module == UP else 4)


def test_a_new_lora_a_is_uniform_within_one_over_the_root_of_its_inputs() -> None:
    adapter = initial_adapter(LoraConfig(rank=64), MODULES, np.random.default_rng(0))
    for module, pair in adapter.pairs.items():
        bound = 1 / np.sqrt(MODULES[module][1])
        assert 0.99 * bound < np.abs(pair.lora_A).max() <= np.float32(bound)
        # Uniform: the mean of the squares is bound^2 / 3; 2,048 numbers and more give it within 10 %.
        assert np.isclose((pair.lora_A.astype(float) ** 2).mean(), bound**2 / 3, rtol=0.1)


def test_a_new_adapter_is_what_its_generators_seed_says() -> None:
    one, same, other = (initial_adapter(LoraConfig(), MODULES, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.pairs[UP].lora_A, same.pairs[UP].lora_A)
    assert not np.array_equal(one.pairs[UP].lora_A, other.pairs[UP].lora_A)
