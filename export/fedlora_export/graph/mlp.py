"""down(activation(gate(x)) * up(x))"""

from __future__ import annotations

import onnx_ir as ir
from fedlora.family import layer_name

from fedlora_export.graph.adapter_inputs import AdapterInputs
from fedlora_export.graph.builder import GraphBuilder


def mlp(builder: GraphBuilder, adapters: AdapterInputs, x: ir.Value, layer: int) -> ir.Value:
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
