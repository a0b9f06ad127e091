"""An encoder of which only the last block trains, at the first token: the rest of it reads each text once.

y[0] = last(first, keys, values)        first, keys, values: what the blocks before it and its own projections give

They are the same in every step where no adapter sits before the last block's query, so a step costs a thirtieth of one
that trains a MiniLM of six layers, and gives what `lora.layers = "-1"`, `lora.target_modules = "query,dense"` give, to
rounding.
"""

# S texts, T tokens of the longest, H hidden size, A heads, D head size

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from fedlora.base.pack import BasePack
from fedlora.data.examples import Example
from fedlora_client.data.by_length import parts_by_length
from fedlora_client.data.windows import Windows
from fedlora_client.encoder.block import TextBatch
from fedlora_client.encoder.encoder import Encoder
from fedlora_client.layers.batch import Dropout, no_dropout
from fedlora_client.layers.lora import LoraTensors
from fedlora_client.layers.step_plan import NOTHING_KEPT, MemoryPlan
from fedlora_client.ops.compute import Compute
from fedlora_client.ops.workspace import Workspace
from torch import Tensor
from torch.nn import functional as F


class _Read(NamedTuple):
    """What the frozen blocks gave for one text of T tokens."""

    first: Tensor  # [H]
    keys: Tensor  # [A, T, D]
    values: Tensor  # [A, T, D]


class LastBlock(Encoder):
    """Takes adapters on the last block's modules but key and value, and on the head."""

    def __init__(self, base: BasePack, compute: Compute | None = None) -> None:
        super().__init__(base, compute)
        self._texts: dict[tuple[int, ...], _Read] = {}

    def windows(self, examples: Sequence[Example], length: int, where: str) -> Windows:
        """`Encoder.windows`, whose texts are read by the frozen blocks here and now."""
        windows = super().windows(examples, length, where)
        space = self.workspace()
        with torch.no_grad():
            for rows in parts_by_length(windows, self.compute.rows):
                self._read(windows.batch(rows), space)
        return windows

    def add_gradients(
        self, tokens: Tensor, targets: Tensor, starts: Tensor, row_scale: Tensor, lora: LoraTensors, space: Workspace,
        memory_plan: MemoryPlan = NOTHING_KEPT, dropout: Dropout = no_dropout, shift: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """As `Encoder.add_gradients`."""
        first, keys, values, batch = self._inputs(tokens, starts, lora, space, dropout)
        own = {name: extra.values.detach().requires_grad_() for name, extra in lora.extras.items()}
        with torch.enable_grad():
            y = self._blocks[-1].attending(first.requires_grad_(), keys, values, batch)
            losses = self._trained_head().losses_with(own, y, self._labels(targets), shift)
            scaled = (losses * row_scale[:, 0]).sum()
        # The gradients of A and B are added where they belong on the way.
        _, *of_head = torch.autograd.grad(scaled, (first, *own.values()))
        for extra, part in zip(lora.extras.values(), of_head, strict=True):
            extra.gradients.add_(part)
        result = torch.zeros(targets.shape)
        result[:, 0] = losses.detach()
        return result

    def _forward(
        self, tokens: Tensor, starts: Tensor, lora: LoraTensors | None, space: Workspace, *, first_only: bool
    ) -> tuple[Tensor, Tensor]:
        first, keys, values, batch = self._inputs(tokens, starts, lora, space, no_dropout)
        with torch.no_grad():
            return self._blocks[-1].attending(first, keys, values, batch), batch.is_text

    def _inputs(
        self, tokens: Tensor, starts: Tensor, lora: LoraTensors | None, space: Workspace, dropout: Dropout
    ) -> tuple[Tensor, Tensor, Tensor, TextBatch]:
        """(first [S, H], keys [S, A, T, D], values [S, A, T, D], the batch)"""
        read = [self._texts[text] for text in _texts(tokens, starts)]
        longest = max(one.keys.shape[1] for one in read)

        def padded(parts: Sequence[Tensor]) -> Tensor:
            return torch.stack([F.pad(part, (0, 0, 0, longest - part.shape[1])) for part in parts])

        is_text = starts[:, :longest] == 0
        return (
            torch.stack([one.first for one in read]), padded([one.keys for one in read]),
            padded([one.values for one in read]), TextBatch(is_text, lora, dropout, space),
        )  # fmt: skip

    def _read(self, windows: Windows, space: Workspace) -> None:
        """Keep what the frozen blocks give for these texts."""
        x, batch = self._begin(windows.inputs, windows.starts, None, space, no_dropout)
        for block in self._blocks[:-1]:
            x = block.forward(x, batch)
        keys, values = self._blocks[-1].keys_and_values(x, batch)
        first = x.view(*batch.is_text.shape, -1)[:, 0]
        for row, text in enumerate(_texts(windows.inputs, windows.starts)):
            there = slice(len(text))
            self._texts[text] = _Read(first[row].clone(), keys[row, :, there].clone(), values[row, :, there].clone())


def _texts(tokens: Tensor, starts: Tensor) -> list[tuple[int, ...]]:
    """The tokens of each text, without its padding."""
    lengths = (starts == 0).sum(1).tolist()
    return [tuple(row[:length]) for row, length in zip(tokens.tolist(), lengths, strict=True)]
