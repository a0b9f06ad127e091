"""Files of ONNX Runtime's adapter format (.onnx_adapter), read without ONNX Runtime.

    table Parameter { name: string; dims: [int64]; data_type: int32; raw_data: [uint8]; }
    table Adapter { format_version: int32; adapter_version: int32; model_version: int32; parameters: [Parameter]; }
    root Adapter, in a FlatBuffer with the letters TORT        (onnxruntime/lora/adapter_format/adapter_schema.fbs)

ONNX Runtime takes NaN and a flipped bit, and what it hands out lies in the mapped file: one that is truncated later ends
the process. Here all is checked on bytes that were read. ONNX Runtime is the oracle of the tests.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedlora.errors import AdapterError
from fedlora.exported.adapter_manifest import AdapterManifest
from fedlora.exported.flat_buffer import FlatTable, root_table
from fedlora.files.tensor_file import MAX_TENSORS

IDENTIFIER = b"TORT"
FORMAT_VERSION = 1
# Fields of the two tables, in the schema's order.
_FORMAT, _ADAPTER, _MODEL, _PARAMETERS = range(4)
_NAME, _DIMS, _DATA_TYPE, _RAW_DATA = range(4)
_FLOAT32 = 1
_TYPES = {
    2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "string", 9: "bool", 10: "float16",
    11: "float64", 12: "uint32", 13: "uint64", 16: "bfloat16",
}  # fmt: skip
_MAX_DIMENSIONS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFile:
    """What a file holds; the values are views of its bytes, which nothing can change."""

    adapter_version: int
    model_version: int
    values: Mapping[str, NDArray[np.float32]]  # {input name: value}
    manifest: AdapterManifest | None = None  # what stands beside the file, where that was read too


def parse_adapter_file(data: bytes, where: str) -> AdapterFile:
    """Raises AdapterError where the file is not of the format, or holds something that is not finite float32."""
    try:
        root = root_table(data, IDENTIFIER)
        if root.int32(_FORMAT) != FORMAT_VERSION:
            raise ValueError(f"version {root.int32(_FORMAT)} of the format; expected {FORMAT_VERSION}")
        values: dict[str, NDArray[np.float32]] = {}
        size_bytes = 0
        for parameter in root.tables(_PARAMETERS, MAX_TENSORS):
            name, value = _parameter(parameter, data, where)
            if name in values:
                raise ValueError(f"two parameters are named {name}")
            values[name] = value
            size_bytes += value.nbytes
            # Parameters may lie over each other in a FlatBuffer: a small file would take long to check.
            if size_bytes > len(data):
                raise ValueError("its parameters hold more bytes than the file")
    except (ValueError, UnicodeDecodeError) as error:
        raise AdapterError(f"{where}: not a file of ONNX Runtime's adapter format: {error}; export it again") from None
    for name, value in values.items():
        if not np.isfinite(value).all():
            raise AdapterError(f"{where}: {name} holds NaN or infinity; the adapter cannot be used")
    return AdapterFile(adapter_version=root.int32(_ADAPTER), model_version=root.int32(_MODEL), values=values)


def _parameter(parameter: FlatTable, data: bytes, where: str) -> tuple[str, NDArray[np.float32]]:
    name, kind = parameter.string(_NAME), parameter.int32(_DATA_TYPE)
    dims, raw = parameter.vector(_DIMS, 8), parameter.vector(_RAW_DATA, 1)
    if not name or not name.isprintable():
        raise ValueError(f"a parameter is named {name!r:.80}")
    if kind != _FLOAT32:
        raise AdapterError(f"{where}: {name} is {_TYPES.get(kind, f'of type {kind}')}; expected float32")
    if dims is None or raw is None or dims.count > _MAX_DIMENSIONS:
        raise ValueError(f"{name} has no sizes, no values, or more than {_MAX_DIMENSIONS} dimensions")
    shape = struct.unpack_from(f"<{dims.count}q", data, dims.begin)
    if any(size < 0 for size in shape) or math.prod(shape) * 4 != raw.count:
        raise ValueError(f"{name} is {list(shape)} of float32, and holds {raw.count} bytes")
    if not raw.count:
        return name, np.zeros(shape, np.float32)
    return name, np.frombuffer(data, "<f4", raw.count // 4, raw.begin).reshape(shape)
