"""Llama checkpoints with random weights, in the sizes of models that devices train."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from fedlora.base.pack import EMBEDDED, find_pack
from fedlora.family import decoder_shape
from fedlora.files.tensor_file import TensorPlan, from_float32, write_tensor_file
from numpy.typing import NDArray

Config = Mapping[str, Any]  # what config.json holds
_SLICE_ROWS = 1 << 14

_LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16", "head_dim": 64,
    "tie_word_embeddings": True, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip

CONFIGS: Mapping[str, Config] = MappingProxyType(
    {
        # SmolLM2-135M
        "135M": _LLAMA | {
            "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
            "num_key_value_heads": 3, "vocab_size": 49152,
        },
        # Qwen2.5-0.5B, without its biases
        "0.5B": _LLAMA | {
            "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
            "num_key_value_heads": 2, "vocab_size": 151936,
        },
    }
)  # fmt: skip


def make_checkpoint(directory: Path, config: Config, shards: int = 1) -> None:
    """Write a checkpoint with `config`: bf16 weights, matrices N(0, 0.02), norms 1; fedlora-nano's tokenizer."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(dict(config)))
    shutil.copy(find_pack(EMBEDDED) / "tokenizer.json", directory)
    shape = decoder_shape(config, "benchmark")
    matrices = shape.vocabulary_modules() | shape.linear_modules()
    plans = [TensorPlan(name=f"{name}.weight", dtype="BF16", shape=dims) for name, dims in matrices.items()]
    plans += [TensorPlan(name=f"{n}.weight", dtype="BF16", shape=(size,)) for n, size in shape.norm_modules().items()]
    generator = np.random.default_rng(0)

    def fill(plan: TensorPlan) -> Iterator[NDArray[Any]]:
        if len(plan.shape) == 1:
            yield from_float32(np.ones(plan.shape, np.float32), "BF16")
            return
        for start in range(0, plan.shape[0], _SLICE_ROWS):
            rows = min(_SLICE_ROWS, plan.shape[0] - start)
            yield from_float32(generator.normal(0, 0.02, (rows, plan.shape[1])).astype(np.float32), "BF16")

    if shards == 1:
        write_tensor_file(directory / "model.safetensors", plans, fill)
        return
    weight_map: dict[str, str] = {}
    for number in range(shards):
        name, part = f"model-{number + 1:05d}-of-{shards:05d}.safetensors", plans[number::shards]
        write_tensor_file(directory / name, part, fill)
        weight_map |= {plan.name: name for plan in part}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
