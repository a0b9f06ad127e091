"""The graph of a Llama-family decoder with a key/value cache and adapter inputs.

    input_ids       int64 [batch, length]          attention_mask  int64 [batch, past + length]
    past_key_values.L.key / .value                 float32 [batch, K, past, D] of each layer L
    MODULE.lora_A.weight / MODULE.lora_B.weight    optional, see fedlora.slots
    -> logits  float32 [batch, length, V];  present.L.key / .value  float32 [batch, K, past + length, D]

Rows are flat, [batch * length, H], but inside the attention. The names are those of onnxruntime-genai. ONNX Runtime's
attention takes several new tokens after a cache for a batch of one only: prefill whole, or one sequence at a time.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from fedlora.family import EMBEDDING, FINAL_NORM, HEAD, layer_name
from fedlora.pack import BasePack
from fedlora.slots import BASE_PROPERTY

from fedlora_export.builder import CONTRIB_OPSET, IR_VERSION, OPSET, GraphBuilder


def build_decoder(base: BasePack) -> ir.Model:
    """The model; its weights are external data inside the pack's file."""
    shape = base.shape
    builder = GraphBuilder(base)
    tokens = builder.input("input_ids", ir.DataType.INT64, ["batch", "length"])
    mask = builder.input("attention_mask", ir.DataType.INT64, ["batch", "total"])
    cache: list[int | str] = ["batch", shape.num_kv_heads, "past", shape.head_dim]
    past = [
        tuple(builder.input(f"past_key_values.{layer}.{kind}", ir.DataType.FLOAT, cache) for kind in ("key", "value"))
        for layer in range(shape.num_layers)
    ]
    attention = _Attention(builder, tokens, mask)
    flat = builder.op("Reshape", [tokens, builder.constant("flat", np.array([-1], np.int64))], "flat_ids")
    x = builder.embedding(flat, EMBEDDING)
    normed = builder.norm(x, f"{layer_name(0)}.input_layernorm")
    outputs: list[ir.Value] = []
    for layer in range(shape.num_layers):
        prefix = layer_name(layer)
        mixed, present = attention.layer(normed, layer, past[layer])
        outputs += present
        normed, x = builder.add_norm(x, mixed, f"{prefix}.post_attention_layernorm")
        after = FINAL_NORM if layer == shape.num_layers - 1 else f"{layer_name(layer + 1)}.input_layernorm"
        normed, x = builder.add_norm(x, _mlp(builder, normed, prefix), after)
    head = EMBEDDING if shape.tie_word_embeddings else HEAD
    scores = builder.linear(normed, head, shape.vocab_size)
    logits = builder.op("Reshape", [scores, attention.rows_shape], "logits")
    logits.shape, logits.type = ir.Shape(["batch", "length", shape.vocab_size]), ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(
        builder.inputs,
        [logits, *outputs],
        nodes=builder.nodes,
        initializers=list(builder.initializers.values()),
        opset_imports={"": OPSET, "com.microsoft": CONTRIB_OPSET},
        name="decoder",
    )
    model = ir.Model(graph, ir_version=IR_VERSION, producer_name="fedlora")
    model.metadata_props[BASE_PROPERTY] = base.fingerprint
    return model


class _Attention:
    """What the layers' attentions share, and one layer's."""

    def __init__(self, builder: GraphBuilder, tokens: ir.Value, mask: ir.Value) -> None:
        self._builder, self._shape = builder, builder.base.shape
        one = builder.constant("one", np.array([1], np.int64))
        # Tokens of each row that are real, less one; and the length of the cache after this step.
        real = builder.op("ReduceSum", [mask, one], "real_tokens", keepdims=0)
        last = builder.op("Sub", [real, one], "last_token")
        self._seqlens = builder.op("Cast", [last], "seqlens_k", to=ir.DataType.INT32)
        total = builder.op("Shape", [mask], "total_length_64", start=1, end=2)
        self._total = builder.op("Cast", [total], "total_length", to=ir.DataType.INT32)
        # [batch, length, -1]: rows back in their sequences.
        rows = builder.op("Shape", [tokens], "batch_and_length")
        minus = builder.constant("minus_one", np.array([-1], np.int64))
        self.rows_shape = builder.op("Concat", [rows, minus], "rows_shape", axis=0)
        self._flat_shape = builder.constant(
            "attention_flat", np.array([-1, self._shape.num_heads * self._shape.head_dim], np.int64)
        )
        # The fused attention rotates heads of a multiple of 16 only.
        self._fused_rotary = self._shape.head_dim % 16 == 0
        if not self._fused_rotary:
            length = builder.op("Shape", [tokens], "step_length", start=1, end=2)
            self._first_position = builder.op("Sub", [total, length], "first_position")
        cos, sin = self._shape.rotary_table()
        self._cos, self._sin = builder.constant("cos_cache", cos), builder.constant("sin_cache", sin)

    def layer(self, x: ir.Value, layer: int, past: tuple[ir.Value, ...]) -> tuple[ir.Value, list[ir.Value]]:
        """(o_proj of the attention [N, H], [present key, present value])."""
        builder, prefix = self._builder, f"{layer_name(layer)}.self_attn"
        rows = []
        for name in ("q_proj", "k_proj", "v_proj"):
            flat = builder.lora_linear(x, f"{prefix}.{name}")
            rows.append(builder.op("Reshape", [flat, self.rows_shape], f"{prefix}.{name}.rows"))
        if not self._fused_rotary:
            rows[:2] = (self._rotated(row, f"{prefix}.{name}") for row, name in zip(rows, ("q", "k"), strict=False))
        rotary = [self._cos, self._sin] if self._fused_rotary else []
        mixed, *present = builder.ops(
            "GroupQueryAttention",
            [*rows, *past, self._seqlens, self._total, *rotary],
            [f"{prefix}.mixed", f"present.{layer}.key", f"present.{layer}.value"],
            contrib=True,
            num_heads=self._shape.num_heads,
            kv_num_heads=self._shape.num_kv_heads,
            do_rotary=int(self._fused_rotary),
        )
        for output in present:
            output.shape = ir.Shape(["batch", self._shape.num_kv_heads, "total", self._shape.head_dim])
            output.type = ir.TensorType(ir.DataType.FLOAT)
        flat = builder.op("Reshape", [mixed, self._flat_shape], f"{prefix}.flat")
        return builder.lora_linear(flat, f"{prefix}.o_proj"), present

    def _rotated(self, x: ir.Value, name: str) -> ir.Value:
        """Rotary positions on x [batch, length, heads * D]."""
        inputs = [x, self._first_position, self._cos, self._sin]
        return self._builder.op("RotaryEmbedding", inputs, f"{name}.rotated", contrib=True, interleaved=0)


def _mlp(builder: GraphBuilder, x: ir.Value, prefix: str) -> ir.Value:
    """down_proj(silu(gate_proj(x)) * up_proj(x))"""
    gate = builder.lora_linear(x, f"{prefix}.mlp.gate_proj")
    up = builder.lora_linear(x, f"{prefix}.mlp.up_proj")
    sigmoid = builder.op("Sigmoid", [gate], f"{prefix}.mlp.sigmoid")
    silu = builder.op("Mul", [gate, sigmoid], f"{prefix}.mlp.silu")
    return builder.lora_linear(builder.op("Mul", [silu, up], f"{prefix}.mlp.inner"), f"{prefix}.mlp.down_proj")
