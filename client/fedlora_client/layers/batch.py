"""What every block needs to know of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from fedlora_client.layers.lora import LoraTensors
from fedlora_client.layers.virtual_tokens import Layout
from fedlora_client.ops.ops import Rope

# S sequences, T tokens of each, N = S T rows, I in features

# (what is masked, rows, columns) -> [N, I], times which the adapters there see their input; None: as it is
Dropout = Callable[[str, int, int], Tensor | None]


def no_dropout(module: str, rows: int, columns: int) -> Tensor | None:
    return None


@dataclass(frozen=True, slots=True)
class Batch:
    """Layers of one kind share their tensors."""

    first_keys: Sequence[Tensor]  # of each layer: the first key that a position sees, int64 [S, T]
    ropes: Sequence[Rope]  # of each layer
    lora: LoraTensors | None
    dropout: Dropout
    layout: Layout | None = None  # of virtual tokens, which then are among the T

    @property
    def shape(self) -> tuple[int, int]:
        """(S, T)"""
        sequences, length = self.first_keys[0].shape
        return sequences, length

    @property
    def rows(self) -> int:
        """N"""
        return self.first_keys[0].numel()
