"""The vector of a text from the last states of its tokens, as `fedlora.family.text_embedding` says."""

# E numbers of a vector

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedlora.family import EncoderShape
from fedlora.family.text_embedding import Activation
from fedlora.graph.builder import GraphBuilder, Value
from fedlora.graph.graph import DataType

_ACTIVATIONS: Mapping[Activation, str] = {"identity": "", "tanh": "Tanh", "relu": "Relu", "gelu": "Gelu"}
_LOWEST = float(np.finfo(np.float32).min)


def text_vector(builder: GraphBuilder, shape: EncoderShape, states: Value, mask: Value) -> Value:
    """states [batch, length, H] over where the mask [batch, length] is 1: [batch, E], not scaled to length 1"""
    vector = _pooled(builder, shape.embedding.pooling, states, mask)
    for number, layer in enumerate(shape.embedding.dense):
        name = f"dense.{number}"
        biases = [builder.stored(f"{name}.bias")] if layer.biased else []
        vector = builder.op("Gemm", [vector, builder.stored(f"{name}.weight"), *biases], f"{name}.out", transB=1)
        if _ACTIVATIONS[layer.activation]:
            vector = builder.op(_ACTIVATIONS[layer.activation], [vector], f"{name}.active")
    return vector


def _pooled(builder: GraphBuilder, pooling: str, states: Value, mask: Value) -> Value:
    axis, last = builder.constant("length_axis", [1]), builder.constant("last_axis", [2])
    if pooling == "cls":
        return builder.op("Gather", [states, builder.constant("first_token", np.int64(0))], "first_states", axis=1)
    if pooling == "last_token":
        length = builder.op("ReduceSum", [mask, axis], "text_length", keepdims=1)
        end = builder.op("Sub", [length, builder.constant("one", [1])], "text_end")
        return builder.op("GatherND", [states, end], "last_states_of_texts", batch_dims=1)
    share = builder.op("Cast", [mask], "text_share", to=DataType.FLOAT)
    if pooling == "max":
        outside = builder.op("Sub", [share, builder.constant("full_share", 1.0, np.float32)], "outside")
        lowered = builder.op(
            "Mul", [outside, builder.constant("minus_lowest", -_LOWEST, np.float32)], "outside.lowered"
        )
        masked = builder.op("Add", [states, builder.op("Unsqueeze", [lowered, last], "outside.apart")], "text_states")
        return builder.op("ReduceMax", [masked, axis], "text_max", keepdims=0)
    if pooling == "weighted_mean":
        share = builder.op("Mul", [share, _places(builder, mask)], "text_weights")
    apart = builder.op("Unsqueeze", [share, last], "text_share.apart")
    total = builder.op("ReduceSum", [builder.op("Mul", [states, apart], "text_states"), axis], "text_total", keepdims=0)
    divisor = builder.op("ReduceSum", [share, axis], "text_length", keepdims=1)
    if pooling == "mean_sqrt_len":
        divisor = builder.op("Sqrt", [divisor], "text_length.root")
    return builder.op("Div", [total, divisor], "text_mean")


def _places(builder: GraphBuilder, mask: Value) -> Value:
    """1 .. length, in float: [length]"""
    length = builder.op("Shape", [mask], "mask_length", start=1, end=2)
    count = builder.op("Squeeze", [length], "mask_length.number")
    one = builder.constant("first_place", np.int64(1))
    places = builder.op("Range", [one, builder.op("Add", [count, one], "after_last_place"), one], "places")
    return builder.op("Cast", [places], "places.float", to=DataType.FLOAT)
