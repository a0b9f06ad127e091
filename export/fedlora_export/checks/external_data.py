"""Whether an initializer's bytes are those of whole tensors of the pack."""

from __future__ import annotations

import math

from fedlora.base.pack import WEIGHTS, BasePack
from fedlora.errors import GraphError
from onnx import TensorProto

_DTYPES = {"U8": TensorProto.UINT8, "F32": TensorProto.FLOAT}
_ITEM_BYTES = {"U8": 1, "F32": 4}
_MAX_DIGITS = 18
_FIELDS = {"name", "dims", "data_type", "data_location", "external_data"}


def check_external(tensor: TensorProto, base: BasePack, where: str) -> None:
    """Raise GraphError unless the bytes are one tensor of model.safetensors, or a run of neighbours of one dtype."""
    place = f"{where}: initializer {tensor.name!r:.120}"
    facts = {entry.key: entry.value for entry in tensor.external_data}
    if len(facts) != len(tensor.external_data) or facts.keys() != {"location", "offset", "length"}:
        raise GraphError(
            f"{place}: expected location, offset and length, got {', '.join(facts)!r:.120}; export it again"
        )
    if facts["location"] != WEIGHTS:
        raise GraphError(
            f"{place} lies in {facts['location']!r:.120}; expected {WEIGHTS}, beside the graph: export it again"
        )
    for key in ("offset", "length"):
        if not (facts[key].isascii() and facts[key].isdecimal() and len(facts[key]) <= _MAX_DIGITS):
            raise GraphError(f"{place}: {key} is {facts[key]!r:.80}; expected a number of bytes: export it again")
    if {field.name for field, _ in tensor.ListFields()} - _FIELDS:
        raise GraphError(f"{place} has more than a name, a shape and a place; export it again")
    offset, length = int(facts["offset"]), int(facts["length"])
    dtype = _dtype_of_run(base, offset, length)
    if dtype is None:
        raise GraphError(
            f"{place}: bytes {offset} to {offset + length} are no tensors of {WEIGHTS}, or of several dtypes; "
            "export it again"
        )
    if tensor.data_type != _DTYPES[dtype] or any(size < 0 for size in tensor.dims):
        raise GraphError(f"{place} is of type {tensor.data_type}; its bytes are {dtype}: export it again")
    if math.prod(tensor.dims) * _ITEM_BYTES[dtype] != length:
        raise GraphError(f"{place} is {list(tensor.dims)} of {dtype}, and {length} bytes long; export it again")


def _dtype_of_run(base: BasePack, offset: int, length: int) -> str | None:
    """The dtype of the neighbours that together are exactly these bytes."""
    at, dtypes = offset, set()
    by_offset = {entry.offset: entry for entry in base.weights.entries.values() if entry.size_bytes}
    while at < offset + length and at in by_offset:
        dtypes.add(by_offset[at].dtype)
        at += by_offset[at].size_bytes
    return dtypes.pop() if at == offset + length and len(dtypes) == 1 else None
