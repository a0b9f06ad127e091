"""Layers whose weights are the pack's own bytes: linear, embedding, RMS norm.

A linear layer's accuracy level is ONNX Runtime's: 0 computes in float32, equal to the training side to about 1e-5; 4 takes
the activations as int8, a block at a time, which is several times faster and 2 to 3% off before it averages out.
"""

# N rows, I in features, O out features

from __future__ import annotations

from collections.abc import Sequence

from fedlora.graph.builder import GraphBuilder, Value

FLOAT_ACCURACY, INT8_ACCURACY = 0, 4


def linear(builder: GraphBuilder, x: Value, modules: Sequence[str], name: str) -> Value:
    """x W^T + bias [N, O], W packed. Several modules that lie side by side are one, their outputs one after another."""
    base, shapes = builder.base, builder.matrices
    rows, columns = sum(shapes[module][0] for module in modules), shapes[modules[0]][1]
    inputs: list[Value | None] = [x, *(builder.stored(tensors) for tensors in _matrix_tensors(builder, modules))]
    biases = [f"{module}.bias" for module in modules]
    if biases[0] in base.weights.entries:
        inputs += [None] * (5 - len(inputs))
        inputs.append(builder.stored(biases))
    return builder.op(
        "MatMulNBits", inputs, name, contrib=True,
        K=columns, N=rows, bits=base.bits(modules[0]), block_size=base.quantization.block_size,
        accuracy_level=builder.accuracy_level,
    )  # fmt: skip


def can_be_one(builder: GraphBuilder, modules: Sequence[str]) -> bool:
    """Whether `linear` may take the modules as one: everything of theirs lies side by side."""
    biases = [f"{module}.bias" for module in modules]
    biased = [bias in builder.base.weights.entries for bias in biases]
    runs = [*_matrix_tensors(builder, modules), *([biases] if all(biased) else [])]
    return all(biased) == any(biased) and all(builder.are_side_by_side(run) for run in runs)


def embedding(builder: GraphBuilder, tokens: Value, module: str) -> Value:
    """The rows of the embedding [V, H] that `tokens` name: the shape of `tokens`, then H."""
    rows, blocks, width = builder.base.weights.entries[f"{module}.qweight"].shape
    codes, *others = _matrix_tensors(builder, [module])
    scales, *zeros = (builder.stored(tensors) for tensors in others)
    return builder.op(
        "GatherBlockQuantized", [builder.stored(codes, (rows, blocks * width)), tokens, scales, *zeros], f"{module}.out",
        contrib=True, bits=builder.base.bits(module), block_size=builder.base.quantization.block_size,
        gather_axis=0, quantize_axis=1,
    )  # fmt: skip


def norm(builder: GraphBuilder, x: Value, module: str, name: str | None = None) -> Value:
    """RMS norm over the last dimension of x."""
    weight, eps = builder.stored(f"{module}.weight"), builder.base.shape.rms_norm_eps
    return builder.op("RMSNormalization", [x, weight], name or f"{module}.out", epsilon=eps, axis=-1)


def add_norm(builder: GraphBuilder, x: Value, skip: Value, module: str) -> tuple[Value, Value]:
    """(RMS norm of x + skip, x + skip)"""
    normed, _, _, total = builder.ops(
        "SkipSimplifiedLayerNormalization",
        [x, skip, builder.stored(f"{module}.weight")],
        [f"{module}.out", "", "", f"{module}.sum"],
        contrib=True,
        epsilon=builder.base.shape.rms_norm_eps,
    )
    return normed, total


def _matrix_tensors(builder: GraphBuilder, modules: Sequence[str]) -> list[list[str]]:
    """The codes, the scales and, where there are any, the zeros of the modules."""
    kinds = ["qweight", "scales"]
    if f"{modules[0]}.zeros" in builder.base.weights.entries:
        kinds.append("zeros")
    return [[f"{module}.{kind}" for module in modules] for kind in kinds]
