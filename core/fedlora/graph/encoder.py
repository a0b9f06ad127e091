"""The graph of an encoder with adapter inputs.

    input_ids, attention_mask  int64 [batch, length]    the mask is 0 where a text is padded at its end
    token_type_ids             int64 [batch, length]    optional, all 0 by default; only where the model knows two types
    adapter inputs                                      see `adapter_inputs`
    the head's tensors         float32                  optional, the pack's by default; only in HEAD_PROFILES
    -> scores     float32 [batch, labels]               with a classification head
       embedding  float32 [batch, E]                    without: as `fedlora.family.text_embedding` says

Biases of the linear modules are added by their products, as everywhere; the classification head is in float. An adapter
brings a head of its own, for its own number of labels, by the inputs of the names that its tensors have in the model.
"""

# N rows, H hidden size

from __future__ import annotations

import numpy as np

from fedlora.base.pack import BasePack
from fedlora.errors import GraphError
from fedlora.exported.profiles import HEAD_PROFILES, Profile
from fedlora.family import EncoderShape
from fedlora.graph.adapter_inputs import AdapterInputs, adapter_inputs
from fedlora.graph.builder import GraphBuilder, Value
from fedlora.graph.encoder_layers import embedded, head, layer_norm, skip_norm
from fedlora.graph.graph import DataType, Graph
from fedlora.graph.text_embedding import text_vector

_NEVER = float(np.finfo(np.float32).min)  # what attention adds to the score of a key that is padding


def build_encoder(
    base: BasePack, profile: Profile = "compat", accuracy_level: int = 0, *, takes_head: bool = True,
    takes_scales: bool = False,
) -> Graph:  # fmt: skip
    """The model; its weights are external data inside the pack's file. Raises GraphError where the base is no encoder.

    `takes_head` False: as earlier versions wrote it, without inputs for a head. `takes_scales`: with some for what scales
    modules, where the profile has them.
    """
    shape = base.model
    if not isinstance(shape, EncoderShape):
        raise GraphError(f"{base.directory}: {shape.model_type} is a decoder; build_decoder makes its graph")
    builder, adapters = GraphBuilder(base, accuracy_level), adapter_inputs(profile, takes_scales=takes_scales)
    tokens = builder.input("input_ids", DataType.INT64, ["batch", "length"])
    mask = builder.input("attention_mask", DataType.INT64, ["batch", "length"])
    blocks = _Blocks(builder, shape, adapters, tokens, mask)
    x = layer_norm(builder, embedded(builder, shape, tokens), f"{shape.names.embeddings}.LayerNorm")
    x = blocks.as_rows(x, "embedded")
    for layer in range(shape.num_layers):
        x = blocks.block(x, layer)
    x = blocks.as_texts(x, "last_states")
    size: int | str
    if shape.labels:
        takes_head = takes_head and profile in HEAD_PROFILES
        output, name = head(builder, shape, x, takes_head=takes_head), "scores"
        size = "labels" if takes_head else len(shape.labels)
    else:
        output, size, name = text_vector(builder, shape, x, mask), shape.embedding_size, "embedding"
    output.name = name
    return builder.graph([builder.output(output, ("batch", size))], "encoder")


class _Blocks:
    """What the blocks share, and one block's nodes."""

    def __init__(
        self, builder: GraphBuilder, shape: EncoderShape, adapters: AdapterInputs, tokens: Value, mask: Value
    ) -> None:
        self._builder, self._shape, self._adapters = builder, shape, adapters
        self._mask = builder.op("Cast", [mask], "key_padding_mask", to=DataType.INT32)
        rows = builder.op("Shape", [tokens], "batch_and_length")
        self._texts = builder.op("Concat", [rows, builder.constant("minus_one", [-1])], "texts_shape", axis=0)

    def as_rows(self, x: Value, name: str) -> Value:
        """[batch, length, H] as the adapters want it: [N, H] where they take flat rows."""
        if not self._adapters.flat:
            return x
        flat = self._builder.constant("rows_shape", [-1, self._shape.hidden_size])
        return self._builder.op("Reshape", [x, flat], f"{name}.rows")

    def as_texts(self, x: Value, name: str) -> Value:
        """Rows back as [batch, length, H]."""
        return self._builder.op("Reshape", [x, self._texts], f"{name}.texts") if self._adapters.flat else x

    def block(self, x: Value, layer: int) -> Value:
        """h = norm(x + o(attention(q(x), k(x), v(x))));  norm(h + output(gelu(intermediate(h))))"""
        builder, shape, adapters = self._builder, self._shape, self._adapters
        attention_norm, output_norm = shape.block_norms(layer)
        mixed = self.as_rows(self._attention(x, layer), f"{shape.layer_name(layer)}.mixed")
        (out,) = adapters.linear(builder, mixed, [shape.module(layer, "attention_output")])
        h = skip_norm(builder, out, x, attention_norm)
        (inner,) = adapters.linear(builder, h, [shape.module(layer, "intermediate")])
        active = builder.op("Gelu", [inner], f"{shape.layer_name(layer)}.active")
        (out,) = adapters.linear(builder, active, [shape.module(layer, "output")])
        return skip_norm(builder, out, h, output_norm)

    def _attention(self, x: Value, layer: int) -> Value:
        """[batch, length, H]: every token sees every other of its text that is not padding."""
        builder, shape, name = self._builder, self._shape, self._shape.layer_name(layer)
        modules = [shape.module(layer, role) for role in ("query", "key", "value")]
        parts = self._adapters.linear(builder, x, modules)
        if len(parts) == 1:
            sizes = builder.constant("qkv_sizes", [shape.hidden_size] * 3)
            parts = list(builder.ops("Split", [parts[0], sizes], [f"{name}.{part}" for part in "qkv"], axis=-1))
        q, k, v = (self.as_texts(part, f"{name}.{kind}") for part, kind in zip(parts, "qkv", strict=True))
        return builder.op(
            "MultiHeadAttention", [q, k, v, None, self._mask], f"{name}.mixed", contrib=True,
            num_heads=shape.num_heads, mask_filter_value=_NEVER,
        )  # fmt: skip
