"""How far each row of a batch is rotated, in each layer."""

# S sequences, T tokens of each, N = S T rows, D head size

from __future__ import annotations

import torch
from fedlora.errors import ConfigError
from fedlora.family import DecoderShape, Rotary
from torch import Tensor

from fedlora_client.ops.ops import Rope


def ropes_of(shape: DecoderShape, starts: Tensor, reach: int = 0) -> list[Rope]:
    """cos and sin [N, D / 2] of each layer, by a row's place in its example; starts int64 [S, T]

    `reach` is the most tokens of an example, where a row is longer than the context, with virtual ones before each; 0: T.

    Layers of one rotation share theirs. The tables are made for T positions each time, which takes 0.3 ms for 512 of them
    and D = 64: those of a whole context would take 134 MB for 131,072 positions and D = 256.

    Raises ConfigError where that exceeds the context.
    """
    width, layers = starts.shape[1], range(shape.num_layers)
    length = reach or width
    if length > shape.max_positions:
        raise ConfigError(
            f"a sequence has {length} tokens, virtual ones among them; the base's context is {shape.max_positions}: cut it"
            if reach
            else f"a sequence has {length} tokens; the base's context is {shape.max_positions}: cut it"
        )
    positions = (torch.arange(width, device=starts.device) - starts).flatten()
    ropes: dict[Rotary, Rope] = {}
    for rotary in map(shape.rotary_of, layers):
        if rotary not in ropes:
            cos, sin = (torch.from_numpy(table).to(starts.device)[positions] for table in rotary.table(length))
            ropes[rotary] = cos, sin
    return [ropes[shape.rotary_of(layer)] for layer in layers]
