"""Tiny random Llama checkpoints, made with fedlora's own writers in a few milliseconds, without torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fedlora.base.pack import BasePack
from fedlora.base.quantize import Quantization
from fedlora.family import DecoderShape, decoder_shape
from fedlora.files.tensor_file import Dtype, TensorPlan, from_float32, write_tensor_file
from numpy.typing import NDArray

from tests.tiny.packs import packed

LLAMA: Mapping[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 72,  # not a multiple of any block size: down_proj's last block is padded
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 264,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

Tensors = dict[str, NDArray[np.float32]]


def llama_config(**changes: Any) -> dict[str, Any]:
    """A tiny config.json with `changes`; a change to None takes the key away."""
    return {key: value for key, value in {**LLAMA, **changes}.items() if value is not None}


def llama_shape(**changes: Any) -> DecoderShape:
    return decoder_shape(llama_config(**changes), "builders")


def random_weights(config: Mapping[str, Any], seed: int = 0) -> Tensors:
    """{tensor name: values} of every weight that `config` implies."""
    generator = np.random.default_rng(seed)
    shape = decoder_shape(config, "builders")
    matrices = shape.vocabulary_modules() | shape.linear_modules()
    weights = {
        f"{module}.weight": (generator.normal(size=dims) * 0.1).astype(np.float32) for module, dims in matrices.items()
    }
    for module in shape.norm_modules():
        weights[f"{module}.weight"] = (1 + 0.1 * generator.normal(size=shape.hidden_size)).astype(np.float32)
    return weights


def tokenizer_json() -> dict[str, Any]:
    """A byte-level tokenizer in the `tokenizers` library's format: three special tokens, then the 256 bytes."""
    special = ["<unk>", "<s>", "</s>"]
    vocabulary = {name: i for i, name in enumerate([*special, *(f"<0x{byte:02X}>" for byte in range(256))])}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": i,
                "content": name,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for i, name in enumerate(special)
        ],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "ByteFallback"},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": [],
        },
    }


def write_tensors(
    path: Path, tensors: Mapping[str, NDArray[np.float32]], dtype: Dtype = "F32", metadata: dict[str, str] | None = None
) -> None:
    """A safetensors file of `tensors`, rounded to `dtype`."""
    plans = [TensorPlan(name=name, dtype=dtype, shape=array.shape) for name, array in tensors.items()]

    def fill(plan: TensorPlan) -> Iterator[NDArray[Any]]:
        yield from_float32(tensors[plan.name], dtype)

    write_tensor_file(path, plans, fill, metadata)


def write_checkpoint(
    directory: Path,
    *,
    config: Mapping[str, Any] = LLAMA,
    weights: Mapping[str, NDArray[np.float32]] | None = None,
    dtype: Dtype = "F32",
    shards: int = 1,
) -> Path:
    """A Hugging Face checkpoint directory: config.json, tokenizer.json and the weights in `shards` files."""
    directory.mkdir(parents=True)
    weights = random_weights(config) if weights is None else weights
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer_json()), encoding="utf-8")
    if shards == 1:
        write_tensors(directory / "model.safetensors", weights, dtype, {"format": "pt"})
        return directory
    names: Sequence[str] = sorted(weights)
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {name: weights[name] for name in names[shard::shards]}
        write_tensors(directory / file, part, dtype, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return directory


def tiny_quantization(
    *, bits: int = 4, block_size: int = 32, symmetric: bool = True, embedding_bits: int = 8
) -> Quantization:
    return Quantization(bits=bits, block_size=block_size, symmetric=symmetric, embedding_bits=embedding_bits)


def tiny_pack(directory: Path, checkpoint: Path, quantization: Quantization | None = None) -> BasePack:
    """The pack of a checkpoint, made and opened."""
    return packed(checkpoint, directory, quantization or tiny_quantization())


def tree(directory: Path) -> dict[str, bytes | None]:
    """{relative path: bytes} of everything below a directory (None for a directory): to see that nothing changed."""
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None
        for path in sorted(directory.rglob("*"))
    }
