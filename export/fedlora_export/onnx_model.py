"""A graph as onnx-ir has it, which writes ONNX files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
from fedlora.graph.graph import PRODUCER, Graph, Node, Place, Signature, Tensor


def onnx_model(graph: Graph, folder: Path) -> ir.Model:
    """The model of `graph`, whose weights lie in files of `folder`."""
    values = {signature.name: _value(signature) for signature in (*graph.inputs, *graph.outputs)}
    initializers = []
    for tensor in graph.initializers:
        value = values.setdefault(
            tensor.name, _value(Signature(name=tensor.name, dtype=tensor.dtype, shape=tensor.dims))
        )
        value.const_value = _tensor(tensor, folder)
        initializers.append(value)
    model = ir.Model(
        ir.Graph(
            [values[signature.name] for signature in graph.inputs],
            [values[signature.name] for signature in graph.outputs],
            nodes=[_node(node, values) for node in graph.nodes],
            initializers=initializers,
            opset_imports=dict(graph.opsets),
            name=graph.name,
        ),
        ir_version=graph.ir_version,
        producer_name=PRODUCER,
    )
    model.metadata_props.update(graph.properties)
    return model


def _value(signature: Signature) -> ir.Value:
    shape, dtype = ir.Shape(list(signature.shape)), ir.TensorType(ir.DataType(signature.dtype))
    return ir.Value(name=signature.name, shape=shape, type=dtype)


def _tensor(tensor: Tensor, folder: Path) -> ir.TensorProtocol:
    dtype, place = ir.DataType(tensor.dtype), tensor.content
    if isinstance(place, Place):
        return ir.ExternalTensor(
            place.location, place.offset, place.length, dtype, shape=ir.Shape(tensor.dims), name=tensor.name,
            base_dir=str(folder),
        )  # fmt: skip
    values = np.frombuffer(place, dtype.numpy()).reshape(tensor.dims)
    return ir.tensor(values, name=tensor.name)


def _node(node: Node, values: dict[str, ir.Value]) -> ir.Node:
    """The node; what it gives joins `values`, so that the nodes after it can read it."""
    outputs = [values.setdefault(name, ir.Value(name=name)) if name else ir.Value(name="") for name in node.outputs]
    return ir.node(
        node.kind,
        [values[name] if name else None for name in node.inputs],
        dict(node.attributes),
        domain=node.domain,
        outputs=outputs,
        name=node.name,
    )
