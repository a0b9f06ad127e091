"""A graph under construction: nodes, inputs, and initializers whose bytes lie in the pack's file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlora.base.pack import WEIGHTS, BasePack
from fedlora.exported.inputs import BASE_PROPERTY
from fedlora.graph.graph import (
    CONTRIB,
    CONTRIB_OPSET,
    OPSET,
    Attribute,
    DataType,
    Graph,
    Node,
    Place,
    Signature,
    Tensor,
)
from fedlora.row_lora.library import DOMAIN, VERSION

_STORED_TYPES = {"U8": DataType.UINT8, "F32": DataType.FLOAT}
_TYPES = {
    np.dtype(np.float32): DataType.FLOAT,
    np.dtype(np.float64): DataType.DOUBLE,
    np.dtype(np.int32): DataType.INT32,
    np.dtype(np.int64): DataType.INT64,
}


@dataclass(eq=False, slots=True)
class Value:
    """What a node gives or a graph is given. It may get another name until the graph is finished."""

    name: str
    signature: Signature | None = None  # of an input or output of the graph


@dataclass(frozen=True, slots=True, kw_only=True)
class _Operation:
    """A node under construction."""

    name: str
    domain: str
    kind: str
    inputs: Sequence[Value | None]
    outputs: Sequence[Value]
    attributes: dict[str, Attribute]

    def finished(self) -> Node:
        return Node(
            name=self.name,
            domain=self.domain,
            kind=self.kind,
            inputs=tuple(value.name if value else "" for value in self.inputs),
            outputs=tuple(value.name for value in self.outputs),
            attributes=self.attributes,
        )


class GraphBuilder:
    """Collects the nodes and initializers of one graph over one pack."""

    def __init__(self, base: BasePack, accuracy_level: int = 0) -> None:
        """`accuracy_level` is that of every product with a packed weight, see `packed_layers`."""
        self.base, self.accuracy_level = base, accuracy_level
        self.linear_modules = base.model.linear_modules()
        self.matrices = base.model.vocabulary_modules() | self.linear_modules
        self._nodes: list[_Operation] = []
        self._inputs: dict[str, Value] = {}
        self._initializers: dict[str, tuple[Value, Tensor]] = {}

    def input(
        self, name: str, dtype: DataType, shape: Sequence[int | str], default: NDArray[Any] | None = None
    ) -> Value:
        """A graph input, the same for the same name. With a `default` it is an initializer too: optional at run time."""
        if name in self._inputs:
            return self._inputs[name]
        value = Value(name, Signature(name=name, dtype=dtype, shape=tuple(shape)))
        self._inputs[name] = value
        if default is not None:
            self._initializers[name] = value, _inside(name, default)
        return value

    def op(
        self,
        kind: str,
        inputs: Sequence[Value | None],
        name: str,
        *,
        contrib: bool = False,
        domain: str = "",
        **attributes: Any,
    ) -> Value:
        """Add a node with one output, which gets the node's `name`."""
        return self.ops(kind, inputs, [name], contrib=contrib, domain=domain, **attributes)[0]

    def ops(
        self,
        kind: str,
        inputs: Sequence[Value | None],
        names: Sequence[str],
        *,
        contrib: bool = False,  # one of ONNX Runtime's own
        domain: str = "",
        **attributes: Any,
    ) -> tuple[Value, ...]:
        """Add a node with an output for each of `names`; an empty name is an output that nobody reads."""
        outputs = tuple(Value(name) for name in names)
        self._nodes.append(
            _Operation(
                name=names[0],
                domain=CONTRIB if contrib else domain,
                kind=kind,
                inputs=inputs,
                outputs=outputs,
                attributes={name: _attribute(value) for name, value in attributes.items()},
            )
        )
        return outputs

    def constant(self, name: str, values: Any, dtype: type[np.generic] = np.int64) -> Value:
        """An initializer inside the graph's file: for small tensors only."""
        return self._initializer(_inside(name, np.asarray(values, dtype)))

    def stored(self, tensors: str | Sequence[str], shape: Sequence[int] | None = None) -> Value:
        """An initializer whose bytes are those of a tensor in the pack, or of several that lie side by side.

        It has `shape` where another is wanted; several tensors are one along their first dimension.
        """
        names = [tensors] if isinstance(tensors, str) else list(tensors)
        entries = [self.base.weights.entries[name] for name in names]
        own = (sum(entry.shape[0] for entry in entries), *entries[0].shape[1:])
        dims = own if shape is None else tuple(shape)
        name = names[0] if len(names) == 1 and dims == own else f"{'+'.join(names)}.{'x'.join(map(str, dims))}"
        place = Place(location=WEIGHTS, offset=entries[0].offset, length=sum(entry.size_bytes for entry in entries))
        return self._initializer(Tensor(name=name, dtype=_STORED_TYPES[entries[0].dtype], dims=dims, content=place))

    def are_side_by_side(self, tensors: Sequence[str]) -> bool:
        """Whether the tensors, which have one dtype, are one run of bytes in the pack's file."""
        entries = [self.base.weights.entries[name] for name in tensors]
        return all(left.offset + left.size_bytes == right.offset for left, right in pairwise(entries))

    def stored_input(self, tensor: str, shape: Sequence[int | str]) -> Value:
        """A graph input whose default is a tensor of the pack: optional, and of other sizes where `shape` has names."""
        value = self.stored(tensor)
        value.signature = Signature(name=tensor, dtype=DataType.FLOAT, shape=tuple(shape))
        return self._inputs.setdefault(tensor, value)

    def output(self, value: Value, shape: Sequence[int | str]) -> Value:
        """`value` with the shape and the type, float32, that an output of the graph declares."""
        value.signature = Signature(name=value.name, dtype=DataType.FLOAT, shape=tuple(shape))
        return value

    def graph(self, outputs: Sequence[Value], name: str) -> Graph:
        """The finished graph, which names its base."""
        ours = {DOMAIN: VERSION} if any(node.domain == DOMAIN for node in self._nodes) else {}
        return Graph(
            name=name,
            nodes=tuple(node.finished() for node in self._nodes),
            inputs=tuple(_signature(value) for value in self._inputs.values()),
            outputs=tuple(_signature(value) for value in outputs),
            initializers=tuple(tensor for _, tensor in self._initializers.values()),
            opsets={"": OPSET, CONTRIB: CONTRIB_OPSET, **ours},
            properties={BASE_PROPERTY: self.base.fingerprint},
        )

    def _initializer(self, tensor: Tensor) -> Value:
        value, _ = self._initializers.setdefault(tensor.name, (Value(tensor.name), tensor))
        return value


def _attribute(value: Any) -> Attribute:
    if isinstance(value, list | tuple):
        return tuple(int(number) for number in value)
    if isinstance(value, int):  # a DataType too
        return int(value)
    return value if isinstance(value, str) else float(value)


def _inside(name: str, values: NDArray[Any]) -> Tensor:
    content = values.astype(values.dtype.newbyteorder("<")).tobytes()
    return Tensor(name=name, dtype=_TYPES[values.dtype], dims=values.shape, content=content)


def _signature(value: Value) -> Signature:
    assert value.signature is not None
    return value.signature
