"""Tiny random models of every decoder family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedlora.base.pack import BasePack
from fedlora.base.quantize import Quantization
from transformers import AutoConfig

from tests.tiny.decoders import save_decoder
from tests.tiny.packs import checkpoint_of, made_once, packed
from tests.tiny.tokenizer import BOS, EOS

WINDOW = 5  # keys that a query sees in a layer with a window: fewer than the tokens of a test
# What all of them share, by the names of config.json. A head size of 8, and a context of 64, where nothing else is said.
_COMMON: Mapping[str, Any] = {
    "vocab_size": 258, "hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 2, "num_attention_heads": 8,
    "num_key_value_heads": 4, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
    "bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": None,
}  # fmt: skip
_HEAD_16: Mapping[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}


_8_BIT = Quantization(bits=8, embedding_bits=8, block_size=32, symmetric=True)
_4_BIT_ASYMMETRIC = Quantization(bits=4, embedding_bits=8, block_size=32, symmetric=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One tiny model of a family and how it is packed."""

    model_type: str = "llama"
    fields: Mapping[str, Any] = field(default_factory=dict)  # of config.json, beside those that all share
    norm_offset: float = 0.0  # the family's norms multiply by weight + offset
    quantization: Quantization = _8_BIT
    seed: int = 0


def _rope(kind: str, **numbers: float) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **numbers}}


_GEMMA: Mapping[str, Any] = {
    "query_pre_attn_scalar": 24, "sliding_window": WINDOW, "hidden_activation": "gelu_pytorch_tanh"
}  # fmt: skip

FAMILIES: Mapping[str, Family] = {
    "llama": Family(fields=_rope("default")),
    "llama-linear": Family(fields=_rope("linear", factor=3.0)),
    "llama-llama3": Family(
        fields={
            **_HEAD_16,
            **_rope(
                "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
            ),
        }
    ),
    "llama-yarn": Family(
        fields={
            **_HEAD_16,
            **_rope("yarn", factor=4.0, beta_fast=4.0, beta_slow=1.0, original_max_position_embeddings=16),
        }
    ),
    "llama-dynamic": Family(fields=_rope("dynamic", factor=2.0)),
    "llama-biases": Family(
        fields={**_rope("default"), "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
        quantization=_4_BIT_ASYMMETRIC,
    ),
    "mistral-window": Family(
        model_type="mistral",
        fields={**_HEAD_16, "sliding_window": WINDOW, "tie_word_embeddings": False},
        quantization=_4_BIT_ASYMMETRIC,
    ),
    "qwen2": Family(model_type="qwen2"),
    "qwen2-window-from-layer-1": Family(
        model_type="qwen2",
        fields={**_HEAD_16, "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    "qwen3": Family(
        model_type="qwen3",
        fields={"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32},  # 4 x 32 is twice the hidden size
        quantization=_4_BIT_ASYMMETRIC,
    ),
    "phi3": Family(
        model_type="phi3", fields={"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False}
    ),
    "phi3-longrope": Family(
        model_type="phi3",
        fields={
            "original_max_position_embeddings": 32,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0, 1.1, 1.5, 2.0],
                "long_factor": [1.0, 2.0, 4.0, 8.0],
            },
        },
        quantization=_4_BIT_ASYMMETRIC,
    ),
    "gemma2": Family(
        model_type="gemma2",
        fields={
            **_GEMMA, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "num_hidden_layers": 3,
            "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0,
        },
        norm_offset=1.0,
    ),
    "gemma3": Family(
        model_type="gemma3_text",
        fields={
            **_GEMMA, **_HEAD_16, "num_key_value_heads": 1, "num_hidden_layers": 3, "sliding_window_pattern": 3,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 500000.0, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0},
            },
        },
        norm_offset=1.0,
    ),
    # Its windows hold the whole context, and still say which layers rotate otherwise.
    "gemma3-wide-window": Family(
        model_type="gemma3_text",
        fields={
            **_GEMMA, **_HEAD_16, "num_key_value_heads": 1, "sliding_window": 100, "sliding_window_pattern": 2,
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 500000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
        },
        norm_offset=1.0,
    ),
}  # fmt: skip


def save_family_pack(name: str, directory: Path) -> BasePack:
    """The pack of FAMILIES[name] in `directory`, and its checkpoint beside it."""
    family = FAMILIES[name]
    config = AutoConfig.for_model(family.model_type, **{**_COMMON, **family.fields})
    save_decoder(config, checkpoint_of(directory), seed=family.seed, norm_offset=family.norm_offset)
    return packed(checkpoint_of(directory), directory, family.quantization)


family_pack = made_once(save_family_pack)
