"""A frozen weight that stays packed, as tensors; `ops` dequantizes it for one product at a time."""

# O out features, I in features, J blocks of a row

from __future__ import annotations

from dataclasses import dataclass

import torch
from fedlora.base.quantize import QuantizedMatrix
from torch import Tensor


@dataclass(frozen=True, slots=True)
class PackedMatrix:
    """The tensors of one QuantizedMatrix: views of the mapped pack, or copies on a GPU."""

    qweight: Tensor  # uint8 [O, J, block_size * bits / 8]
    scales: Tensor  # float32 [O, J]
    zeros: Tensor | None  # uint8 [O, ceil(J * bits / 8)]
    in_features: int
    bits: int

    @classmethod
    def of(cls, matrix: QuantizedMatrix, device: torch.device) -> PackedMatrix:
        zeros = None if matrix.zeros is None else torch.from_numpy(matrix.zeros).to(device)
        qweight, scales = torch.from_numpy(matrix.qweight).to(device), torch.from_numpy(matrix.scales).to(device)
        return cls(qweight, scales, zeros, matrix.in_features, matrix.bits)

    @property
    def out_features(self) -> int:
        return self.scales.shape[0]

    @property
    def block_size(self) -> int:
        return self.qweight.shape[2] * 8 // self.bits
