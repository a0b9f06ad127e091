"""Block-wise quantization of a weight in the layout of ONNX Runtime's MatMulNBits.

    W[o, i] ~ (q[o, i] - zero[o, j]) * scale[o, j]        j = i // block_size

    qweight  uint8   [O, J, block_size * bits / 8]   J = ceil(I / block_size); 4 bits: low nibble first along I
    scales   float32 [O, J]
    zeros    uint8   [O, ceil(J * bits / 8)]         4 bits: low nibble first along J; None where symmetric

Symmetric: zero = 2^(bits-1) everywhere, and a scale may be negative. How scales and zeros are found is `scales.py`'s; codes
are the nearest that the layout has.
Source: onnxruntime/docs/ContribOperators.md, com.microsoft.MatMulNBits.
"""

# O out features (rows), I in features, J blocks of a row

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedlora.base.scales import SCALE_RULES, ScaleRule
from fedlora.errors import ConfigError

Bits = Literal[4, 8]
BLOCK_SIZES = (32, 64, 128)
_COMPARED_ROWS = 1024
_ROUNDED = 1.01 * 2.0**-8  # the largest relative error of a value in bfloat16
_REPRESENTED = 2.0**-22  # that of the sums here, in float32


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """How a base's linear weights are stored."""

    bits: int = 4
    block_size: int = 64
    symmetric: bool = True
    embedding_bits: int = 8  # of the embedding and the head, which share their bytes where tied

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise ConfigError(f"bits must be 4 or 8, got {self.bits}")
        if self.embedding_bits not in (4, 8):
            raise ConfigError(f"embedding_bits must be 4 or 8, got {self.embedding_bits}")
        if self.block_size not in BLOCK_SIZES:
            raise ConfigError(f"block_size must be one of {', '.join(map(str, BLOCK_SIZES))}, got {self.block_size}")


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedMatrix:
    """One stored weight [O, I]; see the module's docstring for the arrays."""

    qweight: NDArray[np.uint8]
    scales: NDArray[np.float32]
    zeros: NDArray[np.uint8] | None
    in_features: int
    bits: int

    @property
    def shape(self) -> tuple[int, int]:
        """(O, I)"""
        return self.scales.shape[0], self.in_features

    @property
    def block_size(self) -> int:
        return int(self.qweight.shape[2]) * 8 // self.bits


def quantize(
    weight: NDArray[np.float32],  # [O, I]
    *,
    bits: int,
    block_size: int,
    symmetric: bool,
    scale_rule: ScaleRule = "mse",
) -> QuantizedMatrix:
    """Return `weight` rounded block by block. A last, shorter block is padded with zeros."""
    rows, columns = weight.shape
    blocks = -(-columns // block_size)
    padded = np.zeros((rows, blocks * block_size), np.float32)
    padded[:, :columns] = weight
    blocked = padded.reshape(rows, blocks, block_size)
    levels = 1 << bits
    found = SCALE_RULES[scale_rule](blocked.reshape(-1, block_size), levels, symmetric)
    scales, zeros = (numbers.reshape(rows, blocks) for numbers in found)
    inverse = 1 / np.where(scales == 0, 1, scales)
    codes = np.clip(np.rint(blocked * inverse[..., None]) + zeros[..., None], 0, levels - 1).astype(np.uint8)
    return QuantizedMatrix(
        qweight=_packed(codes, bits),
        scales=scales,
        zeros=None if symmetric else _packed(zeros.astype(np.uint8), bits),
        in_features=columns,
        bits=bits,
    )


def dequantize(matrix: QuantizedMatrix) -> NDArray[np.float32]:
    """The weight [O, I] that the stored codes stand for: slow and obvious, the reference of every faster path."""
    rows, blocks = matrix.scales.shape
    codes = _unpacked(matrix.qweight, matrix.bits).reshape(rows, blocks, matrix.block_size).astype(np.float32)
    zeros: NDArray[np.float32] | np.float32
    if matrix.zeros is None:
        zeros = np.float32(1 << (matrix.bits - 1))
    else:
        zeros = _unpacked(matrix.zeros, matrix.bits)[:, :blocks, None].astype(np.float32)
    weight = (codes - zeros) * matrix.scales[..., None]
    return weight.reshape(rows, -1)[:, : matrix.in_features]


def stands_for(matrix: QuantizedMatrix, weight: NDArray[np.float32]) -> bool:
    """Whether `weight` [rows <= O, I] would be stored as the matrix is: each value lies in its code's cell of the grid.

    The outermost cells have no end. A value that was rounded to bfloat16 meanwhile may lie as far outside as that moved it.
    """
    for begin in range(0, len(weight), _COMPARED_ROWS):
        part = slice(begin, min(begin + _COMPARED_ROWS, len(weight)))
        stored = QuantizedMatrix(
            qweight=matrix.qweight[part],
            scales=matrix.scales[part],
            zeros=None if matrix.zeros is None else matrix.zeros[part],
            in_features=matrix.in_features,
            bits=matrix.bits,
        )
        if not _in_cells(stored, weight[part]):
            return False
    return True


def _in_cells(matrix: QuantizedMatrix, weight: NDArray[np.float32]) -> bool:
    rows, columns, last = len(matrix.scales), matrix.in_features, (1 << matrix.bits) - 1
    codes = _unpacked(matrix.qweight, matrix.bits).reshape(rows, -1)[:, :columns]
    step = np.repeat(matrix.scales, matrix.block_size, axis=1)[:, :columns]
    if not np.isfinite(weight).all():
        return False
    off = (weight - dequantize(matrix)) * np.sign(step)  # towards larger codes
    is_in_last = (codes == last) & (off > 0) | (codes == 0) & (off < 0)
    slack = _ROUNDED * np.abs(weight) + _REPRESENTED * np.abs(step) * last
    return bool(np.all(is_in_last | (np.abs(weight - dequantize(matrix)) <= np.abs(step) / 2 + slack)))


def _packed(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    if bits == 8:
        return codes
    if codes.shape[-1] % 2:
        codes = np.concatenate([codes, np.zeros_like(codes[..., :1])], -1)
    return codes[..., 0::2] | (codes[..., 1::2] << np.uint8(4))


def _unpacked(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    if bits == 8:
        return packed
    return np.stack([packed & 0x0F, packed >> 4], -1).reshape(*packed.shape[:-1], -1)
