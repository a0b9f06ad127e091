"""The trainable side of adapters in torch: C of them side by side, with a place for their gradients."""

# C adapters, I in features, O out features, R rank (of a stack: the largest one)

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from fedlora.adapter import Adapter, LoraPair
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Factors:
    """One module's adapters, float32, and what is added up for them."""

    lora_A: Tensor  # [C, R, I]
    lora_B: Tensor  # [C, O, R]
    scaling: Tensor  # [C, 1, 1]
    grad_A: Tensor  # [C, R, I]
    grad_B: Tensor  # [C, O, R]

    @property
    def count(self) -> int:
        """C"""
        return self.lora_A.shape[0]

    @property
    def rank(self) -> int:
        """R"""
        return self.lora_A.shape[1]


class Flat:
    """Tensors and their gradients as views of two flat ones, for whoever treats all numbers alike."""

    def __init__(self, shapes: Sequence[tuple[int, ...]], device: torch.device) -> None:
        sizes = [math.prod(shape) for shape in shapes]
        self.value, self.gradient = (torch.zeros(sum(sizes), device=device) for _ in range(2))
        self.values, self.gradients = (
            [part.view(shape) for part, shape in zip(torch.split(flat, sizes), shapes, strict=True)]
            for flat in (self.value, self.gradient)
        )


class LoraTensors:
    """C adapters as torch tensors that own their memory.

    Adapters of a stack may differ in rank and alpha, not in their modules. A smaller one is padded with zeros, which stay
    zero: a row of A meets a column of B, and the gradient of each is a multiple of the other.
    """

    def __init__(
        self, adapters: Sequence[Adapter], device: torch.device, head: NDArray[np.float32] | None = None
    ) -> None:
        """`head` [V, H] trains in place of the base's, which is then not read; it goes with one adapter only."""
        self.configs = tuple(adapter.config for adapter in adapters)
        self._ranks = [{name: pair.rank for name, pair in adapter.pairs.items()} for adapter in adapters]
        if any(adapter.pairs.keys() != adapters[0].pairs.keys() for adapter in adapters):
            raise AssertionError("the adapters of one stack must have the same modules")
        shapes = {name: _shapes([adapter.pairs[name] for adapter in adapters]) for name in adapters[0].pairs}
        self.flat_A, self.flat_B = (Flat([pair[kind] for pair in shapes.values()], device) for kind in (0, 1))
        self.modules = {}
        for number, name in enumerate(shapes):
            lora_A, lora_B = self.flat_A.values[number], self.flat_B.values[number]
            for which, pair in enumerate(adapter.pairs[name] for adapter in adapters):
                lora_A[which, : pair.rank] = torch.tensor(pair.lora_A)
                lora_B[which, :, : pair.rank] = torch.tensor(pair.lora_B)
            scaling = torch.tensor([config.scaling_of(name) for config in self.configs], device=device)[:, None, None]
            gradients = self.flat_A.gradients[number], self.flat_B.gradients[number]
            self.modules[name] = Factors(lora_A, lora_B, scaling, *gradients)
        self.flat_head = None if head is None else Flat([(1, *head.shape)], device)
        if self.flat_head is not None and head is not None:
            assert len(adapters) == 1
            self.flat_head.value.copy_(torch.from_numpy(head).flatten())

    @property
    def flats(self) -> list[Flat]:
        """Whatever trains: all A, all B, and the head if it does."""
        return [self.flat_A, self.flat_B, *([self.flat_head] if self.flat_head else [])]

    def values(self, number: int = 0) -> dict[str, tuple[Tensor, Tensor]]:
        """{module: (lora_A [R, I], lora_B [O, R])} of one adapter, as views."""
        return self._views(number, lambda factors: (factors.lora_A, factors.lora_B))

    def gradients(self, number: int = 0) -> dict[str, tuple[Tensor, Tensor]]:
        """What `values` gives, of the gradients."""
        return self._views(number, lambda factors: (factors.grad_A, factors.grad_B))

    def adapter(self, number: int = 0) -> Adapter:
        """The present values of one adapter, copied."""
        pairs = {
            name: LoraPair(lora_A.cpu().numpy().copy(), lora_B.cpu().numpy().copy())
            for name, (lora_A, lora_B) in self.values(number).items()
        }
        return Adapter(self.configs[number], pairs)

    def head(self) -> NDArray[np.float32] | None:
        """The present values of the head [V, H], copied, where it trains."""
        return None if self.flat_head is None else self.flat_head.values[0][0].cpu().numpy().copy()

    def _views(
        self, number: int, which: Callable[[Factors], tuple[Tensor, Tensor]]
    ) -> dict[str, tuple[Tensor, Tensor]]:
        views = {}
        for name, rank in self._ranks[number].items():
            lora_A, lora_B = which(self.modules[name])
            views[name] = lora_A[number, :rank], lora_B[number, :, :rank]
        return views


def _shapes(pairs: Sequence[LoraPair]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Those of the stacked A [C, R, I] and B [C, O, R] of one module."""
    rank, (rows, columns) = max(pair.rank for pair in pairs), pairs[0].shape
    return (len(pairs), rank, columns), (len(pairs), rows, rank)
