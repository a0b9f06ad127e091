"""What does a layout cost when ONNX Runtime multiplies by it?

    python benchmarks/bench_layout.py

MatMulNBits on one thread, exact (accuracy level 0, as exported graphs ask), x [N, I] times a 4-bit weight [O, I]: the two
shapes of an MLP of hidden size 2048, for a single token and for a prompt of 64. Milliseconds, medians; the layouts take
turns in random order, so that what else the machine does meets all alike. The last line is one JSON object.
"""

from __future__ import annotations

import statistics
import time
from itertools import product

import numpy as np
import onnx_ir as ir
import onnxruntime
from fedlora.base.quantize import quantize

from harness.record import record

REPEATS, WARM_UP = {1: 400, 64: 20}, 3  # by tokens
SHAPES = {"up": (8192, 2048), "down": (2048, 8192)}  # (O, I)
TOKENS = (1, 64)
LAYOUTS = list(product((True, False), (32, 64, 128)))  # (symmetric, block size)


def main() -> None:
    figures: dict[str, float] = {}
    columns = list(product(SHAPES, TOKENS))
    print("| zero point | block |", " | ".join(f"{shape}, N = {tokens}" for shape, tokens in columns), "|")
    print("|---|---|" + "---|" * len(columns))
    sessions = {(shape, layout): session(*SHAPES[shape], *layout) for shape in SHAPES for layout in LAYOUTS}
    times: dict[tuple[tuple[bool, int], str, int], list[float]] = {}
    for shape, tokens in columns:
        generator = np.random.default_rng(1)
        x = generator.normal(size=(tokens, SHAPES[shape][1])).astype(np.float32)
        for turn in range(WARM_UP + REPEATS[tokens]):
            for number in generator.permutation(len(LAYOUTS)):
                layout = LAYOUTS[number]
                started = time.perf_counter()
                sessions[shape, layout].run(None, {"x": x})
                if turn >= WARM_UP:
                    times.setdefault((layout, shape, tokens), []).append(time.perf_counter() - started)
    for layout in LAYOUTS:
        symmetric, block_size = layout
        cells = []
        for shape, tokens in columns:
            milliseconds = statistics.median(times[layout, shape, tokens]) * 1e3
            name = f"{'symmetric' if symmetric else 'asymmetric'} {block_size} {shape} {tokens} ms"
            figures[name] = round(milliseconds, 3)
            cells.append(f"{milliseconds:.2f}")
        print(f"| {'fixed' if symmetric else 'stored'} | {block_size} | {' | '.join(cells)} |")
    record("layout", {"repeats": str(REPEATS), "shapes": SHAPES}, figures)


def session(rows: int, columns: int, symmetric: bool, block_size: int) -> onnxruntime.InferenceSession:
    """A graph of one product with a random weight [rows, columns]."""
    weight = np.random.default_rng(0).normal(size=(rows, columns)).astype(np.float32)
    stored = quantize(weight, bits=4, block_size=block_size, symmetric=symmetric, scale_rule="max-abs")
    constants = [ir.Value(name="q", const_value=ir.tensor(stored.qweight))]
    constants.append(ir.Value(name="scales", const_value=ir.tensor(stored.scales)))
    if stored.zeros is not None:
        constants.append(ir.Value(name="zeros", const_value=ir.tensor(stored.zeros)))
    x = ir.Value(name="x", shape=ir.Shape(["N", columns]), type=ir.TensorType(ir.DataType.FLOAT))
    attributes = {"K": columns, "N": rows, "bits": 4, "block_size": block_size, "accuracy_level": 0}
    node = ir.node("MatMulNBits", [x, *constants], attributes=attributes, domain="com.microsoft")
    y = node.outputs[0]
    y.name, y.shape, y.type = "y", ir.Shape(["N", rows]), ir.TensorType(ir.DataType.FLOAT)
    versions = {"": 21, "com.microsoft": 1}
    graph = ir.Graph([x], [y], nodes=[node], initializers=constants, opset_imports=versions, name="product")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    model = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    main()
