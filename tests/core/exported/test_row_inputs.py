"""The adapters of a batch's rows, side by side."""

from __future__ import annotations

import numpy as np
from fedlora.exported.inputs import input_values, row_values
from fedlora.lora.config import LoraConfig

from tests.tiny.adapters import adapter_on
from tests.tiny.checkpoints import llama_shape

MODULES = llama_shape().linear_modules()


def test_each_row_holds_its_own_factors_and_zeros_up_to_the_largest_rank() -> None:
    large, small = (input_values(adapter_on(LoraConfig(rank=rank), MODULES, rank)) for rank in (5, 2))
    values = row_values([large, {}, small], MODULES)
    assert values.keys() == large.keys()
    for name, value in values.items():
        is_A = ".lora_A." in name
        own = value if is_A else value.swapaxes(1, 2)  # [3, .., R]
        wanted = [each[name] if is_A else each[name].T for each in (large, small)]
        assert own.shape == (3, *wanted[0].shape)
        np.testing.assert_array_equal(own[0], wanted[0])
        np.testing.assert_array_equal(own[2][:, :2], wanted[1])
        assert not own[1].any()
        assert not own[2][:, 2:].any()


def test_a_batch_without_adapters_has_rank_0() -> None:
    assert all(0 in value.shape for value in row_values([{}, {}], MODULES).values())
