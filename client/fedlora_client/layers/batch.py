"""What every block needs to know of a batch."""

# S sequences, T tokens of each, N = S T rows, I in features, D head size

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from fedlora_client.layers.lora import LoraTensors

# (what is masked, rows, columns) -> [N, I], times which the adapters there see their input; None: as it is
Dropout = Callable[[str, int, int], Tensor | None]
Turn = tuple[Tensor, Tensor]  # cos and sin of each row's position, float32 [N, D / 2]


@dataclass(frozen=True, slots=True)
class Batch:
    """Layers of one kind share their tensors."""

    first_keys: Sequence[Tensor]  # of each layer: the first key that a position sees, int64 [S, T]
    turns: Sequence[Turn]  # of each layer
    lora: LoraTensors | None
    dropout: Dropout

    @property
    def shape(self) -> tuple[int, int]:
        """(S, T)"""
        sequences, length = self.first_keys[0].shape
        return sequences, length

    @property
    def rows(self) -> int:
        """N"""
        return self.first_keys[0].numel()
