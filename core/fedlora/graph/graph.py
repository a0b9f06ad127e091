"""A graph as plain values, whoever wrote it: built from a base (`builder.py`) or read from a file (`onnx_reader.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

OPSET, CONTRIB_OPSET, IR_VERSION = 23, 1, 11
CONTRIB = "com.microsoft"  # the domain of ONNX Runtime's own operations
PRODUCER = "fedlora"

Shape = tuple[int | str, ...]  # a name stands for a size that is not known before the run
Attribute = int | float | str | tuple[int, ...]


class DataType(IntEnum):
    """The numbers that ONNX gives the types of tensors that our graphs have."""

    FLOAT = 1
    UINT8 = 2
    INT32 = 6
    INT64 = 7
    DOUBLE = 11


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Bytes of a file that lies beside the graph."""

    location: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """An initializer: its bytes, little-endian, or the place where they lie."""

    name: str
    dtype: int
    dims: tuple[int, ...]
    content: bytes | Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """The name, the type and the shape of a value."""

    name: str
    dtype: int
    shape: Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One operation. An empty name among its inputs or outputs is one that is not there."""

    name: str
    domain: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Attribute]


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """A whole model. An initializer with the name of an input is its default."""

    name: str
    nodes: tuple[Node, ...]
    inputs: tuple[Signature, ...]
    outputs: tuple[Signature, ...]
    initializers: tuple[Tensor, ...]
    opsets: Mapping[str, int]  # {domain: version}
    properties: Mapping[str, str]
    described: tuple[Signature, ...] = field(default=())  # what a file says of other values than inputs and outputs
    ir_version: int = IR_VERSION
