"""An ONNX file as plain values, read without protobuf's own library: `fedlora serve` has none.

It knows the fields that the exporter writes. All others are refused: functions, subgraphs, tensors as attributes, sparse
initializers, metadata of nodes, options of the runtime.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedlora.graph.graph import Attribute, Graph, Node, Place, Signature, Tensor
from fedlora.graph.protobuf import Field, Message, MessageReader


def _refused(**numbers: int) -> dict[int, Field]:
    return {number: Field(name, "refused") for name, number in numbers.items()}


_MODEL = Message(
    {
        1: Field("ir_version", "number"),
        2: Field("producer_name", "text"),
        7: Field("graph", "message"),
        8: Field("opset_import", "message", is_list=True),
        14: Field("metadata_props", "message", is_list=True),
        **_refused(
            producer_version=3,
            domain=4,
            model_version=5,
            doc_string=6,
            training_info=20,
            functions=25,
            configuration=26,
        ),
    }
)
_GRAPH = Message(
    {
        1: Field("node", "message", is_list=True),
        2: Field("name", "text"),
        5: Field("initializer", "message", is_list=True),
        11: Field("input", "message", is_list=True),
        12: Field("output", "message", is_list=True),
        13: Field("value_info", "message", is_list=True),
        **_refused(doc_string=10, quantization_annotation=14, sparse_initializers=15, metadata_props=16),
    }
)
_NODE = Message(
    {
        1: Field("input", "text", is_list=True),
        2: Field("output", "text", is_list=True),
        3: Field("name", "text"),
        4: Field("op_type", "text"),
        5: Field("attribute", "message", is_list=True),
        7: Field("domain", "text"),
        **_refused(doc_string=6, overload=8, metadata_props=9, device_configurations=10),
    }
)
_FLOAT, _INT, _STRING, _INTS = 1, 2, 3, 7
_ATTRIBUTE = Message({
    1: Field("name", "text"),
    2: Field("f", "float"),
    3: Field("i", "number"),
    4: Field("s", "text"),
    8: Field("ints", "number", is_list=True),
    20: Field("type", "number"),
    **_refused(
        tensor=5, graph=6, floats=7, strings=9, tensors=10, graphs=11, doc_string=13, type_proto=14, type_protos=15,
        ref_attr_name=21, sparse_tensor=22, sparse_tensors=23,
    ),
})  # fmt: skip
_VALUES = {_FLOAT: "f", _INT: "i", _STRING: "s", _INTS: "ints"}
_TENSOR = Message({
    1: Field("dims", "number", is_list=True),
    2: Field("data_type", "number"),
    8: Field("name", "text"),
    9: Field("raw_data", "bytes"),
    13: Field("external_data", "message", is_list=True),
    14: Field("data_location", "number"),
    **_refused(
        segment=3, float_data=4, int32_data=5, string_data=6, int64_data=7, double_data=10, uint64_data=11,
        doc_string=12, metadata_props=16,
    ),
})  # fmt: skip
_EXTERNAL = 1
_MAX_DIGITS = 18
_ENTRY = Message({1: Field("key", "text"), 2: Field("value", "text")})
_OPSET = Message({1: Field("domain", "text"), 2: Field("version", "number")})
_SIGNATURE = Message({
    1: Field("name", "text"), 2: Field("type", "message"), **_refused(doc_string=3, metadata_props=4),
})  # fmt: skip
_TYPE = Message(
    {
        1: Field("tensor_type", "message"),
        **_refused(sequence_type=4, map_type=5, denotation=6, opaque_type=7, sparse_tensor_type=8, optional_type=9),
    }
)
_TENSOR_TYPE = Message({1: Field("elem_type", "number"), 2: Field("shape", "message")})
_SHAPE = Message({1: Field("dim", "message", is_list=True)})
_DIM = Message({1: Field("dim_value", "number"), 2: Field("dim_param", "text"), **_refused(denotation=3)})


def read_graph(content: bytes, where: str, *, max_fields: int) -> Graph:
    """The graph of an ONNX file. Raises GraphError, with the place, for what the exporter never writes.

    No message in it may have more than `max_fields` parts.
    """
    return _OnnxReader(MessageReader(where, max_fields)).graph(memoryview(content))


class _OnnxReader:
    def __init__(self, reader: MessageReader) -> None:
        self._reader = reader

    def graph(self, data: memoryview) -> Graph:
        model = self._reader.read(data, _MODEL, "it")
        graph = self._reader.read(model["graph"], _GRAPH, "its graph")
        return Graph(
            name=graph["name"],
            nodes=tuple(self._node(node) for node in graph["node"]),
            inputs=tuple(self._signature(value) for value in graph["input"]),
            outputs=tuple(self._signature(value) for value in graph["output"]),
            initializers=tuple(self._tensor(tensor) for tensor in graph["initializer"]),
            opsets=self._pairs(model["opset_import"], _OPSET, "an operator set"),
            properties=self._pairs(model["metadata_props"], _ENTRY, "a property"),
            described=tuple(self._signature(value) for value in graph["value_info"]),
            ir_version=model["ir_version"],
        )

    def _node(self, data: memoryview) -> Node:
        node = self._reader.read(data, _NODE, "a node")
        what = f"node {node['name']!r:.120}, {node['op_type']!r:.80}"
        attributes: dict[str, Attribute] = {}
        for each in node["attribute"]:
            name, value = self._attribute(each, what)
            if name in attributes:
                raise self._reader.error(f"{what}: attribute {name!r:.80} is there twice")
            attributes[name] = value
        return Node(
            name=node["name"],
            domain=node["domain"],
            kind=node["op_type"],
            inputs=tuple(node["input"]),
            outputs=tuple(node["output"]),
            attributes=attributes,
        )

    def _attribute(self, data: memoryview, what: str) -> tuple[str, Attribute]:
        attribute = self._reader.read(data, _ATTRIBUTE, f"{what}: an attribute")
        name, kind = attribute["name"], _VALUES.get(attribute["type"])
        if kind is None:
            raise self._reader.error(f"{what}: attribute {name!r:.80} is of type {attribute['type']}")
        if attribute["present"] - {"name", "type", kind}:
            raise self._reader.error(f"{what}: attribute {name!r:.80} has several values")
        value = attribute[kind]
        return name, tuple(value) if isinstance(value, list) else value

    def _tensor(self, data: memoryview) -> Tensor:
        tensor = self._reader.read(data, _TENSOR, "an initializer")
        what = f"initializer {tensor['name']!r:.120}"
        content: bytes | Place = bytes(tensor["raw_data"])
        if tensor["present"] & {"data_location", "external_data"}:
            if "raw_data" in tensor["present"] or tensor["data_location"] != _EXTERNAL:
                raise self._reader.error(f"{what} has both values and a place, or neither")
            content = self._place(tensor["external_data"], what)
        return Tensor(name=tensor["name"], dtype=tensor["data_type"], dims=tuple(tensor["dims"]), content=content)

    def _place(self, entries: list[memoryview], what: str) -> Place:
        facts = self._pairs(entries, _ENTRY, f"{what}: external data")
        if facts.keys() != {"location", "offset", "length"}:
            raise self._reader.error(
                f"{what} names {', '.join(facts)!r:.120} of its bytes, not location, offset, length"
            )
        numbers = {key: facts[key] for key in ("offset", "length")}
        for key, text in numbers.items():
            if not (text.isascii() and text.isdecimal() and len(text) <= _MAX_DIGITS and str(int(text)) == text):
                raise self._reader.error(f"{what}: {key} is {text!r:.80}, not a number of bytes")
        return Place(location=facts["location"], **{key: int(text) for key, text in numbers.items()})

    def _signature(self, data: memoryview) -> Signature:
        value = self._reader.read(data, _SIGNATURE, "a value")
        what = f"value {value['name']!r:.120}"
        tensor = self._reader.read(
            self._reader.read(value["type"], _TYPE, what)["tensor_type"], _TENSOR_TYPE, f"the type of {what}"
        )
        dims = self._reader.read(tensor["shape"], _SHAPE, f"the shape of {what}")["dim"]
        sizes = [self._reader.read(dim, _DIM, f"a size of {what}") for dim in dims]
        shape = tuple(size["dim_param"] or size["dim_value"] for size in sizes)
        return Signature(name=value["name"], dtype=tensor["elem_type"], shape=shape)

    def _pairs(self, entries: list[memoryview], message: Message, what: str) -> Mapping[str, Any]:
        """{first field: second field} of messages, each of another first field."""
        key, value = (field.name for field in message.values())
        pairs: dict[str, Any] = {}
        for entry in entries:
            pair = self._reader.read(entry, message, what)
            if pair[key] in pairs:
                raise self._reader.error(f"{what} is named twice: {pair[key]!r:.80}")
            pairs[pair[key]] = pair[value]
        return pairs
