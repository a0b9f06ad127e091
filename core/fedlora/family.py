"""One description of each model family, read by the packer, the trainer and the exporter.

A decoder block of the Llama family, x [N, H]:

    h = x + o_proj(attention(rope(q_proj(n)), rope(k_proj(n)), v_proj(n)))      n = rms_norm(x)
    y = h + down_proj(silu(gate_proj(m)) * up_proj(m))                          m = rms_norm(h)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlora.errors import CheckpointError

ATTENTION_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP_MODULES = ("gate_proj", "up_proj", "down_proj")
LINEAR_MODULES = (*ATTENTION_MODULES, *MLP_MODULES)

# Sizes of a decoder by their names in config.json.
_SIZES = {
    "hidden_size": "hidden_size", "intermediate_size": "intermediate_size", "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads", "num_kv_heads": "num_key_value_heads", "head_dim": "head_dim",
    "vocab_size": "vocab_size", "max_positions": "max_position_embeddings",
}  # fmt: skip

EMBEDDING = "model.embed_tokens"
FINAL_NORM = "model.norm"
HEAD = "lm_head"


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderShape:
    """The sizes and constants of a Llama-family decoder."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    rms_norm_eps: float
    rope_theta: float
    tie_word_embeddings: bool
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]

    def rotary_table(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """cos and sin [max_positions, head_dim / 2] of position * theta^(-2 i / head_dim) (arXiv:2104.09864)."""
        frequencies = self.rope_theta ** (-np.arange(0, self.head_dim, 2) / self.head_dim)
        angles = np.outer(np.arange(self.max_positions), frequencies)
        return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)

    def linear_modules(self) -> dict[str, tuple[int, int]]:
        """{module name: (O, I)} of every linear layer in the blocks, in the order of the computation."""
        hidden, inner = self.hidden_size, self.intermediate_size
        query, key_value = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        shapes = {
            "self_attn.q_proj": (query, hidden),
            "self_attn.k_proj": (key_value, hidden),
            "self_attn.v_proj": (key_value, hidden),
            "self_attn.o_proj": (hidden, query),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }
        return {f"{layer_name(i)}.{name}": shape for i in range(self.num_layers) for name, shape in shapes.items()}

    def vocabulary_modules(self) -> dict[str, tuple[int, int]]:
        """{module name: (V, H)} of the embedding and, where it is not tied to it, the head."""
        names = (EMBEDDING,) if self.tie_word_embeddings else (EMBEDDING, HEAD)
        return dict.fromkeys(names, (self.vocab_size, self.hidden_size))

    def norm_modules(self) -> list[str]:
        """The names of the RMS norms, each a vector [H]."""
        per_layer = ("input_layernorm", "post_attention_layernorm")
        return [f"{layer_name(i)}.{name}" for i in range(self.num_layers) for name in per_layer] + [FINAL_NORM]


def layer_name(layer: int) -> str:
    return f"model.layers.{layer}"


def decoder_shape(config: Mapping[str, Any], where: str) -> DecoderShape:
    """Read a Hugging Face `config.json`. Raises CheckpointError for a model that is not of the family, by name."""
    architectures = config.get("architectures")
    if architectures != ["LlamaForCausalLM"]:
        named = ", ".join(map(str, architectures)) if isinstance(architectures, list) else architectures or "none"
        raise CheckpointError(f"{where}: architecture {named} is not supported; expected LlamaForCausalLM")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise CheckpointError(f"{where}: rope_parameters and rope_scaling must be objects, got {rope!r}")
    unsupported = {
        "rope_type": (rope.get("rope_type", rope.get("type", "default")), "default"),
        "hidden_act": (config.get("hidden_act", "silu"), "silu"),
        "attention_bias": (config.get("attention_bias", False), False),
        "mlp_bias": (config.get("mlp_bias", False), False),
    }
    for name, (got, expected) in unsupported.items():
        if got != expected:
            raise CheckpointError(f"{where}: {name} is {got!r}; only {expected!r} is supported for LlamaForCausalLM")
    try:
        heads = int(config["num_attention_heads"])
        eos = config.get("eos_token_id")
        shape = DecoderShape(
            hidden_size=int(config["hidden_size"]),
            intermediate_size=int(config["intermediate_size"]),
            num_layers=int(config["num_hidden_layers"]),
            num_heads=heads,
            num_kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or int(config["hidden_size"]) // heads),
            vocab_size=int(config["vocab_size"]),
            max_positions=int(config.get("max_position_embeddings", 2048)),
            rms_norm_eps=float(config.get("rms_norm_eps", 1e-6)),
            rope_theta=float(rope.get("rope_theta", config.get("rope_theta", 10000.0))),
            tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
            bos_token_id=config.get("bos_token_id"),
            eos_token_ids=tuple(eos) if isinstance(eos, list) else () if eos is None else (int(eos),),
        )
    except KeyError as error:
        raise CheckpointError(f"{where}: {error.args[0]} is missing; a Llama config.json has it") from None
    except (TypeError, ValueError, OverflowError, ZeroDivisionError) as error:
        raise CheckpointError(f"{where}: not a Llama config.json: {error}") from None
    special = [*shape.eos_token_ids, *([] if shape.bos_token_id is None else [shape.bos_token_id])]
    if any(type(token) is not int or not 0 <= token < shape.vocab_size for token in special):
        raise CheckpointError(f"{where}: bos and eos token ids must be from 0 to {shape.vocab_size - 1}, got {special}")
    sizes = {name: getattr(shape, name) for name in _SIZES}
    small = ", ".join(f"{_SIZES[name]} {size}" for name, size in sizes.items() if size < 1)
    if small or heads % shape.num_kv_heads or shape.head_dim % 2:
        raise CheckpointError(
            f"{where}: expected positive sizes (got {small or 'only such'}), num_attention_heads ({heads}) a multiple of "
            f"num_key_value_heads ({shape.num_kv_heads}) and head_dim ({shape.head_dim}) even"
        )
    return shape
