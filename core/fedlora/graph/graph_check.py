"""Whether a graph's file holds the graph that the exporter makes of this base, and nothing else.

A graph is a program, and whoever changes it writes its manifest too. So what may run is not described by rules: the one
graph that belongs to the base, the profile and the accuracy level is built anew, and the file is compared with it part by
part. Its time and memory are then those of the base. Nothing is run and no weight is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from fedlora.base.pack import WEIGHTS, BasePack
from fedlora.errors import GraphError
from fedlora.exported.profiles import Profile, graph_inputs
from fedlora.files.bounded import read_bounded
from fedlora.graph.build import build_graph
from fedlora.graph.graph import Attribute, DataType, Graph, Node, Place, Signature, Tensor
from fedlora.graph.onnx_reader import read_graph

ACCURACY_LEVELS = range(5)  # of ONNX Runtime's MatMulNBits
_BYTES_OF_A_PART = 2048  # more than any node, input or initializer takes
_MORE_PARTS = 4  # times as many in one message as the whole graph has: an initializer is described, too
# Constants that are computed, such as the frequencies of a rotation: two processors round them differently.
_TOLERANCES = {DataType.FLOAT: (np.float32, 1e-6), DataType.DOUBLE: (np.float64, 1e-9)}


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphFacts:
    """What was seen in a graph that is the base's own."""

    nodes: int
    external: int  # initializers in the pack's file
    constants_bytes: int  # of the initializers inside the graph
    adapter_inputs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedGraph:
    """The bytes that were checked: what is run is made of them, not of a file that may be another one by then."""

    content: bytes
    facts: GraphFacts


def read_checked_graph(
    graph: Path, base: BasePack, profile: Profile, accuracy_level: int, *, takes_scales: bool = False
) -> CheckedGraph:
    """The file of a graph, which is the base's own for this profile. Raises GraphError, with the place of what is not."""
    where = str(graph)
    for path in (graph, base.directory / WEIGHTS):
        if path.is_symlink() or not path.is_file():
            raise GraphError(f"{path}: expected a file, no link, beside the other; export into a folder of its own")
    if graph.resolve().parent != base.directory.resolve():
        raise GraphError(f"{where}: expected to lie beside {WEIGHTS} in {base.directory}; export it again")
    if accuracy_level not in ACCURACY_LEVELS:
        raise GraphError(
            f"{where}: accuracy level {accuracy_level}; expected {ACCURACY_LEVELS[0]} to {ACCURACY_LEVELS[-1]}: "
            "export it again"
        )
    expected = build_graph(base, profile, accuracy_level, takes_scales=takes_scales)
    parts = sum(map(len, (expected.nodes, expected.inputs, expected.outputs, expected.initializers)))
    try:
        content = read_bounded(graph, _BYTES_OF_A_PART * parts)
    except OSError as error:
        raise GraphError(f"{where}: not the graph of this base: {error.strerror}; export it again") from None
    got = read_graph(content, where, max_fields=_MORE_PARTS * parts)
    heads = base.model.head_inputs()
    takes_head = any(signature.name in heads for signature in got.inputs)
    if heads and not takes_head:  # as earlier versions wrote it
        expected = build_graph(base, profile, accuracy_level, takes_head=False, takes_scales=takes_scales)
    check_same_graph(got, expected, where)
    inputs = graph_inputs(base.model, profile, takes_head=takes_head, takes_scales=takes_scales)
    return CheckedGraph(content=content, facts=_facts(got, inputs))


def check_same_graph(got: Graph, expected: Graph, where: str) -> None:
    """Raise GraphError unless both are one graph; the order of their parts says nothing."""
    _check_versions(got, expected, where)
    kinds = {(node.domain, node.kind) for node in expected.nodes}
    for node in got.nodes:
        if (node.domain, node.kind) not in kinds:
            raise GraphError(
                f"{where}: node {node.name!r:.120} is {node.domain!r:.80} {node.kind!r:.80}, which the exporter does not "
                "write here; do not run this graph: export it again"
            )
    _check_parts("node", got.nodes, expected.nodes, _same_node, where)
    _check_parts("initializer", got.initializers, expected.initializers, _same_tensor, where)
    _check_parts("input", got.inputs, expected.inputs, _same, where)
    _check_parts("output", got.outputs, expected.outputs, _same, where)
    described = {
        tensor.name: Signature(name=tensor.name, dtype=tensor.dtype, shape=tensor.dims)
        for tensor in expected.initializers
    }
    own = {signature.name for signature in got.described}
    told = [signature for name, signature in described.items() if name in own]
    _check_parts("description", got.described, told, _same, where)


def _check_versions(got: Graph, expected: Graph, where: str) -> None:
    if got.ir_version != expected.ir_version:
        raise GraphError(f"{where}: IR version {got.ir_version}, expected {expected.ir_version}; export it again")
    if got.opsets != expected.opsets:
        raise GraphError(
            f"{where}: operator sets {_shown(got.opsets)}; expected {_shown(expected.opsets)}: export it again"
        )
    if got.properties != expected.properties:
        raise GraphError(
            f"{where}: properties {_shown(got.properties)}; expected those of this pack, {_shown(expected.properties)}: "
            "export it again"
        )


class _Named(Protocol):
    @property
    def name(self) -> str: ...


_Part = TypeVar("_Part", bound=_Named)


def _check_parts(
    what: str, got: Sequence[_Part], expected: Sequence[_Part], is_same: Callable[[_Part, _Part], bool], where: str
) -> None:
    """Raise GraphError unless both hold the same parts, each once."""
    wanted, seen = {part.name: part for part in expected}, set[str]()
    for part in got:
        if part.name in seen or part.name not in wanted:
            how = "is there twice" if part.name in seen else "is none of this base's graph"
            raise GraphError(f"{where}: {what} {part.name!r:.120} {how}; do not run this graph: export it again")
        seen.add(part.name)
        if not is_same(part, wanted[part.name]):
            raise GraphError(
                f"{where}: {what} {part.name!r:.120} is {_difference(part, wanted[part.name])}: export it again"
            )
    for name in wanted:
        if name not in seen:
            raise GraphError(f"{where}: {what} {name!r:.120} is missing; export it again")


def _difference(got: Any, expected: Any) -> str:
    """What both say of the first field in which they differ."""
    for field in got.__dataclass_fields__:
        left, right = getattr(got, field), getattr(expected, field)
        if left != right:
            return f"of {field} {_shown(left)}; expected {_shown(right)}"
    return "another"


def _shown(value: object) -> str:
    return f"{dict(value)!r:.200}" if isinstance(value, Mapping) else f"{value!r:.200}"


def _same(got: object, expected: object) -> bool:
    return got == expected


def _same_node(got: Node, expected: Node) -> bool:
    ends = (got.domain, got.kind, got.inputs, got.outputs) == (
        expected.domain, expected.kind, expected.inputs, expected.outputs,
    )  # fmt: skip
    return (
        ends
        and got.attributes.keys() == expected.attributes.keys()
        and all(_same_attribute(value, expected.attributes[name]) for name, value in got.attributes.items())
    )


def _same_attribute(got: Attribute, expected: Attribute) -> bool:
    if isinstance(got, float) and isinstance(expected, float):
        with np.errstate(over="ignore", under="ignore"):
            stored = float(np.float32(expected))
        return got == stored or math.isclose(got, stored, rel_tol=1e-6)
    return type(got) is type(expected) and got == expected


def _same_tensor(got: Tensor, expected: Tensor) -> bool:
    if (got.dtype, got.dims) != (expected.dtype, expected.dims):
        return False
    left, right = got.content, expected.content
    if isinstance(left, Place) or isinstance(right, Place) or len(left) != len(right):
        return left == right
    for dtype, (kind, tolerance) in _TOLERANCES.items():
        if dtype == expected.dtype:
            return bool(np.allclose(np.frombuffer(left, kind), np.frombuffer(right, kind), rtol=tolerance, atol=0))
    return left == right


def _facts(graph: Graph, adapter_inputs: Collection[str]) -> GraphFacts:
    inside = [tensor.content for tensor in graph.initializers if not isinstance(tensor.content, Place)]
    return GraphFacts(
        nodes=len(graph.nodes),
        external=len(graph.initializers) - len(inside),
        constants_bytes=sum(map(len, inside)),
        adapter_inputs=len(adapter_inputs),
    )
