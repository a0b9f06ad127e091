"""A vector that scales a linear module: what an adapter of the kind IA3 does there.

    of the output    y = s * (W x + gamma B A x + b)      ds = sum_n dy_n * (W x_n + gamma B A x_n + b)
    of the input     y = W (s * x) + b                     ds = sum_n x_n * (W^T dy_n)

W's rows, or its columns, are scaled where they are dequantized, so that a residual is added as it was.
"""

# O out features, I in features

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor


@dataclass(frozen=True, slots=True)
class ModuleScale:
    """The vector of one module, float32, and what is added up for it."""

    side: Literal["output", "input"]
    values: Tensor  # s, [O] or [I]
    gradients: Tensor  # the same shape

    def add(self, gradient: Tensor) -> None:
        """Add the gradient of s."""
        self.gradients.add_(gradient)
