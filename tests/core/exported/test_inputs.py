"""The adapter inputs of an exported graph."""

from __future__ import annotations

import numpy as np
from fedlora.exported.inputs import input_names, input_shapes, input_values, model_version
from fedlora.lora.adapter import Adapter

from tests.reference.tolerances import TOLERANCE
from tests.tiny.checkpoints import llama_shape

MODULES = llama_shape().linear_modules()


def test_x_times_both_inputs_is_the_adapters_update_of_x(adapter: Adapter) -> None:
    values = input_values(adapter)
    for module, (_, columns) in MODULES.items():
        name_a, name_b = input_names(module)
        x = np.random.default_rng(0).normal(size=(3, columns)).astype(np.float32)
        expected = x @ adapter.product(module).dense().T
        np.testing.assert_allclose(x @ values[name_a] @ values[name_b], expected, rtol=1e-3, atol=1e-3)


def test_the_values_have_the_shapes_of_the_inputs_with_the_rank_put_in(adapter: Adapter) -> None:
    values, shapes = input_values(adapter), input_shapes(MODULES)
    assert values.keys() == shapes.keys()
    for name, shape in shapes.items():
        assert values[name].shape == tuple(4 if size == -1 else size for size in shape)
        assert values[name].dtype == np.float32
        assert values[name].flags.c_contiguous


def test_the_inputs_leave_the_adapter_as_it_was(adapter: Adapter) -> None:
    before = {module: pair.lora_B.copy() for module, pair in adapter.pairs.items()}
    for value in input_values(adapter).values():
        value[:] = 0
    for module, pair in adapter.pairs.items():
        np.testing.assert_allclose(pair.lora_B, before[module], **TOLERANCE["float32"])


def test_the_model_version_is_a_positive_int32_of_the_fingerprint() -> None:
    assert model_version("ffffffff" + "0" * 56) == 2**31 - 1
    assert model_version("00000102" + "f" * 56) == 0x102
