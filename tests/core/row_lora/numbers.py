"""Random adapters over a few modules, and the slow, obvious sum that the operator is held against."""

# T tokens, I in features, O out features, R rank

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from fedlora.exported.inputs import input_names
from numpy.typing import NDArray

InputShapes = Mapping[str, NDArray[np.float32]]
Floats = NDArray[np.float32]

# {module: (O, I)}: a group of three that read the same input, two that read another; few are a multiple of 16
MODULES = {"q": (40, 37), "k": (16, 37), "v": (5, 37), "o": (33, 48), "down": (64, 48)}
GROUPS = (("q", "k", "v"), ("o",), ("down",))


def random_inputs(ranks: Mapping[str, int], seed: int, modules: Mapping[str, tuple[int, int]] = MODULES) -> InputShapes:
    """The adapter_inputs of an adapter with a rank for each of some modules."""
    generator, adapter_inputs = np.random.default_rng(seed), {}
    for module, rank in ranks.items():
        outputs, inputs = modules[module]
        name_a, name_b = input_names(module)
        adapter_inputs[name_a] = generator.normal(size=(inputs, rank)).astype(np.float32)
        adapter_inputs[name_b] = generator.normal(size=(rank, outputs)).astype(np.float32)
    return adapter_inputs


def rounded(adapter_inputs: InputShapes, dtype: str) -> InputShapes:
    """What is left of the values in `dtype`."""
    return {name: value.astype(dtype).astype(np.float32) for name, value in adapter_inputs.items()}


def with_update(
    base: Floats, x: Floats, adapter_inputs: InputShapes, modules: Sequence[str]
) -> NDArray[np.float64]:  # [T, O]
    """base + (x A) B, of modules whose outputs [T, O] stand side by side."""
    parts = list[NDArray[np.float64]]()
    for module in modules:
        name_a, name_b = input_names(module)
        if name_a in adapter_inputs:
            parts.append(x.astype(np.float64) @ adapter_inputs[name_a] @ adapter_inputs[name_b])
        else:
            parts.append(np.zeros((len(x), MODULES[module][0])))
    result: NDArray[np.float64] = base.astype(np.float64) + np.concatenate(parts, 1)
    return result
