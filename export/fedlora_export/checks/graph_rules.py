"""What a graph must be before anybody runs it: known operations over the pack's own bytes, and nothing else.

Read with protobuf and never executed; no weight is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
from fedlora.base.pack import WEIGHTS, BasePack
from fedlora.errors import GraphError
from fedlora.exported.inputs import BASE_PROPERTY
from fedlora.exported.profiles import Profile, graph_inputs
from fedlora.row_lora.library import DOMAIN, OPERATOR, VERSION
from onnx import AttributeProto, TensorProto

from fedlora_export.checks.external_data import check_external
from fedlora_export.checks.row_lora_rules import check_row_lora
from fedlora_export.graph.builder import CONTRIB_OPSET, IR_VERSION, OPSET

_OPSETS = {"": OPSET, "com.microsoft": CONTRIB_OPSET}
MAX_CONSTANT_BYTES = 1 << 16  # of an initializer inside the graph
MAX_GRAPH_BYTES = 64 << 20
_PLAIN_ATTRIBUTES = {
    AttributeProto.FLOAT, AttributeProto.INT, AttributeProto.STRING, AttributeProto.TENSOR, AttributeProto.FLOATS,
    AttributeProto.INTS, AttributeProto.STRINGS,
}  # fmt: skip
ALLOWED_OPS: Mapping[str, frozenset[str]] = {
    "": frozenset(
        {
            "Add", "Cast", "Concat", "Cos", "Div", "Gather", "GatherND", "Gelu", "Gemm", "LayerNormalization", "MatMul",
            "Max", "Min", "Mul", "Neg", "RMSNormalization", "Range", "ReduceMax", "ReduceSum", "Relu", "Reshape", "Shape",
            "Sin", "Slice", "Split", "Sqrt", "Squeeze", "Sub", "Tanh", "Unsqueeze",
        }
    ),
    "com.microsoft": frozenset(
        {
            "GatherBlockQuantized", "GroupQueryAttention", "MatMulNBits", "MultiHeadAttention", "QuickGelu",
            "RotaryEmbedding", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization",
        }
    ),
    DOMAIN: frozenset({OPERATOR}),  # in the profile `kernel` alone
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphFacts:
    """What was seen in a graph that keeps the rules."""

    nodes: int
    external: int  # initializers in the pack's file
    constants_bytes: int  # of the initializers inside the graph
    adapter_inputs: int


def check_graph_rules(graph: Path, base: BasePack, profile: Profile) -> GraphFacts:
    """Raise GraphError, with the place, where a graph holds what the exporter does not write for a profile."""
    where = str(graph)
    model = _read(graph, base, where)
    opsets = {**_OPSETS, DOMAIN: VERSION} if profile == "kernel" else _OPSETS
    _check_versions(model, base, opsets, where)
    for node in model.graph.node:
        _check_node(node, opsets, where)
    if profile == "kernel":
        check_row_lora(model.graph, base, where)
    external = constants_bytes = 0
    names = [tensor.name for tensor in model.graph.initializer]
    if len(set(names)) != len(names):
        raise GraphError(f"{where}: an initializer's name appears twice; export it again")
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            check_external(tensor, base, where)
            external += 1
        else:
            constants_bytes += _check_constant(tensor, where)
    adapter_inputs = _check_inputs(model.graph, graph_inputs(base.model, profile), profile == "rows", where)
    return GraphFacts(
        nodes=len(model.graph.node), external=external, constants_bytes=constants_bytes, adapter_inputs=adapter_inputs
    )


def _read(graph: Path, base: BasePack, where: str) -> onnx.ModelProto:
    for path in (graph, base.directory / WEIGHTS):
        if path.is_symlink() or not path.is_file():
            raise GraphError(f"{path}: expected a file, no link, beside the other; export into a folder of its own")
    if graph.resolve().parent != base.directory.resolve():
        raise GraphError(f"{where}: expected to lie beside {WEIGHTS} in {base.directory}; export it again")
    if graph.stat().st_size > MAX_GRAPH_BYTES:
        raise GraphError(
            f"{where}: {graph.stat().st_size} bytes; a graph has at most {MAX_GRAPH_BYTES}: export it again"
        )
    model = onnx.ModelProto()
    try:
        model.ParseFromString(graph.read_bytes())
    except Exception as error:  # protobuf raises its own kinds
        raise GraphError(f"{where}: not an ONNX graph: {error}; export it again") from None
    # protobuf hands out bytes where a text is none.
    tensors = model.graph.initializer
    names = [*(value.name for value in model.graph.input), *(tensor.name for tensor in tensors)]
    names += [text for tensor in tensors for entry in tensor.external_data for text in (entry.key, entry.value)]
    if not all(isinstance(name, str) for name in names):
        raise GraphError(f"{where}: a name is not UTF-8; export it again")
    return model


def _check_versions(model: onnx.ModelProto, base: BasePack, opsets: Mapping[str, int], where: str) -> None:
    if model.ir_version != IR_VERSION:
        raise GraphError(f"{where}: IR version {model.ir_version}, expected {IR_VERSION}; export it again")
    imports = [(entry.domain, entry.version) for entry in model.opset_import]
    for domain, version in imports:
        if opsets.get(domain) != version:
            raise GraphError(
                f"{where}: operator set {domain!r:.80} of version {version}, expected "
                f"{', '.join(f'{name!r} of {wanted}' for name, wanted in opsets.items())}; export it again"
            )
    if len(set(imports)) != len(imports):
        raise GraphError(f"{where}: an operator set is named twice; export it again")
    for field in ("functions", "training_info"):
        if getattr(model, field):
            raise GraphError(f"{where}: it has {field}; expected a graph of nodes alone: export it again")
    if model.graph.sparse_initializer:
        raise GraphError(f"{where}: it has sparse initializers; expected none: export it again")
    made_for = {entry.key: entry.value for entry in model.metadata_props}.get(BASE_PROPERTY)
    if made_for != base.fingerprint:
        raise GraphError(f"{where}: made for base {made_for}, the pack is {base.fingerprint}; export it again")


def _check_node(node: onnx.NodeProto, opsets: Mapping[str, int], where: str) -> None:
    if node.domain not in opsets or node.op_type not in ALLOWED_OPS[node.domain]:
        raise GraphError(
            f"{where}: node {node.name!r:.120} is {node.domain!r:.80} {node.op_type!r:.80}, which the exporter does not "
            "write; do not run this graph: export it again"
        )
    for attribute in node.attribute:
        if attribute.type not in _PLAIN_ATTRIBUTES or attribute.ref_attr_name:
            kind = AttributeProto.AttributeType.Name(attribute.type)
            raise GraphError(
                f"{where}: node {node.name!r:.120}: attribute {attribute.name!r:.80} is a {kind}; expected numbers and "
                "texts: export it again"
            )
        if attribute.type == AttributeProto.TENSOR:
            _check_constant(attribute.t, f"{where}: node {node.name!r:.120}")


def _check_constant(tensor: TensorProto, where: str) -> int:
    """The bytes of a tensor inside the graph."""
    size = int(tensor.ByteSize())
    if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data or size > MAX_CONSTANT_BYTES:
        raise GraphError(
            f"{where}: constant {tensor.name!r:.120} has {size} bytes, or lies outside the graph; expected at most "
            f"{MAX_CONSTANT_BYTES} inside, and weights in {WEIGHTS}: export it again"
        )
    return size


def _check_inputs(
    graph: onnx.GraphProto, adapter_inputs: Mapping[str, tuple[int, int]], of_each_row: bool, where: str
) -> int:
    """The number of adapter inputs: those of the profile, each optional and of rank 0 unless it is fed.

    Where each row has an adapter of its own, an adapter input has the batch before its shape, and must be fed.
    """
    inputs = {value.name: value.type.tensor_type for value in graph.input}
    defaults = {tensor.name: tensor for tensor in graph.initializer if tensor.name in inputs}
    found = {name for name in inputs if name in adapter_inputs or ".lora_" in name}
    if found != adapter_inputs.keys():
        wrong = sorted(found ^ adapter_inputs.keys())[0]
        raise GraphError(
            f"{where}: {wrong!r:.120} is an adapter input of the graph or of the base, not of both; export it again"
        )
    for name, shape in adapter_inputs.items():
        got = [-1 if dim.dim_param else dim.dim_value for dim in inputs[name].shape.dim]
        if inputs[name].elem_type != TensorProto.FLOAT or got != ([-1, *shape] if of_each_row else list(shape)):
            raise GraphError(f"{where}: adapter input {name} is {got}; expected float32 {list(shape)}: export it again")
        default = defaults.get(name)
        if of_each_row and default is None:
            continue
        if default is None or default.data_type != TensorProto.FLOAT or math.prod(default.dims) != 0:
            sizes = "none" if default is None else list(default.dims)
            raise GraphError(
                f"{where}: adapter input {name} has a default of {sizes}; expected rank 0: export it again"
            )
    return len(adapter_inputs)
