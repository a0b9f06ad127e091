"""The graph of a decoder with a key/value cache and adapter inputs.

    input_ids       int64 [batch, length]
    attention_mask  int64 [batch, past + length]         or, in `rows` and `kernel`:
                    lengths, new_tokens  int32 [batch]   tokens of each row after the step, and those of them in the step
    past_key_values.L.key / .value                 float32 [batch, K, past, D] of each layer L
    logits_to_keep  int64 [1], optional            logits of the last so many tokens only; 0, the default: of all
    adapter inputs                                 see `adapter_inputs`
    -> logits  float32 [batch, kept, V];  present.L.key / .value  float32 [batch, K, past + length, D]

In these the logits are those of the last new token of each row, kept = 1. Names are those of onnxruntime-genai. The
cache may be a buffer that is longer than what it holds, bound as past and present at once.
"""

from __future__ import annotations

import numpy as np

from fedlora.base.pack import BasePack
from fedlora.errors import GraphError
from fedlora.exported.profiles import ROW_PROFILES, Profile
from fedlora.family import EMBEDDING, FINAL_NORM, HEAD, layer_name
from fedlora.graph.adapter_inputs import AdapterInputs, adapter_inputs
from fedlora.graph.attention import Attention
from fedlora.graph.builder import GraphBuilder, Value
from fedlora.graph.graph import DataType, Graph
from fedlora.graph.packed_layers import add_norm, embedding, linear, norm
from fedlora.graph.sequences import Sequences, sequences_of_mask, sequences_of_rows


def build_decoder(
    base: BasePack, profile: Profile = "compat", accuracy_level: int = 0, *, takes_scales: bool = False
) -> Graph:
    """The model; its weights are external data inside the pack's file. Raises GraphError for heads that do not run."""
    builder, shape = GraphBuilder(base, accuracy_level), base.shape
    adapters = adapter_inputs(profile, takes_scales=takes_scales)
    if shape.head_dim % 8:
        raise GraphError(
            f"{base.directory}: its heads have {shape.head_dim} features; ONNX Runtime's attention takes multiples of 8"
        )
    tokens = builder.input("input_ids", DataType.INT64, ["batch", "length"])
    sequences = _sequences(builder, tokens, profile)
    cache: list[int | str] = ["batch", shape.num_kv_heads, "past", shape.head_dim]
    past = [
        [builder.input(f"past_key_values.{layer}.{kind}", DataType.FLOAT, cache) for kind in ("key", "value")]
        for layer in range(shape.num_layers)
    ]
    attention = Attention(builder, adapters, sequences)
    x, outputs = _embedded(builder, tokens, flat=adapters.flat), list[Value]()
    normed = norm(builder, x, f"{layer_name(0)}.{shape.norms.before_attention}")
    for layer in range(shape.num_layers):
        prefix, norms = layer_name(layer), shape.norms
        mixed, present = attention.layer(normed, layer, past[layer])
        outputs += present
        if norms.after_attention:
            mixed = norm(builder, mixed, f"{prefix}.{norms.after_attention}")
        normed, x = add_norm(builder, x, mixed, f"{prefix}.{norms.before_mlp}")
        out = mlp(builder, adapters, normed, layer)
        if norms.after_mlp:
            out = norm(builder, out, f"{prefix}.{norms.after_mlp}")
        is_last = layer == shape.num_layers - 1
        after = FINAL_NORM if is_last else f"{layer_name(layer + 1)}.{norms.before_attention}"
        normed, x = add_norm(builder, x, out, after)
    logits = _logits(builder, normed, sequences, flat=adapters.flat)
    return builder.graph([builder.output(logits, ("batch", "kept", shape.vocab_size)), *outputs], "decoder")


def _sequences(builder: GraphBuilder, tokens: Value, profile: Profile) -> Sequences:
    if profile in ROW_PROFILES:
        lengths, new_tokens = (builder.input(name, DataType.INT32, ["batch"]) for name in ("lengths", "new_tokens"))
        return sequences_of_rows(builder, tokens, lengths, new_tokens)
    return sequences_of_mask(builder, tokens, builder.input("attention_mask", DataType.INT64, ["batch", "total"]))


def _embedded(builder: GraphBuilder, tokens: Value, *, flat: bool) -> Value:
    if flat:
        tokens = builder.op("Reshape", [tokens, builder.constant("minus_one", [-1])], "flat_ids")
    x = embedding(builder, tokens, EMBEDDING)
    scale = builder.base.shape.embedding_scale
    if scale == 1:
        return x
    return builder.op("Mul", [x, builder.constant("embedding_scale", scale, np.float32)], "scaled_embedding")


def _logits(builder: GraphBuilder, normed: Value, sequences: Sequences, *, flat: bool) -> Value:
    shape = builder.base.shape
    if flat:
        normed = builder.op("Reshape", [normed, sequences.rows_shape], "normed_rows")
    kept = _last_of_rows(builder, normed, sequences.new_tokens) if sequences.new_tokens else _last(builder, normed)
    head = EMBEDDING if shape.tie_word_embeddings else HEAD
    if not shape.logit_cap:
        return linear(builder, kept, [head], "logits")
    cap = builder.constant("logit_cap", shape.logit_cap, np.float32)
    small = builder.op(
        "Tanh", [builder.op("Div", [linear(builder, kept, [head], "scores"), cap], "scores.small")], "tanh"
    )
    return builder.op("Mul", [small, cap], "logits")


def _last(builder: GraphBuilder, normed: Value) -> Value:
    """The last `logits_to_keep` tokens of normed [batch, length, H]."""
    keep = builder.input("logits_to_keep", DataType.INT64, [1], np.zeros(1, np.int64))
    begin = builder.op("Neg", [keep], "first_kept")
    end, axis = builder.constant("no_end", [np.iinfo(np.int64).max]), builder.constant("token_axis", [1])
    return builder.op("Slice", [normed, begin, end, axis], "kept")


def _last_of_rows(builder: GraphBuilder, normed: Value, new_tokens: Value) -> Value:
    """The last new token of each row of normed [batch, length, H]; the first one of a row that has none."""
    last = builder.op("Sub", [new_tokens, builder.constant("one_32", [1], np.int32)], "last_new_32")
    last = builder.op("Max", [last, builder.constant("zero_32", [0], np.int32)], "last_new")
    index = builder.op("Unsqueeze", [last, builder.constant("row_axis", [1])], "last_new_column")
    index = builder.op("Cast", [index], "last_new_index", to=DataType.INT64)
    rows = builder.op("GatherND", [normed, index], "last_rows", batch_dims=1)
    return builder.op("Unsqueeze", [rows, builder.constant("row_axis", [1])], "kept")


def mlp(builder: GraphBuilder, adapters: AdapterInputs, x: Value, layer: int) -> Value:
    """The second half of a block."""
    shape, prefix = builder.base.shape, f"{layer_name(layer)}.mlp"
    names = ["gate_up_proj"] if shape.joined_modules else ["gate_proj", "up_proj"]
    parts = adapters.linear(builder, x, [f"{prefix}.{name}" for name in names])
    if len(parts) == 1:
        sizes = builder.constant("gate_up_sizes", [shape.intermediate_size] * 2)
        parts = list(builder.ops("Split", [parts[0], sizes], [f"{prefix}.gate", f"{prefix}.up"], axis=-1))
    gate, up = parts
    if shape.activation == "silu":
        active = builder.op("QuickGelu", [gate], f"{prefix}.active", contrib=True, alpha=1.0)  # x sigmoid(x)
    else:
        active = builder.op("Gelu", [gate], f"{prefix}.active", approximate="tanh")
    (out,) = adapters.linear(builder, builder.op("Mul", [active, up], f"{prefix}.inner"), [f"{prefix}.down_proj"])
    return out
