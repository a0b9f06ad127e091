"""A graph under construction, and the few layers that decoders are made of."""

# N rows, I in features, O out features, J blocks of a row, R rank

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from fedlora.pack import WEIGHTS, BasePack
from fedlora.slots import slot_names
from numpy.typing import NDArray

OPSET, CONTRIB_OPSET, IR_VERSION = 23, 1, 11
_CONTRIB = "com.microsoft"
# fp32 accumulation: equal to the training side to about 1e-5. (4 quantizes the activations: faster, 2 to 3% error.)
_ACCURACY_LEVEL = 0


class GraphBuilder:
    """Collects the nodes and initializers of one graph over one pack."""

    def __init__(self, base: BasePack) -> None:
        self.base = base
        self.nodes: list[ir.Node] = []
        self.inputs: list[ir.Value] = []
        self.initializers: dict[str, ir.Value] = {}

    def input(self, name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
        """A graph input."""
        value = _value(name, dtype, shape)
        self.inputs.append(value)
        return value

    def op(
        self, kind: str, inputs: Sequence[ir.Value], name: str, *, contrib: bool = False, **attributes: Any
    ) -> ir.Value:
        """Add a node with one output, which gets the node's `name`."""
        return self.ops(kind, inputs, [name], contrib=contrib, **attributes)[0]

    def ops(
        self, kind: str, inputs: Sequence[ir.Value], names: Sequence[str], *, contrib: bool = False, **attributes: Any
    ) -> tuple[ir.Value, ...]:
        """Add a node with an output for each of `names`; an empty name is an output that nobody reads."""
        domain = _CONTRIB if contrib else ""
        node = ir.node(kind, inputs, attributes, domain=domain, num_outputs=len(names), name=names[0])
        for output, name in zip(node.outputs, names, strict=True):
            output.name = name
        self.nodes.append(node)
        return tuple(node.outputs)

    def constant(self, name: str, array: NDArray[Any]) -> ir.Value:
        """An initializer inside the graph's file: for small tensors only."""
        return self._initializer(name, ir.tensor(array, name=name))

    def stored(self, tensor: str, shape: Sequence[int] | None = None) -> ir.Value:
        """An initializer whose bytes are those of `tensor` in the pack, under `shape` where another is wanted."""
        entry = self.base.weights.entries[tensor]
        dims = tuple(shape or entry.shape)
        name = tensor if dims == entry.shape else f"{tensor}.{'x'.join(map(str, dims))}"
        external = ir.ExternalTensor(
            WEIGHTS,
            entry.offset,
            entry.size_bytes,
            {"U8": ir.DataType.UINT8, "F32": ir.DataType.FLOAT}[entry.dtype],
            shape=ir.Shape(dims),
            name=name,
            base_dir=str(self.base.directory),
        )
        return self._initializer(name, external)

    def linear(self, x: ir.Value, module: str, out_features: int) -> ir.Value:
        """x W^T [N, O] with W packed."""
        in_features, bits = self.base.in_features(module), self.base.bits(module)
        zeros = f"{module}.zeros"
        inputs = [x, self.stored(f"{module}.qweight"), self.stored(f"{module}.scales")]
        if zeros in self.base.weights.entries:
            inputs.append(self.stored(zeros))
        return self.op(
            "MatMulNBits", inputs, f"{module}.base", contrib=True,
            K=in_features, N=out_features, bits=bits, block_size=self.base.quantization.block_size,
            accuracy_level=_ACCURACY_LEVEL,
        )  # fmt: skip

    def lora_linear(self, x: ir.Value, module: str) -> ir.Value:
        """x W^T + (x A) B, A [I, R] and B [R, O] inputs that default to rank 0: then this is x W^T, bit for bit."""
        rows, columns = self.base.shape.linear_modules()[module]
        base = self.linear(x, module, rows)
        name_a, name_b = slot_names(module)
        # Every slot has a rank of its own: one shared dimension would forbid mixed ranks.
        lora_A = self._slot(name_a, (columns, f"{module}.rank"), np.zeros((columns, 0), np.float32))
        lora_B = self._slot(name_b, (f"{module}.rank", rows), np.zeros((0, rows), np.float32))
        reduced = self.op("MatMul", [x, lora_A], f"{module}.lora_A.out")
        return self.op("Gemm", [reduced, lora_B, base], f"{module}.out")

    def embedding(self, tokens: ir.Value, module: str) -> ir.Value:
        """The rows of the embedding [V, H] that `tokens` [N] name: [N, H]."""
        scales, zeros = f"{module}.scales", f"{module}.zeros"
        rows, blocks, width = self.base.weights.entries[f"{module}.qweight"].shape
        inputs = [self.stored(f"{module}.qweight", (rows, blocks * width)), tokens, self.stored(scales)]
        if zeros in self.base.weights.entries:
            inputs.append(self.stored(zeros))
        return self.op(
            "GatherBlockQuantized", inputs, f"{module}.out", contrib=True,
            bits=self.base.bits(module), block_size=self.base.quantization.block_size, gather_axis=0, quantize_axis=1,
        )  # fmt: skip

    def norm(self, x: ir.Value, module: str) -> ir.Value:
        """RMS norm of x [N, H]."""
        weight = self.stored(f"{module}.weight")
        return self.op("RMSNormalization", [x, weight], f"{module}.out", epsilon=self.base.shape.rms_norm_eps, axis=-1)

    def add_norm(self, x: ir.Value, skip: ir.Value, module: str) -> tuple[ir.Value, ir.Value]:
        """(RMS norm of x + skip, x + skip), both [N, H]."""
        normed, _, _, total = self.ops(
            "SkipSimplifiedLayerNormalization",
            [x, skip, self.stored(f"{module}.weight")],
            [f"{module}.out", "", "", f"{module}.sum"],
            contrib=True,
            epsilon=self.base.shape.rms_norm_eps,
        )
        return normed, total

    def _slot(self, name: str, shape: Sequence[int | str], default: NDArray[np.float32]) -> ir.Value:
        """An input that is an initializer too: ONNX Runtime takes it as optional."""
        value = self.input(name, ir.DataType.FLOAT, shape)
        value.const_value = ir.tensor(default, name=name)
        self.initializers[name] = value
        return value

    def _initializer(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        if name not in self.initializers:
            value = _value(name, tensor.dtype, tensor.shape.numpy())
            value.const_value = tensor
            self.initializers[name] = value
        return self.initializers[name]


def _value(name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(list(shape)), type=ir.TensorType(dtype))
