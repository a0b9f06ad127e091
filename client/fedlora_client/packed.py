"""A frozen weight that stays packed: it is dequantized for one product and let go."""

# N rows, I in features, O out features, J blocks of a row

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from fedlora.quantize import QuantizedMatrix
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True, slots=True)
class PackedMatrix:
    """The tensors of one QuantizedMatrix, as views of the mapped pack."""

    qweight: Tensor  # uint8 [O, J, block_size * bits / 8]
    scales: Tensor  # float32 [O, J]
    zeros: Tensor | None  # uint8 [O, ceil(J * bits / 8)]
    in_features: int
    bits: int

    @classmethod
    def view(cls, matrix: QuantizedMatrix) -> PackedMatrix:
        zeros = None if matrix.zeros is None else torch.from_numpy(matrix.zeros)
        qweight, scales = torch.from_numpy(matrix.qweight), torch.from_numpy(matrix.scales)
        return cls(qweight, scales, zeros, matrix.in_features, matrix.bits)

    def dequantized(self, rows: Tensor | slice = slice(None)) -> Tensor:
        """W[rows] in float32 [len(rows), I]; a tensor of row numbers gathers them."""
        scales = self.scales[rows]
        codes = self._unpacked(self.qweight[rows]).view(*scales.shape, -1).float()
        if self.zeros is None:
            codes -= 1 << (self.bits - 1)
        else:
            codes -= self._unpacked(self.zeros[rows])[:, : scales.shape[1], None]
        codes *= scales[..., None]
        return codes.flatten(1)[:, : self.in_features]

    def _unpacked(self, packed: Tensor) -> Tensor:
        if self.bits == 8:
            return packed
        return torch.stack((packed & 0x0F, packed >> 4), -1).flatten(-2)


class _FrozenLinear(torch.autograd.Function):
    """y = x W^T; dx = dy W. Neither x nor W is kept for the backward: W is dequantized again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: PackedMatrix) -> Tensor:
        ctx.matrix = matrix
        return x @ matrix.dequantized().T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] @ ctx.matrix.dequantized(), None


def frozen_linear(
    x: Tensor,  # [N, I]
    matrix: PackedMatrix,  # [O, I]
) -> Tensor:  # [N, O]
    """y = x W^T with W frozen."""
    return _FrozenLinear.apply(x, matrix)  # type: ignore[no-any-return, no-untyped-call]
