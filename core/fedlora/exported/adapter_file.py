"""Files of ONNX Runtime's adapter format (.onnx_adapter), read without ONNX Runtime, and verified for one base.

    table Parameter { name: string; dims: [int64]; data_type: int32; raw_data: [uint8]; }
    table Adapter { format_version: int32; adapter_version: int32; model_version: int32; parameters: [Parameter]; }
    root Adapter, in a FlatBuffer with the letters TORT        (onnxruntime/lora/adapter_format/adapter_schema.fbs)

ONNX Runtime takes NaN and a flipped bit, and what it hands out lies in the mapped file: one that is truncated later ends
the process. Here all is checked on bytes that were read. ONNX Runtime is the oracle of the tests.

With its manifest beside it (`adapter_manifest`) the file must be the one that the manifest tells, bit for bit, and the base
the one that it names in full. Without one, the file names its base by 31 bits of the fingerprint, in the format's model
version. Files of other tools name none: Olive sets no version, which reads as 0 or 1. Such a file is taken where the caller
says so, and where every name and shape fits: whether it was trained on these very weights nobody can tell.
"""

from __future__ import annotations

import errno
import hashlib
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedlora.errors import AdapterError, AdapterMismatchError, AtRestError
from fedlora.exported.adapter_manifest import AdapterManifest, read_adapter_manifest
from fedlora.exported.cache_prefix import check_cache_inputs, is_of_cache
from fedlora.exported.flat_buffer import MAX_BYTES, FlatTable, root_table
from fedlora.exported.inputs import is_of_factors, is_of_head, model_version, modules_of
from fedlora.exported.profiles import DEFAULT, Profile
from fedlora.exported.sidecar import InputShapes, sidecar_of
from fedlora.files.at_rest import read_plain
from fedlora.files.tensor_file import MAX_TENSORS
from fedlora.lora.adapter import MAX_LABELS, check_extras
from fedlora.lora.config import MAX_RANK, MAX_VIRTUAL_TOKENS
from fedlora.lora.kinds import kind_of
from fedlora.lora.output_scale import is_scale
from fedlora.peft.missing import told_instead

SUFFIX = ".onnx_adapter"
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
UNNAMED_VERSIONS = (0, 1)  # of files whose writer names no base
_OVERHEAD_BYTES = 1 << 10  # of a parameter: its name, sizes and tables


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFile:
    """What a file holds; the values are views of its bytes, which nothing can change."""

    adapter_version: int
    model_version: int
    values: Mapping[str, NDArray[np.float32]]  # {input name: value}
    manifest: AdapterManifest | None = None  # what stands beside the file, where that was read too


def load_adapter_file(
    path: Path,
    *,
    base_fingerprint: str,
    inputs: InputShapes,  # of the graph that it is for: fedlora.exported.profiles.file_inputs
    profile: Profile = DEFAULT,  # of that graph
    allow_unnamed_base: bool = False,
) -> AdapterFile:
    """Read a .onnx_adapter file whole, with its manifest where it has one.

    Raises AdapterError where it is damaged, AdapterMismatchError where it is for another base or profile.
    """
    if not path.is_file():
        made = f"make one with: fedlora export-adapter ADAPTER -o {path}"
        raise AdapterError(f"{path}: no such file; {made if path.suffix == SUFFIX else told_instead(path)}")
    manifest = read_adapter_manifest(path)
    most = _largest_file(inputs)
    if manifest and manifest.base != base_fingerprint:
        raise AdapterMismatchError(
            f"{sidecar_of(path)}: made for base {manifest.base}, this base is {base_fingerprint}; "
            "export the adapter again for this base"
        )
    if manifest and manifest.profile != profile and not kind_of(manifest.lora).is_virtual:
        raise AdapterMismatchError(
            f"{sidecar_of(path)}: made for profile {manifest.profile}, this graph is {profile}; export the adapter again "
            f"with: fedlora export-adapter --profile {profile}"
        )
    try:
        data = read_plain(path, most)
    except AtRestError as error:
        raise AdapterError(str(error)) from None
    except OSError as error:
        if error.errno != errno.EFBIG:
            raise
        raise AdapterMismatchError(
            f"{path}: {error.strerror}, more than any adapter of this base has; export the adapter again for this base"
        ) from None
    _check_digest(data, manifest, path)
    file = parse_adapter_file(data, str(path))
    _check_version(file, model_version(base_fingerprint), str(path), allow_unnamed_base and manifest is None)
    check_inputs(file.values, inputs, str(path))
    if manifest and {name: value.shape for name, value in file.values.items()} != manifest.inputs:
        raise AdapterError(f"{sidecar_of(path)}: slots are not those of the file; export the adapter again")
    return replace(file, manifest=manifest)


def read_adapter_file(path: Path) -> AdapterFile:
    """A file and its manifest, where it has one, whatever base they are for. Raises AdapterError where they are damaged."""
    manifest = read_adapter_manifest(path)
    try:
        data = read_plain(path, MAX_BYTES)
    except AtRestError as error:
        raise AdapterError(str(error)) from None
    except OSError as error:
        raise AdapterError(f"{path}: cannot be read: {error.strerror}; expected an adapter file (*{SUFFIX})") from None
    _check_digest(data, manifest, path)
    return replace(parse_adapter_file(data, str(path)), manifest=manifest)


def _check_digest(data: bytes, manifest: AdapterManifest | None, path: Path) -> None:
    if manifest and (len(data), hashlib.sha256(data).hexdigest()) != (manifest.size_bytes, manifest.sha256):
        raise AdapterError(
            f"{path}: {len(data)} bytes with sha256 {hashlib.sha256(data).hexdigest()}, its manifest says "
            f"{manifest.size_bytes} with {manifest.sha256}; the file is damaged: copy both again"
        )


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


def check_inputs(values: Mapping[str, NDArray[np.float32]], inputs: InputShapes, where: str) -> None:
    """Raise AdapterMismatchError unless names, shapes and paired ranks fit the inputs.

    Modules without an adapter are fine, with what scales them alone too; halves of one are not. Nor is a head whose parts
    are for other numbers of labels. Keys and values of virtual tokens stand alone.
    """
    if not values:
        raise AdapterMismatchError(f"{where}: the adapter has no modules; export one that has")
    if any(is_of_cache(name) and name in inputs for name in values):
        check_cache_inputs(values, inputs, where)
        return
    ranks: dict[str, list[int]] = {}
    for name, value in values.items():
        if name not in inputs:
            raise AdapterMismatchError(
                f"{where}: the graph has no adapter input {name}; the adapter is for another base or profile"
            )
        want = inputs[name]
        if is_scale(name) and value.shape != want:
            raise AdapterMismatchError(f"{where}: {name} is {list(value.shape)}; the graph expects {list(want)}")
        if not is_of_factors(name):
            continue
        if value.ndim != 2 or any(w not in (-1, got) for w, got in zip(want, value.shape, strict=True)):
            shape = " x ".join("rank" if w == -1 else str(w) for w in want)
            raise AdapterMismatchError(f"{where}: {name} is {list(value.shape)}; the graph expects {shape}")
        ranks.setdefault(_module_of(name), []).append(value.shape[want.index(-1)])
    head = {name: value for name, value in values.items() if is_of_head(name)}
    if head.keys() == values.keys():
        raise AdapterMismatchError(f"{where}: the adapter has a head and no modules; export one that has")
    check_extras(head, {name: shape for name, shape in inputs.items() if is_of_head(name)}, where)
    for module, found in ranks.items():
        if len(found) != 2 or found[0] != found[1] or not 1 <= found[0] <= _largest_rank(module):
            raise AdapterMismatchError(
                f"{where}: {module} needs A and B of one rank up to {_largest_rank(module)}, "
                f"got {len(found)} of rank {sorted(set(found))}; export it again"
            )


def _check_version(file: AdapterFile, expected: int, where: str, unnamed_is_fine: bool) -> None:
    if file.model_version == expected:
        return
    if file.model_version not in UNNAMED_VERSIONS:
        raise AdapterMismatchError(
            f"{where}: made for base {file.model_version:08x}, this base is {expected:08x}; "
            "export the adapter again for this base"
        )
    if not unnamed_is_fine:
        raise AdapterMismatchError(
            f"{where}: names no base (model version {file.model_version}), as files of other tools do; export its PEFT "
            "adapter with: fedlora export-adapter, or allow an unnamed base where you know that it is this one"
        )


def _largest_file(inputs: InputShapes) -> int:
    """What the file of an adapter of the largest rank for every input has at most."""
    numbers = sum(
        max(shape) * _largest_rank(_module_of(name))
        if is_of_factors(name)
        else math.prod(_most(name) if size == -1 else size for size in shape)
        for name, shape in inputs.items()
    )
    return min(4 * numbers + _OVERHEAD_BYTES * (len(inputs) + 1), MAX_BYTES)


def _most(name: str) -> int:
    """Of an input that is no factor: how large its size is that the base leaves open."""
    return MAX_VIRTUAL_TOKENS if is_of_cache(name) else MAX_LABELS


def _largest_rank(module: str) -> int:
    """The largest rank of a module; of a group of modules, the sum of theirs."""
    return MAX_RANK * len(modules_of(module))


def _module_of(name: str) -> str:
    return name.rsplit(".lora_", 1)[0]
