"""safetensors files, read by mapping and written as a stream.

The format is a uint64 (little endian) N, N bytes of JSON, then the tensors' bytes. Plain dictionaries of tensors are
written by its own library (`tensor_dictionary`). What this is for is what the library cannot tell or refuses to hold:
where a tensor lies in the file, for an ONNX graph that points into it; the order of a base pack's tensors, which begin at
a multiple of 64 bytes; tensors that are written as they are made, never all in memory; bytes that are the same each time,
where the library sorts tensors, and puts metadata in another order in every process; bfloat16 in numpy. And the library
accepts what nobody should: duplicate names, and headers of any size. It is the oracle of the tests, and the second reader
of `fedlora verify`. Source: https://huggingface.co/docs/safetensors (format).
"""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from fedlora.errors import AtRestError, TensorFileError
from fedlora.files.at_rest import Writable, decrypted, is_encrypted, written
from fedlora.files.file_kind import kind_of
from fedlora.files.json_text import parse_json

MAX_HEADER_BYTES = 1 << 20
MAX_TENSORS = 4096
_NAMES_OF_A_TENSOR, _MORE_NAMES = 4, 1 << 16  # in a header of more than MAX_HEADER_BYTES
_ALIGNMENT = 64
_MAX_DIMENSIONS = 8

Dtype = Literal["F32", "F16", "BF16", "U8"]
# BF16 has no numpy type: it is read as the uint16 that holds its bits, and widened by `as_float32`.
_NUMPY: Mapping[str, np.dtype[Any]] = MappingProxyType(
    {
        "F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2"),
        "I64": np.dtype("<i8"), "I32": np.dtype("<i4"), "I16": np.dtype("<i2"), "I8": np.dtype("i1"),
        "U64": np.dtype("<u8"), "U32": np.dtype("<u4"), "U16": np.dtype("<u2"), "U8": np.dtype("u1"), "BOOL": np.dtype("?"),
        # Eight bits of a float are read as the byte that holds them.
        "F8_E4M3": np.dtype("u1"), "F8_E5M2": np.dtype("u1"), "F8_E8M0": np.dtype("u1"),
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEntry:
    """Where one tensor lies: `offset` and `size_bytes` count from the beginning of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorPlan:
    """One tensor that will be written: its name, dtype and shape, known before its bytes."""

    name: str
    dtype: Dtype
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * _NUMPY[self.dtype].itemsize


class TensorFile:
    """A checked safetensors file, mapped or in memory; what is written to its arrays never reaches it."""

    def __init__(
        self,
        path: Path,
        *,
        max_header_bytes: int = MAX_HEADER_BYTES,
        max_tensors: int = MAX_TENSORS,
        in_memory: bool = False,
    ) -> None:
        """Map `path`, or read it whole. Raises TensorFileError where its header and its length do not make a sound file.

        A mapped file that somebody cuts short ends the process that reads it: what strangers hand in is read `in_memory`.
        One that is encrypted at rest is decrypted into memory, whatever was asked for.
        """
        self.path = path
        with _opened(path) as file:
            if is_encrypted(file):
                try:
                    self._bytes = decrypted(file, path)
                except AtRestError as error:
                    raise TensorFileError(str(error)) from None
                with BytesIO(self._bytes[: 8 + max_header_bytes].tobytes()) as head:
                    self.entries, self.metadata = _read_header(
                        head, len(self._bytes), path, max_header_bytes, max_tensors
                    )
                return
            _check_kind(path)
            size = os.fstat(file.fileno()).st_size
            self.entries, self.metadata = _read_header(file, size, path, max_header_bytes, max_tensors)
            file.seek(0)
            # A private mapping: pages are shared with every other process, and torch takes no read-only arrays.
            mapped: NDArray[np.uint8] = np.fromfile(file, np.uint8) if in_memory else np.memmap(file, np.uint8, "c")
            self._bytes = mapped
        last = max((entry.offset + entry.size_bytes for entry in self.entries.values()), default=0)
        if len(self._bytes) < last:
            raise TensorFileError(
                f"{path}: changed while it was read: {len(self._bytes)} bytes, expected {last}; try again"
            )

    def array(self, name: str) -> NDArray[Any]:
        """The tensor as a view of the mapped file, in the file's shape (BF16: as uint16 bits)."""
        entry = self.entries[name]
        flat = self._bytes[entry.offset : entry.offset + entry.size_bytes]
        return np.asarray(flat).view(_NUMPY[entry.dtype]).reshape(entry.shape)

    def float32(self, name: str) -> NDArray[np.float32]:
        """The tensor widened to float32."""
        return as_float32(self.array(name), self.entries[name].dtype, f"{self.path}: {name}")


def as_float32(array: NDArray[Any], dtype: str, where: str) -> NDArray[np.float32]:
    """The values of an F32, F16 or BF16 tensor as float32; anything else raises TensorFileError."""
    if dtype == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    if dtype in ("F32", "F16"):
        return array.astype(np.float32, copy=False)
    raise TensorFileError(f"{where} has dtype {dtype}; expected F32, F16 or BF16")


def from_float32(array: NDArray[np.float32], dtype: Dtype) -> NDArray[Any]:
    """Values rounded to nearest in `dtype` (BF16: ties to even, as uint16 bits)."""
    if dtype == "BF16":
        bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
        rounded = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
        return np.where(np.isnan(array), np.uint16(0x7FC0), rounded.astype(np.uint16))
    return array.astype(_NUMPY[dtype])


def write_tensor_file(
    path: Path,
    plans: Sequence[TensorPlan],
    fill: Callable[[TensorPlan], Iterable[NDArray[Any]]],
    metadata: Mapping[str, str] | None = None,
    *,
    at_rest: str = "",
) -> None:
    """Write tensors one by one: `fill(plan)` yields a tensor's bytes in one or more arrays, in order.

    The data begins at a multiple of 64 bytes, so that tensors whose sizes keep the alignment can be used in place.
    `at_rest` is the name that the file will have where it is one of those that may be encrypted; no base is.
    """
    header = _header(plans, metadata or {})
    size_bytes = len(header) + sum(plan.size_bytes for plan in plans)
    with written(path, at_rest, size_bytes) if at_rest else path.open("wb") as file:
        file.write(header)
        for plan in plans:
            begin = file.tell()
            for part in fill(plan):
                _write_array(file, part, plan)
            if file.tell() - begin != plan.size_bytes:
                raise AssertionError(f"{plan.name}: planned {plan.size_bytes} bytes, wrote {file.tell() - begin}")


def write_in_order(
    path: Path,
    tensors: Mapping[str, tuple[Dtype, NDArray[Any]]],
    metadata: Mapping[str, str] | None = None,
    *,
    at_rest: str = "",
) -> None:
    """Write tensors that are in memory, in their order, so that the same ones always give the same bytes."""
    plans = [TensorPlan(name=name, dtype=dtype, shape=array.shape) for name, (dtype, array) in tensors.items()]
    write_tensor_file(path, plans, lambda plan: [tensors[plan.name][1]], metadata, at_rest=at_rest)


def _write_array(file: Writable, array: NDArray[Any], plan: TensorPlan) -> None:
    if array.dtype != _NUMPY[plan.dtype]:
        raise AssertionError(f"{plan.name}: planned {plan.dtype}, got {array.dtype}")
    file.write(np.ascontiguousarray(array).data)


def _header(plans: Sequence[TensorPlan], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for plan in plans:
        end = offset + plan.size_bytes
        header[plan.name] = {"dtype": plan.dtype, "shape": list(plan.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The file, opened once: what is looked at is what is read. Raises TensorFileError."""
    try:
        descriptor = os.open(
            path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0)
        )  # a pipe would be waited for
        with os.fdopen(descriptor, "rb") as file:
            mode = os.fstat(descriptor).st_mode
            if stat.S_ISDIR(mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            if not stat.S_ISREG(mode):
                raise TensorFileError(f"{path}: not a plain file; expected a safetensors file")
            yield file
    except OSError as error:
        raise TensorFileError(f"{path}: cannot be read: {error.strerror}; expected a safetensors file") from None


def _check_kind(path: Path) -> None:
    found = kind_of(path)
    if found is not None:
        raise TensorFileError(found.instead_of(path, "a safetensors file"))


def _read_header(
    file: BinaryIO, size: int, path: Path, max_header_bytes: int, max_tensors: int
) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    """What the header of a file of `size` bytes says, of which `file` has the beginning."""
    length = int.from_bytes(file.read(8), "little")
    if size < 10 or length > size - 8:
        raise TensorFileError(
            f"{path}: truncated: {size} bytes cannot hold the header that it announces; copy the file again"
        )
    if length > max_header_bytes:
        raise TensorFileError(f"{path}: header of {length} bytes; at most {max_header_bytes} are read")
    text = file.read(length)
    # Each tensor has its own name and three fields; millions of others, as of __metadata__, would take long to read.
    if length > MAX_HEADER_BYTES and (names := text.count(b":")) > _NAMES_OF_A_TENSOR * max_tensors + _MORE_NAMES:
        raise TensorFileError(
            f"{path}: header of {names} names; at most {_NAMES_OF_A_TENSOR * max_tensors + _MORE_NAMES} are read: save "
            "its tensors without so much __metadata__"
        )
    try:
        header = parse_json(text.decode("utf-8"), object_pairs_hook=_without_duplicates)
        metadata = header.pop("__metadata__", {})
        if len(header) > max_tensors:
            raise ValueError(f"{len(header)} tensors; at most {max_tensors} are read")
        entries = {name: _entry(name, fields, 8 + length) for name, fields in header.items()}
        if not all(isinstance(v, str) for v in metadata.values()):
            raise ValueError("__metadata__ must map strings to strings")
    except _UnreadDtypeError as error:
        raise TensorFileError(f"{path}: {error}") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise TensorFileError(f"{path}: not a safetensors file: {error}; copy the file again") from None
    end = 8 + length
    for entry in sorted(entries.values(), key=lambda e: (e.offset, e.size_bytes)):
        if entry.offset != end:
            raise TensorFileError(f"{path}: {entry.name} begins at byte {entry.offset}, expected {end}")
        end += entry.size_bytes
    if end != size:
        raise TensorFileError(f"{path}: truncated or extended: expected {end} bytes, got {size}; copy the file again")
    return entries, metadata


class _UnreadDtypeError(ValueError):
    """A tensor of a dtype that is not read, in a file that may be sound."""


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name appears twice in the header")
    return result


def _entry(name: str, fields: Mapping[str, Any], data_begin: int) -> TensorEntry:
    dtype, shape, (begin, end) = fields["dtype"], fields["shape"], fields["data_offsets"]
    if dtype not in _NUMPY:
        raise _UnreadDtypeError(f"{name} has dtype {dtype!r}; expected one of {', '.join(_NUMPY)}")
    if not all(type(n) is int and 0 <= n < 1 << 48 for n in (*shape, begin, end)):
        raise ValueError(f"{name}: shape and offsets must be non-negative integers")
    if len(shape) > _MAX_DIMENSIONS or math.prod(max(n, 1) for n in shape) >= 1 << 48:
        raise ValueError(f"{name}: at most {_MAX_DIMENSIONS} dimensions and 2^48 elements are read")
    size = math.prod(shape) * _NUMPY[dtype].itemsize
    if end - begin != size:
        raise ValueError(f"{name}: shape {shape} of {dtype} takes {size} bytes, its offsets span {end - begin}")
    return TensorEntry(name=name, dtype=dtype, shape=tuple(shape), offset=data_begin + begin, size_bytes=size)


def read_rows(file: int, entry: TensorEntry, start: int, stop: int) -> NDArray[np.float32]:
    """Rows [start, stop) of a tensor as float32 [rows, ...], read (not mapped) from an open file descriptor.

    A mapped page counts as resident memory; packing a model larger than memory must not.
    """
    dtype = _NUMPY[entry.dtype]
    row_bytes = entry.size_bytes // max(entry.shape[0], 1)
    wanted = (stop - start) * row_bytes
    data = os.pread(file, wanted, entry.offset + start * row_bytes)
    if len(data) != wanted:
        raise TensorFileError(f"{entry.name}: expected {wanted} bytes, read {len(data)}; the file changed under us")
    array = np.frombuffer(data, dtype).reshape(stop - start, *entry.shape[1:])
    return as_float32(array, entry.dtype, entry.name)
