"""The adapter inputs of an exported graph, named once for the exporter that writes them and the engine that feeds them.

For module M of the base, with weight [O, I] and an adapter of rank R:

    M.lora_A.weight  float32 [I, R]        A transposed
    M.lora_B.weight  float32 [R, O]        scaling * B, transposed
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fedlora.errors import AdapterError
from fedlora.lora.adapter import Adapter

BASE_PROPERTY = "fedlora_base"  # in the graph's metadata: the fingerprint of its base


def slot_names(module: str) -> tuple[str, str]:
    """The input names of a module's A and B."""
    return f"{module}.lora_A.weight", f"{module}.lora_B.weight"


def slot_values(adapter: Adapter) -> dict[str, NDArray[np.float32]]:
    """{input name: value} of every module, contiguous. Raises AdapterError where a scaled value is not finite."""
    values = {}
    for module, pair in adapter.pairs.items():
        name_a, name_b = slot_names(module)
        values[name_a] = np.ascontiguousarray(pair.lora_A.T)
        with np.errstate(over="ignore"):
            values[name_b] = np.ascontiguousarray(pair.lora_B.T * np.float32(adapter.config.scaling_of(module)))
        if not (np.isfinite(values[name_a]).all() and np.isfinite(values[name_b]).all()):
            raise AdapterError(f"{module}: scaling * B, or A, is not finite in float32; the adapter cannot be used")
    return values


def slot_shapes(modules: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """{input name: shape}, with -1 for the rank."""
    shapes: dict[str, tuple[int, int]] = {}
    for module, (rows, columns) in modules.items():
        name_a, name_b = slot_names(module)
        shapes |= {name_a: (columns, -1), name_b: (-1, rows)}
    return shapes


def model_version(fingerprint: str) -> int:
    """The 31 bits of a base's fingerprint that fit into the model version of ONNX Runtime's adapter format."""
    return int(fingerprint[:8], 16) & 0x7FFFFFFF
