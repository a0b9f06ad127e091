"""The files that sentence-transformers keeps beside an encoder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.tiny.checkpoints import write_tensors

Dense = tuple[int, int, str, bool]  # columns, rows, the activation's class, whether it has a bias


def write_modules(
    directory: Path,
    *,
    pooling: Mapping[str, Any] | None = None,
    transformer: Mapping[str, Any] | None = None,
    sentences: Mapping[str, Any] | None = None,
    dense: Sequence[Dense] = (),
    normalize: bool = True,
    kinds: Sequence[str] = (),
    folder: str = "",
) -> None:
    """modules.json and what it names; `kinds` are the steps where they are none that work."""
    steps = list(kinds) or ["Transformer", "Pooling", *["Dense"] * len(dense), *["Normalize"] * normalize]
    listed = [
        {
            "idx": i,
            "name": str(i),
            "path": f"{i}_{kind}" if i else folder,
            "type": f"sentence_transformers.models.{kind}",
        }
        for i, kind in enumerate(steps)
    ]
    (directory / "modules.json").write_text(json.dumps(listed))
    for i, kind in enumerate(steps[1:], 1):
        (directory / f"{i}_{kind}").mkdir(exist_ok=True)
        if kind == "Pooling":
            (directory / f"{i}_{kind}" / "config.json").write_text(json.dumps(pooling or {}))
    for i, (columns, rows, activation, biased) in enumerate(dense, 2):
        config = {"in_features": columns, "out_features": rows, "bias": biased, "activation_function": activation}
        (directory / f"{i}_Dense" / "config.json").write_text(json.dumps(config))
        generator = np.random.default_rng(i)
        tensors = {"linear.weight": generator.normal(0, columns**-0.5, (rows, columns)).astype(np.float32)}
        if biased:
            tensors["linear.bias"] = generator.normal(size=rows).astype(np.float32)
        write_tensors(directory / f"{i}_Dense" / "model.safetensors", tensors)
    if transformer is not None:
        (directory / "sentence_bert_config.json").write_text(json.dumps(transformer))
    if sentences is not None:
        (directory / "config_sentence_transformers.json").write_text(json.dumps(sentences))
