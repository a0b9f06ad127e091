"""Causal grouped-query attention with a key/value cache: one node of ONNX Runtime, and what it leaves to others.

The fused node holds the rotation for heads of a multiple of 16 only; norms over the heads of q and k stand before it.
"""

# Q query heads, K key/value heads, D head size

from __future__ import annotations

from collections.abc import Sequence

from fedlora.family import layer_name
from fedlora.graph.adapter_inputs import AdapterInputs
from fedlora.graph.builder import GraphBuilder, Value
from fedlora.graph.packed_layers import norm
from fedlora.graph.rotary import is_rotary_fused, rotary_table
from fedlora.graph.sequences import Sequences

Layer = tuple[Value, list[Value]]


class Attention:
    """The attention of a decoder's layers."""

    def __init__(self, builder: GraphBuilder, adapters: AdapterInputs, sequences: Sequences) -> None:
        self._builder, self._adapters, self._sequences = builder, adapters, sequences
        self._shape = builder.base.shape
        self._is_rotary_fused = is_rotary_fused(self._shape)
        self._tables: dict[str, tuple[Value, Value]] = {}

    def layer(self, x: Value, layer: int, past: Sequence[Value]) -> Layer:
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

    def _heads(self, x: Value, layer: int, prefix: str) -> list[Value | None]:
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

    def _rows(self, x: Value, name: str) -> Value:
        """x in its sequences, where it is flat."""
        return self._builder.op("Reshape", [x, self._sequences.rows_shape], name) if self._adapters.flat else x

    def _normed(self, x: Value, name: str) -> Value:
        """The norm over each head of q or k; the rest of its shape is that of x."""
        builder = self._builder
        heads = builder.op("Reshape", [x, builder.constant("head_rows", [-1, self._shape.head_dim])], f"{name}.heads")
        normed = norm(builder, heads, f"{name}_norm")
        return builder.op("Reshape", [normed, builder.op("Shape", [x], f"{name}.shape")], f"{name}.normed")

    def _rotated(self, x: Value, layer: int, name: str) -> Value:
        """Rotary positions on x [batch, length, heads D], in a node of its own."""
        inputs = [x, self._sequences.positions, *self._table(layer)]
        return self._builder.op("RotaryEmbedding", inputs, f"{name}.rotated", contrib=True, interleaved=0)

    def _table(self, layer: int) -> tuple[Value, Value]:
        """cos and sin of the layer's rotation: one table for each kind."""
        rotary = self._shape.rotary_of(layer)
        name = "rotary" if rotary == self._shape.rotary else "local_rotary"
        if name not in self._tables:
            self._tables[name] = rotary_table(self._builder, rotary, name)
        return self._tables[name]


def _without_end(inputs: list[Value | None]) -> list[Value | None]:
    """The inputs up to the last that is there."""
    last = max(number for number, value in enumerate(inputs) if value is not None)
    return inputs[: last + 1]
