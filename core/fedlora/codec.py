"""How the numbers of an update become bytes: a named codec."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from fedlora.errors import UpdateError

_BLOCK = 1 << 16  # numbers at a time: the cache has them the second time


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

    def decode(self, payload: memoryview, shapes: Sequence[tuple[int, ...]]) -> list[NDArray[np.float32]]:
        """Raises UpdateError unless `payload` is exactly as long as the shapes say.

        The arrays are views of a payload that nobody can change, where its codes are the numbers; copies otherwise.
        """
        expected = sum(math.prod(shape) for shape in shapes) * self.dtype.itemsize
        if len(payload) != expected:
            raise UpdateError("truncated", f"payload of {len(payload)} bytes; codec {self.name} expected {expected}")
        arrays, offset = [], 0
        for shape in shapes:
            count = math.prod(shape)
            array = np.frombuffer(payload, self.dtype, count, offset).reshape(shape)
            arrays.append(array.astype(np.float32, copy=not payload.readonly))
            offset += count * self.dtype.itemsize
        return arrays

    def largest(self, payload: memoryview) -> float:
        """The largest magnitude in a payload; NaN where one of its numbers is none."""
        numbers, largest = np.frombuffer(payload, self.dtype), 0.0
        for start in range(0, len(numbers), _BLOCK):
            block = numbers[start : start + _BLOCK]
            here = max(float(block.max()), -float(block.min()))
            if not here <= largest:  # so NaN stays
                largest = here
                if math.isnan(here):
                    break
        return largest


CODECS: Mapping[str, Codec] = MappingProxyType(
    {codec.name: codec for codec in (Codec("f32", np.dtype("<f4")), Codec("f16", np.dtype("<f2")))}
)
