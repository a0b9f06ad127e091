"""What scales the modules of an exported graph: y = s * (W x + b + gamma B A x) + t, beside what LoRA adds.

An adapter of DoRA or IA3 becomes one of plain LoRA, of rank 0 where it has no factors, with these as extra tensors, and
computes the same (`Kind.as_scaled`). So graphs, files and the service know one mechanism, whatever the kind:

    MODULE.output_scale  s [O]    1 where there is none
    MODULE.output_shift  t [O]    of modules with a bias, which DoRA does not scale: t = (1 - s) b; 0 where there is none
    MODULE.input_scale   l [I]    y = W (l * x) + ..., of the modules that `ModelShape.scaled_inputs` names; 1

Other modules read what another module gives, times something: what scales their input is in that one's s (`fed_by`).
"""

# O out features, I in features of a module

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from fedlora.errors import AdapterError
from fedlora.family import ModelShape

SCALE, SHIFT, INPUT = ".output_scale", ".output_shift", ".input_scale"
METHODS = ("dora", "ia3")  # the kinds that have them


def is_scale(name: str) -> bool:
    """Whether a tensor, or an input of a graph, is one of these."""
    return name.endswith((SCALE, SHIFT, INPUT))


def has_scales(names: Iterable[str]) -> bool:
    """Whether one of these tensors, or inputs of a graph, is."""
    return any(map(is_scale, names))


def scale_shapes(model: ModelShape) -> dict[str, tuple[int]]:
    """{tensor: shape} of all that there may be for a model."""
    shapes, biases, inputs = dict[str, tuple[int]](), model.float_tensors(), model.scaled_inputs()
    for module, (rows, columns) in model.linear_modules().items():
        shapes[module + SCALE] = (rows,)
        if f"{module}.bias" in biases:
            shapes[module + SHIFT] = (rows,)
        if module in inputs:
            shapes[module + INPUT] = (columns,)
    return shapes


def rest_of(name: str) -> float:
    """The number of which all of a tensor is that changes nothing."""
    return 0.0 if name.endswith(SHIFT) else 1.0


def check_finite(scales: dict[str, NDArray[np.float32]]) -> None:
    """Raise AdapterError, naming the module, where a number is NaN or infinite."""
    for name, values in scales.items():
        if not np.isfinite(values).all():
            raise AdapterError(f"{name.rpartition('.')[0]}: what scales it is not finite; the adapter cannot be used")
