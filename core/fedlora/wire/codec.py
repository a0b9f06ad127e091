"""How the numbers of an update become bytes: a named codec."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from fedlora.errors import UpdateError

_BLOCK = 1 << 17  # numbers at a time: so many of size 1 have a bound of 362


@dataclass(frozen=True, slots=True)
class Codec:
    """Numbers of one width, tensor after tensor, little endian, rounded to nearest."""

    name: str
    dtype: np.dtype[np.floating]

    def encode(self, arrays: Sequence[NDArray[np.float32]]) -> bytes:
        """Raises UpdateError where a finite value has no finite code."""
        parts = []
        for array in arrays:
            with np.errstate(over="ignore"):
                coded = array.astype(self.dtype)
            if not np.array_equal(np.isfinite(coded), np.isfinite(array)):
                largest = np.abs(array).max()
                raise UpdateError("overflow", f"codec {self.name} cannot hold {largest:.3g}; use codec f32")
            parts.append(coded.tobytes())
        return b"".join(parts)

    def size_bytes(self, shapes: Sequence[tuple[int, ...]]) -> int:
        """What tensors of these shapes take."""
        return sum(math.prod(shape) for shape in shapes) * self.dtype.itemsize

    def decode(self, payload: memoryview, shapes: Sequence[tuple[int, ...]]) -> list[NDArray[np.float32]]:
        """Raises UpdateError unless `payload` is exactly as long as the shapes say.

        The arrays are views of a payload that nobody can change, where its codes are the numbers; copies otherwise.
        """
        expected = self.size_bytes(shapes)
        if len(payload) != expected:
            raise UpdateError("truncated", f"payload of {len(payload)} bytes; codec {self.name} expected {expected}")
        arrays, offset = [], 0
        for shape in shapes:
            count = math.prod(shape)
            array = np.frombuffer(payload, self.dtype, count, offset).reshape(shape)
            arrays.append(array.astype(np.float32, copy=not payload.readonly))
            offset += count * self.dtype.itemsize
        return arrays

    def bound(self, payload: memoryview) -> float:
        """What no magnitude in a payload passes: the root of a sum of squares; not finite where one of its numbers is not.

        A fast test: one product of a block with itself, where a maximum and a minimum would each take as long.
        """
        numbers, largest = np.frombuffer(payload, self.dtype), 0.0
        for start in range(0, len(numbers), _BLOCK):
            block = numbers[start : start + _BLOCK].astype(np.float32, copy=False)
            with np.errstate(over="ignore", invalid="ignore"):
                squares = float(np.dot(block, block))
            if not squares <= largest:  # so NaN stays
                largest = squares
                if math.isnan(squares):
                    break
        return math.sqrt(largest)


CODECS: Mapping[str, Codec] = MappingProxyType(
    {codec.name: codec for codec in (Codec("f32", np.dtype("<f4")), Codec("f16", np.dtype("<f2")))}
)
