"""ONNX graphs that go too far: subgraphs in one another, sizes that no memory has, places elsewhere, parts without number.

A graph is changed as protobuf's own library holds it, or, where that would not write it, field by field in its bytes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import onnx

from tests.fuzz.structures import COUNTS, MOST_CHARACTERS, TEXTS

Chance = random.Random
Model = onnx.ModelProto
Change = Callable[[Model, Chance, Sequence[str]], bytes | None]  # None: the model itself was changed

_SIZES = (0, -1, 1, 2, 7, 255, 1 << 31, (1 << 31) - 1, 1 << 32, 1 << 48, (1 << 63) - 1, -(1 << 63))
_DEPTHS = (1, 2, 30, 99, 101, 3000)
_PLACES = (
    "", ".", "..", "/dev/zero", "/etc/passwd", "../model.safetensors", "model.safetensors/", "./model.safetensors",
    "MODEL.SAFETENSORS", "model.safetensors\0x", "decoder.onnx", "file:///etc/passwd",
)  # fmt: skip
_NUMERALS = ("-1", "0", "1e3", "0x10", " 8", "8 ", "08", "9" * 18, "9" * 400, "9" * 5000, "", "\u0663", "1_0", "NaN")
_KINDS = (
    "Loop",
    "If",
    "Scan",
    "Constant",
    "ConstantOfShape",
    "Expand",
    "Tile",
    "Identity",
    "SequenceMap",
    "Einsum",
    "X",
)
_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft", "fedlora", "x" * 1000, "ai.onnx.preview.training")
_GRAPH, _NODE, _ATTRIBUTE, _G, _TYPE, _NAME = 7, 1, 5, 6, 20, 1  # numbers of fields
_ATTRIBUTE_GRAPH = 5


def changed_graph(data: bytes, chance: Chance, names: Sequence[str]) -> bytes:
    """A sound graph with one or a few places changed."""
    model = Model.FromString(data)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        written = chance.choice(_CHANGES)(model, chance, names)
        if written is not None:
            return written[: 2 * MOST_CHARACTERS]
    return bytes(model.SerializeToString())[: 2 * MOST_CHARACTERS]


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, content: bytes) -> bytes:
    """A field that holds bytes: a text or another message."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def nested_subgraphs(depth: int) -> bytes:
    """A node whose attribute is a graph of a node whose attribute is a graph, and so on."""
    node = b""
    for _ in range(depth):
        kind = varint(_TYPE << 3) + varint(_ATTRIBUTE_GRAPH)
        attribute = field(_NAME, b"body") + field(_G, field(_NODE, node)) + kind
        node = field(4, b"Loop") + field(_ATTRIBUTE, attribute)
    return node


def _nested(model: Model, chance: Chance, names: Sequence[str]) -> bytes:
    return bytes(model.SerializeToString()) + field(_GRAPH, field(_NODE, nested_subgraphs(chance.choice(_DEPTHS))))


def _subgraph(model: Model, chance: Chance, names: Sequence[str]) -> None:
    """Half of the graph within an attribute of a node of the other half."""
    graph, node = model.graph, chance.choice(model.graph.node)
    attribute = node.attribute.add(name=chance.choice(("body", "then_branch", "else_branch", "x")))
    attribute.type = onnx.AttributeProto.GRAPH
    attribute.g.node.extend(graph.node[len(graph.node) // 2 :])
    node.op_type = chance.choice(_KINDS)


def _size(model: Model, chance: Chance, names: Sequence[str]) -> None:
    graph, size = model.graph, chance.choice(_SIZES)
    if chance.random() < 0.5:
        dims = chance.choice(graph.initializer).dims
        if chance.random() < 0.3 or not dims:
            dims.extend([size] * min(chance.choice(COUNTS), MOST_CHARACTERS // 10))
        else:
            dims[chance.randrange(len(dims))] = size
        return
    values = chance.choice([*graph.input, *graph.output, *graph.value_info]).type.tensor_type.shape.dim
    for _ in range(chance.choice((1, 1, 300, 5000))):
        values.add(dim_value=size)


def _place(model: Model, chance: Chance, names: Sequence[str]) -> None:
    outside = [tensor for tensor in model.graph.initializer if tensor.external_data]
    tensor = chance.choice(outside or list(model.graph.initializer))
    if not tensor.external_data or chance.random() < 0.2:
        tensor.data_location = onnx.TensorProto.EXTERNAL
        key = chance.choice(("location", "offset", "length", "checksum", "basepath", ""))
        tensor.external_data.add(key=key, value=chance.choice((*_PLACES, *_NUMERALS, *names)))
        return
    entry = chance.choice(tensor.external_data)
    entry.value = chance.choice((*_PLACES, *names)) if entry.key == "location" else chance.choice(_NUMERALS)


def _many(model: Model, chance: Chance, names: Sequence[str]) -> None:
    """More parts of one kind."""
    graph = model.graph
    node = chance.choice(graph.node)
    lists: list[tuple[Any, Any]] = [
        (graph.node, node), (graph.initializer, chance.choice(graph.initializer)),
        (graph.input, chance.choice(graph.input)), (graph.output, chance.choice(graph.output)),
        (graph.value_info, onnx.ValueInfoProto(name="v")), (model.opset_import, onnx.OperatorSetIdProto(domain="d")),
        (model.metadata_props, onnx.StringStringEntryProto(key="k", value="v")),
        (node.attribute, onnx.AttributeProto(name="a", type=onnx.AttributeProto.INTS, ints=[1])),
    ]  # fmt: skip
    if chance.random() < 0.3:
        texts = chance.choice((node.input, node.output))
        texts.extend([chance.choice(("", "x", *texts))] * chance.choice(COUNTS))
        return
    parts, part = chance.choice(lists)
    count = min(chance.choice(COUNTS), MOST_CHARACTERS // (part.ByteSize() + 1) + 1)
    others = chance.random() < 0.5
    for number in range(count):
        added = parts.add()
        added.CopyFrom(part)
        if others:
            setattr(added, "domain" if part.DESCRIPTOR.name == "OperatorSetIdProto" else _named(part), f"n{number}")


def _named(part: Any) -> str:
    return "key" if part.DESCRIPTOR.name == "StringStringEntryProto" else "name"


def _repeated(model: Model, chance: Chance, names: Sequence[str]) -> bytes:
    """Fields that may be there once, again: of the model, or a whole model after the other, as protobuf merges them."""
    data = bytes(model.SerializeToString())
    more = chance.choice(
        (
            data, field(_GRAPH, model.graph.SerializeToString()), varint(1 << 3) + varint(8), field(2, b"x"),
            field(_GRAPH, b""), field(_GRAPH, field(2, b"another")), varint(1 << 3) + b"\x80" * 9 + b"\x01",
            varint(1 << 3) + b"\x88\x00", varint(1 << 3 | 3) + varint(1 << 3 | 4), varint(1 << 3 | 1) + bytes(8),
            varint(99 << 3) + b"\x01", varint((1 << 29) - 1 << 3 | 2) + b"\0", b"\0", varint(1 << 35 | 2) + b"\0",
        )
    )  # fmt: skip
    return data + more if chance.random() < 0.7 else more + data


def _other_kind(model: Model, chance: Chance, names: Sequence[str]) -> None:
    graph, node = model.graph, chance.choice(model.graph.node)
    match chance.randrange(8):
        case 0:
            node.op_type = chance.choice(_KINDS)
        case 1:
            node.domain = chance.choice(_DOMAINS)
        case 2:
            chance.choice(graph.initializer).data_type = chance.choice((0, 8, 14, 99, -1, (1 << 31) - 1))
        case 3:
            chance.choice(model.opset_import).version = chance.choice(_SIZES)
        case 4:
            model.ir_version = chance.choice(_SIZES)
        case 5:
            model.functions.add(name=node.op_type, domain=node.domain).node.append(node)
        case 6:
            graph.sparse_initializer.add().dims.extend([1 << 40])
        case _:
            model.training_info.add().algorithm.CopyFrom(graph)


def _attribute(model: Model, chance: Chance, names: Sequence[str]) -> None:
    node = chance.choice([node for node in model.graph.node if node.attribute] or list(model.graph.node))
    attribute = chance.choice(node.attribute) if node.attribute else node.attribute.add(name="a")
    match chance.randrange(6):
        case 0:
            attribute.i = chance.choice(_SIZES)
        case 1:
            attribute.ints.extend([chance.choice(_SIZES)] * chance.choice(COUNTS))
        case 2:
            attribute.f = chance.choice((float("nan"), float("inf"), 1e38, -0.0))
        case 3:
            attribute.type = chance.choice(range(15))
        case 4:
            attribute.t.raw_data = bytes(min(chance.choice(COUNTS) * 4, MOST_CHARACTERS))
        case _:
            attribute.s = chance.choice(TEXTS).encode("utf-8", "surrogatepass")


def _values(model: Model, chance: Chance, names: Sequence[str]) -> None:
    """The numbers of a constant, and where they stand."""
    inside = [tensor for tensor in model.graph.initializer if tensor.raw_data]
    tensor = chance.choice(inside or list(model.graph.initializer))
    data = tensor.raw_data
    match chance.randrange(5):
        case 0:
            tensor.raw_data = data[:-1]
        case 1:
            tensor.raw_data = data * min(chance.choice(COUNTS), MOST_CHARACTERS // (len(data) + 1) + 1)
        case 2:
            tensor.raw_data = b"\xff" * len(data)
        case 3:
            tensor.ClearField("raw_data")
        case _:
            tensor.int64_data.extend([1] * chance.choice(COUNTS))


def _named_otherwise(model: Model, chance: Chance, names: Sequence[str]) -> None:
    graph = model.graph
    part = chance.choice([*graph.node, *graph.initializer, *graph.input, *graph.output])
    others = [each.name for each in (*graph.node, *graph.initializer, *graph.input)]
    text = chance.choice([*others, *(each for each in TEXTS if "\ud800" not in each)])
    if isinstance(part, onnx.NodeProto) and part.input and chance.random() < 0.7:
        part.input[chance.randrange(len(part.input))] = text  # a cycle, or nothing that is there
    else:
        part.name = text


def _moved(model: Model, chance: Chance, names: Sequence[str]) -> None:
    graph = model.graph
    parts: Any = chance.choice((graph.node, graph.initializer, graph.input, graph.output))
    kept = list(parts)
    chance.shuffle(kept)
    del parts[:]
    parts.extend(kept[chance.choice((0, 0, 1)) :])


_CHANGES: Sequence[Change] = (
    _nested, _subgraph, _size, _size, _place, _place, _many, _many, _repeated, _repeated, _other_kind, _attribute, _values,
    _named_otherwise, _moved,
)  # fmt: skip
