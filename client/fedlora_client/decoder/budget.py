"""How a step of a decoder is cut to fit the memory that there is.

What a step holds is known before it begins: the buffers of its workspace, whose sizes follow from the shape of the base.
A plan takes as many sequences at a time as keep products efficient, then larger chunks of logits, then keeps the
activations of as many blocks as fit.
"""

# m sequences of T tokens at a time, N = m T rows, R the largest rank

from __future__ import annotations

import torch
from fedlora.config.run import TrainConfig
from fedlora.family import DecoderShape

from fedlora_client.decoder.head import VOCABULARY_PART
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
from fedlora_client.ops.attention import QUERY_BLOCK
from fedlora_client.ops.compute import Compute
from fedlora_client.ops.plain_ops import WEIGHT_SLICE_ELEMENTS, PlainOps

_MOST_CHUNK_ROWS, _LEAST_CHUNK_ROWS = 256, 16  # whose logits are held at a time, ...
_LOGITS_BYTES, _FRUGAL_LOGITS_BYTES = 80_000_000, 20_000_000  # ... which take no more than this, and when saving
_FRUGAL_CHUNK_ROWS = 64
# Beside the workspace: the code of products, their copies, which do not grow with a weight, small tensors, what the
# allocator holds. Measured: 7 to 18 MB in float32, 21 to 32 in bfloat16, for which oneDNN makes code of its own.
_OVERHEAD_BYTES = {torch.float32: 24_000_000, torch.bfloat16: 36_000_000}


def plan_step(
    shape: DecoderShape,
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
    sizes = micro_batches(config, compute.rows // adapters)
    most_bytes = _FRUGAL_LOGITS_BYTES if config.checkpointing == "on" else _LOGITS_BYTES
    chunks = _chunks(shape.vocab_size * compute.dtype.itemsize, most_bytes)

    def size_bytes(micro_batch: int, memory_plan: MemoryPlan) -> int:
        return step_bytes(shape, config, rank, compute, micro_batch * adapters, memory_plan, scaled=scaled)

    cuts = [(size, MemoryPlan(chunk_rows=chunk)) for size in sizes for chunk in chunks]
    return fitting_plan(cuts, size_bytes, config, shape.num_layers, memory)


def cut_measurement(shape: DecoderShape, length: int, compute: Compute, *, frugal: bool) -> tuple[int, MemoryPlan]:
    """(windows of `length` tokens at a time, memory plan) of a measurement, which keeps nothing."""
    rows = _chunks(shape.vocab_size * compute.dtype.itemsize, _FRUGAL_LOGITS_BYTES)[0]
    if frugal:
        return 1, MemoryPlan(chunk_rows=min(rows, _FRUGAL_CHUNK_ROWS))
    return max(1, compute.rows // length), MemoryPlan(chunk_rows=rows)


def _chunks(row_bytes: int, most_bytes: int) -> list[int]:
    """Numbers of rows of logits, from the largest that fits its bound to the least."""
    step = _LEAST_CHUNK_ROWS
    chunks = [max(step, min(_MOST_CHUNK_ROWS, most_bytes // row_bytes // step * step))]
    while chunks[-1] > step:
        chunks.append(max(step, chunks[-1] // 2))
    return chunks


def step_bytes(
    shape: DecoderShape, config: TrainConfig, rank: int, compute: Compute, micro_batch: int, memory_plan: MemoryPlan,
    *, scaled: bool = False,
) -> int:  # fmt: skip
    """The workspace of a step and what its products take beside it."""
    parts = workspace_elements(shape, config.sequence_length, rank, micro_batch, memory_plan)
    rows = micro_batch * config.sequence_length
    widest = max(shape.intermediate_size, shape.num_heads * shape.head_dim) + rank
    masks = MASKS * rows * widest if config.dropout else 0
    xA = 7 * rank * rows * (memory_plan.kept_blocks + 2)
    joined = 2 * shape.intermediate_size if shape.joined_modules else 0
    heads = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim  # copies of what q, k and v give
    unscaled = rows * (SCALED * max(widest, joined) + heads * (memory_plan.kept_blocks + 2)) if scaled else 0
    elements = sum(parts.values()) + rows * widest + masks + xA + unscaled
    read = max(WEIGHT_SLICE_ELEMENTS, rows * widest, parts["attention"] // 2, parts["logits"])
    plain = PLAIN_COPIES * 4 * read if isinstance(compute.ops, PlainOps) else 0
    return elements * compute.dtype.itemsize + plain + _OVERHEAD_BYTES[compute.dtype]


def workspace_elements(
    shape: DecoderShape, length: int, rank: int, micro_batch: int, memory_plan: MemoryPlan
) -> dict[str, int]:
    """{what: numbers in the compute dtype} of the buffers of `Decoder.add_gradients` for one adapter."""
    rows, hidden, intermediate = micro_batch * length, shape.hidden_size, shape.intermediate_size
    query, key_value = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    heads, normed_heads = query + 2 * key_value, query * shape.qk_norm
    # Separate modules have a buffer each; joined ones a larger one together.
    gated_input, rows_of_heads, apart, ranks = (
        (2 * intermediate, heads, 0, 3) if shape.joined_modules else (intermediate, query, intermediate, 6)
    )
    unnormed = hidden * (bool(shape.norms.after_attention) + bool(shape.norms.after_mlp))
    unnormed += (query + key_value) * shape.qk_norm
    block = min(length, QUERY_BLOCK)
    # The last block of queries has all keys, but may be short.
    scores = max(min(block, length - first) * min(first + block, length) for first in range(0, length, block))
    matrices = shape.linear_modules().values()
    activations = rows * (query + rank + heads + hidden + 2 * intermediate + unnormed)  # one block's
    return {
        "inputs": (shape.num_layers + 1 + 2) * rows * hidden,  # 2: those of an evaluation
        "activations": activations * (memory_plan.kept_blocks + 1),
        "module inputs": rows * (2 * (hidden + rank) + gated_input + rank + rows_of_heads + normed_heads),
        "gradients": rows * (intermediate + apart + 4 * hidden + 2 * heads + ranks * rank + query),
        "attention": micro_batch * shape.num_heads * (
            (2 + bool(shape.attention_cap)) * scores + 2 * block * shape.head_dim
        ),
        "weight": max(
            min(VOCABULARY_PART, shape.vocab_size) * hidden,
            *(max(o * (i + rank), (o + rank) * i) for o, i in matrices),
        ),
        "lora": rank * (max(i for _, i in matrices) + max(o for o, _ in matrices) + 2 * rank),
        "logits": min(rows, memory_plan.chunk_rows) * (
            shape.vocab_size + min(VOCABULARY_PART, shape.vocab_size) * bool(shape.logit_cap)
        ),
    }  # fmt: skip
