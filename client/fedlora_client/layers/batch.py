"""What every block needs to know of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from fedlora_client.layers.lora import LoraTensors
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

    @property
    def shape(self) -> tuple[int, int]:
        """(S, T)"""
        sequences, length = self.first_keys[0].shape
        return sequences, length

    @property
    def rows(self) -> int:
        """N"""
        return self.first_keys[0].numel()


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """How a step trades memory for time. It changes no result, but for `chunk_rows` by rounding."""

    kept_blocks: int = 0  # whose activations are kept, not computed again, beside those of the last one
    chunk_rows: int = 256  # whose logits are held at a time


NOTHING_KEPT = MemoryPlan()
