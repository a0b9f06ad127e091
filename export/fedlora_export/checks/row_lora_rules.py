"""What the nodes of our own operator must say: each module of the base once, with its own size and the graph's numbers."""

from __future__ import annotations

import onnx
from fedlora.base.pack import BasePack
from fedlora.errors import GraphError
from fedlora.row_lora.library import DOMAIN
from onnx import AttributeProto, TensorProto

from fedlora_export.graph.adapter_inputs import NUMBERS


def check_row_lora(graph: onnx.GraphProto, base: BasePack, where: str) -> None:
    """Raise GraphError unless every module gets the update that is its own, from the adapters that the rows name."""
    numbers = [value.type.tensor_type for value in graph.input if value.name == NUMBERS]
    if len(numbers) != 1 or numbers[0].elem_type != TensorProto.INT64 or len(numbers[0].shape.dim) != 1:
        raise GraphError(f"{where}: expected one input {NUMBERS}, int64 [batch]; export it again")
    if any(tensor.name == NUMBERS for tensor in graph.initializer):
        raise GraphError(f"{where}: input {NUMBERS} has a default; expected none: export it again")
    sizes = [size for size, _ in base.model.linear_modules().values()]
    seen = list[int]()
    for node in (node for node in graph.node if node.domain == DOMAIN):
        modules = _modules(node, sizes)
        if modules is None:
            raise GraphError(
                f"{where}: node {node.name!r:.120} adds to modules that are not the base's; expected the place of its "
                f"first one, their sizes, and the input {NUMBERS}: export it again"
            )
        seen += modules
    if sorted(seen) != list(range(len(sizes))):
        raise GraphError(
            f"{where}: its nodes add to {len(seen)} modules, {len(set(seen))} of them apart; expected each of the base's "
            f"{len(sizes)} once: export it again"
        )


def _modules(node: onnx.NodeProto, sizes: list[int]) -> range | None:
    """The places of a node's modules; None where what it says is not so."""
    attributes = {attribute.name: attribute for attribute in node.attribute}
    kinds = {name: attribute.type for name, attribute in attributes.items()}
    expected = {"module": AttributeProto.INT, "sizes": AttributeProto.INTS}
    if kinds != expected or len(node.attribute) != 2 or len(node.input) != 3 or node.input[2] != NUMBERS:
        return None
    first, own = attributes["module"].i, list(attributes["sizes"].ints)
    there = first >= 0 and bool(own) and sizes[first : first + len(own)] == own
    return range(first, first + len(own)) if there else None
