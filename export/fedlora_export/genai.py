"""The files with which onnxruntime-genai (0.18) runs an exported folder: og.Model(folder).

    genai_config.json       the graph's name, inputs, outputs and sizes, the special tokens, the defaults of the search
    tokenizer_config.json   where the pack has none: genai opens no tokenizer without it, and an empty one will do

The caches are shared buffers of max_length positions; the mask has the length of the sequence so far. genai's tokenizer
adds no special tokens: a prompt is [bos_token_id, *tokenizer.encode(text)], where the file has a bos_token_id, which is so
where the base's own tokenizer begins a text with it; elsewhere it is what encode gives. genai checks no
adapter: it takes one of another base with the same shapes, and NaN. Only files that were verified belong into its folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from fedlora.base.pack import BasePack
from fedlora.errors import ConfigError
from fedlora.exported.profiles import DEFAULT, ROW_PROFILES, Profile, graph_name
from fedlora.family import DecoderShape
from fedlora.files.atomic import write_text

GENAI_CONFIG, TOKENIZER_CONFIG = "genai_config.json", "tokenizer_config.json"

# genai's names of the families are those of config.json; `decoder` is its word for a decoder of any other name.
_MODEL_TYPES = frozenset({"llama", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "gemma3_text"})
_ANY_DECODER = "decoder"
# genai allocates and fills the caches for max_length positions before the first token: a request that needs more asks.
_MAX_LENGTH = 2048


def write_genai(base: BasePack, profile: Profile = DEFAULT) -> Path:
    """Write what genai needs beside the graph of `profile` in the pack's folder; return the path of genai_config.json.

    No file of the pack is changed. Raises PackError for an encoder, ConfigError for the profiles `rows` and `kernel`.
    """
    path = base.directory / GENAI_CONFIG
    write_text(path, genai_text(base.shape, profile))
    if not (base.directory / TOKENIZER_CONFIG).exists():
        write_text(base.directory / TOKENIZER_CONFIG, "{}\n")
    return path


def genai_text(shape: DecoderShape, profile: Profile = DEFAULT) -> str:
    """genai_config.json, byte for byte. Raises ConfigError for the profiles `rows` and `kernel`."""
    return json.dumps(genai_config(shape, profile), indent=2) + "\n"


def genai_config(shape: DecoderShape, profile: Profile = DEFAULT) -> Mapping[str, object]:
    """The content of genai_config.json. Raises ConfigError for the profiles `rows` and `kernel`.

    A layer's window is the graph's own matter: its caches have full length, so genai must not know of the window (it would
    give that layer a shorter cache).
    """
    if profile in ROW_PROFILES:
        raise ConfigError(
            "onnxruntime-genai gives a batch one adapter, not one for each row; export profile compat for it"
        )
    stop = shape.stop_token_ids
    special: dict[str, object] = {"eos_token_id": list(stop)} if stop else {}
    if shape.bos_token_id is not None:
        special["bos_token_id"] = shape.bos_token_id
    return {
        "model": {
            "type": shape.model_type if shape.model_type in _MODEL_TYPES else _ANY_DECODER,
            "vocab_size": shape.vocab_size,
            "context_length": shape.max_positions,
            **special,
            # The longer rows of a batch decide its length; the shorter ones end with this, and genai masks it.
            "pad_token_id": stop[0] if stop else 0,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": graph_name(shape, profile),
                "hidden_size": shape.hidden_size,
                "head_size": shape.head_dim,
                "num_attention_heads": shape.num_heads,
                "num_key_value_heads": shape.num_kv_heads,
                "num_hidden_layers": shape.num_layers,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {
            "do_sample": False,
            "max_length": min(shape.max_positions, _MAX_LENGTH),
            "past_present_share_buffer": True,
        },
    }
