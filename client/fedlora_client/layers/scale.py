"""A vector that scales a linear module: what adapters of the kinds IA3 and DoRA do there.

    IA3, output      y = s * (W x + b)                      ds = sum_n dy_n * (W x_n + b)
    IA3, input       y = W (s * x) + b                      ds = sum_n x_n * (W^T dy_n)
    DoRA             y = s * (W x + gamma B A x) + b        ds = sum_n dy_n * (W x_n + gamma B A x_n)
                     s = m / ||W + gamma B A||              dm = ds / ||W + gamma B A||

W's rows, or its columns, are scaled where they are dequantized, so that a residual is added as it was.
"""

# O out features, I in features, R rank

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor


class Factors(Protocol):
    """What is beside the weight, of a single adapter."""

    @property
    def lora_A(self) -> Tensor: ...  # noqa: N802, [1, R, I]

    @property
    def lora_B(self) -> Tensor: ...  # noqa: N802, [1, O, R]

    @property
    def scaling(self) -> Tensor: ...  # [1, 1, 1]


@dataclass(frozen=True, slots=True)
class ModuleScale:
    """IA3's vector of one module, float32, and what is added up for it."""

    side: Literal["output", "input"]
    values: Tensor  # s, [O] or [I]
    gradients: Tensor  # the same shape
    scales_bias: ClassVar[bool] = True

    def prepare(self, weight: Tensor, factors: Factors | None) -> None:
        """Make `values` what they are for the present numbers; weight [O, I]."""

    def add(self, gradient: Tensor) -> None:
        """Add the gradient of s."""
        self.gradients.add_(gradient)


class Magnitude:
    """DoRA's vector of one module, and the lengths of rows that go with it.

    ||W + gamma B A||^2 = ||W||^2 + 2 gamma sum_r B_r (W A^T)_r + gamma^2 B (A A^T) B^T, by rows: no [O, I] product. It is
    made anew when m, A or B changed, which torch counts, at the first forward of a step; ||W|| is made once.
    """

    side: ClassVar[Literal["output", "input"]] = "output"
    scales_bias: ClassVar[bool] = False

    def __init__(self, magnitude: Tensor, gradients: Tensor) -> None:
        """Both float32 [O]"""
        self._magnitude, self._gradients = magnitude, gradients
        self._made_of: tuple[int, ...] = ()
        self._squared = self._norm = self.values = torch.empty(0)

    def prepare(self, weight: Tensor, factors: Factors | None) -> None:
        assert factors is not None and len(factors.lora_A) == 1
        made_of = (self._magnitude._version, factors.lora_A._version, factors.lora_B._version)
        if made_of == self._made_of:
            return
        if not len(self._squared):
            self._squared = torch.linalg.vector_norm(weight, dim=1, dtype=torch.float32).square_()
        lora_A, scaled_B = factors.lora_A[0], factors.lora_B[0] * factors.scaling[0]  # [R, I], [O, R]
        crossed = (weight @ lora_A.to(weight.dtype).T).float()  # [O, R]
        crossed.mul_(2).add_(scaled_B @ (lora_A @ lora_A.T))
        self._norm = (self._squared + (crossed * scaled_B).sum(1)).clamp_(min=torch.finfo(torch.float32).tiny).sqrt_()
        self.values, self._made_of = self._magnitude / self._norm, made_of

    def add(self, gradient: Tensor) -> None:
        self._gradients.add_(gradient / self._norm)


ScaleOfModule = ModuleScale | Magnitude
