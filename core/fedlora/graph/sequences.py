"""Where the tokens of a step stand in their sequences: from a mask, or from the lengths of rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedlora.graph.builder import GraphBuilder, Value
from fedlora.graph.graph import DataType
from fedlora.graph.rotary import is_rotary_fused


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequences:
    """Where the step's tokens stand: what the attention of every layer needs of the batch."""

    seqlens: Value  # int32 [batch], tokens of each row after the step, less one
    total: Value  # int32 [1], of the longest row
    positions: Value | None  # int64 [batch, length]; None where the attention finds them itself
    rows_shape: Value  # int64 [3]: batch, length, -1
    new_tokens: Value | None = None  # int32 [batch], those of the step that are real; None: all


def sequences_of_mask(builder: GraphBuilder, tokens: Value, mask: Value) -> Sequences:
    """Rows that begin with a real token, and whose mask [batch, total] tells how many of them are real.

    Several new tokens after a cache go for a batch of one only: ONNX Runtime has no other reading of them.
    """
    real = builder.op("ReduceSum", [mask, builder.constant("row_axis", [1])], "real_tokens", keepdims=0)
    last = builder.op("Sub", [real, builder.constant("one", [1])], "last_token")
    total = builder.op("Shape", [mask], "total_length_64", start=1, end=2)
    return Sequences(
        seqlens=builder.op("Cast", [last], "seqlens_k", to=DataType.INT32),
        total=builder.op("Cast", [total], "total_length", to=DataType.INT32),
        positions=_positions(builder, tokens, real, None),
        rows_shape=_rows_shape(builder, tokens),
    )


def sequences_of_rows(builder: GraphBuilder, tokens: Value, lengths: Value, new_tokens: Value) -> Sequences:
    """Rows of which each is as long as it is: `lengths` after the step, `new_tokens` of them in it, both int32 [batch]."""
    return Sequences(
        seqlens=builder.op("Sub", [lengths, builder.constant("one_32", [1], np.int32)], "seqlens_k"),
        total=builder.op("ReduceMax", [lengths], "total_length", keepdims=1),
        positions=_positions(builder, tokens, lengths, new_tokens),
        rows_shape=_rows_shape(builder, tokens),
        new_tokens=new_tokens,
    )


def _positions(builder: GraphBuilder, tokens: Value, lengths: Value, new_tokens: Value | None) -> Value | None:
    """int64 [batch, length]: the position of every token of the step; None where the rotation is within the attention.

    Row b has lengths[b] tokens after the step and new_tokens[b] in it, all of them where it is None. Tokens past a row's
    own are computed and never read; their positions must lie within the table, too.
    """
    if is_rotary_fused(builder.base.shape):
        return None
    length = builder.op("Shape", [tokens], "step_length", start=1, end=2)
    if new_tokens is None:
        before = builder.op("Sub", [lengths, length], "before")  # negative in a prompt, for a row shorter than the step
    else:
        shorter = builder.op("Sub", [lengths, new_tokens], "before_32")
        before = builder.op("Cast", [shorter], "before", to=DataType.INT64)
    column = builder.op("Unsqueeze", [before, builder.constant("column_axis", [1])], "before_column")
    first = builder.op("Max", [column, builder.constant("start", [0])], "first_position")
    scalar = builder.op("Squeeze", [length], "step_length_scalar")
    offsets = builder.op("Range", [builder.constant("zero", 0), scalar, builder.constant("step", 1)], "offsets")
    limit = builder.constant("last_position", [builder.base.shape.max_positions - 1])
    return builder.op("Min", [builder.op("Add", [first, offsets], "every_position"), limit], "positions")


def _rows_shape(builder: GraphBuilder, tokens: Value) -> Value:
    shape = builder.op("Shape", [tokens], "batch_and_length")
    return builder.op("Concat", [shape, builder.constant("minus_one", [-1])], "rows_shape", axis=0)
