"""The tables of rotary positions, which the runtime computes when it loads the graph: the file holds a formula."""

from __future__ import annotations

import numpy as np

from fedlora.errors import GraphError
from fedlora.family import DecoderShape, Rotary
from fedlora.graph.builder import GraphBuilder, Value
from fedlora.graph.graph import DataType

# Of a table: a million positions of heads of 128. The runtime computes it in float64, three at a time.
MOST_NUMBERS = 1 << 26


def is_rotary_fused(shape: DecoderShape) -> bool:
    """Whether ONNX Runtime's attention can rotate heads of this size itself."""
    return shape.head_dim % 16 == 0


def rotary_table(builder: GraphBuilder, rotary: Rotary, name: str) -> tuple[Value, Value]:
    """cos and sin [P, D / 2] of position * frequency, times the magnitude.

    All its inputs are constant, so ONNX Runtime folds it into two initializers. The angles are float64, as the trainer's:
    at position 100,000 those of float32 are a hundredth of a turn off.
    """
    positions = builder.base.shape.max_positions
    if positions * len(rotary.frequencies) > MOST_NUMBERS:
        raise GraphError(
            f"{builder.base.directory}: {positions} positions of {len(rotary.frequencies)} angles each make tables of more "
            f"than {MOST_NUMBERS} numbers; lower max_position_embeddings in the checkpoint's config.json and pack it again"
        )
    zero, one = (builder.constant(f"position_{n}", float(n), np.float64) for n in (0, 1))
    end = builder.constant("position_end", float(positions), np.float64)
    counted = builder.op("Range", [zero, end, one], f"{name}.positions")
    column = builder.op("Unsqueeze", [counted, builder.constant("last_axis", [-1])], f"{name}.column")
    frequencies = builder.constant(f"{name}.frequencies", rotary.frequencies, np.float64)
    angles = builder.op("Mul", [column, frequencies], f"{name}.angles")
    cos, sin = (builder.op(kind, [angles], f"{name}.{kind.lower()}64") for kind in ("Cos", "Sin"))
    if rotary.magnitude != 1:
        magnitude = builder.constant(f"{name}.magnitude", rotary.magnitude, np.float64)
        cos, sin = (builder.op("Mul", [wave, magnitude], f"{wave.name}.scaled") for wave in (cos, sin))
    cos, sin = (
        builder.op("Cast", [wave], f"{name}.{kind}", to=DataType.FLOAT) for wave, kind in ((cos, "cos"), (sin, "sin"))
    )
    return cos, sin
