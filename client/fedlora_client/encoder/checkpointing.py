"""Torch's autograd through one block at a time, whose activations are kept or computed again (arXiv:1604.06174)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fedlora_client.encoder.block import EncoderBlock, TextBatch


class CheckpointedPass:
    """One block's forward, which is computed again for its backward unless it is kept."""

    def __init__(
        self, block: EncoderBlock, x: Tensor, batch: TextBatch, *, keep: bool, first_only: bool = False
    ) -> None:
        self._compute: Callable[[Tensor], Tensor] = lambda leaf: block.forward(leaf, batch, first_only=first_only)
        self._leaf = x.detach().requires_grad_()
        with torch.set_grad_enabled(keep):
            y = self._compute(self._leaf)
        self._graph = y if keep else None
        self.output = y.detach()

    def backward(self, gradient: Tensor) -> Tensor:
        """gradient in the output -> that in the input, [N, H]; those of the adapters are added to theirs."""
        y = self._graph
        if y is None:
            with torch.enable_grad():
                y = self._compute(self._leaf)
        (result,) = torch.autograd.grad(y, self._leaf, gradient)
        return result
