"""What an exported graph computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from fedlora.base.pack import BasePack
from fedlora.row_lora.library import row_lora
from numpy.typing import NDArray


def open_session(graph: Path) -> Any:
    """An ONNX Runtime session as the exporter's check and the engine open it."""
    options = ort.SessionOptions()
    options.log_severity_level = 3  # an optional input is a warning to ONNX Runtime
    options.intra_op_num_threads = 1
    if graph.name.endswith(".kernel.onnx"):
        options.register_custom_ops_library(str(row_lora().library))
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def graph_logits(
    session: Any,
    base: BasePack,
    tokens: NDArray[np.int64],  # [S, T]
    components: Mapping[str, NDArray[np.float32]] | None = None,
    steps: Sequence[int] = (),
) -> NDArray[np.float32]:  # [S, T, V]
    """What a graph gives for tokens that are read in parts of `steps` tokens (default: all at once)."""
    shape, sequences = base.shape, len(tokens)
    empty = np.zeros((sequences, shape.num_kv_heads, 0, shape.head_dim), np.float32)
    past = {f"past_key_values.{i}.{kind}": empty for i in range(shape.num_layers) for kind in ("key", "value")}
    parts, done = [], 0
    for count in steps or (tokens.shape[1],):
        feeds = {
            "input_ids": tokens[:, done : done + count],
            "attention_mask": np.ones((sequences, done + count), np.int64),
        }
        names = ["logits", *(name.replace("past_key_values", "present") for name in past)]
        logits, *present = session.run(names, {**feeds, **past, **(components or {})})
        past = dict(zip(past, present, strict=True))
        parts.append(logits)
        done += count
    assert done == tokens.shape[1]
    return np.concatenate(parts, 1)
