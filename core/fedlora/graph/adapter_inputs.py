"""How an adapter comes into a graph: y = x W^T + (x A) B, with A and B inputs of the graph, in one way for each profile.

A [I, R] is transposed, B [R, O] transposed and scaled (`fedlora.exported.inputs`). Modules that read one input come as a
group. A graph that takes what scales modules has y = s * (x W^T + b + (x A) B) + t (`fedlora.lora.output_scale`), s and t
optional; of those that `scaled_inputs` names, x is l * x.
"""

# N rows, I in features, O out features, R rank

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from fedlora.exported.inputs import input_names, joined_name
from fedlora.exported.profiles import SCALE_PROFILES, Profile
from fedlora.graph.builder import GraphBuilder, Value
from fedlora.graph.graph import DataType
from fedlora.graph.packed_layers import can_be_one, linear
from fedlora.lora.output_scale import INPUT, SCALE, SHIFT, rest_of, scale_shapes
from fedlora.row_lora.library import DOMAIN, OPERATOR

NUMBERS = "adapters"  # the input of the profile `kernel`


class AdapterInputs(Protocol):
    """The linear modules of a graph, with what their adapters add."""

    flat: bool  # rows are [batch * length, ...]; else [batch, length, ...]

    def linear(self, builder: GraphBuilder, x: Value, modules: Sequence[str]) -> list[Value]:
        """The output of each module, or one that holds them side by side along the last dimension."""
        ...


class NoAdapter:
    """The base alone; a group is one product."""

    flat = False

    def linear(self, builder: GraphBuilder, x: Value, modules: Sequence[str]) -> list[Value]:
        if can_be_one(builder, modules):
            return [linear(builder, x, modules, f"{joined_name(modules)}.out")]
        return [linear(builder, x, [module], f"{module}.out") for module in modules]


class ModuleInputs:
    """An A and a B for each module, optional, each module with a rank of its own, which is 0 by default."""

    flat = True

    def linear(self, builder: GraphBuilder, x: Value, modules: Sequence[str]) -> list[Value]:
        return [_with_adapter(builder, x, [module], module) for module in modules]


class JoinedInputs:
    """One A and one B for a group that is one product: A = [A_q A_k A_v], B block-diagonal; optional as above."""

    flat = True

    def linear(self, builder: GraphBuilder, x: Value, modules: Sequence[str]) -> list[Value]:
        if can_be_one(builder, modules):
            return [_with_adapter(builder, x, modules, joined_name(modules))]
        return [_with_adapter(builder, x, [module], module) for module in modules]


class RowInputs:
    """An A [batch, I, R] and a B [batch, R, O] for each module: every row of the batch has an adapter of its own."""

    flat = False

    def linear(self, builder: GraphBuilder, x: Value, modules: Sequence[str]) -> list[Value]:
        return [self._one(builder, x, module) for module in modules]

    def _one(self, builder: GraphBuilder, x: Value, module: str) -> Value:
        rows, columns = builder.linear_modules[module]
        base = linear(builder, x, [module], f"{module}.base")
        name_a, name_b = input_names(module)
        lora_A = builder.input(name_a, DataType.FLOAT, ("batch", columns, f"{module}.rank"))
        lora_B = builder.input(name_b, DataType.FLOAT, ("batch", f"{module}.rank", rows))
        reduced = builder.op("MatMul", [x, lora_A], f"{module}.lora_A.out")
        update = builder.op("MatMul", [reduced, lora_B], f"{module}.lora_B.out")
        return builder.op("Add", [base, update], f"{module}.out")


class KernelInputs:
    """The number of an adapter for each row, int64 [batch], 0 for none: our own operator reads A and B where they lie."""

    flat = False

    def linear(self, builder: GraphBuilder, x: Value, modules: Sequence[str]) -> list[Value]:
        groups = [modules] if can_be_one(builder, modules) else [[module] for module in modules]
        return [self._one(builder, x, group) for group in groups]

    def _one(self, builder: GraphBuilder, x: Value, modules: Sequence[str]) -> Value:
        shapes, name = builder.linear_modules, joined_name(modules)
        base = linear(builder, x, modules, f"{name}.base")
        return builder.op(
            OPERATOR, [base, x, builder.input(NUMBERS, DataType.INT64, ["batch"])], f"{name}.out", domain=DOMAIN,
            module=list(shapes).index(modules[0]), sizes=[shapes[module][0] for module in modules],
        )  # fmt: skip


def _with_adapter(builder: GraphBuilder, x: Value, modules: Sequence[str], name: str) -> Value:
    """x W^T + (x A) B [N, O]; at rank 0 it is x W^T, bit for bit."""
    shapes = builder.linear_modules
    rows, columns = sum(shapes[module][0] for module in modules), shapes[modules[0]][1]
    base = linear(builder, x, modules, f"{name}.base")
    name_a, name_b = input_names(name)
    # Every adapter input has a rank of its own: one shared dimension would forbid mixed ranks.
    lora_A = builder.input(name_a, DataType.FLOAT, (columns, f"{name}.rank"), np.zeros((columns, 0), np.float32))
    lora_B = builder.input(name_b, DataType.FLOAT, (f"{name}.rank", rows), np.zeros((0, rows), np.float32))
    reduced = builder.op("MatMul", [x, lora_A], f"{name}.lora_A.out")
    return builder.op("Gemm", [reduced, lora_B, base], f"{name}.out")


class ScaledModules:
    """What another way gives, with s, t and l as inputs, by default one number for all of a module. Of one graph.

    The name of a size that is not fixed is each input's own; a row of a batch in `rows` has its own s, t and l, [S, 1, O].
    """

    def __init__(self, modules: AdapterInputs) -> None:
        self._modules, self.flat = modules, modules.flat
        self._shapes: Mapping[str, tuple[int]] = {}  # of the model whose graph is made

    def linear(self, builder: GraphBuilder, x: Value, modules: Sequence[str]) -> list[Value]:
        shapes = self._shapes = self._shapes or scale_shapes(builder.base.model)
        if modules[0] + INPUT in shapes:
            x = self._op(builder, "Mul", x, modules[0] + INPUT)
        outputs = self._modules.linear(builder, x, modules)
        names = list(modules) if len(outputs) == len(modules) else [joined_name(modules)]
        outputs = [self._op(builder, "Mul", y, name + SCALE) for y, name in zip(outputs, names, strict=True)]
        return [
            self._op(builder, "Add", y, name + SHIFT) if module + SHIFT in shapes else y
            for y, name, module in zip(outputs, names, modules, strict=False)
        ]

    def _op(self, builder: GraphBuilder, kind: str, y: Value, name: str) -> Value:
        shape: list[int | str] = [f"{name}.size"] if self.flat else [f"{name}.rows", 1, f"{name}.size"]
        rest = np.full([1] * len(shape), rest_of(name), np.float32)
        return builder.op(kind, [y, builder.input(name, DataType.FLOAT, shape, rest)], f"{name}.out")


def adapter_inputs(profile: Profile, *, takes_scales: bool = False) -> AdapterInputs:
    """Those of a profile; of SCALE_PROFILES also with what scales modules."""
    inputs = ADAPTER_INPUTS[profile]
    return ScaledModules(inputs) if takes_scales and profile in SCALE_PROFILES else inputs


ADAPTER_INPUTS: Mapping[Profile, AdapterInputs] = {
    "compat": ModuleInputs(),
    "fast": JoinedInputs(),
    "rows": RowInputs(),
    "kernel": KernelInputs(),
    "base": NoAdapter(),
}
