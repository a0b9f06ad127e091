"""What encoders have beside their linear modules: embeddings, layer norms, the head."""

from __future__ import annotations

import numpy as np

from fedlora.family import EncoderShape
from fedlora.graph.builder import GraphBuilder, Value
from fedlora.graph.graph import DataType
from fedlora.graph.packed_layers import embedding


def embedded(builder: GraphBuilder, shape: EncoderShape, tokens: Value) -> Value:
    """words[token] + positions[first_position + i] + types[type]: [batch, length, H]"""
    (words,), names = shape.vocabulary_modules(), shape.names.embeddings
    first, axis = builder.constant("first_position", [shape.first_position]), builder.constant("first_axis", [0])
    length = builder.op("Shape", [tokens], "length", start=1, end=2)
    end = builder.op("Add", [length, first], "end_position")
    table = builder.stored(f"{names}.position_embeddings.weight")
    positions = builder.op("Slice", [table, first, end, axis], "positions")
    x = builder.op("Add", [embedding(builder, tokens, words), positions], "placed")
    if not shape.type_vocab_size:
        return x
    types, zero = builder.stored(f"{names}.token_type_embeddings.weight"), np.zeros((1, 1), np.int64)
    if shape.type_vocab_size == 1:
        kinds = builder.constant("token_type_ids", zero)
    else:
        sizes = ("type_batch", "type_length")  # of their own: the default is one 0 for all
        kinds = builder.input("token_type_ids", DataType.INT64, sizes, zero)
    return builder.op("Add", [x, builder.op("Gather", [types, kinds], "types", axis=0)], "typed")


def layer_norm(builder: GraphBuilder, x: Value, module: str) -> Value:
    """(x - mean(x)) / sqrt(var(x) + eps) * weight + bias over the last dimension"""
    weight, bias = (builder.stored(f"{module}.{kind}") for kind in ("weight", "bias"))
    return builder.op("LayerNormalization", [x, weight, bias], f"{module}.out", epsilon=_eps(builder), axis=-1)


def skip_norm(builder: GraphBuilder, x: Value, skip: Value, module: str) -> Value:
    """The layer norm of x + skip."""
    weight, bias = (builder.stored(f"{module}.{kind}") for kind in ("weight", "bias"))
    return builder.op(
        "SkipLayerNormalization", [x, skip, weight, bias], f"{module}.out", contrib=True, epsilon=_eps(builder)
    )


def head(builder: GraphBuilder, shape: EncoderShape, states: Value, *, takes_head: bool) -> Value:
    """out(f(dense(y[0]))) of states y [batch, length, H]: [batch, labels]; with inputs for a head of the adapter's own."""
    if takes_head:
        for name, sizes in shape.head_inputs().items():
            builder.stored_input(name, ["labels" if size == -1 else size for size in sizes])
    first = builder.op("Gather", [states, builder.constant("first_token", np.int64(0))], "first_states", axis=1)
    activation = {"tanh": "Tanh", "relu": "Relu"}[shape.head_activation]
    dense, out = shape.names.head_dense, shape.names.head_out
    inner = builder.op(activation, [affine(builder, first, dense)], f"{dense}.active")
    return affine(builder, inner, out)


def affine(builder: GraphBuilder, x: Value, module: str) -> Value:
    """x W^T + b with W in float."""
    weight, bias = (builder.stored(f"{module}.{kind}") for kind in ("weight", "bias"))
    return builder.op("Gemm", [x, weight, bias], f"{module}.out", transB=1)


def _eps(builder: GraphBuilder) -> float:
    shape = builder.base.model
    assert isinstance(shape, EncoderShape)
    return shape.layer_norm_eps
