"""The plan of a training, by what this process takes and what the machine has left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from fedlora.config.run import TrainConfig
from fedlora.errors import ConfigError
from fedlora.family import DecoderShape, ModelShape
from fedlora.lora.adapter import Adapter
from fedlora.lora.kinds import kind_of
from fedlora.wire.task import FactorSet

from fedlora_client.data.windows import Windows
from fedlora_client.layers.step_plan import Memory, StepPlan
from fedlora_client.layers.virtual_tokens import longest
from fedlora_client.model import Model
from fedlora_client.training.memory import available_bytes, give_back_freed, give_back_large_blocks, resident_bytes


def plan_training(
    model: Model,
    adapters: Sequence[Adapter],
    config: TrainConfig,
    trains: FactorSet = "AB",
    frozen: Adapter | None = None,
    windows: Sequence[Windows] = (),  # that are trained on, or measured
) -> StepPlan:
    """The plan for adapters that train side by side. Raises ConfigError where memory does not suffice.

    Virtual tokens before each example of the `windows` are planned as tokens.
    """
    config = with_virtual(config, adapters[0], model.shape, windows)
    give_back_freed()
    if config.memory_mb:
        give_back_large_blocks()
    pairs = [pair for adapter in adapters for pair in adapter.pairs.values()]
    extras = sum(adapter.extra_bytes for adapter in adapters)
    trained = extras + sum(
        array.nbytes for pair in pairs for f, array in (("A", pair.lora_A), ("B", pair.lora_B)) if f in trains
    )
    # Values and the result; of what trains: gradients, two moments, the best values so far, perhaps those of the start.
    coming = 2 * sum(adapter.size_bytes for adapter in adapters) + extras  # whose gradients come whole, then are added
    coming += (4 + bool(config.fedprox_mu)) * trained + (frozen.size_bytes if frozen else 0)
    coming += sum(kind_of(adapter).held_bytes(adapter, model.shape) for adapter in adapters)
    device = model.compute.device
    if device.type == "cuda":
        memory = Memory(
            resident=torch.cuda.memory_allocated(device), coming=coming, free=torch.cuda.mem_get_info(device)[0]
        )
    else:
        base = model.base.weights.path.stat().st_size  # mapped: its pages become resident as they are read
        memory = Memory(resident=resident_bytes(), coming=coming + base, free=available_bytes())
    rank = max(kind_of(adapter).trained_rank(adapter) for adapter in adapters)
    rank += max(pair.rank for pair in frozen.pairs.values()) if frozen else 0
    scaled = any(kind_of(adapter).scales for adapter in adapters)
    return model.plan_step(config, rank, memory, len(adapters), scaled=scaled)


def with_virtual(config: TrainConfig, adapter: Adapter, model: ModelShape, windows: Sequence[Windows]) -> TrainConfig:
    """`config` with `sequence_length` as long as a window is with its virtual tokens: before each example that it has, and
    before one where it is not told. Raises ConfigError where an example exceeds the base's context with them.
    """
    if not kind_of(adapter).is_virtual:
        return config
    count, length = adapter.config.num_virtual_tokens, config.sequence_length
    if isinstance(model, DecoderShape) and count + length > model.max_positions:
        raise ConfigError(
            f"lora.num_virtual_tokens is {count} and train.sequence_length {length}; expected at most "
            f"{model.max_positions} together, the base's context: lower one of them"
        )
    return replace(config, sequence_length=max([length + count, *(longest(each, count) for each in windows)]))
