"""A graph under construction: nodes, inputs, and initializers whose bytes lie in the pack's file."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import onnx_ir as ir
from fedlora.base.pack import WEIGHTS, BasePack
from fedlora.row_lora.library import DOMAIN, VERSION
from numpy.typing import NDArray

OPSET, CONTRIB_OPSET, IR_VERSION = 23, 1, 11
_CONTRIB = "com.microsoft"
_DTYPES = {"U8": ir.DataType.UINT8, "F32": ir.DataType.FLOAT}


class GraphBuilder:
    """Collects the nodes and initializers of one graph over one pack."""

    def __init__(self, base: BasePack, accuracy_level: int = 0) -> None:
        """`accuracy_level` is that of every product with a packed weight, see `packed_layers`."""
        self.base, self.accuracy_level = base, accuracy_level
        self.nodes: list[ir.Node] = []
        self.inputs: list[ir.Value] = []
        self.initializers: dict[str, ir.Value] = {}

    def input(
        self, name: str, dtype: ir.DataType, shape: Sequence[int | str], default: NDArray[Any] | None = None
    ) -> ir.Value:
        """A graph input, the same for the same name. With a `default` it is an initializer too: optional at run time."""
        there = next((value for value in self.inputs if value.name == name), None)
        if there is not None:
            return there
        value = _value(name, dtype, shape)
        self.inputs.append(value)
        if default is not None:
            value.const_value = ir.tensor(default, name=name)
            self.initializers[name] = value
        return value

    def op(
        self,
        kind: str,
        inputs: Sequence[ir.Value | None],
        name: str,
        *,
        contrib: bool = False,
        domain: str = "",
        **attributes: Any,
    ) -> ir.Value:
        """Add a node with one output, which gets the node's `name`."""
        return self.ops(kind, inputs, [name], contrib=contrib, domain=domain, **attributes)[0]

    def ops(
        self,
        kind: str,
        inputs: Sequence[ir.Value | None],
        names: Sequence[str],
        *,
        contrib: bool = False,  # one of ONNX Runtime's own
        domain: str = "",
        **attributes: Any,
    ) -> tuple[ir.Value, ...]:
        """Add a node with an output for each of `names`; an empty name is an output that nobody reads."""
        node = ir.node(
            kind, inputs, attributes, domain=_CONTRIB if contrib else domain, num_outputs=len(names), name=names[0]
        )
        for output, name in zip(node.outputs, names, strict=True):
            output.name = name
        self.nodes.append(node)
        return tuple(node.outputs)

    def constant(self, name: str, values: Any, dtype: type[np.generic] = np.int64) -> ir.Value:
        """An initializer inside the graph's file: for small tensors only."""
        return self._initializer(name, ir.tensor(np.asarray(values, dtype), name=name))

    def stored(self, tensors: str | Sequence[str], shape: Sequence[int] | None = None) -> ir.Value:
        """An initializer whose bytes are those of a tensor in the pack, or of several that lie side by side.

        It has `shape` where another is wanted; several tensors are one along their first dimension.
        """
        names = [tensors] if isinstance(tensors, str) else list(tensors)
        entries = [self.base.weights.entries[name] for name in names]
        own = (sum(entry.shape[0] for entry in entries), *entries[0].shape[1:])
        dims = own if shape is None else tuple(shape)
        name = names[0] if len(names) == 1 and dims == own else f"{'+'.join(names)}.{'x'.join(map(str, dims))}"
        external = ir.ExternalTensor(
            WEIGHTS,
            entries[0].offset,
            sum(entry.size_bytes for entry in entries),
            _DTYPES[entries[0].dtype],
            shape=ir.Shape(dims),
            name=name,
            base_dir=str(self.base.directory),
        )
        return self._initializer(name, external)

    def are_side_by_side(self, tensors: Sequence[str]) -> bool:
        """Whether the tensors, which have one dtype, are one run of bytes in the pack's file."""
        entries = [self.base.weights.entries[name] for name in tensors]
        return all(left.offset + left.size_bytes == right.offset for left, right in pairwise(entries))

    def output(self, value: ir.Value, shape: Sequence[int | str]) -> ir.Value:
        """`value` with the shape and the type, float32, that an output of the graph declares."""
        value.shape, value.type = ir.Shape(list(shape)), ir.TensorType(ir.DataType.FLOAT)
        return value

    def model(self, outputs: Sequence[ir.Value], name: str) -> ir.Model:
        """The finished graph."""
        ours = {DOMAIN: VERSION} if any(node.domain == DOMAIN for node in self.nodes) else {}
        graph = ir.Graph(
            self.inputs,
            outputs,
            nodes=self.nodes,
            initializers=list(self.initializers.values()),
            opset_imports={"": OPSET, _CONTRIB: CONTRIB_OPSET, **ours},
            name=name,
        )
        return ir.Model(graph, ir_version=IR_VERSION, producer_name="fedlora")

    def _initializer(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        if name not in self.initializers:
            value = _value(name, tensor.dtype, tensor.shape.numpy())
            value.const_value = tensor
            self.initializers[name] = value
        return self.initializers[name]


def _value(name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(list(shape)), type=ir.TensorType(dtype))
