"""The operations that an exported graph may hold: those of this exporter, each a function of its inputs alone.

Nothing here runs a subgraph, or sees anything but its inputs; RowLora (`fedlora.row_lora`) sees the adapters that they
name. An operation that the exporter begins to use is added here: tests verify the graph of every family and profile, and
that each of these is in one.
"""

from __future__ import annotations

from collections.abc import Mapping

from fedlora.row_lora.library import DOMAIN, OPERATOR

ALLOWED_OPS: Mapping[str, frozenset[str]] = {
    "": frozenset(
        {
            "Add", "Cast", "Concat", "Cos", "Div", "Gather", "GatherND", "Gelu", "Gemm", "LayerNormalization", "MatMul",
            "Max", "Min", "Mul", "Neg", "RMSNormalization", "Range", "ReduceMax", "ReduceSum", "Relu", "Reshape", "Shape",
            "Sin", "Slice", "Split", "Squeeze", "Sub", "Tanh", "Unsqueeze",
        }
    ),
    "com.microsoft": frozenset(
        {
            "GatherBlockQuantized", "GroupQueryAttention", "MatMulNBits", "MultiHeadAttention", "QuickGelu",
            "RotaryEmbedding", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization",
        }
    ),
    DOMAIN: frozenset({OPERATOR}),  # in the profile `kernel` alone
}  # fmt: skip
