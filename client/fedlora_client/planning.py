"""The plan of a training, by what this process takes and what the machine has left."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from fedlora.adapter import Adapter
from fedlora.run_config import TrainConfig

from fedlora_client.budget import Memory, Plan, plan_step
from fedlora_client.decoder import Decoder
from fedlora_client.memory import available_bytes, give_back_freed, give_back_large_blocks, resident_bytes


def plan_training(decoder: Decoder, adapters: Sequence[Adapter], config: TrainConfig, head_bytes: int = 0) -> Plan:
    """The plan for adapters that train side by side. Raises ConfigError where memory does not suffice."""
    give_back_freed()
    if config.memory_mb:
        give_back_large_blocks()
    # Values, gradients, two moments, the best values so far, and the result.
    coming = 6 * (sum(adapter.size_bytes for adapter in adapters) + head_bytes)
    device = decoder.compute.device
    if device.type == "cuda":
        memory = Memory(
            resident=torch.cuda.memory_allocated(device), coming=coming, free=torch.cuda.mem_get_info(device)[0]
        )
    else:
        base = decoder.base.weights.path.stat().st_size  # mapped: its pages become resident as they are read
        memory = Memory(resident=resident_bytes(), coming=coming + base, free=available_bytes())
    rank = max(pair.rank for adapter in adapters for pair in adapter.pairs.values())
    return plan_step(decoder.shape, config, rank, decoder.compute, memory, len(adapters))
