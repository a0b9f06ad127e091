"""Causal grouped-query attention with a key/value cache: one node of ONNX Runtime, and what it leaves to others.

The fused node holds the rotation for heads of a multiple of 16 only; norms over the heads of q and k stand before it.
"""

# Q query heads, K key/value heads, D head size

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from fedlora.family import DecoderShape, layer_name

from fedlora_export.adapter_inputs import AdapterInputs
from fedlora_export.builder import GraphBuilder
from fedlora_export.packed_layers import norm
from fedlora_export.rotary import rotary_table

Layer = tuple[ir.Value, list[ir.Value]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequences:
    """Where the step's tokens stand: what the attention of every layer needs of the batch."""

    seqlens: ir.Value  # int32 [batch], tokens of each row after the step, less one
    total: ir.Value  # int32 [1], of the longest row
    positions: ir.Value | None  # int64 [batch, length]; None where the attention finds them itself
    rows_shape: ir.Value  # int64 [3]: batch, length, -1
    new_tokens: ir.Value | None = None  # int32 [batch], those of the step that are real; None: all


class Attention:
    """The attention of a decoder's layers."""

    def __init__(self, builder: GraphBuilder, adapters: AdapterInputs, sequences: Sequences) -> None:
        self._builder, self._adapters, self._sequences = builder, adapters, sequences
        self._shape = builder.base.shape
        self._is_rotary_fused = is_rotary_fused(self._shape)
        self._tables: dict[str, tuple[ir.Value, ir.Value]] = {}

    def layer(self, x: ir.Value, layer: int, past: Sequence[ir.Value]) -> Layer:
        """(o_proj of the attention, [present key, present value])"""
        builder, shape, at = self._builder, self._shape, self._sequences
        prefix = f"{layer_name(layer)}.self_attn"
        query, key, value = self._heads(x, layer, prefix)
        cos, sin = self._table(layer)
        mixed, *present = builder.ops(
            "GroupQueryAttention",
            _without_end(
                [query, key, value, *past, at.seqlens, at.total]
                + ([cos, sin] if self._is_rotary_fused else [None, None])
                + [None] * 7
                + [at.new_tokens]
            ),
            [f"{prefix}.mixed", f"present.{layer}.key", f"present.{layer}.value"],
            contrib=True,
            num_heads=shape.num_heads,
            kv_num_heads=shape.num_kv_heads,
            do_rotary=int(self._is_rotary_fused),
            scale=shape.attention_scale,
            local_window_size=shape.window_of(layer) or -1,
            softcap=shape.attention_cap,
        )
        for output in present:
            builder.output(output, ("batch", shape.num_kv_heads, "total", shape.head_dim))
        if self._adapters.flat:
            width = builder.constant("attention_width", [-1, shape.num_heads * shape.head_dim])
            mixed = builder.op("Reshape", [mixed, width], f"{prefix}.flat")
        (out,) = self._adapters.linear(builder, mixed, [f"{prefix}.o_proj"])
        return out, present

    def _heads(self, x: ir.Value, layer: int, prefix: str) -> list[ir.Value | None]:
        """q, k and v [batch, length, heads D]; or all three in one, and two that are not there."""
        builder, shape = self._builder, self._shape
        names = ["qkv_proj"] if shape.joined_modules else ["q_proj", "k_proj", "v_proj"]
        parts = self._adapters.linear(builder, x, [f"{prefix}.{name}" for name in names])
        apart = shape.qk_norm or not self._is_rotary_fused
        if len(parts) == 1 and not apart:
            return [self._rows(parts[0], f"{prefix}.qkv.rows"), None, None]
        if len(parts) == 1:
            query, key_value = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
            sizes = builder.constant("qkv_sizes", [query, key_value, key_value])
            parts = list(builder.ops("Split", [parts[0], sizes], [f"{prefix}.{part}.part" for part in "qkv"], axis=-1))
        if shape.qk_norm:
            parts[:2] = [self._normed(part, f"{prefix}.{name}") for part, name in zip(parts, "qk", strict=False)]
        rows = [self._rows(part, f"{prefix}.{name}.rows") for part, name in zip(parts, "qkv", strict=True)]
        if not self._is_rotary_fused:
            rows[:2] = [self._rotated(row, layer, f"{prefix}.{n}") for row, n in zip(rows, "qk", strict=False)]
        return list(rows)

    def _rows(self, x: ir.Value, name: str) -> ir.Value:
        """x in its sequences, where it is flat."""
        return self._builder.op("Reshape", [x, self._sequences.rows_shape], name) if self._adapters.flat else x

    def _normed(self, x: ir.Value, name: str) -> ir.Value:
        """The norm over each head of q or k; the rest of its shape is that of x."""
        builder = self._builder
        heads = builder.op("Reshape", [x, builder.constant("head_rows", [-1, self._shape.head_dim])], f"{name}.heads")
        normed = norm(builder, heads, f"{name}_norm")
        return builder.op("Reshape", [normed, builder.op("Shape", [x], f"{name}.shape")], f"{name}.normed")

    def _rotated(self, x: ir.Value, layer: int, name: str) -> ir.Value:
        """Rotary positions on x [batch, length, heads D], in a node of its own."""
        inputs = [x, self._sequences.positions, *self._table(layer)]
        return self._builder.op("RotaryEmbedding", inputs, f"{name}.rotated", contrib=True, interleaved=0)

    def _table(self, layer: int) -> tuple[ir.Value, ir.Value]:
        """cos and sin of the layer's rotation: one table for each kind."""
        rotary = self._shape.rotary_of(layer)
        name = "rotary" if rotary == self._shape.rotary else "local_rotary"
        if name not in self._tables:
            self._tables[name] = rotary_table(self._builder, rotary, name)
        return self._tables[name]


def is_rotary_fused(shape: DecoderShape) -> bool:
    """Whether ONNX Runtime's attention can rotate heads of this size itself."""
    return shape.head_dim % 16 == 0


def _without_end(inputs: list[ir.Value | None]) -> list[ir.Value | None]:
    """The inputs up to the last that is there."""
    last = max(number for number, value in enumerate(inputs) if value is not None)
    return inputs[: last + 1]


def sequences_of_mask(builder: GraphBuilder, tokens: ir.Value, mask: ir.Value) -> Sequences:
    """Rows that begin with a real token, and whose mask [batch, total] tells how many of them are real.

    Several new tokens after a cache go for a batch of one only: ONNX Runtime has no other reading of them.
    """
    real = builder.op("ReduceSum", [mask, builder.constant("row_axis", [1])], "real_tokens", keepdims=0)
    last = builder.op("Sub", [real, builder.constant("one", [1])], "last_token")
    total = builder.op("Shape", [mask], "total_length_64", start=1, end=2)
    return Sequences(
        seqlens=builder.op("Cast", [last], "seqlens_k", to=ir.DataType.INT32),
        total=builder.op("Cast", [total], "total_length", to=ir.DataType.INT32),
        positions=_positions(builder, tokens, real, None),
        rows_shape=_rows_shape(builder, tokens),
    )


def sequences_of_rows(builder: GraphBuilder, tokens: ir.Value, lengths: ir.Value, new_tokens: ir.Value) -> Sequences:
    """Rows of which each is as long as it is: `lengths` after the step, `new_tokens` of them in it, both int32 [batch]."""
    return Sequences(
        seqlens=builder.op("Sub", [lengths, builder.constant("one_32", [1], np.int32)], "seqlens_k"),
        total=builder.op("ReduceMax", [lengths], "total_length", keepdims=1),
        positions=_positions(builder, tokens, lengths, new_tokens),
        rows_shape=_rows_shape(builder, tokens),
        new_tokens=new_tokens,
    )


def _positions(
    builder: GraphBuilder, tokens: ir.Value, lengths: ir.Value, new_tokens: ir.Value | None
) -> ir.Value | None:
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
        before = builder.op("Cast", [shorter], "before", to=ir.DataType.INT64)
    column = builder.op("Unsqueeze", [before, builder.constant("column_axis", [1])], "before_column")
    first = builder.op("Max", [column, builder.constant("start", [0])], "first_position")
    scalar = builder.op("Squeeze", [length], "step_length_scalar")
    offsets = builder.op("Range", [builder.constant("zero", 0), scalar, builder.constant("step", 1)], "offsets")
    limit = builder.constant("last_position", [builder.base.shape.max_positions - 1])
    return builder.op("Min", [builder.op("Add", [first, offsets], "every_position"), limit], "positions")


def _rows_shape(builder: GraphBuilder, tokens: ir.Value) -> ir.Value:
    shape = builder.op("Shape", [tokens], "batch_and_length")
    return builder.op("Concat", [shape, builder.constant("minus_one", [-1])], "rows_shape", axis=0)
