"""How a step of an encoder is cut to fit the memory that there is.

A plan takes as many texts at a time as keep products efficient, then keeps the activations of as many blocks as fit.
"""

# m texts of T tokens at a time, N = m T rows, H hidden size, F intermediate size, R the largest rank

from __future__ import annotations

import torch
from fedlora.config.run import TrainConfig
from fedlora.family import EncoderShape

from fedlora_client.layers.step_plan import (
    MASKS,
    PLAIN_COPIES,
    SCALED,
    Memory,
    MemoryPlan,
    StepPlan,
    fitting_plan,
    micro_batches,
)
from fedlora_client.ops.compute import Compute
from fedlora_client.ops.plain_ops import WEIGHT_SLICE_ELEMENTS, PlainOps

# Beside what is counted: the code of products and of autograd, their copies, small tensors, what the allocator holds.
# Measured with texts of 16 tokens: 53 MB in float32, 64 in bfloat16, for which oneDNN makes code of its own.
_OVERHEAD_BYTES = {torch.float32: 56_000_000, torch.bfloat16: 72_000_000}


def plan_step(
    shape: EncoderShape,
    config: TrainConfig,
    rank: int,
    compute: Compute,
    memory: Memory,
    adapters: int = 1,  # that train side by side, each with a batch of its own
    *,
    scaled: bool = False,  # vectors scale modules
) -> StepPlan:
    """Without `config.memory_mb`, activations are kept in up to a quarter of what is free.

    Raises ConfigError where `config.memory_mb`, or what the machine has, is too little, with the least that would do.
    """

    def size_bytes(texts: int, memory_plan: MemoryPlan) -> int:
        return step_bytes(shape, config, rank, compute, texts * adapters, memory_plan.kept_blocks, scaled=scaled)

    cuts = [(texts, MemoryPlan()) for texts in micro_batches(config, compute.rows // adapters)]
    return fitting_plan(cuts, size_bytes, config, shape.num_layers, memory)


def step_bytes(
    shape: EncoderShape, config: TrainConfig, rank: int, compute: Compute, texts: int, kept_blocks: int,
    *, scaled: bool = False,
) -> int:  # fmt: skip
    """What `Encoder.add_gradients` takes for texts as long as the configuration lets them be."""
    rows, hidden, intermediate = texts * config.sequence_length, shape.hidden_size, shape.intermediate_size
    wide = 4 // compute.dtype.itemsize  # norms are computed in float32
    # Of a block: q, k, v, what attention mixes, the sums that the norms see, their results; before and after gelu.
    block = rows * (4 * (1 + wide) * hidden + 2 * intermediate + 6 * rank)
    inputs = rows * hidden * (shape.num_layers + 1)
    # What passes by: a module's input with its extra columns, the gradients in its output and its input.
    passing = rows * (3 * (intermediate + rank) + 4 * wide * hidden)
    matrices = shape.linear_modules().values()
    weight = max((o + rank) * (i + rank) for o, i in matrices)
    masks = MASKS * rows * intermediate if config.dropout else 0
    unscaled = rows * (SCALED * intermediate + 2 * hidden * (kept_blocks + 1)) if scaled else 0
    elements = inputs + block * (kept_blocks + 1) + passing + weight + masks + unscaled
    plain = PLAIN_COPIES * 4 * WEIGHT_SLICE_ELEMENTS if isinstance(compute.ops, PlainOps) else 0
    return elements * compute.dtype.itemsize + plain + _OVERHEAD_BYTES[compute.dtype]
