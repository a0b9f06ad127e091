"""The trainable side of an adapter in torch."""

# N rows, I in features, O out features, R rank

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from fedlora.adapter import Adapter, LoraPair
from fedlora.lora import LoraConfig
from torch import Tensor


class Factors(NamedTuple):
    """lora_A [R, I], lora_B [O, R] and the scaling of one module."""

    lora_A: Tensor
    lora_B: Tensor
    scaling: float


@dataclass(frozen=True, slots=True)
class LoraTensors:
    """An adapter as torch tensors that own their memory."""

    config: LoraConfig
    modules: dict[str, Factors]

    @classmethod
    def of(cls, adapter: Adapter, *, trainable: bool = False) -> LoraTensors:
        """A copy of `adapter`."""
        modules = {
            name: Factors(
                torch.tensor(pair.lora_A, requires_grad=trainable),
                torch.tensor(pair.lora_B, requires_grad=trainable),
                adapter.config.scaling_of(name),
            )
            for name, pair in adapter.pairs.items()
        }
        return cls(adapter.config, modules)

    def parameters(self) -> list[Tensor]:
        return [tensor for factors in self.modules.values() for tensor in factors[:2]]

    def adapter(self) -> Adapter:
        """The present values, copied."""
        pairs = {
            name: LoraPair(factors.lora_A.detach().numpy().copy(), factors.lora_B.detach().numpy().copy())
            for name, factors in self.modules.items()
        }
        return Adapter(self.config, pairs)


def lora_delta(
    x: Tensor,  # [N, I]
    factors: Factors,
) -> Tensor:  # [N, O]
    """y = scaling * x A^T B^T"""
    return (x @ factors.lora_A.T) @ factors.lora_B.T * factors.scaling
