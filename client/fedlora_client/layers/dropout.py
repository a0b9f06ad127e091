"""Dropout of what adapters see: the same masks when a block is computed again (Srivastava et al., 2014)."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

from fedlora_client.ops.compute import Compute


@dataclass(frozen=True, slots=True)
class SeededDropout:
    """Masks that depend on the adapter's seed, the step, the part of the batch and the module, and on nothing else."""

    rate: float
    seeds: tuple[int, ...]  # of the adapters that share a batch, each with as many consecutive rows
    compute: Compute

    def of(self, step: int, part: int) -> SeededDropout:
        """The masks of one part of a step's batch."""
        seeds = tuple(zlib.crc32(f"{seed} {step} {part}".encode()) for seed in self.seeds)
        return SeededDropout(self.rate, seeds, self.compute)

    def __call__(self, module: str, rows: int, columns: int) -> Tensor | None:
        """[rows, columns]: 0 with probability `rate`, else 1 / (1 - rate); None where nothing is dropped."""
        if not self.rate:
            return None
        device = self.compute.device
        mask = torch.empty(rows, columns, dtype=self.compute.dtype, device=device)
        for seed, rows_mask in zip(self.seeds, mask.chunk(len(self.seeds)), strict=True):
            generator = torch.Generator(device).manual_seed(zlib.crc32(module.encode(), seed))
            rows_mask.bernoulli_(1 - self.rate, generator=generator)
        return mask.div_(1 - self.rate)
