"""Adapters as tensors that train: copied both ways, alone or in a stack."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fedlora.base.pack import BasePack
from fedlora.lora.adapter import Adapter
from fedlora.lora.config import LoraConfig
from fedlora_client.layers.lora import LoraTensors

from tests.tiny.adapters import ALL_RANKS, LORAS, random_adapter

CPU = torch.device("cpu")
CONFIGS = [LORAS["rslora-with-patterns"], ALL_RANKS, LoraConfig(rank=5, alpha=1.0)]


def assert_equal_bits(left: Adapter, right: Adapter) -> None:
    assert left.config == right.config
    assert left.pairs.keys() == right.pairs.keys()
    for name, pair in left.pairs.items():
        assert np.array_equal(pair.lora_A, right.pairs[name].lora_A)
        assert np.array_equal(pair.lora_B, right.pairs[name].lora_B)


@pytest.mark.parametrize("count", [1, 3])
def test_lora_tensors_copy_the_adapters_both_ways(base: BasePack, count: int) -> None:
    given = [random_adapter(base, config, seed) for seed, config in enumerate(CONFIGS[:count])]
    same = [random_adapter(base, config, seed) for seed, config in enumerate(CONFIGS[:count])]
    lora = LoraTensors(given, CPU)
    back = [lora.adapter(number) for number in range(count)]
    for factors in lora.modules.values():
        factors.lora_A.fill_(7)
        factors.lora_B.fill_(7)
    for number in range(count):
        assert_equal_bits(given[number], same[number])
        assert_equal_bits(back[number], same[number])


def test_a_smaller_adapter_of_a_stack_is_padded_with_zeros_and_has_its_own_scaling(base: BasePack) -> None:
    adapters = [random_adapter(base, config, seed) for seed, config in enumerate(CONFIGS)]
    for module, factors in LoraTensors(adapters, CPU).modules.items():
        ranks = [adapter.pairs[module].rank for adapter in adapters]
        assert (factors.count, factors.rank) == (3, max(ranks))
        for number, (adapter, rank) in enumerate(zip(adapters, ranks, strict=True)):
            assert not factors.lora_A[number, rank:].any()
            assert not factors.lora_B[number, :, rank:].any()
            assert float(factors.scaling[number]) == np.float32(adapter.config.scaling_of(module))


def test_values_and_gradients_are_views_in_the_shapes_of_their_adapter(base: BasePack) -> None:
    adapters = [random_adapter(base, config, seed) for seed, config in enumerate(CONFIGS)]
    lora = LoraTensors(adapters, CPU)
    for number, adapter in enumerate(adapters):
        values, gradients = lora.values(number), lora.gradients(number)
        for module, pair in adapter.pairs.items():
            assert np.array_equal(values[module][0].numpy(), pair.lora_A)
            assert np.array_equal(values[module][1].numpy(), pair.lora_B)
            assert [part.shape for part in gradients[module]] == [pair.lora_A.shape, pair.lora_B.shape]
            gradients[module][0].fill_(number + 1)
    for factors in lora.modules.values():
        assert factors.grad_A is not None
        assert set(factors.grad_A.flatten().tolist()) <= {0.0, 1.0, 2.0, 3.0}
        assert factors.grad_A.any()


def test_adapters_on_other_modules_make_no_stack(base: BasePack) -> None:
    others = [random_adapter(base, LORAS[name]) for name in ("one-rank", "attention-only")]
    with pytest.raises(AssertionError, match="the adapters of one stack must have the same modules"):
        LoraTensors(others, CPU)
