"""Write GGUF files for llama.cpp. Run by the peers' interpreter, with one of:

    model CHECKPOINT OUTPUT                  a Llama checkpoint, its matrices in float16 and Q4_0 made of that by llama.cpp
    text-model CHECKPOINT OUTPUT             the same with a vocabulary, in which a character of ASCII is a token
    adapter CHECKPOINT ADAPTER OUTPUT [...]  PEFT adapters, each with its output

GGUF orders the rows of a head of queries and keys pair by pair, (0, D/2), (1, 1 + D/2), ...; checkpoints order halves.
"""

# O out features, I in features, R rank, D head size

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MODULES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
_WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_Q4_0 = 2  # llama.cpp's LLAMA_FTYPE_MOSTLY_Q4_0


def main() -> None:
    what, checkpoint, *rest = sys.argv[1:]
    config = json.loads((Path(checkpoint) / "config.json").read_text())
    if what == "adapter":
        for adapter, output in zip(rest[::2], rest[1::2], strict=True):
            write_adapter(Path(adapter), config, Path(output))
    else:
        write_model(Path(checkpoint), config, Path(rest[0]), reads_text=what == "text-model")


def write_model(checkpoint: Path, config: dict[str, Any], output: Path, *, reads_text: bool = False) -> None:
    """The checkpoint as Q4_0, with the types that llama.cpp chooses for the embedding, which is the head too."""
    writer = import_module("gguf").GGUFWriter(f"{output}.f16", "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config.get("rope_theta") or config.get("rope_parameters", {}).get("rope_theta", 10_000.0))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    if reads_text:
        _add_vocabulary(writer, config["vocab_size"])
    else:
        writer.add_tokenizer_model("none")  # ids go in and come out
    for name, value in _tensors(checkpoint / "model.safetensors"):
        rows = _paired(name, value, config)
        writer.add_tensor(gguf_name(name), rows.astype(np.float32 if rows.ndim == 1 else np.float16))
    _finish(writer)
    llama: Any = import_module("llama_cpp")
    parameters = llama.llama_model_quantize_default_params()
    parameters.ftype = _Q4_0
    if llama.llama_model_quantize(f"{output}.f16".encode(), str(output).encode(), ctypes.byref(parameters)):
        raise RuntimeError(f"llama.cpp did not quantize {output}")
    Path(f"{output}.f16").unlink()


def _add_vocabulary(writer: Any, size: int) -> None:
    """Special tokens, one for each byte, and words that no text has."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    words = [f"\u2581w{number}" for number in range(size - len(bytes_) - 3)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>", *bytes_, *words])
    writer.add_token_scores([0.0] * size)
    writer.add_token_types([2, 3, 3, *[6] * len(bytes_), *[1] * len(words)])  # unknown, control, byte, normal
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_space_prefix(False)


def write_adapter(adapter: Path, config: dict[str, Any], output: Path) -> None:
    """The adapter in float32, on the same modules."""
    writer = import_module("gguf").GGUFWriter(str(output), "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", json.loads((adapter / "adapter_config.json").read_text())["lora_alpha"])
    for name, value in _tensors(adapter / "adapter_model.safetensors"):
        module, factor, _ = name.removeprefix("base_model.model.").rsplit(".", 2)
        weight = f"{module}.weight"
        rows = _paired(weight, value, config) if factor == "lora_B" else value
        writer.add_tensor(f"{gguf_name(weight)}.{factor.lower()}", rows.astype(np.float32))
    _finish(writer)


def gguf_name(tensor: str) -> str:
    """model.layers.3.self_attn.q_proj.weight -> blk.3.attn_q.weight"""
    module = tensor.removesuffix(".weight")
    if module in _WHOLE:
        return f"{_WHOLE[module]}.weight"
    _, _, layer, rest = module.split(".", 3)
    return f"blk.{layer}.{_MODULES[rest]}.weight"


def _paired(name: str, value: NDArray[Any], config: dict[str, Any]) -> NDArray[Any]:
    """The rows [O, I] of queries and keys in GGUF's order."""
    if not name.endswith(("q_proj.weight", "k_proj.weight")):
        return value
    halves = value.reshape(-1, 2, config["head_dim"] // 2, value.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(value.shape)


def _tensors(path: Path) -> Iterator[tuple[str, NDArray[np.float32]]]:
    with import_module("safetensors").safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118
            yield name, file.get_tensor(name).float().numpy()


def _finish(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
