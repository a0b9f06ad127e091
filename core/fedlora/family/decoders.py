"""How each decoder family's `config.json` is read: the architectures that are known, and what each varies."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fedlora.family.decoder import Activation, BlockNorms, DecoderShape
from fedlora.family.rotary import Rotary, read_rotary
from fedlora.family.sizes import check_sizes, number, switch, whole

Config = Mapping[str, Any]  # a config.json

# Sizes of a decoder by their names in config.json.
_SIZES = {
    "hidden_size": "hidden_size", "intermediate_size": "intermediate_size", "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads", "num_kv_heads": "num_key_value_heads", "head_dim": "head_dim",
    "vocab_size": "vocab_size", "max_positions": "max_position_embeddings",
}  # fmt: skip
_ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh",
}  # fmt: skip
_FOUR_NORMS = BlockNorms(
    after_attention="post_attention_layernorm",
    before_mlp="pre_feedforward_layernorm",
    after_mlp="post_feedforward_layernorm",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Family:
    """What a family adds to the fields that all decoders share."""

    variations: Callable[[Config], Mapping[str, Any]]  # fields of DecoderShape
    windows: Callable[[Config], tuple[int, ...]]
    defaults: Config = field(default_factory=dict)  # transformers', for what config.json leaves out
    rope_types: Mapping[str, str] = field(default_factory=dict)  # {an older name of a rotation: its name}


def read_decoder(architecture: str, config: Config) -> DecoderShape:
    """Raises KeyError for what is missing, and ValueError, TypeError or ArithmeticError for what makes no sense."""
    family = DECODERS[architecture]
    config = {**family.defaults, **config}
    sizes = _sizes(config)
    scaling = _scaling(config)
    kind = scaling.get("rope_type", scaling.get("type"))
    if isinstance(kind, str) and kind in family.rope_types:
        scaling["rope_type"] = family.rope_types[kind]
    full, local = scaling.get("full_attention", scaling), scaling.get("sliding_attention")
    theta = number(full.get("rope_theta", config.get("rope_theta", 10000.0)))
    rotary, positions = read_rotary(full, theta, sizes["head_dim"], sizes["max_positions"])
    local_rotary = _local_rotary(local, config, sizes["head_dim"], positions)
    fields: dict[str, Any] = {
        **sizes,
        "max_positions": positions,
        "rms_norm_eps": number(config.get("rms_norm_eps", 1e-6)),
        "rotary": rotary,
        "local_rotary": local_rotary,
        "tie_word_embeddings": switch(config, "tie_word_embeddings"),
        **_special_tokens(config, sizes["vocab_size"]),
        "attention_scale": 1 / math.sqrt(sizes["head_dim"]),
        "model_type": str(config.get("model_type", "llama")),
        # A window that holds the whole context is none; where it decides the rotation it stays one.
        "windows": tuple(
            window if window < positions else positions if local_rotary else 0 for window in family.windows(config)
        ),
        **family.variations(config),
    }
    if not any(fields["windows"]):
        fields |= {"windows": (), "local_rotary": None}
    return DecoderShape(**fields)


def _sizes(config: Config) -> dict[str, int]:
    heads = whole(config["num_attention_heads"])
    sizes = {
        "hidden_size": whole(config["hidden_size"]),
        "intermediate_size": whole(config["intermediate_size"]),
        "num_layers": whole(config["num_hidden_layers"]),
        "num_heads": heads,
        "num_kv_heads": whole(config.get("num_key_value_heads") or heads),
        "head_dim": whole(config.get("head_dim") or whole(config["hidden_size"]) // heads),
        "vocab_size": whole(config["vocab_size"]),
        "max_positions": whole(config.get("max_position_embeddings", 2048)),
    }
    check_sizes(sizes)
    small = ", ".join(f"{_SIZES[name]} {size}" for name, size in sizes.items() if size < 1)
    if small or heads % sizes["num_kv_heads"] or sizes["head_dim"] % 2:
        raise ValueError(
            f"expected positive sizes (got {small or 'only such'}), num_attention_heads ({heads}) a multiple of "
            f"num_key_value_heads ({sizes['num_kv_heads']}) and head_dim ({sizes['head_dim']}) even"
        )
    return sizes


def _special_tokens(config: Config, vocab_size: int) -> dict[str, Any]:
    begin, end = config.get("bos_token_id"), config.get("eos_token_id")
    ends = tuple(end) if isinstance(end, list) else () if end is None else (end,)
    named = [*ends, *([] if begin is None else [begin])]
    if any(type(token) is not int or not 0 <= token < vocab_size for token in named):
        raise ValueError(f"bos and eos token ids must be from 0 to {vocab_size - 1}, got {named}")
    return {"tokens_before_text": () if begin is None else (begin,), "eos_token_ids": ends}


def _scaling(config: Config) -> dict[str, Any]:
    """What config.json says of its rotation, under either of transformers' names for it; the older one counts there."""
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(scaling, dict) or not all(
        isinstance(scaling.get(kind, {}), dict) for kind in ("full_attention", "sliding_attention")
    ):
        raise ValueError(f"rope_parameters and rope_scaling must be objects, got {scaling!r:.80}")
    beside = {key: config[key] for key in ("partial_rotary_factor",) if key in config}
    # Beside the rotation this number counts more than in it.
    above = {key: config[key] for key in ("original_max_position_embeddings",) if config.get(key) is not None}
    return {**beside, **scaling, **above}


def _local_rotary(scaling: Config | None, config: Config, head_dim: int, positions: int) -> Rotary | None:
    """The rotation of layers with a window, where config.json gives them one of their own (Gemma 3)."""
    theta = (scaling or {}).get("rope_theta", config.get("rope_local_base_freq"))
    if theta is None:
        return None
    return read_rotary(scaling or {}, number(theta), head_dim, positions)[0]


def _activation(name: str) -> Activation:
    if name not in _ACTIVATIONS:
        raise ValueError(f"hidden_act is {name!r}; expected one of {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _llama(config: Config) -> Mapping[str, Any]:
    attention = ("q_proj", "k_proj", "v_proj", "o_proj") if switch(config, "attention_bias") else ()
    mlp = ("gate_proj", "up_proj", "down_proj") if switch(config, "mlp_bias") else ()
    return {"activation": _activation(config.get("hidden_act") or "silu"), "biases": attention + mlp}


def _mistral(config: Config) -> Mapping[str, Any]:
    return {"activation": _activation(config.get("hidden_act") or "silu")}


def _qwen2(config: Config) -> Mapping[str, Any]:
    return {"activation": _activation(config.get("hidden_act") or "silu"), "biases": ("q_proj", "k_proj", "v_proj")}


def _qwen3(config: Config) -> Mapping[str, Any]:
    biases = ("q_proj", "k_proj", "v_proj", "o_proj") if switch(config, "attention_bias") else ()
    return {"activation": _activation(config.get("hidden_act") or "silu"), "biases": biases, "qk_norm": True}


def _phi3(config: Config) -> Mapping[str, Any]:
    return {"activation": _activation(config.get("hidden_act") or "silu"), "joined_modules": True}


def _gemma2(config: Config) -> Mapping[str, Any]:
    if switch(config, "attention_bias"):
        raise ValueError("attention_bias is True; only False is supported for Gemma")
    if switch(config, "use_bidirectional_attention"):
        raise ValueError("use_bidirectional_attention is set; only a causal Gemma is supported")
    return {
        "activation": _activation(config.get("hidden_activation") or "gelu_pytorch_tanh"),
        "norms": _FOUR_NORMS,
        "norm_offset": 1.0,
        "embedding_scale": math.sqrt(whole(config["hidden_size"])),
        "attention_scale": 1 / math.sqrt(number(config["query_pre_attn_scalar"])),
        "attention_cap": number(config.get("attn_logit_softcapping") or 0),
        "logit_cap": number(config.get("final_logit_softcapping") or 0),
    }


def _gemma3(config: Config) -> Mapping[str, Any]:
    return {**_gemma2(config), "qk_norm": True}


def _all_layers(config: Config) -> tuple[int, ...]:
    """One window, if any, for every layer."""
    return (whole(config.get("sliding_window") or 0),) * whole(config["num_hidden_layers"])


def _layer_types(config: Config, slides: Callable[[int], bool]) -> tuple[int, ...]:
    """`layer_types` say which layers slide; where they are missing, `slides(layer)` does."""
    layers, types = whole(config["num_hidden_layers"]), config.get("layer_types")
    window = whole(config.get("sliding_window") or 0)
    if types is None:
        types = ["sliding_attention" if slides(layer) else "full_attention" for layer in range(layers)]
    if not isinstance(types, list) or len(types) != layers or set(types) - {"sliding_attention", "full_attention"}:
        raise ValueError(
            f"layer_types must name sliding_attention or full_attention for each of {layers} layers, got {types!r:.120}"
        )
    return tuple(window if kind == "sliding_attention" else 0 for kind in types)


def _no_window(config: Config) -> tuple[int, ...]:
    return ()


def _qwen_windows(config: Config) -> tuple[int, ...]:
    if not switch(config, "use_sliding_window"):
        return ()
    return _layer_types(config, lambda layer: layer >= whole(config.get("max_window_layers", 28)))


def _gemma3_windows(config: Config) -> tuple[int, ...]:
    pattern = whole(config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or 6)
    return _layer_types(config, lambda layer: (layer + 1) % pattern != 0)


_GEMMA_DEFAULTS: Config = {
    "head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 4096, "tie_word_embeddings": True,
}  # fmt: skip
DECODERS: Mapping[str, _Family] = {
    "LlamaForCausalLM": _Family(variations=_llama, windows=_no_window),
    "MistralForCausalLM": _Family(
        variations=_mistral,
        windows=_all_layers,
        defaults={"sliding_window": 4096, "num_key_value_heads": 8, "max_position_embeddings": 131072},
    ),
    "Qwen2ForCausalLM": _Family(
        variations=_qwen2, windows=_qwen_windows, defaults={"sliding_window": 4096, "max_position_embeddings": 32768}
    ),
    "Qwen3ForCausalLM": _Family(
        variations=_qwen3,
        windows=_qwen_windows,
        defaults={"sliding_window": 4096, "head_dim": 128, "max_position_embeddings": 32768},
    ),
    "Phi3ForCausalLM": _Family(
        variations=_phi3, windows=_all_layers,
        defaults={"rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "original_max_position_embeddings": 4096},
        rope_types={"su": "longrope", "yarn": "longrope"},
    ),
    "Gemma2ForCausalLM": _Family(
        variations=_gemma2,
        windows=lambda config: _layer_types(config, lambda layer: layer % 2 == 0),
        defaults={
            **_GEMMA_DEFAULTS, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
            "max_position_embeddings": 8192,
        },
    ),
    "Gemma3ForCausalLM": _Family(
        variations=_gemma3,
        windows=_gemma3_windows,
        defaults={
            **_GEMMA_DEFAULTS, "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0, "max_position_embeddings": 131072,
        },
    ),
}  # fmt: skip
