"""AdamW (Loshchilov and Hutter, arXiv:1711.05101) on flat float32 tensors, in place.

torch's own imports its compiler when it is made: 60 MB that a device has better uses for. It is the oracle of the tests.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_BETAS, _EPS = (0.9, 0.999), 1e-8
_SLICE = 1 << 18  # numbers at a time: what is computed on the way takes no memory to speak of


class AdamW:
    """The moments of one flat parameter."""

    def __init__(self, value: Tensor, gradient: Tensor, weight_decay: float) -> None:
        self.value, self._gradient, self._weight_decay = value, gradient, weight_decay
        self.first, self.second = torch.zeros_like(value), torch.zeros_like(value)

    def step(self, lr: float, number: int) -> None:
        """The update of step `number`, from 1."""
        beta1, beta2 = _BETAS
        flats = (self.value, self._gradient, self.first, self.second)
        for value, gradient, first, second in zip(*(torch.split(flat, _SLICE) for flat in flats), strict=True):
            if self._weight_decay:
                value.mul_(1 - lr * self._weight_decay)
            first.lerp_(gradient, 1 - beta1)
            second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            scale = second.sqrt().div_(math.sqrt(1 - beta2**number)).add_(_EPS)
            value.addcdiv_(first, scale, value=-lr / (1 - beta1**number))
